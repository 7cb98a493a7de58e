"""How well a model knows the space world's geometry: depth, cameras, and what moves."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch

from modeling_dsr.pose import invert_rigid

from ..worlds.space import SpaceWorld

MOVING_SHARE = 0.5  # of a patch's pixels, from which it counts as moving


def clip_errors(prediction: dict, truth: dict) -> dict:
    """
    Errors of one clip.

    Args:
        prediction: `depths` `[…, H, W]` and `poses` `[…, 3 or 4, 4]` camera-to-world, in any one unit and frame;
            `dynamic`: how much each patch moves, 0 … 1, `[…, h, w]` or `[…, h·w, 1]`.
        truth: `depths` (0 where unknown), `poses`, and `dynamic` (bool `[…, H, W]`, or None), of the same pixels.

    Returns:
        `abs_rel`: mean of |scale · depth - truth| / truth over the clip's known depths, with the one scale that makes
        it least;
        `abs_rel_constant`: the same of the best constant; `scale`; `rotation_errors`: angles in degrees between true
        and predicted rotation of each two cameras; `true_rotations`: between each two cameras, the error of a camera
        that is said not to move; with both `dynamic` also `patches`, those taken for moving, and `intersection` and
        `union` with the true ones, in patches.
    """
    height, width = truth["depths"].shape[-2:]
    known = truth["depths"] > 0
    depths, true = (maps["depths"][known].astype(np.float64) for maps in (prediction, truth))
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
    if "dynamic" in prediction and truth.get("dynamic") is not None:
        dynamic = prediction["dynamic"]
        if dynamic.shape[-1] == 1:  # several views
            side = round((height * width / dynamic.shape[-2]) ** 0.5)
            dynamic = dynamic.reshape(*dynamic.shape[:-2], height // side, width // side)
        side = height // dynamic.shape[-2]
        cells = truth["dynamic"].reshape(*truth["depths"].shape[:-2], height // side, side, width // side, side)
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


def evaluate(
    model, processor, seed: int, count: int = 64, frames: tuple[int, ...] = (2, 4), difficulty: str = "easy"
) -> dict:
    """
    The first `count` clips of a space world, eight frames each; of a model for several views, four moments
    of two views.

    Args:
        model: π³ or PAGE-4D. seed: of the world, one that the model was not trained on.
        frames: other numbers of frames, or moments, on which the same scenes are measured too.
        difficulty: of the world.

    Returns:
        `{"model_type", "seed", "count", "metrics"}`; metrics: those of [`measure_clips`], `by_frames`, {number: the
        same}, and of a PAGE-4D that keeps its cameras from what moves `mask_off`, the same without it; of two streams
        `mask_off` and `dual_stream_off`, see [`without_mask`] and [`without_dual_stream`].
    """
    views = 2 if getattr(model.config, "is_multiview", False) else 1
    usual = 4 if views > 1 else 8
    blank = np.zeros((112, 112, 3), np.uint8)
    height, width = processor([blank])["pixel_values"].shape[-2:]

    def run(number: int, **options) -> dict[str, float]:
        world = SpaceWorld(seed, number, height, width, views, difficulty, questions=0)
        return measure_clips(model, processor, world, count, **options)

    metrics = run(usual)
    metrics["by_frames"] = {usual: dict(metrics)} | {number: run(number) for number in frames if number != usual}
    if views == 1 and getattr(model.config, "mask_alpha", 0) > 0:
        metrics["mask_off"] = run(usual, mask_alpha=0.0)
    if views > 1 and model.config.enable_dual_stream:
        for name, changed in (("mask_off", without_mask), ("dual_stream_off", without_dual_stream)):
            with changed(model):
                metrics[name] = run(usual)
    return {"model_type": model.config.model_type, "seed": seed, "count": count, "metrics": metrics}


@contextmanager
def without_mask(model):
    """Two streams that are not told what moves: the strengths with which the mask draws and repels are zero."""
    strengths = [value for name, value in model.multiview.named_parameters() if name.startswith("lambda_")]
    kept = [value.detach().clone() for value in strengths]
    with torch.no_grad():
        for value in strengths:
            value.zero_()
        try:
            yield
        finally:
            for value, number in zip(strengths, kept):
                value.copy_(number)


@contextmanager
def without_dual_stream(model):
    """One stream, that of the cameras, which the depth is read from too; a mask has nothing to bias there."""
    parts = model.multiview
    kept = parts.geo_time_blocks, parts.geo_view_blocks
    parts.geo_time_blocks, parts.geo_view_blocks = parts.pose_time_blocks, parts.pose_view_blocks
    try:
        with without_mask(model):
            yield
    finally:
        parts.geo_time_blocks, parts.geo_view_blocks = kept


def measure_clips(model, processor, world, count: int, **options) -> dict[str, float]:
    """
    Figures of a model on the first clips of a space world.

    Args:
        options: of the model's `forward`.

    Returns:
        `abs_rel_ratio`: error of the best constant ÷ the model's, each the mean of [`clip_errors`] over the clips;
        `abs_rel`; `rotation_error_median`: degrees, over all pairs of cameras of all clips; `rotation_still_median`:
        the same of a camera that is said not to move; `mask_iou`, where the model tells what moves: intersection over
        union of the moving patches of all clips.
    """
    results = [clip_errors(*_predict(model, processor, world[index], options)) for index in range(count)]
    every = lambda name: np.concatenate([result[name] for result in results] or [np.empty(0)])  # noqa: E731
    found = {
        "abs_rel_ratio": sum(r["abs_rel_constant"] for r in results) / sum(r["abs_rel"] for r in results),
        "abs_rel": float(np.mean([r["abs_rel"] for r in results])),
        "rotation_error_median": float(np.median(every("rotation_errors"))),
        "rotation_still_median": float(np.median(every("true_rotations"))),
    }
    if "union" in results[0]:
        found["mask_iou"] = sum(r["intersection"] for r in results) / max(1, sum(r["union"] for r in results))
    return found


@torch.inference_mode()
def _predict(model, processor, sample, options: dict) -> tuple[dict, dict]:
    """What the model says of a sample, and the truth of the same pixels."""
    several = sample.images.ndim == 5
    inputs = processor(list(sample.images.reshape(-1, *sample.images.shape[-3:])))
    pixels = inputs["pixel_values"].to(model.device, model.dtype)
    if several:
        pixels = pixels.unflatten(1, sample.images.shape[:2])
    truth = {"depths": sample.depth, "poses": sample.poses, "dynamic": sample.dynamic}
    return prediction_of(model(pixel_values=pixels, **options), 0), truth


def prediction_of(outputs, number: int) -> dict[str, np.ndarray]:
    """What a model says of scene `number` of a batch: `depths`, `poses` camera-to-world, and `dynamic` if told."""
    if getattr(outputs, "local_points", None) is not None:
        return {
            "depths": outputs.local_points[number, ..., 2].detach().float().cpu().numpy(),
            "poses": outputs.camera_poses[number].detach().float().cpu().numpy(),
        }
    found = {
        "depths": outputs.depth[number, ..., 0].detach().float().cpu().numpy(),
        "poses": invert_rigid(outputs.extrinsics[number].detach().float()).cpu().numpy(),
    }
    if outputs.dynamic_mask is not None:
        found["dynamic"] = outputs.dynamic_mask[number].detach().float().cpu().numpy()
    return found
