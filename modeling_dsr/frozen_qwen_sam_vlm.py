"""Qwen's vision-language models under names of our own, for use inside another model.

transformers saves and loads its own Qwen classes in the layout of older checkpoints, wherever they sit in a model. A
class of another name keeps the names of the parameters in memory on disk too, under every version.
"""

import os
from typing import Callable

from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel, SamModel
from transformers.modeling_utils import load_state_dict
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLForConditionalGeneration, Qwen2VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLModel
from transformers.utils import cached_file


class FrozenQwen2VLModel(Qwen2VLModel):
    """[`Qwen2VLModel`]."""


class FrozenQwen2_5_VLModel(Qwen2_5_VLModel):
    """[`Qwen2_5_VLModel`]."""


class FrozenQwen3VLModel(Qwen3VLModel):
    """[`Qwen3VLModel`]."""


class FrozenQwen2VL(Qwen2VLForConditionalGeneration):
    """[`Qwen2VLForConditionalGeneration`]."""

    def __init__(self, config: PreTrainedConfig):
        super(Qwen2VLForConditionalGeneration, self).__init__(config)
        _build(self, FrozenQwen2VLModel)


class FrozenQwen2_5_VL(Qwen2_5_VLForConditionalGeneration):
    """[`Qwen2_5_VLForConditionalGeneration`]."""

    def __init__(self, config: PreTrainedConfig):
        super(Qwen2_5_VLForConditionalGeneration, self).__init__(config)
        _build(self, FrozenQwen2_5_VLModel)


class FrozenQwen3VL(Qwen3VLForConditionalGeneration):
    """[`Qwen3VLForConditionalGeneration`]."""

    def __init__(self, config: PreTrainedConfig):
        super(Qwen3VLForConditionalGeneration, self).__init__(config)
        _build(self, FrozenQwen3VLModel)


FROZEN_VLMS = {"qwen2_vl": FrozenQwen2VL, "qwen2_5_vl": FrozenQwen2_5_VL, "qwen3_vl": FrozenQwen3VL}


def _build(model: PreTrainedModel, base_class: type[PreTrainedModel]) -> None:
    text = model.config.get_text_config()
    model.model = base_class(model.config)
    model.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
    model.post_init()


# Parameters that are not trained, and where they come from: prefix here -> (field of the config, class, prefix there).
FROZEN = {
    "vlm.": ("vlm_source", AutoModelForImageTextToText, ""),
    "sam.vision_encoder.": ("sam_source", SamModel, "vision_encoder."),
}
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def save_trained_parts(model: PreTrainedModel, save_directory: str | os.PathLike, save: Callable, **kwargs) -> None:
    """Save everything but the frozen weights with `save`, the method of transformers."""
    config = model.config
    for field, _, _ in FROZEN.values():
        if not (getattr(config, field) or {}).get("repo"):
            raise ValueError(
                f"`save_trained_only=True` leaves out the frozen weights, but `config.{field}` does not say where they "
                "are. "
                f'Set it, for example model.config.{field} = {{"repo": "owner/name", "revision": "main"}}.'
            )
    state = kwargs.pop("state_dict", None) or model.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(FROZEN))}
    config.trained_only = True
    try:
        save(save_directory, state_dict=state, **kwargs)
    finally:
        config.trained_only = False


def load_with_sources(cls, load: Callable, path, *args, **kwargs):
    """`load`, the method of transformers, with the weights that a folder of trained parts refers to."""
    config = kwargs.get("config")
    options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
    if path is not None and not hasattr(config, "trained_only"):
        config = cls.config_class.from_pretrained(path if config is None else config, **options)
    if path is None or not config.trained_only:
        return load(path, *args, **kwargs)

    state = load_state_dict(cached_file(path, "model.safetensors", **options))
    reading = {name: kwargs[name] for name in ("dtype", "token", "cache_dir", "local_files_only") if name in kwargs}
    for here, (field, source_class, there) in FROZEN.items():
        source = getattr(config, field)
        frozen = source_class.from_pretrained(source["repo"], revision=source.get("revision") or "main", **reading)
        for name, tensor in frozen.state_dict().items():
            if name.startswith(there):
                state[here + name.removeprefix(there)] = tensor
    config.trained_only = False
    kwargs = {name: value for name, value in kwargs.items() if name not in HUB_OPTIONS}
    return load(None, *args, **{**kwargs, "config": config, "state_dict": state})
