"""Similarity transforms of space, Sim(3), and the one that fits two sets of points best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUNDS = 30  # of reweighting, at most
START_TRIALS, START_POINTS = 256, 4  # random minimal fits, from which the reweighting starts


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

    def __matmul__(self, first: Similarity) -> Similarity:
        """`first`, then this one."""
        return Similarity(self.scale * first.scale, self.rotation @ first.rotation, self.apply(first.translation))


def umeyama(source: np.ndarray, target: np.ndarray, weights: np.ndarray | None = None) -> Similarity:
    """
    The similarity with the least weighted squared error from `source` to `target`, in closed form.

    S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991. Leading axes are
    a batch: its fields then have them too.

    Args:
        source, target: `[..., n, 3]`. weights: `[..., n]`, not negative.
    """
    source, target = np.asarray(source, float), np.asarray(target, float)
    weights = np.ones(source.shape[:-1]) if weights is None else np.asarray(weights, float)
    share = (weights / weights.sum(-1, keepdims=True))[..., None]
    source_mean, target_mean = ((share * points).sum(-2, keepdims=True) for points in (source, target))
    from_mean, to_mean = source - source_mean, target - target_mean
    u, singular, vt = np.linalg.svd(np.swapaxes(share * to_mean, -1, -2) @ from_mean)
    signs = np.ones_like(singular)
    signs[..., 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    rotation = (u * signs[..., None, :]) @ vt
    variance = (share * np.square(from_mean)).sum((-1, -2))
    scale = (singular * signs).sum(-1) / np.maximum(variance, np.finfo(float).tiny)
    moved = scale[..., None] * np.squeeze(source_mean @ np.swapaxes(rotation, -1, -2), -2)
    return Similarity(scale if scale.ndim else float(scale), rotation, np.squeeze(target_mean, -2) - moved)


def robust_similarity(
    source: np.ndarray, target: np.ndarray, weights: np.ndarray | None = None, seed: int = 0
) -> tuple[Similarity, np.ndarray]:
    """
    The similarity from `source` to `target` that gross outliers do not move.

    Starts from the best of many fits to a few random points, by the median of their errors, and then fits all points again and
    again, weighted by confidence and by Tukey's biweight, whose cut follows the median error.

    Args:
        source, target: `[n, 3]`, n ≥ 3. weights: `[n]`, confidence.

    Returns:
        The similarity, and which points it counts as inliers: bool `[n]`.

    Raises:
        ValueError: fewer than three points, or points that lie in one spot or on one line, where no rotation is defined.
    """
    source, target = np.asarray(source, float), np.asarray(target, float)
    weights = np.ones(len(source)) if weights is None else np.asarray(weights, float)
    used = np.isfinite(source).all(-1) & np.isfinite(target).all(-1) & np.isfinite(weights) & (weights > 0)
    chosen = np.flatnonzero(used)
    if len(chosen) < 3:
        raise ValueError(f"a similarity needs three common points or more, got {len(chosen)} with weight.")
    x, y, w = source[chosen], target[chosen], weights[chosen]
    spread = np.linalg.svd(x - x.mean(0), compute_uv=False)
    if spread[1] <= 1e-9 * max(spread[0], np.finfo(float).tiny):
        raise ValueError("the common points lie in one spot or on one line, which leaves the rotation open.")

    generator = np.random.default_rng(seed)
    few = generator.choice(len(x), (START_TRIALS, min(START_POINTS, len(x))), p=w / w.sum())
    # Judged on a sample of fixed size: trials × points stays small.
    sample = np.arange(len(x)) if len(x) <= 2000 else generator.choice(len(x), 2000, replace=False)
    trials = umeyama(x[few], y[few])
    moved = trials.scale[:, None, None] * (x[sample] @ np.swapaxes(trials.rotation, 1, 2)) + trials.translation[:, None]
    best = np.argmin(np.median(np.square(moved - y[sample]).sum(-1), 1))
    fit = Similarity(float(trials.scale[best]), trials.rotation[best], trials.translation[best])

    size = np.median(np.linalg.norm(y - np.median(y, 0), axis=-1))
    previous, inlier = np.inf, np.ones(len(x), bool)
    for _ in range(ROUNDS):
        error = np.linalg.norm(fit.apply(x) - y, axis=-1)
        # Median of a 3-D error's length is 1.54 σ; 4.685 σ keeps 95 % of the efficiency of least squares.
        sigma = max(np.median(error) / 1.54, 1e-9 * size, np.finfo(float).tiny)
        inlier = error < 4.685 * sigma
        if inlier.sum() < 3 or abs(previous - sigma) <= 1e-9 * sigma:
            break
        previous = sigma
        fit = umeyama(x[inlier], y[inlier], w[inlier] * np.square(1 - np.square(error[inlier] / (4.685 * sigma))))
    result = np.zeros(len(source), bool)
    result[chosen] = inlier
    return fit, result
