"""Predictions brought into the world of cameras that are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .joins import cameras_similarity
from .loops import Edge, optimise
from .similarity import Similarity

JOIN_ERROR = 0.01  # of a join that is trusted, in radians and parts of the depth: what anchors are weighed against
MOST_WEIGHT = 100.0  # of an anchor, in joins


def anchor(views: Sequence, poses: Sequence[np.ndarray | None]) -> Similarity | None:
    """
    The similarity that brings views to the world of the poses that are known of some, or None where they do not
    determine one: fewer than two, or all in one spot.
    """
    pairs = [(view.camera_to_world, pose) for view, pose in zip(views, poses) if pose is not None]
    return _between(pairs)


def _between(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Similarity | None:
    if len(pairs) < 2:
        return None
    found, scale_known = cameras_similarity(*(np.stack(side) for side in zip(*pairs)))
    return found if scale_known else None


def anchor_windows(
    placements: list[Similarity], weights: list[float], depths: list[float], pairs: list[list]
) -> list[Similarity] | None:
    """
    Placements of a chain of windows in the world of known cameras, which contradict neither these nor the joins more
    than they must: a window whose cameras fit the known ones well stands where these say, one whose cameras do not
    stands where its neighbours say.

    Args:
        placements: of each window, as the joins alone give them. weights: of each join, from the first window on.
        depths: a typical depth of each window. pairs: of each window, its cameras whose pose is known: (camera-to-world
            in the window's own world, known pose).

    Returns:
        None where the known cameras determine no world.
    """
    moved = [(_placed(camera, place), pose) for place, some in zip(placements, pairs) for camera, pose in some]
    whole = _between(moved)
    if whole is None:
        return None
    # Each window is held by the middle of its known cameras: what is uncertain of turn and scale moves that least.
    middles = [np.mean([camera[:3, 3] for camera, _ in some], 0) if some else np.zeros(3) for some in pairs]
    shifts = [Similarity(1.0, np.eye(3), middle) for middle in middles]
    start = [Similarity.identity(), *(whole @ place @ shift for place, shift in zip(placements, shifts))]
    joins = [
        Edge(number, number + 1, before.inverse() @ after, weight)
        for number, (before, after, weight) in enumerate(zip(start[1:], start[2:], weights), 1)
    ]
    anchors = []
    for number, (some, shift, depth) in enumerate(zip(pairs, shifts, depths), 1):
        measured = _between(some)
        if measured is not None:
            anchors.append(Edge(0, number, measured @ shift, _weight(measured, some, depth)))
    if not anchors:  # each window knows one camera at most: all together determine the world
        return [whole @ place for place in placements]
    found = optimise(start, [*joins, *anchors], [1.0, *depths])[1:]  # the known world is the first, and stays
    return [place @ shift.inverse() for place, shift in zip(found, shifts)]


def _placed(camera: np.ndarray, place: Similarity) -> np.ndarray:
    found = np.eye(4)
    found[:3, :3] = place.rotation @ camera[:3, :3]
    found[:3, 3] = place.apply(camera[:3, 3])
    return found


def _weight(measured: Similarity, pairs: list, depth: float) -> np.ndarray:
    """
    Of an anchor's turn, place and scale `[7]`, in joins: from how well its cameras fit the known ones.
    """
    moved = np.stack([_placed(camera, measured) for camera, _ in pairs])
    known = np.stack([pose for _, pose in pairs])
    away = float(np.sqrt(np.square(moved[:, :3, 3] - known[:, :3, 3]).sum(1).mean()))
    turns = np.swapaxes(moved[:, :3, :3], 1, 2) @ known[:, :3, :3]
    angles = np.arccos(np.clip((np.trace(turns, axis1=1, axis2=2) - 1) / 2, -1, 1))
    # Not the smaller error of a mean: noise spreads cameras, so that it draws the scale of each window the same way.
    spread = float(np.sqrt(np.square(known[:, :3, 3] - known[:, :3, 3].mean(0)).sum(1).mean()))
    errors = np.sqrt(np.square(angles).mean()), away / (measured.scale * depth), away / max(spread, 1e-12)
    return np.repeat(np.minimum((JOIN_ERROR / np.maximum(errors, 1e-9)) ** 2, MOST_WEIGHT), (3, 3, 1))
