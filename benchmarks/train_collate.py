"""Rows per second of Cadrille's training collator (meshes to farthest points, tokens and labels), against how the
library's first release sampled points: mesh by mesh, corners gathered for every point, and torch for the farthest
points and for padding."""

import numpy as np
import torch

from benchmarks.harness import alternate, row
from dsr_toolkit.tiny import hub_folder
from modeling_dsr import cad_processor, processing_cadrille
from modeling_dsr.cad_solids import TriangleMesh, farthest_point_sample, sample_surface
from modeling_dsr.processing_arguments import pad_tokens
from modeling_dsr.processing_cadrille import CadrilleProcessor

NAME = "train.collate"
TARGET = 3.0
ROWS = 8


def surface_before(mesh, count, generator):
    """Three corners and their differences for every point."""
    normals, areas = mesh.face_normals()
    chosen = np.searchsorted(areas.cumsum(), generator.random(count) * areas.sum(), side="right")
    a, b, c = mesh.vertices[mesh.faces[chosen.clip(max=len(areas) - 1)]].swapaxes(0, 1)
    u, v = generator.random((2, count, 1))
    outside = u + v > 1
    u, v = np.where(outside, 1 - u, u), np.where(outside, 1 - v, v)
    return a + u * (b - a) + v * (c - a), normals[chosen]


def farthest_before(points: torch.Tensor, num_points: int) -> torch.LongTensor:
    """Cloud by cloud, every point's distance to the last one chosen, at every step."""
    rows = []
    for x, y, z in points.movedim(-1, 1).contiguous():
        nearest = torch.full_like(x, float("inf"))
        chosen = torch.zeros(num_points, dtype=torch.long)
        last = chosen[:1]
        step, total = torch.empty_like(nearest), torch.empty_like(nearest)
        for index in range(1, num_points):
            torch.sub(x, x.gather(0, last), out=total).square_()
            for axis in (y, z):
                torch.sub(axis, axis.gather(0, last), out=step)
                total.add_(step.square_())
            torch.minimum(nearest, total, out=nearest)
            last = nearest.argmax(0, keepdim=True)
            chosen[index : index + 1] = last
        rows.append(chosen)
    return torch.stack(rows)


def padded_before(rows: list[list[int]], value: int, side: str) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, value, side)


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
        cad_processor.farthest_point_sample, cad_processor.sample_surface = farthest_before, surface_before
        processing_cadrille.pad_tokens = padded_before
        try:
            return collate(rows)
        finally:
            cad_processor.farthest_point_sample, cad_processor.sample_surface = farthest_point_sample, sample_surface
            processing_cadrille.pad_tokens = pad_tokens

    assert torch.equal(before()["point_clouds"], collate(rows)["point_clouds"]), "the points differ"
    baseline, ours = alternate(before, lambda: collate(rows), rounds=7, warmup=1)
    return [row(NAME, f"time of {ROWS} rows", baseline, ours, TARGET)]
