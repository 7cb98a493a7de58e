"""Depth position code of six cameras against a loop over the cameras, 448×800 images and 14×25 cells."""

import math

import torch

from benchmarks.harness import alternate, assert_agreement, device, row
from modeling_dsr.configuration_scene_qformer import SceneQFormerConfig
from modeling_dsr.scene_position import CalibrationCache, DepthPositionEncoding, check_calibration

NAME = "scene.position_3d"
TIME_TARGET, CACHED_TARGET = 0.8, 50
GRID, SIZE = (14, 25), (448, 800)


def plain_code(encoding: DepthPositionEncoding, intrinsics: torch.Tensor, extrinsics: torch.Tensor) -> torch.Tensor:
    """The code of one camera step by step, `[h, w, C]`."""
    (rows, columns), (height, width) = GRID, SIZE
    where = intrinsics.device
    v = (torch.arange(rows, device=where) + 0.5) * height / rows
    u = (torch.arange(columns, device=where) + 0.5) * width / columns
    v, u = torch.meshgrid(v, u, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1)
    rays = pixels @ torch.inverse(intrinsics + 1e-6 * torch.eye(3, device=where)).T
    points = rays.unsqueeze(2) * encoding.depth_bins.view(1, 1, -1, 1)
    points = points @ extrinsics[:3, :3].T + extrinsics[:3, 3]
    low, high = encoding.pc_range[:3], encoding.pc_range[3:]
    points = torch.clamp((points - low) / (high - low) * 2 - 1, -2, 2)
    number = torch.arange(64, device=where)
    scale = 10000 ** (2 * torch.div(number, 2, rounding_mode="floor") / 64)
    codes = []
    for axis in range(3):
        angles = points[..., axis, None] * 2 * math.pi / scale
        codes.append(torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2))
    features = encoding.per_depth_mlp(torch.cat(codes, dim=-1))
    return encoding.aggregation_mlp(features.flatten(2))


def run() -> list[dict]:
    torch.manual_seed(0)
    encoding = DepthPositionEncoding(SceneQFormerConfig(position_encoding="depth_3d")).to(device()).eval()
    intrinsics = torch.tensor([[640.0, 0, 400], [0, 640, 224], [0, 0, 1]], device=device()).repeat(1, 6, 1, 1)
    extrinsics = torch.eye(4, device=device()).repeat(1, 6, 1, 1)
    extrinsics[..., :3, :3] = torch.linalg.qr(torch.randn(1, 6, 3, 3, device=device())).Q
    cache = CalibrationCache()

    def loop():
        with torch.no_grad():
            return torch.stack([plain_code(encoding, K, E) for K, E in zip(intrinsics[0], extrinsics[0])])

    def batched():
        with torch.no_grad():
            return encoding(intrinsics, extrinsics, GRID, SIZE)[0]

    def cached():
        with torch.no_grad():
            calibration = check_calibration(intrinsics, extrinsics, 1, 6)
            return cache(encoding, intrinsics, extrinsics, calibration, GRID, SIZE)[0]

    expected = loop()
    assert_agreement(batched(), expected, atol=1e-4)
    assert_agreement(cached(), expected, atol=1e-4)
    return [
        row(NAME, "time", *alternate(loop, batched, rounds=9), TIME_TARGET),
        row(NAME, "time_cached", *alternate(loop, cached, rounds=9), CACHED_TARGET),
    ]
