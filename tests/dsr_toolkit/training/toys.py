"""Functions that the recipes of the tests name: a π³ of a few thousand parameters on planes that stand before
cameras."""

import numpy as np
import torch

from modeling_dsr.modeling_pi3 import Pi3Model
from processing_dsr import GeometryProcessor
from tests.modeling_dsr.pi3_samples import tiny_config

SIDE, FRAMES = 28, 2


class Planes:
    """An endless world: planes at a distance that the grey of the picture tells."""

    def __init__(self, seed: int):
        self.seed = seed

    def __getitem__(self, index: int) -> dict:
        generator = np.random.default_rng([self.seed, index])
        depth = generator.uniform(1, 3, FRAMES).astype(np.float32)
        return {"depth": depth, "pixels": np.broadcast_to(depth[:, None, None, None] / 3, (FRAMES, 3, SIDE, SIDE))}


def rows(seed: int):
    return Planes(seed)


def build():
    return Pi3Model(tiny_config("pi3", confidence_loss_weight=0.05)), GeometryProcessor(pixel_limit=SIDE * SIDE)


def collator(processor):
    return collate


def seedless_collator(processor):
    """Of rows that have no seed: noise of their own number."""
    return collate_numbered


def collate_numbered(rows: list[dict]) -> dict:
    return collate([{**row, "seed": row["row_number"]} for row in rows])


def collate(rows: list[dict]) -> dict:
    line = torch.linspace(-0.5, 0.5, SIDE)
    rays = torch.stack([*torch.meshgrid(line, line, indexing="xy"), torch.ones(SIDE, SIDE)], -1)
    depth = torch.stack([torch.from_numpy(row["depth"]) for row in rows])
    points = rays * depth[..., None, None, None]
    # Noise of the row's own: what a resumed run must repeat.
    noise = torch.stack([torch.rand(FRAMES, 3, SIDE, SIDE, generator=_generator(row["seed"])) for row in rows])
    return {
        "pixel_values": torch.stack([torch.tensor(row["pixels"]) for row in rows]) + 0.01 * noise,
        "target_points": points,
        "target_camera_poses": torch.eye(4).expand(len(rows), FRAMES, 4, 4),
    }


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measure(model, processor, rows, inputs, outputs) -> dict:
    found, wanted = outputs.local_points[..., 2].mean((2, 3)), inputs["target_points"][..., 2].mean((2, 3))
    ratio = found[:, 0] / found[:, 1] * wanted[:, 1] / wanted[:, 0]
    right = (ratio > 0.9) & (ratio < 1.1)
    return {"ratio_median": ratio.log().abs(), "right": (float(right.sum()), len(rows))}


def show(model, processor, rows, inputs) -> list[dict]:
    from PIL import Image

    return [{"picture": Image.new("L", (4, 4)), "depth": [float(d) for d in row["depth"]]} for row in rows]


def copy_model(folders, output, source) -> None:
    import shutil

    shutil.copytree(folders[source], output)
