"""transformers pipelines of tasks that it has none for. `config.json` names them, so that `pipeline` finds them by task:

    pipeline("scene-reconstruction", model=REPO, trust_remote_code=True)     Pi3Model, Page4DModel
    pipeline("phrase-segmentation", model=REPO, trust_remote_code=True)      FrozenQwenSAMModel
    pipeline("cad-generation", model=REPO, trust_remote_code=True)           Cadrille, CAD-Recode

For a model in a subfolder pass `model_kwargs={"subfolder": NAME}` and its processor, loaded with the same subfolder.
"""

import torch
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save


class _SpatialPipeline(Pipeline):
    """A pipeline that has a processor and takes one input at a time, whatever that is made of."""

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False
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


class SceneReconstructionPipeline(_SpatialPipeline):
    """
    Cameras, depth and points of one scene.

    Calling it takes a scene as [`GeometryProcessor`] does (a folder, a video file, or a list of images) and returns a
    [`SceneGeometry`]. Options: `interval`, `fps`, `num_frames` say which frames; those of `post_process_geometry`.
    """

    PREPROCESS = ("interval", "fps", "num_frames")
    POSTPROCESS = (
        "confidence_threshold", "edge_tolerance", "center_principal_point", "first_camera", "point_source"
    )  # fmt: skip

    def __call__(self, scene, **options):
        return super().__call__({"scene": scene}, **options)

    def preprocess(self, inputs, **options):
        return self.processor(inputs["scene"], **options)

    def _forward(self, inputs):
        outputs = self.model(inputs["pixel_values"])
        return {"outputs": outputs, "original_sizes": inputs["original_sizes"], "image_boxes": inputs["image_boxes"]}

    def postprocess(self, result, **options):
        return self.processor.post_process_geometry(**result, **options)[0]


class PhraseSegmentationPipeline(_SpatialPipeline):
    """
    Masks for phrases of an image, or a grounded answer about it.

    Calling it takes an image and either `phrases` or a `question` (with `phrases`, words of the answer; else the language
    model lists its noun phrases). It returns `phrases`, `masks` bool `[n, H, W]`, `scores`, `boxes`, and `answer` if there
    was a question. Options: `caption`, `max_new_tokens`, `threshold`, `return_rle`.
    """

    FORWARD = ("max_new_tokens",)
    POSTPROCESS = ("threshold", "return_rle")

    def __call__(self, image, phrases=None, question=None, caption=None, **options):
        if not phrases and question is None:
            raise ValueError("Pass `phrases` to look for, or a `question`.")
        if caption is not None and question is not None:
            raise ValueError("With `question` the answer is the caption: leave `caption` out.")
        given = {"image": image, "phrases": phrases, "question": question, "caption": caption}
        return super().__call__(given, **options)

    def preprocess(self, inputs):
        if inputs["question"] is None:
            encoded = self.processor(
                images=inputs["image"], phrases=list(inputs["phrases"]), captions=inputs["caption"]
            )
        else:
            content = [{"type": "image"}, {"type": "text", "text": inputs["question"]}]
            encoded = self.processor(images=inputs["image"], text=[{"role": "user", "content": content}])
        return {"encoded": dict(encoded), "phrases": inputs["phrases"], "asked": inputs["question"] is not None}

    def _forward(self, inputs, max_new_tokens=128):
        phrases = inputs["phrases"]
        if not inputs["asked"]:
            return {"masks": self.model(**inputs["encoded"]).sam_pred_masks, "phrases": phrases, "answer": None}
        found = self.model.answer_and_ground(self.processor, inputs["encoded"], phrases, max_new_tokens=max_new_tokens)
        masks = found.output and found.output.sam_pred_masks
        return {"masks": masks, "phrases": found.phrases, "answer": found.answer}

    def postprocess(self, result, **options):
        found = {
            "phrases": [],
            "masks": torch.zeros(0, 0, 0, dtype=torch.bool),
            "scores": torch.zeros(0),
            "boxes": torch.zeros(0, 4),
        }
        if result["masks"] is not None:
            found = self.processor.post_process_masks(_Masks(result["masks"]), [result["phrases"]], **options)[0]
        return found if result["answer"] is None else {"answer": result["answer"], **found}


class _Masks:
    """The part of the model's output that `post_process_masks` reads."""

    def __init__(self, masks):
        self.sam_pred_masks = masks


class CadGenerationPipeline(_SpatialPipeline):
    """
    CadQuery programs for one part.

    Calling it takes one of `mesh` (file or [`TriangleMesh`]), `points` `[P, 3]`, `images` (a picture of views, or a list of
    1, 2 or 4) or `text`; CAD-Recode takes the first two. It returns a list of programs as text, which nobody has checked or
    run. Options: `normalization` and `seed` of the processor, `modality="views"` to show a mesh, and those of `generate`:
    `max_new_tokens` (default 768), `do_sample`, `num_return_sequences`, `temperature`, `top_p`.
    """

    PREPROCESS = ("normalization", "seed", "modality")
    FORWARD = ("max_new_tokens", "do_sample", "num_return_sequences", "temperature", "top_p")
    NAMES = {"mesh": "meshes", "points": "point_clouds", "images": "images", "text": "text"}

    def __call__(self, mesh=None, points=None, images=None, text=None, **options):
        parts = {"mesh": mesh, "points": points, "images": images, "text": text}
        given = {name: part for name, part in parts.items() if part is not None}
        if len(given) != 1:
            raise ValueError(f"Pass one of {', '.join(parts)}; got {', '.join(given) or 'none of them'}.")
        ((name, part),) = given.items()
        return super().__call__({self.NAMES[name]: [part]}, **options)

    def preprocess(self, inputs, **options):
        return self.processor(**inputs, **options)

    def _forward(self, inputs, **options):
        if not options.get("do_sample"):
            options = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **options}
        sequences = self.model.generate(**inputs, **{"max_new_tokens": 768, **options})
        return {"sequences": sequences, "prompt_length": inputs["input_ids"].shape[1]}

    def postprocess(self, result):
        return self.processor.decode_programs(**result)
