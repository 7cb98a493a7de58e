"""Programs against ground truth, over folders: chamfer distance, intersection over union, invalidity ratio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeling_dsr.cad_solids import MESH_SUFFIXES, STEP_SUFFIXES, TriangleMesh, load_mesh

from ..cad.metrics import intersection_over_union, mesh_chamfer_distance, normalize_prediction
from ..cad.sandbox import Sandbox

UNIT_SLACK = 0.01


@dataclass
class Sample:
    """
    One program against the shape it should make.

    Args:
        shape: name of the ground truth. sample: name of the program.
        code: of the execution; "ground_truth" if the true shape cannot be read.
        chamfer: squared, both directions added, unit cube; None without a solid.
        iou: None without a solid, or where booleans fail; `iou_problem` says why.
    """

    shape: str
    sample: str
    code: str
    message: str = ""
    chamfer: float | None = None
    iou: float | None = None
    iou_problem: str = ""
    seconds: float = 0.0


def pair_files(predictions: Path, ground_truth: Path) -> tuple[list[tuple[str, Path, Path]], list[str]]:
    """
    (shape, program, true mesh) by file name: a program is `SHAPE.py`, or `SHAPE+K.py` for several samples. Both folders
    may nest, as DeepCAD's and Fusion360's do.

    Returns:
        The pairs, and the shapes for which there is no program.
    """
    truth = {}
    for path in sorted(ground_truth.rglob("*")):
        if path.suffix.lower() in MESH_SUFFIXES + STEP_SUFFIXES:
            if path.stem in truth:
                raise ValueError(
                    f"{path} and {truth[path.stem]} have one name; shapes are told apart by their file names."
                )
            truth[path.stem] = path
    programs = sorted(predictions.rglob("*.py"))
    if not truth or not programs:
        raise ValueError(f"{ground_truth} holds {len(truth)} meshes and {predictions} {len(programs)} programs (.py).")
    pairs, unknown = [], []
    for path in programs:
        shape = path.stem.rsplit("+", 1)[0] if "+" in path.stem else path.stem
        pairs.append((shape, path, truth[shape])) if shape in truth else unknown.append(path.name)
    if unknown:
        raise ValueError(
            f"{len(unknown)} programs have no ground truth, for example {unknown[:3]}: `SHAPE+K.py` needs SHAPE.stl."
        )
    return pairs, sorted(set(truth) - {shape for shape, _, _ in pairs})


def load_truth(path: Path) -> TriangleMesh:
    """A true shape, as it is if it lies in the unit cube (as published), else moved and scaled into it."""
    mesh = load_mesh(path)
    low, high = mesh.bounds
    inside = low.min() > -UNIT_SLACK and high.max() < 1 + UNIT_SLACK and (high - low).max() > 0.5
    return mesh if inside else normalize_prediction(mesh)


def evaluate(
    pairs: list[tuple[str, Path, Path]],
    sandbox: Sandbox,
    check_solid: bool = False,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[Sample]:
    """Every pair, as many at a time as the sandbox has workers. `check_solid`: see [`Sandbox.run`]."""

    def one(pair: tuple[str, Path, Path]) -> Sample:
        shape, program, truth_path = pair
        sample = Sample(shape, program.stem, "ground_truth")
        try:
            truth = load_truth(truth_path)
        except ValueError as error:
            sample.message = str(error)
            progress()
            return sample
        done = sandbox.run(program.read_text(encoding="utf-8", errors="replace"), check_solid=check_solid)
        sample.code, sample.message, sample.seconds = done.code, done.message, done.seconds
        if done.ok:
            mesh = normalize_prediction(TriangleMesh(done.vertices, done.faces))
            sample.chamfer = mesh_chamfer_distance(truth, mesh, seed=seed)
            try:
                sample.iou = intersection_over_union(truth, mesh, other_solids=done.solids)
            except ValueError as error:
                sample.iou_problem = str(error)
        progress()
        return sample

    with ThreadPoolExecutor(sandbox.workers) as pool:
        return list(pool.map(one, pairs))


def summarize(samples: list[Sample], without_program: list[str] = ()) -> dict:
    """
    Published aggregates: per shape the smallest chamfer distance and the largest IoU of its samples.

    Chamfer distances are times 1000, ratios in percent. `skipped` lists, for i from 0 to 4, the invalidity ratio and
    the mean chamfer distance if the i worst shapes count as invalid.
    """
    measurable = [sample for sample in samples if sample.code != "ground_truth"]
    shapes = sorted({sample.shape for sample in measurable} | set(without_program))
    chamfer = {shape: [s.chamfer for s in measurable if s.shape == shape and s.chamfer is not None] for shape in shapes}
    iou = {shape: [s.iou for s in measurable if s.shape == shape and s.iou is not None] for shape in shapes}
    best_chamfer = sorted(1000 * min(values) for values in chamfer.values() if values)
    best_iou = [max(values) for values in iou.values() if values]
    invalid = len(shapes) - len(best_chamfer)
    skipped = [
        {
            "skip": i,
            "invalidity_ratio": 100 * (invalid + i) / len(shapes),
            "mean_chamfer": float(np.mean(best_chamfer[: len(best_chamfer) - i])),
        }
        for i in range(5)
        if i < len(best_chamfer)
    ]
    return {
        "shapes": len(shapes),
        "programs": len(measurable),
        "unreadable_ground_truth": len(samples) - len(measurable),
        "shapes_without_program": len(without_program),
        "mean_chamfer": float(np.mean(best_chamfer)) if best_chamfer else None,
        "median_chamfer": float(np.median(best_chamfer)) if best_chamfer else None,
        "mean_iou": float(np.mean(best_iou)) if best_iou else None,
        "median_iou": float(np.median(best_iou)) if best_iou else None,
        "invalidity_ratio": 100 * invalid / len(shapes) if shapes else None,
        "shapes_with_solid_but_no_iou": sum(1 for shape in shapes if chamfer[shape] and not iou[shape]),
        "codes": dict(Counter(sample.code for sample in samples).most_common()),
        "best_chamfer": best_chamfer,
        "best_iou": best_iou,
        "skipped": skipped,
    }
