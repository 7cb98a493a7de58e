"""A box, and tiny Cadrille and CAD-Recode models and prompts for the tests."""

import numpy as np
import torch

from configuration_dsr import CADRecodeConfig, CadrilleConfig
from modeling_dsr.cad_solids import TriangleMesh

VOCABULARY, NUM_POINTS = 96, 5
POINT, IM_START, IM_END, VISION_START, VISION_END, IMAGE, VIDEO = 80, 81, 82, 83, 84, 85, 86
GRID = (1, 4, 6)  # patches of a sample's views; 2 x 3 vision tokens

TEXT = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256,
)  # fmt: skip

CUBE_CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
CUBE_FACES = [
    [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
    [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
]  # fmt: skip


def box(*size: float) -> TriangleMesh:
    """A box with a corner at the origin."""
    return TriangleMesh(CUBE_CORNERS * size, CUBE_FACES)


def cadrille_config(**overrides) -> CadrilleConfig:
    text = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}}
    vision = dict(depth=2, embed_dim=16, num_heads=2, hidden_size=32, mlp_ratio=2)
    fields = dict(
        num_points=NUM_POINTS, point_token_id=POINT, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )  # fmt: skip
    return CadrilleConfig(text_config=text, vision_config=vision, **{**fields, **overrides})


def cad_recode_config(**overrides) -> CADRecodeConfig:
    return CADRecodeConfig(**{**TEXT, "num_points": NUM_POINTS, "point_token_id": POINT, **overrides})


def cloud(seed: int, channels: int = 3) -> torch.Tensor:
    return 2 * torch.rand(NUM_POINTS, channels, generator=torch.Generator().manual_seed(seed)) - 1


def words(seed: int, count: int) -> list[int]:
    return torch.randint(0, POINT, (count,), generator=torch.Generator().manual_seed(100 + seed)).tolist()


def pad(rows: list[list[int]], value: int, side: str) -> torch.Tensor:
    length = max(map(len, rows))
    fill = [[value] * (length - len(row)) for row in rows]
    return torch.tensor([f + row if side == "left" else row + f for f, row in zip(fill, rows)])


def cadrille_inputs(kinds: str, side: str = "left", answer: int = 0) -> dict:
    """A batch with one sample per letter: "p" points, "v" views, "t" text alone."""
    rows, labels = [], []
    for i, kind in enumerate(kinds):
        vision = [VISION_START, *[VIDEO] * 6, VISION_END] if kind == "v" else []
        prompt = [POINT] * NUM_POINTS * (kind == "p") + [IM_START, *words(i, 3), *vision, *words(i + 50, 2 + i), IM_END]
        reply = words(i + 70, answer) + [IM_END] if answer else []
        rows.append(prompt + reply)
        labels.append([-100] * len(prompt) + reply)
    shown = torch.tensor([kind == "v" for kind in kinds])
    inputs = {
        "input_ids": pad(rows, POINT, side),
        "attention_mask": pad([[1] * len(row) for row in rows], 0, side),
        "is_pc": torch.tensor([kind == "p" for kind in kinds]),
        "is_img": shown,
    }
    if "p" in kinds:
        inputs["point_clouds"] = torch.stack(
            [cloud(i) if kind == "p" else torch.zeros(NUM_POINTS, 3) for i, kind in enumerate(kinds)]
        )
    if "v" in kinds:
        patches = [torch.randn(24, 1176, generator=torch.Generator().manual_seed(i)) for i in range(len(kinds))]
        inputs["pixel_values_videos"] = torch.stack(patches) * shown[:, None, None]
        inputs["video_grid_thw"] = torch.tensor([GRID]) * shown[:, None]
    if answer:
        inputs["labels"] = pad(labels, -100, side)
    return inputs


def cad_recode_inputs(batch: int, side: str = "left", answer: int = 0, lengths=(2, 4, 1), marked: bool = False) -> dict:
    """Prompts of different lengths; `marked`: -1 in the mask at the points, as published."""
    rows, labels, marks = [], [], []
    for i in range(batch):
        prompt = [POINT] * NUM_POINTS + [IM_START, *words(i, lengths[i])]
        reply = words(i + 70, answer) + [IM_END] if answer else []
        rows.append(prompt + reply)
        labels.append([-100] * len(prompt) + reply)
        marks.append([-1 if marked else 1] * NUM_POINTS + [1] * (len(prompt + reply) - NUM_POINTS))
    inputs = {
        "input_ids": pad(rows, POINT, side),
        "attention_mask": pad(marks, 0, side),
        "point_cloud": torch.stack([cloud(i) for i in range(batch)]),
    }
    if answer:
        inputs["labels"] = pad(labels, -100, side)
    return inputs
