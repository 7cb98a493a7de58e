"""Farthest point sampling of 256 among 8192 points, against plain numpy."""

import numpy as np
import torch

from benchmarks.harness import alternate, row
from modeling_dsr.cad_solids import farthest_point_sample

NAME = "cad.fps"
TARGET = 3.0
POINTS, CHOSEN = 8192, 256


def plain(points: np.ndarray) -> np.ndarray:
    """One point after another: distances of all to the last one, their running minimum, its maximum."""
    chosen = np.zeros(CHOSEN, np.int64)
    nearest = np.full(len(points), np.inf, points.dtype)
    for i in range(1, CHOSEN):
        nearest = np.minimum(nearest, ((points - points[chosen[i - 1]]) ** 2).sum(-1))
        chosen[i] = nearest.argmax()
    return chosen


def run() -> list[dict]:
    points = np.random.default_rng(0).random((POINTS, 3), np.float32)
    tensor = torch.from_numpy(points)[None]
    assert plain(points).tolist() == farthest_point_sample(tensor, CHOSEN)[0].tolist(), "the indices differ"
    baseline, ours = alternate(
        lambda: plain(points), lambda: farthest_point_sample(tensor, CHOSEN), rounds=15, warmup=3
    )
    return [row(NAME, "time", baseline, ours, TARGET)]
