"""Rows per second of Cadrille's training collator (meshes to farthest points, tokens and labels), against the sampling
of the library's first release: the same loop over all points in torch."""

import numpy as np
import torch

from benchmarks.harness import alternate, row
from dsr_toolkit.tiny import hub_folder
from modeling_dsr import cad_processor
from modeling_dsr.cad_solids import TriangleMesh, farthest_point_sample
from modeling_dsr.processing_cadrille import CadrilleProcessor

NAME = "train.collate"
TARGET = 3.0
ROWS = 8


def sampled_before(points: torch.Tensor, num_points: int) -> torch.LongTensor:
    """Every point's distance to the last one chosen, at every step."""
    batch, count, _ = points.shape
    x, y, z = points.movedim(-1, 0).contiguous()
    nearest = points.new_full((batch, count), float("inf"))
    chosen = torch.zeros(batch, num_points, dtype=torch.long)
    last = chosen[:, :1]
    step, total = torch.empty_like(nearest), torch.empty_like(nearest)
    for index in range(1, num_points):
        torch.sub(x, x.gather(1, last), out=total).square_()
        for axis in (y, z):
            torch.sub(axis, axis.gather(1, last), out=step)
            total.add_(step.square_())
        torch.minimum(nearest, total, out=nearest)
        last = nearest.argmax(1, keepdim=True)
        chosen[:, index : index + 1] = last
    return chosen


def boxes() -> list[dict]:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    faces = np.array(
        [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]]
        + [[2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
    )
    sides = np.random.default_rng(0).uniform(0.2, 1, (ROWS, 3))
    program = "import cadquery as cq\nr = cq.Workplane('XY').box(10, 20, 30)\n" * 4
    return [
        {"mesh": TriangleMesh(corners * side, faces), "program": program, "seed": number}
        for number, side in enumerate(sides)
    ]


def run() -> list[dict]:
    rows = boxes()
    collate = CadrilleProcessor.from_pretrained(hub_folder("cadrille")).training_collator()

    def before():
        cad_processor.farthest_point_sample = sampled_before
        try:
            return collate(rows)
        finally:
            cad_processor.farthest_point_sample = farthest_point_sample

    assert torch.equal(before()["point_clouds"], collate(rows)["point_clouds"]), "the points differ"
    baseline, ours = alternate(before, lambda: collate(rows), rounds=7, warmup=1)
    return [row(NAME, f"time of {ROWS} rows", baseline, ours, TARGET)]
