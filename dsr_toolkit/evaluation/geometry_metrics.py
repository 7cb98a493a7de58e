"""Metrics of depth and camera trajectories by the published protocols (MonST3R's, which PAGE-4D and π³ use)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from ..extras import needs

ALIGNMENTS = ("median", "scale", "scale_shift", "lstsq", "metric")
THRESHOLDS = (1.25, 1.25**2, 1.25**3)
TINY_DEPTH = 1e-5


def evaluation_frames(pixel_values: torch.Tensor, size: int = 518) -> torch.Tensor:
    """
    Frames `[..., 3, H, W]` as PAGE-4D's published evaluation sees them: squashed to a square, whatever their shape.

    Bilinear, without antialiasing, pixel centres at halves. PyTorch's `interpolate` has several kernels for this, whose
    last digits differ with the number of threads, the memory layout and the version. Here the order is fixed: the two
    columns of each row, then the two rows, each sum rounded once. It equals PyTorch's own result on several threads.
    """
    frames = pixel_values.float()
    top, bottom, of_top, of_bottom = _neighbours(frames.shape[-2], size, frames.device)
    left, right, of_left, of_right = _neighbours(frames.shape[-1], size, frames.device)

    def across(rows: torch.Tensor) -> torch.Tensor:
        return _multiply_add(rows[..., left], of_left, rows[..., right] * of_right)

    first, second = across(frames[..., top, :]), across(frames[..., bottom, :])
    squared = _multiply_add(first, of_top.unsqueeze(-1), second * of_bottom.unsqueeze(-1))
    return squared.to(pixel_values.dtype)


def _neighbours(length: int, size: int, device) -> tuple[torch.Tensor, ...]:
    """For `size` places along `length` pixels: the two pixels that each lies between, and how much of each it takes."""
    scale = torch.tensor(float(length)) / size
    places = _multiply_add(torch.arange(size) + 0.5, scale, torch.tensor(-0.5)).clamp_min(0)
    first = places.long().clamp_max(length - 1)
    second, of_second = (first + 1).clamp_max(length - 1), (places - first).clamp(0, 1)
    return tuple(part.to(device) for part in (first, second, 1 - of_second, of_second))


def _multiply_add(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """`x·y + z` in float32, rounded once: the product of two float32 numbers is exact in float64."""
    return (x.double() * y.double() + z.double()).float()


# --------------------------------------------------------------------------------------
# Depth
# --------------------------------------------------------------------------------------


def fit_depth(prediction: torch.Tensor, truth: torch.Tensor, align: str) -> tuple[float, float]:
    """
    Scale and shift that bring predicted depths to true ones, `scale·prediction + shift`.

    Args:
        prediction, truth: `[n]` valid depths.
        align: `"median"` ratio of medians; `"scale"` least absolute error of a scale (10 reweighted least-squares
            steps); `"scale_shift"` least absolute error of both (1000 Adam steps of 1e-4 from the ratio of medians, as
            published: it stops before it is optimal); `"lstsq"` least squares of both; `"metric"` neither.
    """
    if align == "metric":
        return 1.0, 0.0
    if align == "median":
        return (truth.median() / prediction.median()).item(), 0.0
    if align == "scale":
        scale = truth.mean() / prediction.mean()
        for _ in range(10):
            weight = 1 / ((scale * prediction - truth).abs() + 1e-8)
            scale = (weight * prediction * truth).sum() / (weight * prediction.square()).sum()
        return scale.clamp_min(1e-3).item(), 0.0
    if align == "lstsq":
        columns = torch.stack([prediction, torch.ones_like(prediction)], -1).double().cpu().numpy()
        scale, shift = np.linalg.lstsq(columns, truth.double().cpu().numpy(), rcond=None)[0]
        return float(scale), float(shift)
    if align != "scale_shift":
        raise ValueError(f"`align` must be one of {ALIGNMENTS}, got {align!r}.")
    scale = (truth.median() / prediction.median()).detach().clone().requires_grad_()
    shift = torch.zeros_like(scale, requires_grad=True)
    optimizer, previous = torch.optim.Adam([scale, shift], lr=1e-4), float("inf")
    for _ in range(1000):
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = (scale * prediction + shift - truth).abs().sum()
        loss.backward()
        optimizer.step()
        if abs(previous - loss.item()) < 1e-6:
            break
        previous = loss.item()
    return scale.item(), shift.item()


def depth_metrics(
    prediction: torch.Tensor,
    truth: torch.Tensor,
    align: str | tuple[float, float] = "median",
    max_depth: float | None = 70.0,
    clip_max: float | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, float]:
    """
    Depth errors after one alignment of everything that is passed: a sequence (video depth) or one image (monocular).

    Args:
        prediction, truth: the same shape; where `truth` is not in (0, max_depth) nothing is compared.
        align: see [`fit_depth`]; or a scale and a shift that are known already.
        max_depth: None: no upper limit.
        clip_max: cut aligned predictions here (Sintel: 70).
        thresholds: of the ratio between prediction and truth.

    Returns:
        `abs_rel`, `sq_rel`, `rmse`, `log_rmse`, `delta_k` (share of pixels below the k-th threshold), `valid_pixels`.
    """
    if prediction.shape != truth.shape:
        raise ValueError(
            f"`prediction` and `truth` must have one shape, got {tuple(prediction.shape)} and {tuple(truth.shape)}. "
            "Resize the prediction to the true depth (the protocols do so bicubically)."
        )
    valid = truth > 0
    if max_depth is not None:
        valid &= truth < max_depth
    if not valid.any():
        raise ValueError(f"`truth` holds no depth between 0 and {max_depth}.")
    prediction, truth = prediction[valid].float(), truth[valid].float()
    scale, shift = align if isinstance(align, tuple) else fit_depth(prediction, truth, align)
    aligned = scale * prediction + shift
    if clip_max is not None:
        aligned = aligned.clamp_max(clip_max)
    error = aligned - truth
    positive = aligned.clamp_min(TINY_DEPTH)
    ratio = torch.maximum(positive / truth, truth / positive)
    metrics = {
        "abs_rel": (error.abs() / truth).mean(),
        "sq_rel": (error.square() / truth).mean(),
        "rmse": error.square().mean().sqrt(),
        "log_rmse": (positive.log() - truth.log()).square().mean().sqrt(),
        **{f"delta_{k}": (ratio < limit).float().mean() for k, limit in enumerate(thresholds, 1)},
    }
    return {name: value.item() for name, value in metrics.items()} | {"valid_pixels": float(len(truth))}


def average_depth_metrics(sequences: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean over sequences, each weighted by its valid pixels."""
    sequences = list(sequences)
    if not sequences:
        raise ValueError("There are no metrics to average.")
    weights = np.array([metrics["valid_pixels"] for metrics in sequences])
    names = [name for name in sequences[0] if name != "valid_pixels"]
    means = {name: float(np.average([metrics[name] for metrics in sequences], weights=weights)) for name in names}
    return means | {"valid_pixels": float(weights.sum())}


