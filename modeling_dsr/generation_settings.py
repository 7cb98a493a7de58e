"""What generation needs beyond transformers' own: settings of models in subfolders, prompts as embeddings."""

from pathlib import Path

from transformers import GenerationConfig


class OwnGenerationSettings:
    """
    Mixin: `from_pretrained(FOLDER, subfolder=NAME)` takes `generation_config.json` from the subfolder.

    transformers (5.17 to 5.23) takes the one at the root of a local folder, which belongs to another model, with its
    end tokens and penalties. From the Hub it takes the right one.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        folder = Path(str(pretrained_model_name_or_path)) / (kwargs.get("subfolder") or "")
        if kwargs.get("subfolder") and folder.is_dir():
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            if (folder / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(folder)
            else:
                model.generation_config = GenerationConfig.from_model_config(model.config)
        return loaded


def prompt_length(model_inputs: dict) -> int:
    """Tokens of a step's input, which comes as ids or, at prefill, as embeddings."""
    ids = model_inputs.get("input_ids")
    return ids.shape[1] if ids is not None else model_inputs["inputs_embeds"].shape[1]
