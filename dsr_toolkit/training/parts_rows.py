"""The parts world as rows of CAD-Recode's and Cadrille's training, and what is measured and shown on the way."""

from __future__ import annotations

from functools import cache

import numpy as np

from modeling_dsr.cad_solids import TriangleMesh

from ..console import say
from ..extras import needs
from ..worlds.parts import PartsWorld
from ..worlds.parts_families import FAMILIES
from ..worlds.parts_solid import CIRCLE_SEGMENTS
from .answers import is_sharded, tokens_right, written
from .rewards import SURFACE_SAMPLES

BLOCK = 2048  # parts that are kept while they are repeated

# Of a training: what is hard to write comes more often.
TRAINING_FAMILIES = (
    "box", "cylinder", "ring", "prism", "plate", "plate", "pocket", "pocket", *3 * ("bracket",), *3 * ("stepped",)
)  # fmt: skip


class PartRows:
    """
    Rows of an endless parts world: "program", and the part as "cloud" (in the program's frame), "views" or "text"; with
    `part=True` also its mesh as "part", for rewards.

    Args:
        shown: part i is shown by `shown[i % len(shown)]`, one of "points", "views", "text". A batch whose size is a
            multiple of the list's length always has the same mixture.
        num_points: of a cloud. families: see [`PartsWorld`]. num_views, oversampling, segments: see
            [`PartSample.views`].
        seen: (rows, columns): rows with views also have "seen", the [`outermost_points`] of a grid over their picture.
        repeats: every part comes so often, drawn once: the first `BLOCK` parts, in another order each time, then the
            next. Views take longer to draw than to learn from.
    """

    def __init__(
        self,
        seed: int,
        shown=("points",),
        num_points=2048,
        families=tuple(FAMILIES),
        num_views=2,
        oversampling=4,
        segments=CIRCLE_SEGMENTS,
        seen=None,
        repeats=1,
        part=False,
    ):
        unknown = sorted(set(shown) - {"points", "views", "text"})
        if unknown or not shown:
            raise ValueError(f'`shown` must name "points", "views" or "text", got {list(shown)}.')
        self.world = PartsWorld(seed, num_points if "points" in shown else 0, families)
        self.shown, self.num_views, self.seen, self.repeats = tuple(shown), num_views, seen, repeats
        self.drawing = {"oversampling": oversampling, "segments": segments}
        self.kept: tuple[int, dict[int, dict]] = (0, {})  # of a block
        self.part = part

    def __getitem__(self, index: int) -> dict:
        if self.repeats == 1:
            return self._row(index)
        length = BLOCK // len(self.shown) * len(self.shown)
        turn, place = divmod(index, length)
        block = turn // self.repeats
        group, kind = divmod(place, len(self.shown))
        order = np.random.default_rng([self.world.seed, turn]).permutation(length // len(self.shown))
        part = block * length + int(order[group]) * len(self.shown) + kind
        if self.kept[0] != block:
            self.kept = (block, {})
        if part not in self.kept[1]:
            self.kept[1][part] = self._row(part)
        return self.kept[1][part]

    def _row(self, part: int) -> dict:
        sample, kind = self.world[part], self.shown[part % len(self.shown)]
        row = {"program": sample.program}
        if self.part:
            row["part"] = TriangleMesh(*sample.mesh())
        if kind == "points":
            return row | {"cloud": sample.points}
        if kind == "text":
            return row | {"text": sample.text}
        row |= {"views": sample.views(self.num_views, **self.drawing)}
        if self.seen is not None:
            row["seen"] = outermost_points(sample.seen(self.num_views, self.drawing["segments"]), *self.seen)
        return row


def outermost_points(seen: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """
    Of the surface points `[H, W, 3]` that the pixels see, the one in each cell of a grid that lies farthest from the
    centre of the part: at an edge or a corner, if the cell shows one. `[rows * columns, 3]`, NaN for empty cells.
    """
    height, width, _ = seen.shape
    row = ((np.arange(height) + 0.5) * rows / height).astype(int)
    column = ((np.arange(width) + 0.5) * columns / width).astype(int)
    cell = (row[:, None] * columns + column).ravel()
    flat = seen.reshape(-1, 3)
    found = np.flatnonzero(np.isfinite(flat[:, 0]))
    found = found[np.square(flat[found]).sum(1).argsort(kind="stable")]
    points = np.full((rows * columns, 3), np.nan, np.float32)
    points[cell[found]] = flat[found]  # the last one written is the farthest
    return points


def measure(model, processor, rows, inputs, outputs) -> dict:
    """
    Shares of next tokens and of whole programs that would be right, given the true tokens before them; for a model that
    reads parts in several ways also for each of these.
    """
    counts = tokens_right(outputs.logits, inputs["labels"])
    kinds = {"": counts}
    if hasattr(processor, "render_views"):
        for kind in ("cloud", "views", "text"):
            kinds[f"_{kind}"] = [count for count, row in zip(counts, rows) if kind in row]
    found = {}
    for kind, own in kinds.items():
        found[f"tokens_right{kind}"] = (sum(hits for hits, _ in own), sum(total for _, total in own))
        found[f"programs_right{kind}"] = [float(hits == total) for hits, total in own]
    return found


def measure_solids(model, processor, rows, inputs, outputs) -> dict:
    """
    Beside [`measure`], where the extra `cad` is installed and this machine can confine programs: `valid`, the share of
    greedy programs that make a valid solid, and its `iou` with the part: the row's "part" or "mesh", else the solid of
    its own program. A row of which neither makes a solid is left out.
    """
    found = measure(model, processor, rows, inputs, outputs)
    sandbox = None if is_sharded(model) else _sandbox()
    if sandbox is None:
        return found
    from ..cad import reward

    programs, parts = [], []
    for row, (program, true) in zip(rows, written(model, processor, inputs)):
        part = row.get("part", row.get("mesh"))
        if part is None and (run := sandbox.run(true)).ok:
            part = TriangleMesh(run.vertices, run.faces)
        if part is not None:
            programs.append(program)
            parts.append(part)
    try:
        scores = reward(programs, parts, sandbox, samples=SURFACE_SAMPLES)
    except ValueError as error:  # a damaged mesh among the data must not end a training
        say(f"Solids of a batch are not measured: {error}")
        return found
    return found | {"valid": scores.valid, "iou": scores.iou}


@cache
def _sandbox():
    """The sandbox of this process; None, which is told once, where programs cannot be run."""
    from ..cad import ConfinementError
    from ..cad.rewards import shared_sandbox

    try:
        needs("cad", "Running programs")
        return shared_sandbox()
    except (ImportError, ConfinementError) as error:
        say(f"Programs are not run, so tokens alone are measured. {error}")
        return None


def show(model, processor, rows, inputs) -> list[dict]:
    """The program that the model writes for each row, beside the true one."""
    shown = []
    for row, (program, true) in zip(rows, written(model, processor, inputs)):
        shown.append({"program": program, "true": true} | ({"text": row["text"]} if row.get("text") else {}))
    return shown
