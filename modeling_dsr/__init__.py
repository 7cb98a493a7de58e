"""
The models. Importing this package registers every architecture with transformers' Auto classes.

What an architecture consists of stands once, in [`ARCHITECTURES`]. This file is not exported to the Hub.
"""

import importlib
from dataclasses import dataclass

import transformers


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


for _model_type, _architecture in ARCHITECTURES.items():
    _config = _class(f"configuration_{_model_type}", _architecture.config)
    transformers.AutoConfig.register(_model_type, _config, exist_ok=True)
    for _auto_class, _model in _architecture.models.items():
        _model_class = _class(f"modeling_{_model_type}", _model)
        getattr(transformers, _auto_class).register(_config, _model_class, exist_ok=True)
    transformers.AutoProcessor.register(_config, _class(*_architecture.processor.split(".")), exist_ok=True)
