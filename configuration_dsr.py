"""Every configuration of the library by name: `from configuration_dsr import Page4DConfig`.

Each is defined in the package, in the file of its architecture, and imported when it is asked for.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modeling_dsr.configuration_cad_recode import CADRecodeConfig as CADRecodeConfig
    from modeling_dsr.configuration_cadrille import CadrilleConfig as CadrilleConfig
    from modeling_dsr.configuration_dsr import DSRConfig as DSRConfig
    from modeling_dsr.configuration_frozen_qwen_sam import FrozenQwenSAMConfig as FrozenQwenSAMConfig
    from modeling_dsr.configuration_page4d import Page4DConfig as Page4DConfig
    from modeling_dsr.configuration_pi3 import Pi3Config as Pi3Config
    from modeling_dsr.configuration_scene_qformer import SceneMapConfig as SceneMapConfig
    from modeling_dsr.configuration_scene_qformer import SceneQFormerConfig as SceneQFormerConfig

HOMES = {
    "CADRecodeConfig": "configuration_cad_recode",
    "CadrilleConfig": "configuration_cadrille",
    "DSRConfig": "configuration_dsr",
    "FrozenQwenSAMConfig": "configuration_frozen_qwen_sam",
    "Page4DConfig": "configuration_page4d",
    "Pi3Config": "configuration_pi3",
    "SceneMapConfig": "configuration_scene_qformer",
    "SceneQFormerConfig": "configuration_scene_qformer",
}
__all__ = sorted(HOMES)


def __getattr__(name: str):
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"modeling_dsr.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
