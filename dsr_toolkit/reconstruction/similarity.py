"""Similarity transforms of space, Sim(3), and the one that fits two sets of points best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUNDS = 20  # of reweighting, at most
START_TRIALS, START_POINTS = 256, 4  # random minimal fits, from which the reweighting starts
# Starts are judged by the error below which this share of the pairs lies: up to 3/4 of them may be wrong.
START_QUANTILE = 0.25
GOOD_START = 0.05  # a guess whose quartile lies below it, in units of `reach`, is not tried against random ones
SETTLED = 1e-3  # relative change of the spread at which the reweighting ends: an eighth of what 8000 points tell of it
COARSE = 1_500  # points, drawn by chance, with which the reweighting comes near before it takes all of them
# Of the length of a 3-D Gaussian error in units of σ: its lower quartile and its median; and Tukey's cut, which keeps
# 95 % of the efficiency of least squares.
QUARTILE, MEDIAN, CUT = 1.101, 1.538, 4.685


@dataclass(frozen=True)
class Similarity:
    """x → scale · rotation · x + translation. `rotation` `[3, 3]`, `translation` `[3]`, float64."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    @classmethod
    def identity(cls) -> Similarity:
        return cls(1.0, np.eye(3), np.zeros(3))

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Points `[..., 3]`."""
        return self.scale * (points @ self.rotation.T) + self.translation

    def inverse(self) -> Similarity:
        return Similarity(1 / self.scale, self.rotation.T, -(self.translation @ self.rotation) / self.scale)

    def __matmul__(self, first: Similarity) -> Similarity:
        """`first`, then this one."""
        return Similarity(self.scale * first.scale, self.rotation @ first.rotation, self.apply(first.translation))


def umeyama(
    source: np.ndarray,
    target: np.ndarray,
    weights: np.ndarray | None = None,
    symmetric: bool = False,
    scale: float | None = None,
) -> Similarity:
    """
    The similarity with the least weighted squared error from `source` to `target`, in closed form.

    S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991. Leading
    axes are a batch: its fields then have them too.

    Args:
        source, target: `[..., n, 3]`. weights: `[..., n]`, not negative.
        symmetric: both sets are uncertain. The scale is then the ratio of their spreads (B. K. P. Horn, JOSA A 1987),
            so that swapping the sets gives the inverse; the one-sided scale shrinks with the noise of `source`.
        scale: known beforehand.
    """
    source, target = np.asarray(source, float), np.asarray(target, float)
    weights = np.ones(source.shape[:-1]) if weights is None else np.asarray(weights, float)
    share = weights / weights.sum(-1, keepdims=True)
    source_mean, target_mean = (share[..., None, :] @ points for points in (source, target))
    from_mean, to_mean = source - source_mean, target - target_mean
    weighted = share[..., None] * to_mean
    u, singular, vt = np.linalg.svd(np.swapaxes(weighted, -1, -2) @ from_mean)
    signs = np.ones_like(singular)
    signs[..., 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    rotation = (u * signs[..., None, :]) @ vt
    variance = np.maximum(np.einsum("...n,...ni,...ni->...", share, from_mean, from_mean), np.finfo(float).tiny)
    if scale is not None:
        scale = np.full(variance.shape, float(scale))
    elif symmetric:
        scale = np.sqrt(np.einsum("...ni,...ni->...", weighted, to_mean) / variance)
    else:
        scale = (singular * signs).sum(-1) / variance
    moved = scale[..., None] * np.squeeze(source_mean @ np.swapaxes(rotation, -1, -2), -2)
    return Similarity(scale if scale.ndim else float(scale), rotation, np.squeeze(target_mean, -2) - moved)


def robust_similarity(
    source: np.ndarray,
    target: np.ndarray,
    weights: np.ndarray | None = None,
    reach: np.ndarray | None = None,
    scale: float | None = None,
    start: Similarity | None = None,
    seed: int = 0,
) -> tuple[Similarity, np.ndarray]:
    """
    The similarity from `source` to `target`, both uncertain, that gross outliers do not move, though they be the
    majority.

    Starts from the best of many fits to a few random points, by the quartile of their errors, and then fits all points
    again and again, weighted by confidence and by Tukey's biweight, whose cut follows the median error of those within
    it. Errors count in the middle between both scales, so that swapping the sets gives the inverse.

    Args:
        source, target: `[n, 3]`, n ≥ 3. weights: `[n]`, confidence.
        reach: `[n]`, how large each pair's error is expected to be beside the others' (its distance from the cameras).
        scale: known beforehand. start: a guess, that spares the random ones where it explains the points.

    Returns:
        The similarity, and which points it counts as inliers: bool `[n]`.

    Raises:
        ValueError: fewer than three points, or points that lie in one spot or on one line, where no rotation is
        defined.
    """
    source, target = np.asarray(source, float), np.asarray(target, float)
    weights = np.ones(len(source)) if weights is None else np.asarray(weights, float)
    reach = np.ones(len(source)) if reach is None else np.asarray(reach, float)
    used = (
        np.isfinite(source).all(-1) & np.isfinite(target).all(-1) & np.isfinite(weights) & (weights > 0) & (reach > 0)
    )
    chosen = np.flatnonzero(used)
    if len(chosen) < 3:
        raise ValueError(f"a similarity needs three common points or more, got {len(chosen)} with weight.")
    if len(chosen) < len(source):
        source, target, weights, reach = source[chosen], target[chosen], weights[chosen], reach[chosen]
    if _on_a_line(source):
        raise ValueError("the common points lie in one spot or on one line, which leaves the rotation open.")

    generator = np.random.default_rng(seed)
    fit = _best_start(source, target, weights, reach, scale, start, generator)
    few = generator.integers(0, len(source), COARSE) if len(source) > 2 * COARSE else np.arange(len(source))
    middle, other_middle = np.median(source[few], 0), np.median(target[few], 0)
    size = np.median(_lengths(target[few] - other_middle) / reach[few])
    smallest = max(1e-9 * size / np.sqrt(fit.scale), np.finfo(float).tiny)
    # Errors and sums of squares of all pairs are matrix products with these.
    rows = np.stack([*(source - middle).T, *(target - other_middle).T, np.ones(len(source))]) / reach
    fit = Similarity(fit.scale, fit.rotation, fit.apply(middle) - other_middle)
    sigma = None
    if len(few) < len(source):
        fit, _, sigma = _reweighted(rows[:, few], weights[few], fit, smallest, scale, settled=10 * SETTLED)
    fit, inlier, _ = _reweighted(rows, weights, fit, smallest, scale, sigma)
    result = np.zeros(len(used), bool)
    result[chosen] = inlier
    shift = fit.translation + other_middle - fit.scale * (fit.rotation @ middle)
    return Similarity(fit.scale, fit.rotation, shift), result


def _reweighted(rows, weights, fit: Similarity, smallest: float, scale, sigma: float | None = None, settled=SETTLED):
    """
    `fit` after rounds of least squares with Tukey's weights, its inliers, and the spread of their errors.

    `rows` `[7, n]`: source, target and 1, over the reach of the pair. `sigma`: the spread, where something is known of
    it.
    """
    for number in range(ROUNDS):
        error, before = _errors(rows, fit), sigma
        if sigma is None:
            sigma = quantile(error, START_QUANTILE) / QUARTILE
        elif len(inside := error[error < CUT * sigma]) >= 3:
            sigma = quantile(inside, 0.5) / MEDIAN
        sigma = max(sigma, smallest)
        inlier = error < CUT * sigma
        if np.count_nonzero(inlier) < 3 or number and abs(before - sigma) <= settled * sigma:
            break
        share = np.square(np.maximum(1 - np.square(error / (CUT * sigma)), 0)) * weights
        fit = _fit_of_moments((rows * share) @ rows.T, scale)
    return fit, inlier, sigma


def _errors(rows: np.ndarray, fit: Similarity) -> np.ndarray:
    """As [`residuals`] has them, of rows as [`_reweighted`] has them."""
    size = np.sqrt(fit.scale)
    taken = np.concatenate([fit.scale * fit.rotation, -np.eye(3), fit.translation[:, None]], 1) / size
    away = taken @ rows
    return np.sqrt(np.einsum("in,in->n", away, away))


def _fit_of_moments(moments: np.ndarray, scale: float | None) -> Similarity:
    """Umeyama's similarity of uncertain sets, from the weighted sums of products of (source, target, 1) `[7, 7]`."""
    moments = moments / moments[6, 6]
    mean, other = moments[6, :3], moments[6, 3:6]
    covariance = moments[:6, :6] - np.outer(moments[6, :6], moments[6, :6])
    u, _, vt = np.linalg.svd(covariance[3:, :3])
    rotation = (u * [1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))]) @ vt
    if scale is None:
        variance = max(np.trace(covariance[:3, :3]), np.finfo(float).tiny)
        scale = float(np.sqrt(max(np.trace(covariance[3:, 3:]), 0.0) / variance))
    return Similarity(scale, rotation, other - scale * (rotation @ mean))


