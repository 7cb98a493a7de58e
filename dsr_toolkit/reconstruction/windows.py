"""Videos of any length in bounded memory: overlapping windows, brought into one frame by what they share."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from ..console import say
from .anchors import anchor_windows
from .joins import join_views
from .loops import DOUBTFUL, Edge, close_loops, disagreement, find_loops
from .similarity import Similarity
from .store import WindowStore
from .views import View

TOLD_BEND = 0.12  # of a join when loops are closed, before it is told
DOUBTS_TOLD = 3  # joins that cannot be trusted are told one by one up to here

Predict = Callable[[list], list[View]]


def windows(frames: Iterable, size: int, overlap: int) -> Iterator[list]:
    """
    Windows of `size` frames, each starting with the last `overlap` of the one before; the last one may be shorter.
    """
    if not 0 < overlap < size:
        raise ValueError(f"`overlap` must be at least 1 and less than the window of {size} frames, got {overlap}.")
    window, fresh = [], 0
    for frame in frames:
        window.append(frame)
        fresh += 1
        if len(window) == size:
            yield window
            window, fresh = window[-overlap:], 0
    if fresh:
        yield window


def count_windows(frames: int, size: int, overlap: int) -> int:
    """How many [`windows`] there are."""
    return 0 if frames < 1 else 1 + max(0, -(-(frames - size) // (size - overlap)))


def reconstruct_windows(
    predict: Predict,
    frames: Iterable,
    size: int,
    overlap: int,
    cache: Path | None = None,
    loops: bool = False,
    report: dict | None = None,
    total: int | None = None,
    prior: bool = False,
    pose_of: Callable[[View], np.ndarray | None] | None = None,
) -> Iterator[View]:
    """
    The views of all `frames` in the world frame of the first window, in order.

    Memory holds one window and the overlap of the one before. Without `loops`, views come as soon as they are known.
    With them, all windows are predicted first and kept on disk; places that the encoder recognises (see
    `View.descriptor`) are predicted once more together, and the chain of windows is closed over those where that
    prediction fits both windows.

    Args:
        predict: frames of a window → their views, in a world frame of the window's own.
        size, overlap: see [`windows`].
        cache: a folder that keeps what `predict` said, so that an interrupted run need not ask again.
        loops: close them.
        report: receives `joins`, a dictionary per window from the second on (see [`Join`]), `loops`, one per place that
            seemed to be seen again, and where some were closed `bend`, by how much a join gave way at most.
        total: number of frames, where known, so that the size of the cache can be told beforehand.
        prior: tell the model what the window before said of the shared frames: `predict` gets their views as a second
            argument (as Pi3XVO does with its injected conditions).
        pose_of: a view's camera-to-world in a known world, or None: then the windows are brought there together, see
            [`anchor_windows`], and no loops are looked for.
    """
    report = {} if report is None else report
    report.update(joins=[], loops=[])
    expected = None if total is None else count_windows(total, size, overlap)
    if not loops and pose_of is None:
        store = None if cache is None else WindowStore(cache, expected)
        for _, views, placement, known in _chain(predict, frames, size, overlap, store, report, prior):
            yield from (view.moved(placement) for view in views[known:])
        return
    with contextlib.ExitStack() as stack:
        place = cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsr-windows-")))
        chain = _Chain(WindowStore(place, expected), predict, size)
        for name, views, placement, known in _chain(predict, frames, size, overlap, chain.store, report, prior):
            chain.add(name, views, placement, known, pose_of)
        if pose_of is not None:
            placements = chain.anchored(report)
        else:
            placements = chain.closed(report) if len(chain.names) > 2 else chain.placements
        for name, placement, known in zip(chain.names, placements, chain.known):
            yield from (view.moved(placement) for view in chain.store.read(name)[known:])


def _chain(predict: Predict, frames: Iterable, size: int, overlap: int, store, report: dict, prior: bool):
    """
    Each window's name in the store, its views in its own world, its placement, and how many of them are known already.
    """
    before: list[View] = []
    placement, number, doubtful = Similarity.identity(), 0, 0
    for number, window in enumerate(windows(frames, size, overlap)):
        told = before if prior else None
        ask = (lambda frames, told=told: predict(frames, told)) if told else predict
        name, views = (None, ask(window)) if store is None else store.remember(f"{number:06d}", ask, window)
        if before:
            join = join_views(views[: len(before)], before)
            placement = placement @ join.similarity
            report["joins"].append({"window": number, "first": views[0].name, "last": views[-1].name, **join.report()})
            doubtful += not join.trusted
            if not join.trusted and doubtful <= DOUBTS_TOLD:
                say(
                    f"The join of window {number + 1} ({views[0].name} … {views[-1].name}) to the one before cannot be "
                    f"trusted: {'; '.join(join.doubts)}."
                )
        yield name, views, placement, len(before)
        before = views[-overlap:]
    if doubtful:
        say(f"{doubtful} of {number} joins of windows cannot be trusted; scale and place may jump there.")


class _Chain:
    """The windows of a video, on disk, with what is needed to close loops over them in memory."""

    def __init__(self, store: WindowStore, predict: Predict, size: int):
        self.store, self.predict, self.size = store, predict, size
        self.names, self.placements, self.known, self.depths = [], [], [], []
        self.descriptors, self.window_of, self.index, self.pairs = [], [], [], []

    def add(self, name: str, views: list[View], placement: Similarity, known: int, pose_of=None) -> None:
        depths = np.concatenate([view.depth[view.mask] for view in views])
        self.depths.append(float(np.median(depths)) if len(depths) else 1.0)
        for index, view in enumerate(views[known:], known):
            if view.descriptor is not None:
                self.descriptors.append(view.descriptor)
                self.window_of.append(len(self.names))
                self.index.append(index)
        self.names.append(name)
        self.placements.append(placement)
        self.known.append(known)
        poses = [(view, pose_of(view)) for view in views] if pose_of else []
        self.pairs.append([(view.camera_to_world, pose) for view, pose in poses if pose is not None])

    def weights(self, report: dict) -> list[float]:
        """Of the joins."""
        return [1.0 if join["trusted"] else DOUBTFUL for join in report["joins"]]

    def anchored(self, report: dict) -> list[Similarity]:
        """The placements in the world of the known cameras."""
        found = anchor_windows(self.placements, self.weights(report), self.depths, self.pairs)
        if found is None:
            say("Too few cameras are known to stand in their world: the result is in the model's own.")
            return self.placements
        return found

    def closed(self, report: dict) -> list[Similarity]:
        """The placements after closing whatever loops there are."""
        if not self.descriptors:
            return self.placements
        pairs = find_loops(np.stack(self.descriptors), np.array(self.window_of), self.size)
        if not pairs:
            return self.placements
        say(f"{len(pairs)} places seem to be seen again …")
        edges = []
        for i, j in pairs:
            edge, entry = self._measure(i, j)
            report["loops"].append(entry)
            if edge is not None:
                edges.append((edge, entry))
        joins = [
            Edge(number, number + 1, before.inverse() @ after, weight)
            for number, (before, after, weight) in enumerate(
                zip(self.placements, self.placements[1:], self.weights(report))
            )
        ]
        placements, doubts = close_loops(self.placements, joins, [edge for edge, _ in edges], self.depths)
        for (_, entry), doubt in zip(edges, doubts):
            entry["closed"] = not doubt
            if doubt:
                entry["doubts"] = [doubt]
        closed = sum(entry["closed"] for entry in report["loops"])
        say(f"{closed} of them are, and the way is closed there." if closed else "None of them is: no loop is closed.")
        bend = float(np.linalg.norm(disagreement(placements, joins, self.depths), axis=1).max())
        report["bend"] = bend
        if bend > TOLD_BEND:
            say(
                f"For that, joins gave way by up to {bend:.2f} (radians, parts of depth, logarithm of scale): more "
                "than joins that fit are wrong. The model drifts within its windows; shorter ones may help."
            )
        return placements

    def _measure(self, i: int, j: int) -> tuple[Edge | None, dict]:
        """Look at the surroundings of both frames together: that prediction joins their windows."""
        count, parts, frames = max(self.size // 2, 1), [], []
        for number in (i, j):
            views = self.store.read(self.names[self.window_of[number]])
            start = min(max(self.index[number] - count // 2, 0), max(len(views) - count, 0))
            parts.append(views[start : start + count])
            frames += [as_frame(view) for view in parts[-1]]
        _, views = self.store.remember(f"loop-{i}-{j}", self.predict, frames)
        joins = join_views(views[: len(parts[0])], parts[0]), join_views(views[len(parts[0]) :], parts[1])
        entry = {
            "frames": [part[min(count // 2, len(part) - 1)].name for part in parts],
            "windows": [self.window_of[i], self.window_of[j]],
            "residual": [join.report()["residual"] for join in joins],
            "closed": False,
        }
        if doubts := [doubt for join in joins for doubt in join.doubts]:
            return None, {**entry, "doubts": doubts}
        measured = joins[0].similarity @ joins[1].similarity.inverse()
        return Edge(self.window_of[i], self.window_of[j], measured), entry


def as_frame(view: View):
    """The frame that a view was made of, at the size of its maps."""
    from PIL import Image

    from modeling_dsr.frames import Frame

    return Frame(Image.fromarray(view.image), view.name, view.time)
