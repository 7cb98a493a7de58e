"""Programs against ground truth, over folders: chamfer distance, intersection over union, invalidity ratio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeling_dsr.cad_files import MESH_SUFFIXES, STEP_SUFFIXES, load_mesh
from modeling_dsr.cad_solids import TriangleMesh

from ..cad.metrics import (
    intersection_over_union,
    mesh_chamfer_distance,
    normalize_prediction,
    published_iou,
    solid_body,
)
from ..cad.sandbox import Sandbox
from ..console import printable

UNIT_SLACK = 0.01
# How true shapes lie: "unit_cube", normalised already and taken as they are, or "own", in units of their own and moved
# and scaled as predictions are. It is a convention of the data set, not seen from a shape: a part of 0.7 x 0.2 x 0.1
# in its own units lies in the unit cube as well.
FRAMES = ("unit_cube", "own")
PUBLISHED_SETS = ("deepcad_test_mesh", "fusion360_test_mesh")  # normalised, as Cadrille and CAD-Recode publish them
# What one wrong file may raise while it is measured: it costs that sample, not the evaluation.
FAULTS = (ValueError, ArithmeticError, RuntimeError, IndexError, MemoryError)


@dataclass
class Sample:
    """
    One program against the shape it should make.

    Args:
        shape: name of the ground truth. sample: name of the program.
        code: of the execution; "ground_truth" if the true shape cannot be read.
        chamfer: squared, both directions added, unit cube; None without a solid.
        iou: of the bodies, by exact booleans; 0 of a program that failed or whose solid is open (`iou_problem` says
            so); None where the true shape itself encloses no volume.
        published_iou: by the rule of the published evaluation, which leaves out (None) programs that failed and
            booleans that do, and counts what is open as 0.
    """

    shape: str
    sample: str
    code: str
    message: str = ""
    chamfer: float | None = None
    iou: float | None = None
    published_iou: float | None = None
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
        if path.suffix.lower() in MESH_SUFFIXES + STEP_SUFFIXES and path.is_file():
            if path.stem in truth:
                raise ValueError(
                    f"{path} and {truth[path.stem]} have one name; shapes are told apart by their file names."
                )
            truth[path.stem] = path
    programs = sorted(path for path in predictions.rglob("*.py") if path.is_file())
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


def declared_frame(folder: Path) -> str:
    """The convention of a folder of true shapes: "unit_cube" for a published test set by its name, else "own"."""
    return "unit_cube" if folder.resolve().name in PUBLISHED_SETS else "own"


def load_truth(path: Path, frame: str) -> TriangleMesh:
    """
    A true shape in the unit cube. `frame`: one of `FRAMES`.

    Raises:
        ValueError: it cannot be read, has no area or does not lie where its convention says; the file is named.
    """
    if frame not in FRAMES:
        raise ValueError(f"`frame` must be one of {', '.join(FRAMES)}, got {frame!r}.")
    mesh = load_mesh(path)
    low, high = mesh.bounds
    if not np.isfinite(mesh.vertices).all() or not mesh.face_normals()[1].sum() > 0:
        raise ValueError(f"{path.name!r} has no area: its faces are degenerate, or its corners are no numbers.")
    if frame == "own":
        return normalize_prediction(mesh)
    if low.min() < -UNIT_SLACK or high.max() > 1 + UNIT_SLACK:
        raise ValueError(
            f"{path.name!r} reaches from {low.min():.4g} to {high.max():.4g}, out of the unit cube of its data set; "
            "true shapes in units of their own are measured with --frame own."
        )
    return mesh


def evaluate(
    pairs: list[tuple[str, Path, Path]],
    sandbox: Sandbox,
    check_solid: bool = False,
    seed: int = 0,
    progress: Callable[[Sample], None] = lambda sample: None,
    frame: str = "own",
) -> list[Sample]:
    """
    Every pair, as many at a time as the sandbox has workers.

    Args:
        check_solid: see [`Sandbox.run`].
        progress: called with every sample as soon as it is measured, from one thread at a time.
        frame: how the true shapes lie, see `FRAMES`.
    """
    pool = ThreadPoolExecutor(sandbox.workers)
    samples = []
    try:
        for sample in pool.map(lambda pair: measure_pair(*pair, sandbox, check_solid, seed, frame), pairs):
            samples.append(sample)
            progress(sample)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return samples


def measure_pair(
    shape: str, program: Path, truth_path: Path, sandbox: Sandbox, check_solid: bool, seed: int, frame: str
) -> Sample:
    """One program against one true shape."""
    sample = Sample(shape, program.stem, "ground_truth")
    try:
        truth = load_truth(truth_path, frame)
    except FAULTS as error:
        sample.message = printable(str(error))
        return sample
    sample.iou = 0.0 if _encloses_volume(truth) else None
    done = sandbox.run(program.read_text(encoding="utf-8-sig", errors="replace"), check_solid=check_solid)
    sample.code, sample.message, sample.seconds = done.code, done.message, done.seconds
    if not done.ok:
        return sample
    try:
        found = TriangleMesh(done.vertices, done.faces)
        mesh = normalize_prediction(found)
        sample.chamfer = mesh_chamfer_distance(truth, mesh, seed=seed)
        sample.published_iou = published_iou(truth, mesh)
        if sample.iou is not None:
            sample.iou = intersection_over_union(truth, mesh, other_solids=done.solids)
    except FAULTS as error:
        sample.iou_problem = printable(str(error))
    return sample


def _encloses_volume(mesh: TriangleMesh) -> bool:
    try:
        solid_body(mesh)
    except FAULTS:
        return False
    return True


def summarize(samples: list[Sample], without_program: Iterable[str] = (), frame: str = "own") -> dict:
    """
    Aggregates of the samples: per shape the smallest chamfer distance and the largest IoU of its samples.

    Published names and rules: `mean_iou` and `median_iou` leave out shapes whose programs or booleans failed and count
    open meshes as 0; `mean_chamfer`, `median_chamfer` and `invalidity_ratio` are over the shapes with a solid and over
    all. Beside it, `mean_iou_of_all` counts every shape that encloses a volume, one whose programs failed with 0.
    Each mean comes with the number of shapes that it is over. Chamfer distances are times 1000, ratios in percent.
    `skipped` lists, for i from 0 to 4, the invalidity ratio and the mean chamfer distance if the i worst shapes count
    as invalid.
    """
    without_program = list(without_program)
    measurable = [sample for sample in samples if sample.code != "ground_truth"]
    shapes = sorted({sample.shape for sample in measurable} | set(without_program))
    chamfer = {shape: [s.chamfer for s in measurable if s.shape == shape and s.chamfer is not None] for shape in shapes}
    iou = {shape: [s.iou for s in measurable if s.shape == shape and s.iou is not None] for shape in shapes}
    published = {shape: [s.published_iou for s in measurable if s.shape == shape] for shape in shapes}
    published = {shape: [value for value in values if value is not None] for shape, values in published.items()}
    best_chamfer = sorted(1000 * min(values) for values in chamfer.values() if values)
    best_published = [max(values) for values in published.values() if values]
    # A shape without any program has been missed; whether it encloses a volume is not known, so it counts.
    best_iou = [max(values) for values in iou.values() if values] + [0.0] * len(without_program)
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
        "mean_iou": float(np.mean(best_published)) if best_published else None,
        "median_iou": float(np.median(best_published)) if best_published else None,
        "mean_iou_shapes": len(best_published),
        "mean_iou_of_all": float(np.mean(best_iou)) if best_iou else None,
        "median_iou_of_all": float(np.median(best_iou)) if best_iou else None,
        "mean_iou_of_all_shapes": len(best_iou),
        "chamfer_shapes": len(best_chamfer),
        "invalidity_ratio": 100 * invalid / len(shapes) if shapes else None,
        "shapes_without_true_volume": sum(1 for shape in shapes if not iou[shape]) - len(set(without_program)),
        "open_predictions": sum(bool(sample.iou_problem) for sample in measurable),
        "ground_truth_frame": frame,
        "codes": dict(Counter(sample.code for sample in samples).most_common()),
        "best_chamfer": best_chamfer,
        "best_iou": best_iou,
        "skipped": skipped,
    }
