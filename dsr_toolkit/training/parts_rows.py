"""The parts world as rows of CAD-Recode's and Cadrille's training, and what is measured and shown on the way."""

from __future__ import annotations

import numpy as np
import torch

from modeling_dsr.cad_solids import TriangleMesh

from ..worlds.parts import PartsWorld
from ..worlds.parts_families import FAMILIES
from ..worlds.parts_solid import CIRCLE_SEGMENTS

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
    labels = inputs["labels"][:, 1:]
    supervised = labels != -100
    right = (outputs.logits[:, :-1].argmax(-1) == labels) & supervised
    counts = list(zip(right.sum(1).tolist(), supervised.sum(1).tolist()))
    kinds = {"": counts}
    if hasattr(processor, "render_views"):
        for kind in ("cloud", "views", "text"):
            kinds[f"_{kind}"] = [count for count, row in zip(counts, rows) if kind in row]
    found = {}
    for kind, own in kinds.items():
        found[f"tokens_right{kind}"] = (sum(hits for hits, _ in own), sum(total for _, total in own))
        found[f"programs_right{kind}"] = [float(hits == total) for hits, total in own]
    return found


@torch.no_grad()
def show(model, processor, rows) -> list[dict]:
    """The program that the model writes for each row, beside the true one."""
    from ..evaluation.world_cad import MAX_NEW_TOKENS

    shown = []
    for row in rows:
        given = {"point_clouds": row["cloud"], "normalization": "program"} if "cloud" in row else {}
        given |= {"images": row["views"]} if "views" in row else {}
        given |= {"text": row["text"]} if "text" in row else {}
        inputs = processor(**given)
        ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        (program,) = processor.decode_programs(ids, inputs["input_ids"].shape[1])
        shown.append({"program": program, "true": row["program"]} | ({"text": row["text"]} if "text" in row else {}))
    return shown
