"""Training losses of PAGE-4D: cameras, depth and points with confidences. Pure functions without host
synchronisation."""

from dataclasses import dataclass, fields
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from .pose import encode_pose, invert_rigid, to_homogeneous, transform_points, unproject_depth

LIMIT = 100.0  # residuals and targets are cut here
MIN_FRAME_PIXELS = 100  # cameras train on samples whose first frame has more valid pixels
MIN_BATCH_PIXELS = 100  # dense losses need as many valid pixels in the batch
COMPARED = (  # fields of an output that losses read
    "pose_enc_list",
    "extrinsics",
    "depth",
    "depth_conf",
    "world_points",
    "world_points_conf",
    "dynamic_mask",
)
MIN_INLIERS = 1000  # outliers are removed from more values than this, and only if more remain


@dataclass
class SceneTargets:
    """What is known of a batch of scenes. B samples of S frames; cameras are camera-from-world.

    Args:
        extrinsics: `[B, S, 3, 4]`. intrinsics: `[B, S, 3, 3]` in pixels. depths: `[B, S, H, W]`.
        world_points, cam_points: `[B, S, H, W, 3]`. point_masks: `[B, S, H, W]` bool, where depth and points are known.
    """

    extrinsics: torch.Tensor
    intrinsics: torch.Tensor
    depths: torch.Tensor
    world_points: torch.Tensor
    cam_points: torch.Tensor
    point_masks: torch.Tensor


def scene_targets(depths, extrinsics, intrinsics, world_points=None, point_masks=None, cam_points=None) -> SceneTargets:
    """Targets with what is derived: points from depth and cameras, the mask of finite positive depths."""
    depths = depths.float()
    if point_masks is None:
        point_masks = torch.isfinite(depths) & (depths > 1e-8)
    if cam_points is None:
        cam_points = unproject_depth(depths, intrinsics)
    if world_points is None:
        world_points = transform_points(invert_rigid(extrinsics), cam_points)
    return SceneTargets(
        extrinsics[..., :3, :4].float(),
        intrinsics.float(),
        depths,
        world_points.float(),
        cam_points.float(),
        point_masks.bool(),
    )


def normalize_scene(targets: SceneTargets) -> SceneTargets:
    """
    Put each scene into the frame of its first camera, and divide lengths by the mean distance of its points from there.
    """
    to_first = targets.extrinsics[:, :1]
    extrinsics = to_homogeneous(targets.extrinsics) @ to_homogeneous(invert_rigid(to_first))
    points = transform_points(to_first, targets.world_points)
    mask = targets.point_masks
    distance = torch.where(mask, points.norm(dim=-1), 0.0)
    scale = (distance.sum((1, 2, 3)) / (mask.sum((1, 2, 3)) + 1e-3)).clamp(1e-6, 1e6).view(-1, 1, 1, 1)
    extrinsics = torch.cat([extrinsics[..., :3, :3], extrinsics[..., :3, 3:] / scale], -1)
    return SceneTargets(
        extrinsics=_finite(extrinsics),
        intrinsics=targets.intrinsics,
        depths=_finite(targets.depths / scale),
        world_points=_finite(points / scale.unsqueeze(-1)),
        cam_points=_finite(targets.cam_points / scale.unsqueeze(-1)),
        point_masks=mask,
    )


