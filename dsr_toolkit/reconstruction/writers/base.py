"""What all writers share: what they are told of the scene, and the points they draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..views import View

OWN_SCALE = "a scale of its own"
MOVING = np.array([240, 70, 40])  # the colour that marks what moves by itself
MOVING_FROM = 0.5  # dynamic mask
FRUSTUM = 0.1  # depth of a drawn camera, in median depths of the first view


@dataclass(frozen=True)
class About:
    """
    What the views do not tell themselves.

    Args:
        title: of the scene, for people. unit: of lengths: "metres", or that the model chose a scale of its own.
        seconds: whether `View.time` is seconds of a video; else it is the number of the image.
        root: camera-to-world `[4, 4]` that stands upright at the origin of files that are looked at; default: the first
            view's. Files of one scene at several times share one.
    """

    title: str = "Scene"
    unit: str = OWN_SCALE
    seconds: bool = False
    root: np.ndarray | None = None


def cloud(view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Trusted points `[n, 3]`, their colours uint8 `[n, 3]`, tinted where they move, and whether they do, bool `[n]`.
    """
    points, colours = view.points[view.mask], view.image[view.mask]
    moving = np.zeros(len(points), bool) if view.dynamic is None else view.dynamic[view.mask] > MOVING_FROM
    tinted = (0.35 * colours + 0.65 * MOVING).astype(np.uint8)
    return points, np.where(moving[:, None], tinted, colours), moving


class PointSample:
    """An even random sample of at most `limit` points of a stream of any length."""

    def __init__(self, limit: int, seed: int = 0):
        self.limit, self.generator = limit, np.random.default_rng(seed)
        self.kept = [(np.zeros(0), np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, bool))]
        self.size = 0

    def add(self, points: np.ndarray, colours: np.ndarray, moving: np.ndarray) -> None:
        self.kept.append((self.generator.random(len(points)), points, colours, moving))
        self.size += len(points)
        if self.size > 2 * self.limit:
            self._shrink()

    def _shrink(self) -> None:
        """Keep the points with the smallest lots: whichever points come later, each has had the same chance."""
        columns = [np.concatenate(values) for values in zip(*self.kept)]
        if len(columns[0]) > self.limit:
            chosen = np.sort(np.argpartition(columns[0], self.limit)[: self.limit])
            columns = [values[chosen] for values in columns]
        self.kept, self.size = [tuple(columns)], len(columns[0])

    def points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points, colours and which of them move, in the order in which they came."""
        self._shrink()
        return self.kept[0][1:]


class Spread:
    """Takes things one by one and keeps at most `limit` of them, evenly spread; how many come need not be known."""

    def __init__(self, limit: int):
        self.limit, self.count, self.step, self.kept = limit, 0, 1, []

    def wants(self) -> bool:
        """Whether the next one would be kept."""
        return self.count % self.step == 0

    def add(self, item) -> None:
        if self.wants():
            self.kept.append(item)
            if len(self.kept) == 2 * self.limit:  # every other one goes: the rest stays evenly spread
                self.kept, self.step = self.kept[::2], 2 * self.step
        self.count += 1

    def chosen(self) -> list:
        """At most `limit` of them, the first and the last kept one among them."""
        index = np.unique(np.linspace(0, len(self.kept) - 1, min(self.limit, len(self.kept))).round().astype(int))
        return [self.kept[i] for i in index]


def frustum_lines(intrinsics: np.ndarray, shape: tuple[int, int], depth: float) -> np.ndarray:
    """Edges `[8, 2, 3]` of a camera's view up to `depth`, in its own frame."""
    corners = frustum_corners(intrinsics, shape, depth)
    return np.concatenate(
        [np.stack([np.zeros_like(corners), corners], 1), np.stack([corners, np.roll(corners, -1, 0)], 1)]
    )


def frustum_corners(intrinsics: np.ndarray, shape: tuple[int, int], depth: float) -> np.ndarray:
    """
    Corners `[4, 3]` of the image at `depth` in the camera's frame: left top, right top, right bottom, left bottom.
    """
    height, width = shape
    (fx, _, cx), (_, fy, cy), _ = intrinsics
    x, y = (np.array([-0.5, width - 0.5]) - cx) / fx * depth, (np.array([-0.5, height - 0.5]) - cy) / fy * depth
    return np.array([[x[0], y[0], depth], [x[1], y[0], depth], [x[1], y[1], depth], [x[0], y[1], depth]])


def upright(root: np.ndarray) -> np.ndarray:
    """
    World transform `[4, 4]` that puts a camera at the origin of a world in which y points up and it looks along −z.
    """
    return np.diag([1.0, -1.0, -1.0, 1.0]) @ np.linalg.inv(root)
