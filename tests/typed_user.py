"""What a user's type checker sees of the library: `mypy` reads this file, nothing runs it."""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from PIL import Image

from configuration_dsr import (
    CADRecodeConfig,
    CadrilleConfig,
    DSRConfig,
    FrozenQwenSAMConfig,
    Page4DConfig,
    Pi3Config,
    SceneQFormerConfig,
)
from convert_weights import HubReport, Report, assemble, convert, verify
from dsr_toolkit.cad import Execution, Sandbox
from dsr_toolkit.cli import main
from dsr_toolkit.reconstruction import View
from dsr_toolkit.tiny import build
from dsr_toolkit.training import Trained, load_recipe, train
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration
from modeling_dsr.modeling_page4d import Page4DModel
from modeling_dsr.modeling_pi3 import Pi3Model
from modeling_dsr.processing_geometry import SceneGeometry
from processing_dsr import DSRProcessor, FrozenQwenSAMProcessor, GeometryProcessor


def configurations() -> None:
    assert_type(Pi3Config().num_decoder_layers, int)
    assert_type(Page4DConfig().embed_dim, int)
    assert_type(Page4DConfig().is_multiview, bool)
    kinds = (CADRecodeConfig, CadrilleConfig, DSRConfig, FrozenQwenSAMConfig, SceneQFormerConfig)
    assert_type([kind.model_type for kind in kinds], list[str])


def models() -> None:
    assert_type(Page4DModel(Page4DConfig()), Page4DModel)
    answers: DSRForConditionalGeneration = DSRForConditionalGeneration.from_pretrained("folder")
    assert_type(answers.config.question_scope, str)
    assert_type(Pi3Model(Pi3Config()).freeze("confidence"), Pi3Model)


def processors(geometry: GeometryProcessor, dsr: DSRProcessor, masks: FrozenQwenSAMProcessor) -> None:
    scenes = geometry.post_process_geometry({})
    assert_type(scenes, list[SceneGeometry])
    assert_type(scenes[0].camera_poses, torch.Tensor)
    assert_type(dsr.post_process_geometry_attentions([]), list[torch.Tensor])
    assert_type(masks.draw_masks("picture.png", {}), Image.Image)


def conversion() -> None:
    assert_type(convert("pi3", {"pi3": Path("model.safetensors")}, "folder"), Report)
    assert_type(assemble({"pi3": Path("folder")}, "repository"), HubReport)
    assert_type(verify("folder"), list[str])


def toolkit(view: View) -> None:
    assert_type(build("pi3", "folder"), Path)
    assert_type(train(load_recipe("tiny/pi3"), "out"), Trained)
    assert_type(main(["demo"]), int)
    assert_type(view.points, np.ndarray)
    with Sandbox() as sandbox:
        assert_type(sandbox.run("r = 1"), Execution)
    assert_type(view.camera_to_world, np.ndarray)