def camera_loss(
    pose_enc_list, targets: SceneTargets, loss_type: str = "l1", stage_decay: float = 0.6, fov_weight: float = 0.5
) -> dict[str, torch.Tensor]:
    """
    Distance of every refinement stage from the encoded true camera; later stages weigh more.

    Args:
        pose_enc_list: stages of `[B, S, 9]`, first to last.
        targets: normalised. Samples whose first frame has too few valid pixels do not count.
        loss_type: "l1" or "l2" (length of the difference vector).
    """
    truth = encode_pose(targets.extrinsics, targets.intrinsics, targets.depths.shape[-2:])
    counts = (targets.point_masks[:, 0].sum((-1, -2)) > MIN_FRAME_PIXELS).float().view(-1, 1, 1)
    weight = [
        stage_decay ** (len(pose_enc_list) - 1 - stage) / len(pose_enc_list) for stage in range(len(pose_enc_list))
    ]
    parts = {"camera_translation": slice(0, 3), "camera_rotation": slice(3, 7), "camera_fov": slice(7, 9)}
    losses = {}
    for name, part in parts.items():
        total = 0.0
        for factor, estimate in zip(weight, pose_enc_list):
            difference = estimate[..., part].float() - truth[..., part]
            error = difference.abs() if loss_type == "l1" else difference.norm(dim=-1, keepdim=True)
            error = _finite(error, LIMIT) * counts
            total = total + factor * error.sum() / (counts.sum() * error[0].numel()).clamp_min(1)
        losses[name] = total
    losses["camera"] = losses["camera_translation"] + losses["camera_rotation"] + fov_weight * losses["camera_fov"]
    return losses


def dense_loss(
    prediction: torch.Tensor,
    confidence: torch.Tensor,
    truth: torch.Tensor,
    mask: torch.Tensor,
    gamma: float,
    alpha: float,
    gradient: str | None = None,
    valid_range: float = -1.0,
) -> dict[str, torch.Tensor]:
    """
    Confidence-weighted regression of a dense map: `γ·r·c - α·log c` with r the distance of prediction and truth.

    Args:
        prediction, truth: `[B, S, H, W, C]`. confidence, mask: `[B, S, H, W]`.
        gradient: "grad" compares differences of neighbours, "normal" surface normals; with "_conf" weighted by
        confidence.
        valid_range: quantile above which residuals are left out as outliers; -1: none.

    Returns:
        "confidence", "regression" and "gradient".
    """
    truth = _finite(truth, LIMIT)
    enough = (mask.sum() >= MIN_BATCH_PIXELS).float()
    distance = _safe_norm(truth - prediction)
    distance = _finite(torch.where(mask, distance, 0.0), LIMIT)
    confident = gamma * distance * confidence - alpha * confidence.clamp_min(1e-6).log()
    confident = _finite(torch.where(mask, confident, 0.0), LIMIT)
    losses = {
        "confidence": enough * _mean_without_outliers(confident, mask, valid_range),
        "regression": enough * _mean_without_outliers(distance, mask, valid_range),
    }
    if gradient is None:
        losses["gradient"] = torch.zeros_like(losses["regression"])
        return losses
    kind, _, weighted = gradient.partition("_")
    function, scales = (gradient_loss, 4) if kind == "grad" else (normal_loss, 3)
    maps = [map_.flatten(0, 1) for map_ in (prediction, truth, mask, confidence)]
    total = 0.0
    for scale in range(scales):
        step = 2**scale
        *others, weights = (map_[:, ::step, ::step] for map_ in maps)
        total = total + function(*others, weights if weighted else None)
    losses["gradient"] = enough * total / scales
    return losses


def gradient_loss(prediction, truth, mask, confidence=None, gamma: float = 1.0, alpha: float = 0.2) -> torch.Tensor:
    """
    L1 of the differences of horizontal and vertical neighbours, where both are valid.

    Args:
        prediction, truth: `[N, H, W, C]`. mask: `[N, H, W]`. confidence: `[N, H, W]`, of the right or lower neighbour.
    """
    difference = torch.where(mask.unsqueeze(-1), prediction - truth, 0.0)
    total = 0.0
    for axis in (1, 2):
        length = difference.shape[axis]
        both = mask.narrow(axis, 0, length - 1) & mask.narrow(axis, 1, length - 1)
        step = difference.narrow(axis, 1, length - 1) - difference.narrow(axis, 0, length - 1)
        step = (step.abs() * both.unsqueeze(-1)).clamp_max(LIMIT)
        if confidence is not None:
            weight = confidence.narrow(axis, 1, length - 1).unsqueeze(-1)
            step = gamma * step * weight - alpha * weight.log()
        total = total + step.sum()
    return total / (mask.sum() * prediction.shape[-1]).clamp_min(1) * mask.any()


