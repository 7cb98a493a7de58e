"""The architectures that can be converted, by name."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Modules are imported when they are asked for. `convert_weights/recipe.py` tells what one consists of.
ARCHITECTURES = {
    "dsr": "convert_weights.architectures.dsr",
    "pi3": "convert_weights.architectures.pi3",
    "page4d": "convert_weights.architectures.page4d",
    "scene_qformer": "convert_weights.architectures.scene_qformer",
    "cadrille": "convert_weights.architectures.cadrille",
    "cad_recode": "convert_weights.architectures.cad_recode",
    "frozen_qwen_sam": "convert_weights.architectures.frozen_qwen_sam",
}


def architecture(name: str) -> ModuleType:
    """The module of an architecture."""
    if name not in ARCHITECTURES:
        raise ValueError(f"`arch` must be one of {sorted(ARCHITECTURES)}, got {name!r}.")
    return importlib.import_module(ARCHITECTURES[name])


def model_class(arch: str, name: str) -> type[PreTrainedModel]:
    """A model class that folders of this architecture may hold, by its name."""
    models = architecture(arch).MODELS
    if name not in models:
        raise ValueError(f"{arch} has no model class {name!r}; it has {sorted(models)}.")
    return getattr(importlib.import_module(models[name]), name)
