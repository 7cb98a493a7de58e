"""Every processor of the library by name: `from processing_dsr import GeometryProcessor`.

Each is defined in the package, in the file of its architecture, and imported when it is asked for.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modeling_dsr.processing_cad_recode import CADRecodeProcessor as CADRecodeProcessor
    from modeling_dsr.processing_cadrille import CadrilleProcessor as CadrilleProcessor
    from modeling_dsr.processing_dsr import DSRProcessor as DSRProcessor
    from modeling_dsr.processing_frozen_qwen_sam import FrozenQwenSAMProcessor as FrozenQwenSAMProcessor
    from modeling_dsr.processing_geometry import GeometryProcessor as GeometryProcessor
    from modeling_dsr.processing_scene_qformer import SceneQFormerProcessor as SceneQFormerProcessor

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
