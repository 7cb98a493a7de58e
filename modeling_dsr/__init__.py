"""Registers every architecture with transformers' Auto classes. This file is not exported to the Hub."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from configuration_dsr import (
    CADRecodeConfig,
    CadrilleConfig,
    DSRConfig,
    FrozenQwenSAMConfig,
    Page4DConfig,
    Pi3Config,
    SceneQFormerConfig,
)
from processing_dsr import (
    CADRecodeProcessor,
    CadrilleProcessor,
    DSRProcessor,
    FrozenQwenSAMProcessor,
    GeometryProcessor,
    SceneQFormerProcessor,
)

from .modeling_cad_recode import CADRecodeForCausalLM, CADRecodeModel
from .modeling_cadrille import CadrilleForConditionalGeneration, CadrilleModel
from .modeling_dsr import DSRForConditionalGeneration, DSRModel
from .modeling_frozen_qwen_sam import FrozenQwenSAMModel
from .modeling_page4d import Page4DModel
from .modeling_pi3 import Pi3Model
from .modeling_scene_qformer import SceneQFormerForConditionalGeneration, SceneQFormerModel

AutoConfig.register("dsr", DSRConfig, exist_ok=True)
AutoModel.register(DSRConfig, DSRModel, exist_ok=True)
AutoModelForImageTextToText.register(DSRConfig, DSRForConditionalGeneration, exist_ok=True)
AutoProcessor.register(DSRConfig, DSRProcessor, exist_ok=True)

AutoConfig.register("pi3", Pi3Config, exist_ok=True)
AutoModel.register(Pi3Config, Pi3Model, exist_ok=True)
AutoProcessor.register(Pi3Config, GeometryProcessor, exist_ok=True)

AutoConfig.register("page4d", Page4DConfig, exist_ok=True)
AutoModel.register(Page4DConfig, Page4DModel, exist_ok=True)
AutoProcessor.register(Page4DConfig, GeometryProcessor, exist_ok=True)

AutoConfig.register("scene_qformer", SceneQFormerConfig, exist_ok=True)
AutoModel.register(SceneQFormerConfig, SceneQFormerModel, exist_ok=True)
AutoModelForImageTextToText.register(SceneQFormerConfig, SceneQFormerForConditionalGeneration, exist_ok=True)
AutoProcessor.register(SceneQFormerConfig, SceneQFormerProcessor, exist_ok=True)

AutoConfig.register("cadrille", CadrilleConfig, exist_ok=True)
AutoModel.register(CadrilleConfig, CadrilleModel, exist_ok=True)
AutoModelForImageTextToText.register(CadrilleConfig, CadrilleForConditionalGeneration, exist_ok=True)
AutoProcessor.register(CadrilleConfig, CadrilleProcessor, exist_ok=True)

AutoConfig.register("cad_recode", CADRecodeConfig, exist_ok=True)
AutoModel.register(CADRecodeConfig, CADRecodeModel, exist_ok=True)
AutoModelForCausalLM.register(CADRecodeConfig, CADRecodeForCausalLM, exist_ok=True)
AutoProcessor.register(CADRecodeConfig, CADRecodeProcessor, exist_ok=True)

AutoConfig.register("frozen_qwen_sam", FrozenQwenSAMConfig, exist_ok=True)
AutoModel.register(FrozenQwenSAMConfig, FrozenQwenSAMModel, exist_ok=True)
AutoProcessor.register(FrozenQwenSAMConfig, FrozenQwenSAMProcessor, exist_ok=True)
