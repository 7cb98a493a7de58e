"""Tiny scene Q-Formers and scenes for them."""

import numpy as np
import torch
from PIL import Image

from configuration_dsr import SceneQFormerConfig
from modeling_dsr.configuration_scene_qformer import SCENE_CAMERAS

IMAGE_SIZE = (64, 96)
IMAGE_TOKEN_ID = 511

# Directions of the six cameras (degrees to the left of forward), in nuScenes' order.
YAWS = {
    "CAM_FRONT": 0,
    "CAM_FRONT_RIGHT": -55,
    "CAM_FRONT_LEFT": 55,
    "CAM_BACK": 180,
    "CAM_BACK_LEFT": 110,
    "CAM_BACK_RIGHT": -110,
}
# Camera axes (right, down, forward) in vehicle axes (forward, left, up) for a camera that looks ahead.
AHEAD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=np.float32)

TINY_BACKBONE = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 2]}
TINY_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,  # of the tiny tokenizer and more
}
TINY_MAP = {
    "num_instances": 4,
    "num_points": 5,
    "embed_dims": 16,
    "num_heads": 2,
    "num_layers": 1,
    "ffn_dims": 24,
    "instance_dims": [24],
    "point_dims": [24],
    "num_refinements": 2,
    "point_heads": 2,
    "coordinate_dims": 8,
    "num_frequencies": 3,
}


def tiny_config(**overrides) -> SceneQFormerConfig:
    values = {
        "embed_dims": 32,
        "num_queries": 14,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "ffn_dims": 48,
        "llm_hidden_size": 24,
        "depth_num": 3,
        "num_point_features": 8,
        "per_depth_dims": 8,
        "aggregation_dims": [24, 16],
        "backbone_config": dict(TINY_BACKBONE),
    }
    return SceneQFormerConfig(**{**values, **overrides})


def tiny_language_config(**overrides) -> SceneQFormerConfig:
    values = {"text_config": dict(TINY_TEXT), "map_config": dict(TINY_MAP), "image_token_id": IMAGE_TOKEN_ID}
    return tiny_config(**{**values, **overrides})


def extrinsics() -> torch.Tensor:
    """`[6, 4, 4]` camera → vehicle of a rig like nuScenes'."""
    matrices = np.tile(np.eye(4, dtype=np.float32), (6, 1, 1))
    for number, name in enumerate(SCENE_CAMERAS):
        angle = np.deg2rad(YAWS[name])
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        matrices[number, :3, :3] = turn @ AHEAD
        matrices[number, :3, 3] = (1.5 * np.cos(angle), 1.0 * np.sin(angle), 1.5)
    return torch.from_numpy(matrices)


def intrinsics(size: tuple[int, int] = IMAGE_SIZE) -> torch.Tensor:
    """`[6, 3, 3]` for images of `size` (H, W)."""
    height, width = size
    matrix = torch.tensor([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]])
    return matrix.repeat(6, 1, 1)


def pixels(number: int, size: tuple[int, int] = IMAGE_SIZE) -> torch.Tensor:
    """`[6, 3, H, W]`, always the same for a number."""
    return torch.randn(6, 3, *size, generator=torch.Generator().manual_seed(number))


def scene(number: int) -> dict[str, torch.Tensor]:
    """Images and calibration of one scene; every scene has a rig of its own."""
    moved = extrinsics()
    moved[:, 2, 3] += 0.1 * number
    return {"pixel_values": pixels(number), "cam_intrinsics": intrinsics(), "cam_extrinsics": moved}


def scenes(batch: int) -> dict[str, torch.Tensor]:
    samples = [scene(number) for number in range(batch)]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def pictures(size: tuple[int, int] = (48, 80)) -> dict[str, Image.Image]:
    """Six images by name, each of one colour with a white square, (H, W) = `size`."""
    images = {}
    for number, name in enumerate(SCENE_CAMERAS):
        array = np.zeros((*size, 3), dtype=np.uint8)
        array[:] = (40 * number, 255 - 40 * number, 100)
        array[4 : 12 + number, 6:20] = 255
        images[name] = Image.fromarray(array)
    return images


def prompts(batch: int, num_queries: int, padding_side: str, answer: int = 0) -> dict[str, torch.Tensor]:
    """Prompts with one expanded scene each, of different lengths; the last `answer` tokens are supervised."""
    rows = []
    for number in range(batch):
        text = torch.randint(3, 90, (5 + 2 * number,), generator=torch.Generator().manual_seed(50 + number))
        rows.append(torch.cat([torch.tensor([1]), torch.full((num_queries,), IMAGE_TOKEN_ID), text]))
    length = max(len(row) for row in rows)
    ids, mask = torch.zeros(batch, length, dtype=torch.long), torch.zeros(batch, length, dtype=torch.long)
    labels = torch.full((batch, length), -100)
    for number, row in enumerate(rows):
        start = length - len(row) if padding_side == "left" else 0
        ids[number, start : start + len(row)], mask[number, start : start + len(row)] = row, 1
        if answer:
            labels[number, start + len(row) - answer : start + len(row)] = row[-answer:]
    found = {"input_ids": ids, "attention_mask": mask}
    return found | ({"labels": labels} if answer else {})


def map_labels(batch: int, num_points: int = 5) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(9)
    return [
        {
            "class_labels": torch.tensor([number % 3, 1][: 1 + number % 2]),
            "points": torch.rand(1 + number % 2, num_points, 2, generator=generator) * 2 - 1,
        }
        for number in range(batch)
    ]
