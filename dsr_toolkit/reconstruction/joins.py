"""How two windows that share frames lie to one another, and whether that can be trusted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .similarity import CUT, Similarity, quantile, residuals, robust_similarity, umeyama
from .views import View

COMMON_POINTS = 8_000  # of the shared frames, at most, that decide a join
CAMERA_WEIGHT = 0.2  # of the shared cameras together, in parts of that of the common points
BLOCKS = 3  # a shared frame is judged in so many rows and columns
# What a join must reach to be trusted.
LARGEST_RESIDUAL = 0.1  # median distance of common points, in parts of their depth
SMALLEST_AGREEMENT = 0.5  # part of the common points that the similarity explains …
FURTHEST = 0.3  # … which lie no further apart than this part of their depth
LARGEST_SPREAD = 0.1  # of the scale between parts of the shared frames: natural logarithm, standard deviation
FEWEST_POINTS = 30
LOCATED = 1e-4  # of the spread of the ratios: from such a step on their centre counts as found


@dataclass(frozen=True)
class Join:
    """
    The similarity from one window's world to another's, and how well it is founded.

    Args:
        similarity: from the later window's world to the earlier one's.
        residual: median distance of common points after it, in parts of their depth.
        agreement: part of the common points that it explains.
        scale_spread: how much the scale differs between parts of the shared frames (standard deviation of its
            logarithm).
        points: how many pairs there were, `COMMON_POINTS` at most.
        doubts: why it cannot be trusted, in words; empty where it can.
    """

    similarity: Similarity
    residual: float
    agreement: float
    scale_spread: float
    points: int
    doubts: list[str] = field(default_factory=list)

    @property
    def trusted(self) -> bool:
        return not self.doubts

    def report(self) -> dict:
        """For a JSON file."""
        return {
            "scale": self.similarity.scale,
            "residual": _finite(self.residual),
            "agreement": self.agreement,
            "scale_spread": _finite(self.scale_spread),
            "points": self.points,
            "trusted": self.trusted,
            **({"doubts": self.doubts} if self.doubts else {}),
        }


def join_views(views: list[View], to: list[View]) -> Join:
    """
    The similarity that takes the world frame of `views` to that of `to`: the same frames, seen by two windows.

    Its scale is the most frequent ratio of the two depths of a pixel, on which noise of either side has no pull.
    Rotation and translation then come from the common points, each weighted by the confidences of both windows and the
    inverse square of its depth, and from the shared cameras, which take part as points on their axes. Gross outliers
    are left out of all.
    """
    pairs = [_common(view, other, COMMON_POINTS // len(to)) for view, other in zip(views, to, strict=True)]
    x, y, depth_x, depth_y, confidence, block = (np.concatenate(values) for values in zip(*pairs))
    block += np.repeat(np.arange(len(pairs)) * BLOCKS**2, [len(pair[0]) for pair in pairs])
    good = (np.minimum(depth_x, depth_y) > 0) & np.isfinite((x + y) @ np.ones(3) + depth_x + depth_y)
    if not good.all():
        x, y, depth_x, depth_y, confidence, block = (
            values[good] for values in (x, y, depth_x, depth_y, confidence, block)
        )
    if not len(x):
        return _by_cameras(views, to)

    weights = np.sqrt(np.maximum(confidence, 1e-12))
    ratios = np.log(depth_y / depth_x)
    order = np.argsort(ratios)
    log_scale = location(ratios, weights, order)
    medians = _medians(ratios[order], block[order])
    spread = 1.4826 * float(np.median(np.abs(medians - np.median(medians))))

    scale, reach = float(np.exp(log_scale)), np.sqrt(depth_x * depth_y)
    axes_x, axes_y, axes_reach = _axes(views, to, quantile(depth_x, 0.5), quantile(depth_y, 0.5))
    camera_weights = np.full(len(axes_x), CAMERA_WEIGHT * weights.sum() / len(axes_x))
    start = umeyama(axes_x, axes_y, scale=scale)
    similarity, inlier = robust_similarity(
        np.concatenate([x, axes_x]), np.concatenate([y, axes_y]), np.concatenate([weights, camera_weights]),
        np.concatenate([reach, axes_reach]), scale, start,
    )  # fmt: skip
    error = residuals(similarity, x, y, reach)
    agreement = float((inlier[: len(x)] & (error < FURTHEST)).mean())
    join = Join(similarity, quantile(error, 0.5), agreement, spread, len(x))
    join.doubts.extend(_doubts(join))
    return join


def _common(view: View, other: View, most: int) -> tuple[np.ndarray, ...]:
    """
    Of at most `most` pixels that both windows trust: points in both worlds, both depths, product of confidences, block
    of the image.
    """
    if view.depth.shape != other.depth.shape:  # one window's first image chose another size of frames
        view = _resized(view, other.depth.shape)
    chosen = np.flatnonzero(view.mask & other.mask)
    if len(chosen) > most:
        chosen = chosen[np.linspace(0, len(chosen) - 1, most).astype(int)]
    height, width = other.depth.shape
    row, column = np.divmod(chosen, width)
    return (
        view.points.reshape(-1, 3).take(chosen, 0).astype(float),
        other.points.reshape(-1, 3).take(chosen, 0).astype(float),
        view.depth.take(chosen).astype(float),
        other.depth.take(chosen).astype(float),
        view.confidence.take(chosen).astype(float) * other.confidence.take(chosen),
        row * BLOCKS // height * BLOCKS + column * BLOCKS // width,
    )


def _medians(values: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Of ascending `values`, that of each block that occurs."""
    counts = np.bincount(block)
    counts, ends = counts[counts > 0], np.cumsum(counts[counts > 0])
    values, first = values[np.argsort(block, kind="stable")], ends - counts
    return (values[first + (counts - 1) // 2] + values[first + counts // 2]) / 2


def _resized(view: View, shape: tuple[int, int]) -> View:
    """Its maps at the pixels of another size, nearest."""
    from dataclasses import replace

    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, view.depth.shape))
    chosen = np.ix_(rows, columns)
    return replace(
        view, points=view.points[chosen], depth=view.depth[chosen], mask=view.mask[chosen],
        confidence=view.confidence[chosen],
    )  # fmt: skip