def residuals(fit: Similarity, source: np.ndarray, target: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Errors `[n]` in units of `reach`, in the middle between the two scales."""
    return _lengths(fit.apply(source) - target) / (np.sqrt(fit.scale) * reach)


def _best_start(x, y, w, reach, scale, start: Similarity | None, generator) -> Similarity:
    # Judged on a sample of fixed size: trials × points stays small.
    sample = np.arange(len(x)) if len(x) <= 1000 else generator.choice(len(x), 1000, replace=False)
    score = np.inf
    if start is not None:
        score = quantile(residuals(start, x[sample], y[sample], reach[sample]), START_QUANTILE)
        if score <= GOOD_START:
            return start
    few = generator.choice(len(x), (START_TRIALS, min(START_POINTS, len(x))), p=w / w.sum())
    trials = umeyama(x[few], y[few], symmetric=True, scale=scale)
    sizes = np.maximum(trials.scale, np.finfo(float).tiny)
    moved = trials.scale[:, None, None] * (x[sample] @ np.swapaxes(trials.rotation, 1, 2)) + trials.translation[:, None]
    # Symmetric: else the smallest scale, which draws everything into one spot, has the smallest errors.
    errors = _lengths(moved - y[sample]) / (np.sqrt(sizes)[:, None] * reach[sample])
    scores = np.quantile(errors, START_QUANTILE, axis=1)
    best = int(np.argmin(scores))
    if score <= scores[best]:
        return start
    return Similarity(float(sizes[best]), trials.rotation[best], trials.translation[best])


def _on_a_line(points: np.ndarray) -> bool:
    """Or in one spot."""
    points = points - points.mean(0)
    _, second, first = np.linalg.eigvalsh(points.T @ points)
    if second > 1e-10 * first:  # far above what squaring loses
        return False
    first, second, _ = np.linalg.svd(points, compute_uv=False)
    return bool(second <= 1e-9 * max(first, np.finfo(float).tiny))


def quantile(values: np.ndarray, share: float) -> float:
    """Of `values` `[n]` the one that this share lies below."""
    place = int(share * (len(values) - 1))
    return float(np.partition(values, place)[place])


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("...i,...i->...", vectors, vectors))
