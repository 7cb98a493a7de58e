"""Training losses of π³ and Pi3X. Pure functions of predictions and targets; nothing waits for the device."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .point_maps import depth_edge
from .pose import invert_rigid, transform_points

SCALE_SAMPLES = 4096  # points of a scene that decide its scale
EDGE_TOLERANCE = 0.03  # relative depth step that counts as an edge
ACCURATE = 0.02  # weighted error below which a point deserves confidence
TRANSLATION_WEIGHT = 100.0
HUBER_DELTA = 0.1


@dataclass
class Pi3Targets:
    """
    True geometry of B scenes of N frames.

    Args:
        points: `[B, N, H, W, 3]` in one world frame, any unit (metres for Pi3X's metric loss).
        camera_poses: `[B, N, 4, 4]` camera-to-world.
        valid: bool `[B, N, H, W]`; default: where `points` are finite.
        normals: bool `[B]`, scenes whose depth is good enough to supervise normals; default all.
        sky: bool `[B, N, H, W]`, pixels that see the sky and deserve no confidence; default none.
    """

    points: torch.Tensor
    camera_poses: torch.Tensor
    valid: torch.Tensor | None = None
    normals: torch.Tensor | None = None
    sky: torch.Tensor | None = None

    def __post_init__(self):
        finite = self.points.isfinite().all(-1)
        self.valid = finite if self.valid is None else self.valid.bool() & finite
        self.points = torch.where(finite.unsqueeze(-1), self.points.float(), 0.0)
        self.camera_poses = self.camera_poses.float()
        batch, device = len(self.points), self.points.device
        self.normals = (
            torch.ones(batch, dtype=torch.bool, device=device) if self.normals is None else self.normals.bool()
        )
        self.sky = torch.zeros_like(self.valid) if self.sky is None else self.sky.bool()


@dataclass
class Aligned:
    """Prediction and target in comparable units; all `[B, …]` as in [`Pi3Targets`].

    Args:
        local: predicted camera-frame points, divided by their mean distance. target_local: true ones, likewise scaled.
        poses, target_poses: likewise; targets relative to the first camera.
        unit, target_unit: `[B]`, what the predictions and the targets were divided by.
        scale: `[B]`, from the predictions' unit to the targets', without gradient.
        weight: `[B, N, H, W]`, the inverse of depth.
    """

    local: torch.Tensor
    poses: torch.Tensor
    target_local: torch.Tensor
    target_poses: torch.Tensor
    unit: torch.Tensor
    target_unit: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor


def align(local_points: torch.Tensor, camera_poses: torch.Tensor, targets: Pi3Targets) -> Aligned:
    """
    Bring predictions `[B, N, H, W, 3]`, `[B, N, 4, 4]` and targets to one unit.

    Targets are divided by the mean distance of their points from the first camera, predictions by that of theirs from
    each one's own camera, as published.
    """
    to_first = invert_rigid(targets.camera_poses[:, :1])
    target_poses = to_first @ targets.camera_poses
    world = transform_points(to_first, targets.points)
    target_unit = _masked_mean(world.norm(dim=-1), targets.valid)
    target_poses = _scale_translation(target_poses, 1 / target_unit)
    target_local = transform_points(invert_rigid(target_poses), world / _to_maps(target_unit))

    unit = _masked_mean(local_points.norm(dim=-1), targets.valid)
    local, poses = local_points / _to_maps(unit), _scale_translation(camera_poses, 1 / unit)

    depth = target_local[..., 2]
    mean_depth = _masked_mean(depth.flatten(0, 1), targets.valid.flatten(0, 1)).view(*depth.shape[:2], 1, 1)
    weight = 1 / (torch.maximum(depth, 0.1 * mean_depth) + 1e-6)
    scale = optimal_scale(local.detach(), target_local, weight, targets.valid)
    return Aligned(local, poses, target_local, target_poses, unit, target_unit, scale, weight)


def optimal_scale(
    points: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """
    The positive s `[B]` that minimises `Σ weight·|s·points - target|₁` over evenly chosen valid points.

    The minimum is a weighted median of the ratios target / points.

    Args:
        points, target: `[B, …, 3]`. weight, valid: `[B, …]`.
    """
    points, target = points.flatten(1, -2), target.flatten(1, -2)
    weight, valid = weight.flatten(1), valid.flatten(1)
    # The k-th valid point lies where the running count first reaches k + 1.
    running = valid.cumsum(1)
    count = running[:, -1:]
    order = torch.arange(SCALE_SAMPLES, device=points.device) * (count.float() / SCALE_SAMPLES)
    index = torch.searchsorted(running, order.long().clamp_max(count - 1) + 1).clamp_max(valid.shape[1] - 1)
    x, y = (tensor.gather(1, index.unsqueeze(-1).expand(-1, -1, 3)).flatten(1) for tensor in (points, target))
    w = weight.gather(1, index).repeat_interleave(3, dim=1)

    y, x = torch.where(x < 0, -y, y), x.abs()
    ratio, order = (y / x.clamp_min(1e-7)).sort(dim=1)
    mass = (w * x).gather(1, order)
    slope = 2 * mass.cumsum(1) - mass.sum(1, keepdim=True)  # of the objective, just right of each ratio
    best = (slope >= 0).int().argmax(1, keepdim=True)
    scale = ratio.gather(1, best).squeeze(1).abs()
    return torch.where(count.squeeze(1) > 0, scale, 1.0)


def pi3_loss(
    local_points: torch.Tensor,
    camera_poses: torch.Tensor,
    conf: torch.Tensor,
    targets: Pi3Targets,
    config,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    π³'s loss: points + weighted camera, normals and confidence; the last two only where `config` gives them a weight.

    Args:
        local_points: `[B, N, H, W, 3]`. camera_poses: `[B, N, 4, 4]`. conf: `[B, N, H, W, 1]` logits.

    Returns:
        The sum, and its terms before their weights: `points`, `normals`, `translation`, `rotation`, `confidence`.
    """
    aligned = align(local_points, camera_poses, targets)
    error = point_error(aligned)
    translation, rotation = pair_losses(aligned)
    losses = {
        "points": _masked_mean_all(error.mean(-1), targets.valid),
        "translation": translation.mean() if translation.numel() else translation.sum(),
        "rotation": rotation.mean() if rotation.numel() else rotation.sum(),
    }
    camera = TRANSLATION_WEIGHT * losses["translation"] + losses["rotation"]
    total = losses["points"] + config.camera_loss_weight * camera
    if config.normal_loss_weight:
        losses["normals"] = normal_loss(aligned, targets)
        total = total + config.normal_loss_weight * losses["normals"]
    if config.confidence_loss_weight:
        deserved = (error.detach().mean(-1) < ACCURATE).float()
        losses["confidence"] = confidence_loss(conf.squeeze(-1), deserved, targets)
        total = total + config.confidence_loss_weight * losses["confidence"]
    return total, losses


def pi3x_loss(
    local_points: torch.Tensor,
    rays: torch.Tensor,
    camera_poses: torch.Tensor,
    conf: torch.Tensor,
    metric: torch.Tensor,
    targets: Pi3Targets,
    config,
    known_depth: torch.Tensor | None = None,
    known_pose: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Pi3X's loss. The published code does not run; this follows its list of terms.

    `rays`: L1 of unit rays. `depth`: weighted L1 of z. `sparse_depth`: L1 of z where depth was given as a condition.
    `normals`: as for π³. `translation`, `rotation`: 10·Huber and 0.1·angle, averaged over pairs of frames whose poses
    were given and over the other pairs apart. `metric`: squared difference of log(1 + metric) to the number that takes
    the points before scaling to the targets' unit. `confidence`: cross entropy with exp(-50·error).

    Args:
        rays: `[B, N, H, W, 3]`. metric: `[B]`, contained in `local_points` and `camera_poses`. Others: [`pi3_loss`].
        known_depth: bool `[B, N, H, W]`, pixels whose depth the model was given. known_pose: bool `[B, N]`.
    """
    aligned = align(local_points, camera_poses, targets)
    depth_error = aligned.scale.view(-1, 1, 1, 1) * aligned.local[..., 2] - aligned.target_local[..., 2]
    weighted = aligned.weight * depth_error.abs()
    true_rays = F.normalize(aligned.target_local, dim=-1)
    translation, rotation = pair_losses(aligned)
    if known_pose is None:
        known_pose = torch.zeros(local_points.shape[:2], dtype=torch.bool, device=local_points.device)
    known_pair = _pairs(known_pose.unsqueeze(2) & known_pose.unsqueeze(1))
    # Before it multiplies everything, the metric scale is free of the prediction's own unit.
    wanted = aligned.scale * aligned.target_unit * metric.detach() / aligned.unit.detach()
    losses = {
        "rays": _masked_mean_all((rays - true_rays).abs().mean(-1), targets.valid),
        "depth": _masked_mean_all(weighted, targets.valid),
        "normals": normal_loss(aligned, targets),
        "translation": _masked_mean_all(translation, known_pair) + _masked_mean_all(translation, ~known_pair),
        "rotation": _masked_mean_all(rotation, known_pair) + _masked_mean_all(rotation, ~known_pair),
        "metric": (metric.log1p() - wanted.log1p()).square().mean(),
        "confidence": confidence_loss(conf.squeeze(-1), (-50 * weighted.detach()).exp(), targets),
    }
    total = losses["rays"] + losses["depth"] + config.normal_loss_weight * losses["normals"] + losses["metric"]
    total = total + 10 * losses["translation"] + 0.1 * losses["rotation"]
    total = total + config.confidence_loss_weight * losses["confidence"]
    if known_depth is not None:
        losses["sparse_depth"] = _masked_mean_all(depth_error.abs(), targets.valid & known_depth)
        total = total + losses["sparse_depth"]
    return total, losses


def point_error(aligned: Aligned) -> torch.Tensor:
    """Weighted absolute error of every coordinate, `[B, N, H, W, 3]`."""
    return aligned.weight.unsqueeze(-1) * (_to_maps(aligned.scale) * aligned.local - aligned.target_local).abs()


def pair_losses(aligned: Aligned) -> tuple[torch.Tensor, torch.Tensor]:
    """Huber loss of the translation, angle (radians) of the rotation between every two frames, `[B, N·(N-1)]` each."""
    found = _relative_poses(_scale_translation(aligned.poses, aligned.scale))
    wanted = _relative_poses(aligned.target_poses)
    huber = F.huber_loss(found[..., :3, 3], wanted[..., :3, 3], delta=HUBER_DELTA, reduction="none").mean(-1)
    # The trace of RᵀR' is the sum of products of their elements.
    cosine = ((found[..., :3, :3] * wanted[..., :3, :3]).sum((-1, -2)) - 1) / 2
    return huber, cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()


def _relative_poses(poses: torch.Tensor) -> torch.Tensor:
    """`P_i⁻¹ P_j` for all i ≠ j, `[B, N·(N-1), 4, 4]`."""
    return _pairs(invert_rigid(poses).unsqueeze(2) @ poses.unsqueeze(1))


def _pairs(table: torch.Tensor) -> torch.Tensor:
    """Entries (i, j), i ≠ j, of `[B, N, N, …]` as `[B, N·(N-1), …]`."""
    frames = table.shape[1]
    flat = table.flatten(1, 2)
    # Without its first entry the table falls into rows of N + 1 that end on the diagonal.
    return flat[:, 1:].unflatten(1, (frames - 1, frames + 1))[:, :, :-1].flatten(1, 2) if frames > 1 else flat[:, :0]


def normal_loss(aligned: Aligned, targets: Pi3Targets) -> torch.Tensor:
    """
    Angle between predicted and true normals, smooth-L1 with a bend at 3°, angles clamped to 1…90°.

    Each 2×2 cell has four normals, one at each corner; those with an invalid pixel or one at a depth edge count as 0.
    Only scenes of `targets.normals` take part.
    """
    valid = targets.valid & ~depth_edge(aligned.target_local[..., 2], EDGE_TOLERANCE)
    low, high, bend = (math.radians(angle) for angle in (1, 90, 3))
    total = 0.0
    for found, wanted, mask in zip(
        _corner_normals(aligned.local), _corner_normals(aligned.target_local), _corners(valid, torch.logical_and)
    ):
        sine = torch.linalg.cross(found, wanted).norm(dim=-1) + 1e-12
        angle = torch.atan2(sine, (found * wanted).sum(-1)).clamp(low, high)
        total = total + mask * torch.where(angle < bend, 0.5 * angle.square() / bend, angle - 0.5 * bend)
    per_scene = total.flatten(1).mean(1)
    height, width = valid.shape[-2:]
    return _masked_mean_all(per_scene, targets.normals) / (4 * max(height, width))


def _cells(maps: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """One of the four pixels of every 2×2 cell of `[B, N, H, W, …]`."""
    height, width = maps.shape[2:4]
    return maps[:, :, rows : height - 1 + rows, columns : width - 1 + columns]


def _corner_normals(points: torch.Tensor):
    """Normals at the four corners of every cell: the next corner's edge × the previous corner's edge."""
    ring = [_cells(points, *corner) for corner in ((1, 1), (0, 1), (0, 0), (1, 0))]
    for i in range(4):
        yield torch.linalg.cross(ring[(i + 1) % 4] - ring[i], ring[(i + 3) % 4] - ring[i])


def _corners(valid: torch.Tensor, both):
    """Whether a corner and its two neighbours are valid, for the four corners of every cell."""
    ring = [_cells(valid, *corner) for corner in ((1, 1), (0, 1), (0, 0), (1, 0))]
    for i in range(4):
        yield both(both(ring[i], ring[(i + 1) % 4]), ring[(i + 3) % 4])


def confidence_loss(logits: torch.Tensor, deserved: torch.Tensor, targets: Pi3Targets) -> torch.Tensor:
    """Cross entropy of `[B, N, H, W]` logits with what valid pixels deserve, and with 0 on sky that is not valid."""
    known = F.binary_cross_entropy_with_logits(logits, deserved, reduction="none")
    sky = F.softplus(logits)
    return _masked_mean_all(known, targets.valid) + _masked_mean_all(sky, targets.sky & ~targets.valid)


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over all axes but the first where `mask` holds, `[B]`; 1 where it holds nowhere."""
    count = mask.flatten(1).sum(1)
    total = torch.where(mask, values, 0.0).flatten(1).sum(1)
    return torch.where(count > 0, total / count.clamp_min(1), 1.0)


def _masked_mean_all(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `values` where `mask` holds, as a scalar; 0 if nowhere."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp_min(1)


def _to_maps(per_scene: torch.Tensor) -> torch.Tensor:
    return per_scene.view(-1, 1, 1, 1, 1)


def _scale_translation(poses: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Poses `[B, N, 4, 4]` with translations multiplied by `factor` `[B]`."""
    top = torch.cat([poses[..., :3, :3], poses[..., :3, 3:] * factor.view(-1, 1, 1, 1)], -1)
    return torch.cat([top, poses[..., 3:, :]], -2)