def normal_loss(prediction, truth, mask, confidence=None, gamma: float = 1.0, alpha: float = 0.2) -> torch.Tensor:
    """1 - cosine between the normals of predicted and true points, mean over pixels and their four corners."""
    found, valid = corner_normals(prediction, mask)
    wanted, _ = corner_normals(truth, mask)
    loss = 1 - (found * wanted).sum(-1).clamp(-1 + 1e-8, 1 - 1e-8)
    if confidence is not None:
        weight = confidence.unsqueeze(0)
        loss = gamma * loss * weight - alpha * weight.log()
    count = valid.sum()
    return torch.where(valid, loss, 0.0).sum() / count.clamp_min(1) * (count >= 10)


def corner_normals(points: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Unit normals `[4, N, H, W, 3]` of points `[N, H, W, 3]` and where they are valid `[4, N, H, W]`.

    Each is the cross product of the ways to two neighbours: up × left, left × down, down × right, right × up.
    """
    padded = F.pad(points.movedim(-1, 1), (1, 1, 1, 1)).movedim(1, -1)
    known = F.pad(mask, (1, 1, 1, 1))
    height, width = mask.shape[-2:]
    views = {"up": (0, 1), "left": (1, 0), "down": (2, 1), "right": (1, 2)}  # (row, column) of the window's corner
    way = {n: padded[:, r : r + height, c : c + width] - points for n, (r, c) in views.items()}
    there = {n: known[:, r : r + height, c : c + width] & mask for n, (r, c) in views.items()}
    pairs = (("up", "left"), ("left", "down"), ("down", "right"), ("right", "up"))
    normals = torch.stack([torch.linalg.cross(way[a], way[b]) for a, b in pairs])
    valid = torch.stack([there[a] & there[b] for a, b in pairs])
    # Where a neighbour is missing the product is meaningless, and may be zero, whose direction has no gradient.
    normals = torch.where(valid.unsqueeze(-1), normals, normals.new_tensor([0.0, 0.0, 1.0]))
    return F.normalize(normals, dim=-1, eps=1e-8), valid


def page4d_losses(outputs, targets: SceneTargets, config) -> dict[str, torch.Tensor]:
    """
    All terms of the training loss, and their weighted sum under "loss".

    Args:
        outputs: with `pose_enc_list`, `depth`, `depth_conf`, `world_points`, `world_points_conf`, None for heads that
            do not exist.
        targets: as given; they are normalised here.
    """
    targets = normalize_scene(targets)
    losses, total = {}, 0.0
    if outputs.pose_enc_list is not None:
        losses |= camera_loss(
            outputs.pose_enc_list, targets, config.camera_loss_type, config.camera_stage_decay, config.camera_fov_weight
        )
        total = total + config.camera_loss_weight * losses["camera"]
    for name, prediction, confidence, truth in (
        ("depth", outputs.depth, outputs.depth_conf, targets.depths.unsqueeze(-1)),
        ("point", outputs.world_points, outputs.world_points_conf, targets.world_points),
    ):
        if prediction is None:
            continue
        terms = dense_loss(
            prediction,
            confidence,
            truth,
            targets.point_masks,
            getattr(config, f"{name}_loss_gamma"),
            getattr(config, f"{name}_loss_alpha"),
            getattr(config, f"{name}_gradient_loss"),
            config.loss_valid_range,
        )
        losses |= {f"{name}_{term}": value for term, value in terms.items()}
        total = total + getattr(config, f"{name}_loss_weight") * sum(terms.values())
    return {"loss": total, **losses}


def video_losses(outputs, targets: SceneTargets | None, labels, config) -> dict[str, torch.Tensor]:
    """
    [`page4d_losses`], and with `labels` the weighted cross-entropy of the dynamics-aware mask, "mask".

    Args:
        outputs: as there; also `dynamic_mask` `[B, S, h, w]`.
        targets: None: the mask alone trains. labels: shares of patches that move, `[B, S, h, w]`, or None.
    """
    losses = {} if targets is None else page4d_losses(outputs, targets, config)
    if labels is not None:
        losses["mask"] = F.binary_cross_entropy(outputs.dynamic_mask.float(), labels.float().clamp(0, 1))
        losses["loss"] = losses.get("loss", 0.0) + config.mask_loss_weight * losses["mask"]
    return losses


def multiview_losses(
    outputs, targets: SceneTargets | None, labels, last: torch.Tensor, config
) -> dict[str, torch.Tensor]:
    """
    Terms of the multi-view model beside those of [`page4d_losses`], and the weighted sum of all under "loss".

    Args:
        outputs: as there, T·V frames as one axis; also `dynamic_mask` `[B, T, V, P, 1]` and `extrinsics`.
        targets: None: masks and consistency alone train.
        labels: true dynamic masks, shares of patches `[B, T, V, P, 1]`, or None.
        last: tokens of the last layer, `[streams·B, T, V, N, 2C]`, pose first.

    Returns:
        Also "mask": cross-entropy of the predicted mask; "consistency": distance of the depth from the world points'
        depth in their camera, true cameras where known; "separation": cosine between the streams' tokens.
    """
    losses = {"loss": last.new_zeros(()).float()} if targets is None else page4d_losses(outputs, targets, config)
    total = losses.pop("loss")
    if labels is not None:
        losses["mask"] = F.binary_cross_entropy(outputs.dynamic_mask.float(), labels.float().clamp(0, 1))
        total = total + config.mask_loss_weight * losses["mask"]
    scene = None if targets is None else normalize_scene(targets)
    extrinsics = outputs.extrinsics if scene is None else scene.extrinsics
    if outputs.depth is not None and outputs.world_points is not None and extrinsics is not None:
        deep = transform_points(extrinsics.detach().float(), outputs.world_points.float())[..., 2]
        known = torch.ones_like(deep, dtype=torch.bool) if scene is None else scene.point_masks
        error = _finite((outputs.depth.squeeze(-1) - deep).abs(), LIMIT)
        losses["consistency"] = torch.where(known, error, 0.0).sum() / known.sum().clamp_min(1)
        total = total + config.consistency_loss_weight * losses["consistency"]
    if config.enable_dual_stream:
        pose, geometry = last.float().chunk(2)
        losses["separation"] = F.cosine_similarity(pose, geometry, dim=-1).mean()
        total = total + config.separation_loss_weight * losses["separation"]
    return {"loss": total, **losses}


def _finite(x: torch.Tensor, limit: float | None = None) -> torch.Tensor:
    """Zeros for what is not finite; the rest cut to ±limit."""
    x = torch.where(torch.isfinite(x), x, 0.0)
    return x if limit is None else x.clamp(-limit, limit)


def _safe_norm(x: torch.Tensor) -> torch.Tensor:
    """Euclidean length over the last axis whose gradient at zero is zero."""
    square = x.square().sum(-1)
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def _mean_without_outliers(values: torch.Tensor, mask: torch.Tensor, quantile: float) -> torch.Tensor:
    """Mean of `values[mask]`, without those at or above a quantile of them where many remain."""
    count = mask.sum()
    kept = mask
    if quantile > 0:
        ordered = torch.where(mask, values, torch.inf).detach().flatten().sort().values
        index = (quantile * (count - 1).clamp_min(0).double()).round().long()
        below = mask & (values < ordered.gather(0, index.view(1)))
        kept = torch.where((count > MIN_INLIERS) & (below.sum() > MIN_INLIERS), below, mask)
    return torch.where(kept, values, 0.0).sum() / kept.sum().clamp_min(1)


def one_scene(values, scene: int):
    """What is compared in the losses (a [`SceneTargets`] or an output) of one scene of a batch."""

    def one(value):
        if isinstance(value, (tuple, list)):
            return tuple(one(part) for part in value)
        return None if value is None else value[scene : scene + 1]

    if isinstance(values, SceneTargets):
        return SceneTargets(**{field.name: one(getattr(values, field.name)) for field in fields(values)})
    return SimpleNamespace(**{name: one(getattr(values, name)) for name in COMPARED})
