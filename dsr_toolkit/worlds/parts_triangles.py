"""Triangles of a polygon with holes: holes are joined to the outline by bridges, then ears are cut off."""

from __future__ import annotations

import numpy as np


def triangulate(outline: np.ndarray, holes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """
    Args:
        outline: corners `[n, 2]`, counter-clockwise. holes: corners `[m, 2]` each, counter-clockwise, inside and
        disjoint.

    Returns:
        Corners `[V, 2]`, those of the outline and then of the holes, and triangles `[F, 3]`, counter-clockwise. Where
        three corners lie on a line a triangle may have no area.
    """
    points = np.concatenate([outline, *holes])
    if not holes and _is_convex(outline):
        corner = np.arange(1, len(outline) - 1)
        return points, np.stack([np.zeros_like(corner), corner, corner + 1], 1)
    ring = np.arange(len(outline))
    start = len(outline)
    rings = []
    for hole in holes:
        rings.append(np.arange(start, start + len(hole))[::-1])  # clockwise: the region is on the left of it
        start += len(hole)
    # From the rightmost hole on, so that a bridge to the right meets no hole that is not part of the ring yet.
    # Corners moved by a millionth are in general position: no three on a line, no ties.
    moved = points + 1e-6 * np.ptp(points) * np.random.default_rng(0).random(points.shape)
    for number in np.argsort([-hole[:, 0].max() for hole in holes]):
        ring = _bridge(moved, ring, rings[number])
    return points, _cut_ears(moved, ring)


def _is_convex(outline: np.ndarray) -> bool:
    edges = np.roll(outline, -1, axis=0) - outline
    following = np.roll(edges, -1, axis=0)
    return bool((edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0] > 0).all())


def _bridge(points: np.ndarray, ring: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The ring with `hole` in it, entered and left by an edge from its rightmost corner to a corner that it sees."""
    hole = np.roll(hole, -int(points[hole, 0].argmax()))
    source = points[hole[0]]
    corners = points[ring]
    to_right = np.flatnonzero(corners[:, 0] > source[0])
    start, end = corners, np.roll(corners, -1, axis=0)
    for at in to_right[np.square(corners[to_right] - source).sum(1).argsort(kind="stable")]:
        target = corners[at]
        touching = (start == target).all(1) | (end == target).all(1)  # a bridge ends here already
        crossing = (_turn(source, target, start) * _turn(source, target, end) <= 0) & (
            _turn(start, end, source) * _turn(start, end, target) <= 0
        )
        inward = _turn(corners[at - 1], target, source), _turn(target, corners[(at + 1) % len(corners)], source)
        convex = _turn(corners[at - 1], target, corners[(at + 1) % len(corners)]) > 0
        sees = min(inward) > 0 if convex else max(inward) > 0
        if sees and not (crossing & ~touching).any():
            return np.concatenate([ring[: at + 1], hole, hole[:1], ring[at:]])
    raise ValueError("A hole lies outside its outline, or touches it.")


def _turn(a, b, c) -> np.ndarray:
    """Twice the signed area of triangles a, b, c; positive when counter-clockwise."""
    a, b, c = np.asarray(a), np.asarray(b), np.asarray(c)
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])


def _cut_ears(points: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """Triangles of a ring of corners, those at the ends of bridges in it twice."""
    ring = ring.tolist()
    triangles, at, waited = [], 0, 0
    while len(ring) > 3:
        ear = (ring[at - 1], ring[at], ring[(at + 1) % len(ring)])
        if _turn(*points[list(ear)]) > 0 and not _holds_a_corner(points, ear, ring):
            triangles.append(ear)
            ring.pop(at)
            at, waited = at % len(ring) + 1, 0  # skip a corner: long fans around one corner are avoided
        else:
            at, waited = at + 1, waited + 1
            if waited > len(ring):
                raise ValueError("The polygon crosses itself.")
        at %= len(ring)
    triangles.append(tuple(ring))
    return np.array(triangles)


def _holds_a_corner(points: np.ndarray, ear: tuple[int, int, int], ring: list[int]) -> bool:
    a, b, c = points[list(ear)]
    corners = points[ring]
    inside = (_turn(a, b, corners) >= 0) & (_turn(b, c, corners) >= 0) & (_turn(c, a, corners) >= 0)
    return any(ring[at] not in ear for at in np.flatnonzero(inside))
