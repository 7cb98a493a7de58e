"""
Points that several images show, at the places where the images themselves agree: what bundle adjustment starts from.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from ..views import View

NEIGHBOURS = 8  # views before a new one in which its points are looked for
CELL = 16  # pixels: at most one new point in such a square
PATCH = 4  # pixels on each side of a point that are compared
STEPS = 8  # of the alignment of a patch, at most
FURTHEST = 3.0  # pixels that a point may lie from where geometry expects it
LEAST_LIKENESS = 0.8  # normalised correlation of two patches
DEPTH_TOLERANCE = 0.05  # of the depth that the other view has there: else something lies in front
LEAST_TEXTURE = 20.0  # smaller eigenvalue of the structure tensor, in squared grey levels: corners, not edges


@dataclass
class _Seen:
    """A view as far as later ones need it."""

    grey: np.ndarray
    points: np.ndarray
    tracks: np.ndarray
    pixels: np.ndarray


class TrackBuilder:
    """
    Takes views one by one, and tells which points each shows and where.

    A point starts at a corner of an image. In each later view it is looked for where the geometry expects it, and kept
    where the view has that depth and the patch around it, warped as the surface asks, fits: shifted by the least
    squares of B. D. Lucas and T. Kanade (IJCAI 1981). So its place in the later image is measured, not predicted.
    """

    def __init__(self):
        self.before: deque[_Seen] = deque(maxlen=NEIGHBOURS)
        # Arrays: as objects of their own, the points of a long video would take more memory than all else.
        self.sums, self.counts = np.zeros((0, 3)), np.zeros(0, int)
        self.colours = np.zeros((0, 3), np.uint8)

    def add(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Pixels `[n, 2]` (x, y), of pixel centres at whole numbers, and the numbers `[n]` of the tracks seen there."""
        grey = view.image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        pixels, tracks = self._follow(view, grey)
        corners = self._corners(view, grey, pixels)
        new = np.arange(len(self.sums), len(self.sums) + len(corners))
        self.sums = np.concatenate([self.sums, np.zeros((len(corners), 3))])
        self.counts = np.concatenate([self.counts, np.zeros(len(corners), int)])
        self.colours = np.concatenate([self.colours, view.image[corners[:, 1], corners[:, 0]]])
        pixels = np.concatenate([pixels, corners.astype(float)])
        tracks = np.concatenate([tracks, new]).astype(int)
        column, row = np.round(pixels).astype(int).T
        np.add.at(self.sums, tracks, view.points[row, column])
        np.add.at(self.counts, tracks, 1)
        self.before.append(_Seen(grey, view.points.astype(np.float32), tracks, pixels))
        return pixels, tracks

    def points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Of each track: world point `[n, 3]` (the mean of what the views say), colour uint8 `[n, 3]`, how often it is
            seen.
        """
        return self.sums / np.maximum(self.counts, 1)[:, None], self.colours, self.counts

    def _follow(self, view: View, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points of earlier views that this one shows; the latest view that shows a point has its patch."""
        found_pixels, found_tracks = [np.zeros((0, 2))], [np.zeros(0, int)]
        done: set[int] = set()
        to_camera = np.linalg.inv(view.camera_to_world)
        for seen in reversed(self.before):
            fresh = np.array([track not in done for track in seen.tracks], bool)
            tracks, pixels = seen.tracks[fresh], seen.pixels[fresh]
            done.update(tracks.tolist())
            if not len(tracks):
                continue
            expected, ahead, warp, usable = self._expected(seen, pixels, view, to_camera)
            places, good = aligned(seen.grey, pixels[usable], grey, expected[usable], warp[usable])
            good[good] = self._same(view, places[good], ahead[usable][good])  # a step may lead over an edge
            found_pixels.append(places[good])
            found_tracks.append(tracks[usable][good])
        return np.concatenate(found_pixels), np.concatenate(found_tracks)

    def _expected(self, seen: _Seen, pixels: np.ndarray, view: View, to_camera: np.ndarray):
        """
        Where `view` should show the pixels of `seen` and how far ahead, how their surroundings are warped `[n, 2, 2]`,
        and for which that is known.
        """
        height, width = view.depth.shape
        base = np.round(pixels).astype(int)
        margin = PATCH + 1
        inner = ((base >= margin) & (base < np.array(seen.grey.shape[::-1]) - margin)).all(1)
        safe = np.clip(base, margin, np.array(seen.grey.shape[::-1]) - margin - 1)
        places = []
        for dx, dy in ((0, 0), (PATCH, 0), (0, PATCH), (-PATCH, 0), (0, -PATCH)):
            world = seen.points[safe[:, 1] + dy, safe[:, 0] + dx].astype(float)
            local = world @ to_camera[:3, :3].T + to_camera[:3, 3]
            ahead = np.maximum(local[:, 2], 1e-9)
            places.append(np.concatenate([(local @ view.intrinsics.T)[:, :2] / ahead[:, None], local[:, 2:]], 1))
        middle, right, down, left, up = places
        warp = np.stack([(right - left)[:, :2], (down - up)[:, :2]], -1) / (2 * PATCH)
        expected = middle[:, :2] + np.einsum("nij,nj->ni", warp, pixels - base)
        near = np.round(expected)
        inside = ((near >= margin) & (near < np.array([width, height]) - margin)).all(1)
        same = self._same(view, np.clip(near, 0, [width - 1, height - 1]), middle[:, 2])
        size = np.linalg.det(warp)
        usable = inner & inside & same & (middle[:, 2] > 0) & (size > 0.25) & (size < 4)
        return expected, middle[:, 2], warp, usable

    @staticmethod
    def _same(view: View, pixels: np.ndarray, ahead: np.ndarray) -> np.ndarray:
        """Whether `view` is to be trusted at `pixels` and has that depth there."""
        column, row = np.round(pixels).astype(int).T
        there = view.depth[row, column]
        return view.mask[row, column] & (np.abs(there - ahead) < DEPTH_TOLERANCE * np.maximum(there, 1e-9))

    @staticmethod
    def _corners(view: View, grey: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """The strongest corner `[n, 2]` (x, y) of each cell in which no point lies yet."""
        height, width = grey.shape
        dy, dx = np.gradient(grey)
        tensor = [_box(values) for values in (dx * dx, dx * dy, dy * dy)]
        half, rest = (tensor[0] + tensor[2]) / 2, np.sqrt(((tensor[0] - tensor[2]) / 2) ** 2 + tensor[1] ** 2)
        strength = np.where(view.mask, half - rest, 0)
        edge = PATCH + 2
        strength[:edge], strength[-edge:], strength[:, :edge], strength[:, -edge:] = 0, 0, 0, 0
        rows, columns = height // CELL, width // CELL
        if not rows or not columns:
            return np.zeros((0, 2), int)
        cells = strength[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL)
        cells = cells.transpose(0, 2, 1, 3).reshape(rows, columns, -1)
        best, value = cells.argmax(-1), cells.max(-1)
        if len(taken):
            x, y = (np.round(taken).astype(int) // CELL).T
            value[np.clip(y, 0, rows - 1), np.clip(x, 0, columns - 1)] = 0
        row, column = np.nonzero(value > LEAST_TEXTURE)
        inside = best[row, column]
        return np.stack([column * CELL + inside % CELL, row * CELL + inside // CELL], 1)


def aligned(
    grey: np.ndarray, pixels: np.ndarray, other: np.ndarray, expected: np.ndarray, warp: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    Where the patches of `grey` at `pixels` lie in `other`, near `expected`, and which were found.

    Args:
        grey, other: images `[h, w]`. pixels, expected: `[n, 2]` (x, y). warp: `[n, 2, 2]`, steps in `grey` to steps in
            `other`.
    """
    side = np.arange(-PATCH, PATCH + 1)
    offsets = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(float)
    template, _ = _normalised(_sample(grey, pixels[:, None] + offsets))
    there = np.einsum("nij,kj->nki", warp, offsets)
    dy, dx = np.gradient(other)
    places, likeness = expected.copy(), np.zeros(len(pixels))
    for _ in range(STEPS):
        at = places[:, None] + there
        patch, contrast = _normalised(_sample(other, at))
        likeness = (patch * template).mean(1)
        slope = np.stack([_sample(dx, at), _sample(dy, at)], -1) / contrast[:, None, None]
        slope = slope - slope.mean(1, keepdims=True)
        normal = np.einsum("nki,nkj->nij", slope, slope) + 1e-6 * np.eye(2)
        step = np.linalg.solve(normal, np.einsum("nki,nk->ni", slope, template - patch)[..., None])[..., 0]
        step = np.clip(step, -1, 1)
        places = places + step
        if not len(step) or np.abs(step).max() < 0.01:
            break
    likeness = (_normalised(_sample(other, places[:, None] + there))[0] * template).mean(1)
    height, width = other.shape
    inside = ((places >= 1) & (places < np.array([width, height]) - 2)).all(1)
    good = inside & (likeness > LEAST_LIKENESS) & (np.linalg.norm(places - expected, axis=1) < FURTHEST)
    return places, good


def _normalised(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patches `[n, k]` of mean 0 and standard deviation 1, and what the latter was."""
    centred = patches - patches.mean(1, keepdims=True)
    contrast = np.maximum(centred.std(1), 1e-3)
    return centred / contrast[:, None], contrast


def _sample(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Bilinear values of `image` at `places` `[..., 2]` (x, y); beyond the border its last pixel."""
    height, width = image.shape
    x, y = np.clip(places[..., 0], 0, width - 1.001), np.clip(places[..., 1], 0, height - 1.001)
    left, top = x.astype(int), y.astype(int)
    across, down = x - left, y - top
    upper = image[top, left] * (1 - across) + image[top, left + 1] * across
    lower = image[top + 1, left] * (1 - across) + image[top + 1, left + 1] * across
    return upper * (1 - down) + lower * down


def _box(values: np.ndarray, reach: int = 2) -> np.ndarray:
    """Mean of the square around each pixel."""
    padded = np.pad(values, reach, mode="edge")
    size = 2 * reach + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
    return windows.mean((-1, -2))
