"""
The models. Importing this package registers every architecture with transformers' Auto classes.

What an architecture consists of stands once, in [`ARCHITECTURES`]. A program that needs one of them names it, in the
environment variable `DSR_ARCHITECTURES` (several with commas between), and does not wait for the others' files; `dsr
ask` and its like do. [`register`] adds one later. This file is not exported to the Hub.
"""

import functools
import importlib
import os
from dataclasses import dataclass

import transformers

ASKED = "DSR_ARCHITECTURES"


@dataclass(frozen=True)
class Architecture:
    """
    The classes of one model type. Configuration and models are in the files that carry its name.

    Args:
        config: class in `configuration_TYPE.py`.
        models: class in `modeling_TYPE.py` by Auto class; the last one is what a converted folder holds.
        processor: "file.class".
    """

    config: str
    models: dict[str, str]
    processor: str

    @property
    def auto_class(self) -> str:
        """The Auto class that opens a converted folder."""
        return list(self.models)[-1]


ARCHITECTURES = {
    "dsr": Architecture(
        "DSRConfig",
        {"AutoModel": "DSRModel", "AutoModelForImageTextToText": "DSRForConditionalGeneration"},
        "processing_dsr.DSRProcessor",
    ),
    "pi3": Architecture("Pi3Config", {"AutoModel": "Pi3Model"}, "processing_geometry.GeometryProcessor"),
    "page4d": Architecture("Page4DConfig", {"AutoModel": "Page4DModel"}, "processing_geometry.GeometryProcessor"),
    "scene_qformer": Architecture(
        "SceneQFormerConfig",
        {
            "AutoModelForImageTextToText": "SceneQFormerForConditionalGeneration",
            "AutoModel": "SceneQFormerModel",
        },
        "processing_scene_qformer.SceneQFormerProcessor",
    ),
    "cadrille": Architecture(
        "CadrilleConfig",
        {"AutoModel": "CadrilleModel", "AutoModelForImageTextToText": "CadrilleForConditionalGeneration"},
        "processing_cadrille.CadrilleProcessor",
    ),
    "cad_recode": Architecture(
        "CADRecodeConfig",
        {"AutoModel": "CADRecodeModel", "AutoModelForCausalLM": "CADRecodeForCausalLM"},
        "processing_cad_recode.CADRecodeProcessor",
    ),
    "frozen_qwen_sam": Architecture(
        "FrozenQwenSAMConfig",
        {"AutoModel": "FrozenQwenSAMModel"},
        "processing_frozen_qwen_sam.FrozenQwenSAMProcessor",
    ),
}


def _class(file: str, name: str) -> type:
    return getattr(importlib.import_module(f".{file}", __name__), name)


@functools.cache
def register(model_type: str) -> None:
    """
    Make an architecture known to transformers' Auto classes.

    Raises:
        ValueError: there is none of that name.
    """
    if model_type not in ARCHITECTURES:
        raise ValueError(f"There is no architecture {model_type!r}; there are {', '.join(ARCHITECTURES)}.")
    architecture = ARCHITECTURES[model_type]
    config = _class(f"configuration_{model_type}", architecture.config)
    transformers.AutoConfig.register(model_type, config, exist_ok=True)
    for auto_class, name in architecture.models.items():
        model = _class(f"modeling_{model_type}", name)
        getattr(transformers, auto_class).register(config, model, exist_ok=True)
    transformers.AutoProcessor.register(config, _class(*architecture.processor.split(".")), exist_ok=True)


def asked() -> list[str]:
    """The architectures that `DSR_ARCHITECTURES` names; all of them where it names none."""
    named = os.environ.get(ASKED, "").replace(",", " ").split()
    unknown = [name for name in named if name not in ARCHITECTURES]
    if unknown:
        raise ValueError(f"{ASKED} names {', '.join(unknown)}; there are {', '.join(ARCHITECTURES)}.")
    return named or list(ARCHITECTURES)


for _model_type in asked():
    register(_model_type)
