"""What generation needs beyond transformers' own: settings of models in subfolders, lookup in batches, prompts, the
cache."""

from dataclasses import fields
from pathlib import Path

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

# transformers 5.24 has renamed what its models take and return; earlier releases know the old name alone.
CACHE = "cache" if any(field.name == "cache" for field in fields(BaseModelOutputWithPast)) else "past_key_values"


class OwnGenerationSettings:
    """
    Mixin: `from_pretrained(FOLDER, subfolder=NAME)` takes `generation_config.json` from the subfolder.

    transformers (5.17 to 5.23) takes the one at the root of a local folder, which belongs to another model, with its
    end tokens and penalties. From the Hub it takes the right one.

    `generate` with `prompt_lookup_num_tokens` looks up for a row that is alone, as transformers' does. Several rows,
    for which that raises an error, go on without: the greedy tokens are the same.
    """

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args, **kwargs):
        given = [inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
        rows = next((len(one) for one in given if one is not None), 1)
        if kwargs.get("prompt_lookup_num_tokens") and rows * (kwargs.get("num_return_sequences") or 1) > 1:
            kwargs.pop("prompt_lookup_num_tokens")
        return super().generate(inputs, *args, **kwargs)

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


def is_started(cache: Cache | None) -> bool:
    """Whether a cache holds tokens: what follows is no prefill."""
    return cache is not None and bool(cache.get_seq_length() > 0)