# --------------------------------------------------------------------------------------
# Trajectories
# --------------------------------------------------------------------------------------


def trajectory_metrics(
    estimate: np.ndarray,
    truth: np.ndarray,
    timestamps: np.ndarray | None = None,
    truth_timestamps: np.ndarray | None = None,
) -> dict[str, float]:
    """
    Errors of a camera trajectory after a Sim(3) alignment (Umeyama), computed by evo.

    Args:
        estimate, truth: `[n, 4, 4]` camera-to-world.
        timestamps, truth_timestamps: `[n]`; needed where the two have different lengths, poses are then matched by
            time.

    Returns:
        `ate` (RMSE of translation), `rpe_trans` and `rpe_rot` (RMSE of relative motion between neighbouring frames;
        degrees).

    Raises:
        ValueError: shapes that do not fit, and trajectories that leave their alignment open.
    """
    needs("geometry", "A trajectory's score", "evo")
    from evo import EvoException
    from evo.core import metrics, sync
    from evo.core.trajectory import PoseTrajectory3D

    estimate, truth = (np.asarray(poses, dtype=np.float64) for poses in (estimate, truth))
    for name, poses in (("estimate", estimate), ("truth", truth)):
        if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) < 2:
            raise ValueError(f"`{name}` must be [n, 4, 4] camera-to-world with n ≥ 2, got {list(poses.shape)}.")
    if timestamps is None and truth_timestamps is None and len(estimate) != len(truth):
        raise ValueError(
            f"`estimate` has {len(estimate)} poses and `truth` {len(truth)}; pass `timestamps` and `truth_timestamps` "
            f"to match them."
        )
    truth_times = (
        np.arange(len(truth), dtype=float) if truth_timestamps is None else np.asarray(truth_timestamps, float)
    )
    times = truth_times if timestamps is None else np.asarray(timestamps, float)
    reference = PoseTrajectory3D(poses_se3=list(truth), timestamps=truth_times)
    found = PoseTrajectory3D(poses_se3=list(estimate), timestamps=times)
    try:
        reference, found = sync.associate_trajectories(reference, found)
        found.align(reference, correct_scale=True)
    except EvoException as error:
        raise ValueError(
            f"the trajectories cannot be aligned ({error}): fewer than three positions match, or all lie on one line."
        ) from error

    def rmse(metric) -> float:
        metric.process_data((reference, found))
        return float(metric.get_statistic(metrics.StatisticsType.rmse))

    def relative(relation) -> float:
        return rmse(metrics.RPE(relation, delta=1, delta_unit=metrics.Unit.frames, all_pairs=True))

    return {
        "ate": rmse(metrics.APE(metrics.PoseRelation.translation_part)),
        "rpe_trans": relative(metrics.PoseRelation.translation_part),
        "rpe_rot": relative(metrics.PoseRelation.rotation_angle_deg),
    }