def _axes(views, to, depth_x: float, depth_y: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Each shared camera as four points in both worlds, its centre and one on each axis as far as the scene; and their
    reach.
    """
    points = []
    for cameras, depth in ((views, depth_x), (to, depth_y)):
        poses = np.stack([view.camera_to_world for view in cameras])
        centres = poses[:, None, :3, 3]
        points.append(
            np.concatenate([centres, centres + depth * np.swapaxes(poses[:, :3, :3], 1, 2)], 1).reshape(-1, 3)
        )
    return *points, np.full(len(points[0]), np.sqrt(depth_x * depth_y))


def location(values: np.ndarray, weights: np.ndarray, order: np.ndarray | None = None) -> float:
    """
    The centre of the densest part of `values` `[n]`: Tukey's estimate, started in the shortest interval with a quarter
    of them. `order` sorts them, where that is known.

    Whatever more than half of the values are, if they do not agree, does not matter.
    """
    order = np.argsort(values) if order is None else order
    values, weights = values[order], weights[order]
    count = max(len(values) // 4, 1)
    widths = values[count - 1 :] - values[: len(values) - count + 1]
    first = int(np.argmin(widths))
    centre = float(np.median(values[first : first + count]))
    # Half of such an interval is 0.319 σ of a Gaussian.
    sigma = max(float(widths[first]) / (2 * 0.319), 1e-9)
    for _ in range(30):
        ends = np.searchsorted(values, [centre - CUT * sigma, centre + CUT * sigma])
        inside, share = values[slice(*ends)], weights[slice(*ends)]
        error = np.abs(inside - centre)
        share = share * np.square(1 - np.square(error / (CUT * sigma)))
        total = share.sum()
        if not total > 0:
            break
        moved = float(share @ inside / total)
        before, sigma = sigma, max(1.4826 * quantile(error, 0.5), 1e-9)
        settled = max(abs(moved - centre), abs(sigma - before)) < LOCATED * sigma
        centre = moved
        if settled:
            break
    return centre


def _by_cameras(views: list[View], to: list[View]) -> Join:
    """Without a common point."""
    source, target = (np.stack([view.camera_to_world for view in cameras]) for cameras in (views, to))
    similarity, scale_known = cameras_similarity(source, target)
    doubt = "the windows share no trusted point and are joined by their shared cameras alone"
    doubt += "" if scale_known else ", which stand in one spot, so that their scales may differ"
    return Join(similarity, float("inf"), 0.0, float("inf"), 0, [doubt])


def cameras_similarity(source: np.ndarray, target: np.ndarray) -> tuple[Similarity, bool]:
    """
    The similarity between two worlds by cameras that stand in both, `[n, 4, 4]` camera-to-world: the mean turn of the
    cameras, and the ratio of how far they are spread, where they are (else 1, and False).
    """
    spreads = [float(np.linalg.norm(poses[:, :3, 3] - poses[:, :3, 3].mean(0))) for poses in (source, target)]
    known = min(spreads) > 1e-9 * max(1.0, *spreads)
    scale = spreads[1] / spreads[0] if known else 1.0
    turns = target[:, :3, :3] @ np.swapaxes(source[:, :3, :3], 1, 2)
    u, _, vt = np.linalg.svd(turns.sum(0))
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    translation = target[:, :3, 3].mean(0) - scale * rotation @ source[:, :3, 3].mean(0)
    return Similarity(scale, rotation, translation), known


def _doubts(join: Join) -> list[str]:
    found = []
    if join.points < FEWEST_POINTS:
        found.append(f"only {join.points} common points ({FEWEST_POINTS} are needed)")
    if join.residual > LARGEST_RESIDUAL:
        found.append(f"common points lie {join.residual:.0%} of their depth apart ({LARGEST_RESIDUAL:.0%} at most)")
    if join.agreement < SMALLEST_AGREEMENT:
        found.append(f"{join.agreement:.0%} of the common points agree ({SMALLEST_AGREEMENT:.0%} are needed)")
    if join.scale_spread > LARGEST_SPREAD:
        found.append(
            f"its scale differs by {join.scale_spread:.0%} between parts of the images ({LARGEST_SPREAD:.0%} at most)"
        )
    return found


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
