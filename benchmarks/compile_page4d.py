"""torch.compile of PAGE-4D on 4 frames of 112×112 (width 128, 24 layers, random weights, mask on)."""

import torch

from benchmarks import compiling
from benchmarks.full_models import make_model
from modeling_dsr.configuration_page4d import Page4DConfig
from modeling_dsr.modeling_page4d import Page4DModel

NAME = "compile.page4d"


def run() -> list[dict]:
    config = Page4DConfig(
        embed_dim=128, num_heads=4, encoder_config=dict(num_hidden_layers=4, num_attention_heads=4), camera_num_heads=4,
        camera_depth=2, dpt_features=32, dpt_out_channels=[32, 32, 64, 64], dpt_hidden_channels=8,
    )  # fmt: skip
    images = torch.rand(1, 4, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    given = {"pixel_values": images, "mask_alpha": 1.0}
    return compiling.rows(NAME, make_model(Page4DModel, config), given, lambda found: found["depth"], 0)
