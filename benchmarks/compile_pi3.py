"""torch.compile of π³ on 8 frames of 112×112 (width 192, 4 + 6 layers, random weights)."""

import torch

from benchmarks import compiling
from benchmarks.pi3_memory import make_model

NAME = "compile.pi3"


def run() -> list[dict]:
    images = torch.rand(1, 8, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    return compiling.rows(NAME, make_model(), {"pixel_values": images}, lambda found: found["local_points"], 0)
