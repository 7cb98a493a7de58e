"""Every processor of the library by name: `from processing_dsr import GeometryProcessor`.

Each is defined in the package, in the file of its architecture, and imported when it is asked for.
"""

import importlib

HOMES = {
    "CADRecodeProcessor": "processing_cad_recode",
    "CadrilleProcessor": "processing_cadrille",
    "DSRProcessor": "processing_dsr",
    "FrozenQwenSAMProcessor": "processing_frozen_qwen_sam",
    "GeometryProcessor": "processing_geometry",
    "SceneQFormerProcessor": "processing_scene_qformer",
}
__all__ = sorted(HOMES)


def __getattr__(name: str):
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"modeling_dsr.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
