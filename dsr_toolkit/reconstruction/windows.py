"""Videos of any length in bounded memory: overlapping windows, brought into one frame by what they share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from ..console import say
from .similarity import Similarity, robust_similarity
from .views import View

COMMON_POINTS = 20_000  # of an overlap, at most, that decide its alignment


def windows(frames: Iterable, size: int, overlap: int) -> Iterator[list]:
    """Windows of `size` frames, each starting with the last `overlap` of the one before; the last one may be shorter."""
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


def align_views(views: list[View], to: list[View]) -> tuple[Similarity, float]:
    """
    The similarity that takes the world frame of `views` to that of `to`: the same frames, seen by two windows.

    Every pixel that both windows trust is a pair of points, weighted by the geometric mean of its confidences; gross outliers
    are left out.

    Returns:
        The similarity, and the share of pairs that it counts as inliers.
    """
    x, y, weights = [], [], []
    for view, other in zip(views, to, strict=True):
        both = view.mask & other.mask
        x.append(view.points[both])
        y.append(other.points[both])
        weights.append(np.sqrt(view.confidence[both] * other.confidence[both]))
    x, y, weights = (np.concatenate(values) for values in (x, y, weights))
    chosen = np.linspace(0, len(x) - 1, min(len(x), COMMON_POINTS)).astype(int)
    try:
        similarity, inlier = robust_similarity(x[chosen], y[chosen], weights[chosen])
        return similarity, float(inlier.mean())
    except ValueError as error:
        say(f"  {error} Two windows are joined by their last common camera alone, so their scales may differ.")
    rotation = to[-1].camera_to_world[:3, :3] @ views[-1].camera_to_world[:3, :3].T
    translation = to[-1].camera_to_world[:3, 3] - rotation @ views[-1].camera_to_world[:3, 3]
    return Similarity(1.0, rotation, translation), 0.0


def reconstruct_windows(
    predict: Callable[[list], list[View]],
    frames: Iterable,
    size: int,
    overlap: int,
    cache: Path | None = None,
) -> Iterator[View]:
    """
    The views of all `frames` in the world frame of the first window, in order, as soon as they are known.

    Memory holds one window and the overlap of the one before.

    Args:
        predict: frames of a window → their views, in a world frame of the window's own.
        size, overlap: see [`windows`].
        cache: a folder that keeps what `predict` said, so that an interrupted run need not ask again.
    """
    shared: list[View] = []  # the last ones so far, in the common frame
    for number, window in enumerate(windows(frames, size, overlap)):
        views = _remembered(predict, window, None if cache is None else cache / f"{number:06d}")
        if shared:
            similarity, _ = align_views(views[: len(shared)], shared)
            views = [view.moved(similarity) for view in views[len(shared) :]]
        yield from views
        shared = [*shared, *views][-overlap:]


def _remembered(predict, window: list, folder: Path | None) -> list[View]:
    if folder is None:
        return predict(window)
    if not folder.is_dir():
        beside = folder.with_name(folder.name + ".partial")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for number, view in enumerate(predict(window)):
            view.save(beside / f"{number:06d}.npz")
        os.rename(beside, folder)
    return [View.load(path) for path in sorted(folder.glob("*.npz"))]
