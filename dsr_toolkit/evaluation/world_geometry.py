"""How well a model knows the space world's geometry: depth, cameras, and what moves."""

from __future__ import annotations

import numpy as np

MOVING_SHARE = 0.5  # of a patch's pixels, from which it counts as moving


def clip_errors(prediction: dict, truth: dict) -> dict:
    """
    Errors of one clip.

    Args:
        prediction: `depths` `[…, H, W]` and `poses` `[…, 3 or 4, 4]` camera-to-world, in any one unit and frame;
            `dynamic`: how much each patch moves, 0 … 1, `[…, h, w]` or `[…, h·w, 1]`.
        truth: `depths`, `poses` and `dynamic` (bool `[…, H, W]`), of the same pixels.

    Returns:
        `abs_rel`: mean of |scale · depth - truth| / truth over the clip, with the one scale that makes it least;
        `abs_rel_constant`: the same of the best constant; `scale`; `rotation_errors`: angles in degrees between true
        and predicted rotation of each two cameras; `true_rotations`: between each two cameras, the error of a camera
        that is said not to move; with `dynamic` also `patches`, those taken for moving, and `intersection` and `union`
        with the true ones, in patches.
    """
    depths, true = prediction["depths"].astype(np.float64), truth["depths"].astype(np.float64)
    scale = best_scale(depths, true)
    constant = best_scale(np.ones_like(true), true)
    found = relative_rotations(_rotations(prediction["poses"]))
    wanted = relative_rotations(_rotations(truth["poses"]))
    errors = {
        "scale": scale,
        "abs_rel": float((np.abs(scale * depths - true) / true).mean()),
        "abs_rel_constant": float((np.abs(constant - true) / true).mean()),
        "rotation_errors": angles(found.swapaxes(-1, -2) @ wanted).tolist(),
        "true_rotations": angles(wanted).tolist(),
    }
    if "dynamic" in prediction:
        height, width = true.shape[-2:]
        dynamic = prediction["dynamic"]
        if dynamic.shape[-1] == 1:  # several views
            side = round((height * width / dynamic.shape[-2]) ** 0.5)
            dynamic = dynamic.reshape(*dynamic.shape[:-2], height // side, width // side)
        side = height // dynamic.shape[-2]
        cells = truth["dynamic"].reshape(*true.shape[:-2], height // side, side, width // side, side)
        moving = cells.mean((-3, -1)) >= MOVING_SHARE
        patches = dynamic >= 0.5
        errors |= {
            "patches": patches,
            "intersection": int((patches & moving).sum()),
            "union": int((patches | moving).sum()),
        }
    return errors


def _rotations(poses: np.ndarray) -> np.ndarray:
    """`[N, 3, 3]` of poses `[…, 3 or 4, 4]`; several views are taken time by time."""
    return poses.reshape(-1, *poses.shape[-2:])[:, :3, :3].astype(np.float64)


def best_scale(depths: np.ndarray, true: np.ndarray) -> float:
    """The s that makes the mean of |s · depths - true| / true least: a weighted median of true / depths."""
    depths = np.maximum(depths, 1e-9)
    ratio, weight = (true / depths).reshape(-1), (depths / true).reshape(-1)
    order = ratio.argsort()
    mass = weight[order].cumsum()
    return float(ratio[order][np.searchsorted(mass, mass[-1] / 2)])


def relative_rotations(rotations: np.ndarray) -> np.ndarray:
    """Of every two cameras i < j of `[N, 3, 3]`, `Rᵢᵀ Rⱼ`."""
    first, second = np.triu_indices(len(rotations), 1)
    return rotations[first].swapaxes(-1, -2) @ rotations[second]


def angles(rotations: np.ndarray) -> np.ndarray:
    """Of rotations `[N, 3, 3]`, degrees."""
    cosine = (np.trace(rotations, axis1=-2, axis2=-1) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))
