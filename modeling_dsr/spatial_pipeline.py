"""
What the pipelines of this library share. `config.json` names a model's pipeline, so that `pipeline` finds it by task:

    pipeline("scene-reconstruction", model=REPO, trust_remote_code=True)     Pi3Model, Page4DModel
    pipeline("phrase-segmentation", model=REPO, trust_remote_code=True)      FrozenQwenSAMModel
    pipeline("cad-generation", model=REPO, trust_remote_code=True)           Cadrille, CAD-Recode

For a model in a subfolder pass `model_kwargs={"subfolder": NAME}` and its processor, loaded with the same subfolder.
"""

from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save


class SpatialPipeline(Pipeline):
    """A pipeline that has a processor and takes one input at a time, whatever that is made of."""

    # transformers gives these the value None, and with it the type.
    _load_processor = True  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]
    PREPROCESS: tuple[str, ...] = ()
    FORWARD: tuple[str, ...] = ()
    POSTPROCESS: tuple[str, ...] = ()

    def _sanitize_parameters(self, **options):
        known = (self.PREPROCESS, self.FORWARD, self.POSTPROCESS)
        unknown = [name for name in options if not any(name in names for names in known)]
        if unknown:
            raise ValueError(f"{type(self).__name__} has no options {unknown}; there are {', '.join(sum(known, ()))}.")
        return tuple({name: options[name] for name in names if name in options} for names in known)

    def save_pretrained(self, save_directory, **kwargs):
        """Model and processor, with their code and that of this pipeline."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        custom_object_save(self, save_directory)
