"""Where scene features come from: the 2-D sine table and the codes made from camera calibration.

Frames: cameras as in OpenCV (x right, y down, z forward), extrinsics camera → vehicle, vehicle as in nuScenes (x
forward, y left, z up). Lengths in metres, pixels of the network's input.
"""

import math
from collections import OrderedDict

import numpy as np
import torch
from torch import nn
from transformers import initialization as init

# Published: added to the diagonal of the intrinsics before inversion. Changes a ray by 1e-6 of its length.
INTRINSICS_EPSILON = 1e-6
SINGULAR_CONDITION = 1e8
CACHED_CALIBRATIONS = 16


def sine_features(angles: torch.Tensor, num_features: int, temperature: float) -> torch.Tensor:
    """
    `[..., num_features]`: sin(a / t_i) for even i, cos(a / t_i) for odd i, with t_i = temperature^(2·⌊i/2⌋ /
    num_features).

    Args:
        angles: `[...]`, float32.
    """
    exponents = torch.arange(0, num_features, 2, dtype=torch.float32, device=angles.device) / num_features
    angles = angles.unsqueeze(-1) / temperature**exponents  # [..., num_features / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def sine_table(
    rows: int, columns: int, width: int, temperature: float = 10000.0, normalize_2pi: bool = False, device=None
) -> torch.Tensor:
    """
    2-D table `[rows, columns, width]` in float32: the first half of the channels tells the row, the second the column.

    Coordinates are index / size in [0, 1), without the usual 2π: a quirk that published weights depend on.
    `normalize_2pi` puts it in.
    """
    period = 2 * math.pi if normalize_2pi else 1.0
    y, x = (
        sine_features(torch.arange(n, dtype=torch.float32, device=device) / n * period, width // 2, temperature)
        for n in (rows, columns)
    )
    return torch.cat([y.unsqueeze(1).expand(-1, columns, -1), x.unsqueeze(0).expand(rows, -1, -1)], dim=-1)


def depth_bins(config) -> torch.Tensor:
    """Depth hypotheses `[depth_num]` in metres; with `use_lid` their spacing grows linearly."""
    fraction = torch.arange(config.depth_num, dtype=torch.float32) / max(config.depth_num - 1, 1)
    if config.use_lid:
        fraction = fraction**2
    return config.depth_start + (config.depth_max - config.depth_start) * fraction


def pixel_rays(intrinsics: torch.Tensor, grid: tuple[int, int], image_size: tuple[int, int]) -> torch.Tensor:
    """
    `[..., h, w, 3]`: K⁻¹·(u, v, 1) of the centre of each cell, in camera axes; its z is 1.

    Args:
        intrinsics: `[..., 3, 3]` in pixels of the network's input. grid: cells (h, w). image_size: pixels (H, W).
    """
    (rows, columns), (height, width) = grid, image_size
    device = intrinsics.device
    v = (torch.arange(rows, dtype=torch.float32, device=device) + 0.5) * (height / rows)
    u = (torch.arange(columns, dtype=torch.float32, device=device) + 0.5) * (width / columns)
    v, u = torch.meshgrid(v, u, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1)  # [h, w, 3]
    epsilon = INTRINSICS_EPSILON * torch.eye(3, device=device)
    return torch.einsum("...ij,hwj->...hwi", torch.linalg.inv(intrinsics.float() + epsilon), pixels)


def frustum_points(
    intrinsics: torch.Tensor,
    extrinsics: torch.Tensor,
    depths: torch.Tensor,
    grid: tuple[int, int],
    image_size: tuple[int, int],
) -> torch.Tensor:
    """
    `[..., h, w, D, 3]`: the points that each cell may show at each depth (along the optical axis), vehicle frame,
    metres.

    Args:
        intrinsics: `[..., 3, 3]`. extrinsics: `[..., 4, 4]`, camera → vehicle. depths: `[D]`.
    """
    rays = pixel_rays(intrinsics, grid, image_size)
    rotation, translation = extrinsics[..., :3, :3].float(), extrinsics[..., :3, 3].float()
    rays = torch.einsum("...ij,...hwj->...hwi", rotation, rays)
    return rays.unsqueeze(-2) * depths.unsqueeze(-1) + translation[..., None, None, None, :]


def normalize_points(points: torch.Tensor, pc_range: torch.Tensor, frame: str, clamp: float) -> torch.Tensor:
    """Map the box `pc_range` `[6]` to -1 … 1 per axis and clamp; `frame` says whose axes the box has."""
    if frame == "lidar":  # x right, y forward
        x, y, z = points.unbind(-1)
        points = torch.stack([-y, x, z], dim=-1)
    low, high = pc_range[:3], pc_range[3:]
    return ((points - low) / (high - low) * 2 - 1).clamp(-clamp, clamp)


class DepthPositionEncoding(nn.Module):
    """
    `depth_3d`: each cell is described by the points it may show.

    Points at `depth_num` depths → box coordinates → sine features (x, then y, then z) → an MLP shared by the depths →
    the depths side by side → an MLP to the width of the features. Everything before the MLPs is float32.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        per_depth, (first, second) = config.per_depth_dims, config.aggregation_dims
        self.register_buffer("pc_range", torch.tensor(list(config.pc_range), dtype=torch.float32))
        self.register_buffer("depth_bins", depth_bins(config))
        self.per_depth_mlp = nn.Sequential(
            nn.Linear(3 * config.num_point_features, per_depth), nn.LayerNorm(per_depth), nn.ReLU()
        )
        self.aggregation_mlp = nn.Sequential(
            nn.Linear(per_depth * config.depth_num, first),
            nn.LayerNorm(first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.LayerNorm(second),
            nn.ReLU(),
            nn.Linear(second, config.embed_dims),
            nn.LayerNorm(config.embed_dims),
        )

    def reset_parameters(self):
        init.copy_(self.pc_range, torch.tensor(list(self.config.pc_range), dtype=torch.float32))
        init.copy_(self.depth_bins, depth_bins(self.config))

    def forward(
        self,
        intrinsics: torch.Tensor,
        extrinsics: torch.Tensor,
        grid: tuple[int, int],
        image_size: tuple[int, int],
    ) -> torch.Tensor:
        """
        Args:
            intrinsics: `[..., 3, 3]`. extrinsics: `[..., 4, 4]`. grid: cells (h, w). image_size: pixels (H, W).

        Returns:
            `[..., h, w, embed_dims]`.
        """
        config = self.config
        points = frustum_points(intrinsics, extrinsics, self.depth_bins.float(), grid, image_size)
        points = normalize_points(points, self.pc_range.float(), config.position_frame, config.point_clamp)
        features = sine_features(2 * math.pi * points, config.num_point_features, config.sine_temperature)
        features = features.flatten(-2).to(self.per_depth_mlp[0].weight.dtype)  # [..., h, w, D, 3·F]
        return self.aggregation_mlp(self.per_depth_mlp(features).flatten(-2))


class RayPositionEncoding(nn.Module):
    """`ray_3d`: each cell is described by the unit vector in which it looks, in vehicle axes, through an MLP."""

    def __init__(self, config):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(3, 2 * config.embed_dims),
            nn.ReLU(),
            nn.Linear(2 * config.embed_dims, config.embed_dims),
            nn.LayerNorm(config.embed_dims),
        )

    def forward(self, intrinsics, extrinsics, grid, image_size) -> torch.Tensor:
        """As [`DepthPositionEncoding`]; the translation of the extrinsics does not matter to a direction."""
        rays = nn.functional.normalize(pixel_rays(intrinsics, grid, image_size), dim=-1)
        rays = torch.einsum("...ij,...hwj->...hwi", extrinsics[..., :3, :3].float(), rays)
        return self.mlp(rays.to(self.mlp[0].weight.dtype))


def weight_versions(parameters) -> tuple | None:
    """A value that changes whenever one of the parameters does, or None where results may not be kept for later."""
    parameters = tuple(parameters)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or any(p.is_inference() for p in parameters):
        return None
    return tuple((parameter.data_ptr(), parameter._version) for parameter in parameters)


class CalibrationCache:
    """
    Position codes of the rigs seen last, for inference.

    A code depends on calibration, sizes and weights alone, so a vehicle computes it once. Rigs are told apart by the
    values of their matrices; a change of any, or of a weight, computes it anew.
    """

    def __init__(self):
        self.codes: OrderedDict[tuple, torch.Tensor] = OrderedDict()

    def __call__(self, encoding: nn.Module, intrinsics, extrinsics, calibration: np.ndarray, grid, image_size):
        """
        Args:
            intrinsics: `[B, N, 3, 3]`. extrinsics: `[B, N, 4, 4]`. calibration: both of each scene, on the CPU,
            `[B, …]`.

        Returns:
            `[B, N, h, w, C]`.
        """
        versions = weight_versions(encoding.parameters())
        if versions is None:
            return encoding(intrinsics, extrinsics, grid, image_size)
        keys = [(row.tobytes(), grid, image_size, versions) for row in calibration]
        new = {key: row for row, key in enumerate(keys) if key not in self.codes}
        if new:
            rows = list(new.values())
            self.codes.update(zip(new, encoding(intrinsics[rows], extrinsics[rows], grid, image_size)))
        codes = torch.stack([self.codes[key] for key in keys]) if len(keys) > 1 else self.codes[keys[0]].unsqueeze(0)
        for key in keys:
            self.codes.move_to_end(key)
        while len(self.codes) > CACHED_CALIBRATIONS:
            self.codes.popitem(last=False)
        return codes


def check_calibration(intrinsics: torch.Tensor, extrinsics: torch.Tensor, batch: int, cameras: int) -> np.ndarray:
    """
    Refuse calibration that is not of these images or not of a camera.

    Returns:
        Both matrices of each scene on the CPU, `[B, N·25]` float32.
    """
    for name, matrices, size in (("cam_intrinsics", intrinsics, 3), ("cam_extrinsics", extrinsics, 4)):
        if tuple(matrices.shape) != (batch, cameras, size, size):
            raise ValueError(
                f"`{name}` must be [{batch}, {cameras}, {size}, {size}], one matrix per image of `pixel_values`, got "
                f"{tuple(matrices.shape)}."
            )
    # One transfer for both.
    both = torch.cat([intrinsics.detach().flatten(2), extrinsics.detach().flatten(2)], dim=-1)
    both = both.float().cpu().numpy()
    if not np.isfinite(both).all():
        raise ValueError("`cam_intrinsics` and `cam_extrinsics` must be finite; found NaN or infinity.")
    condition = np.linalg.cond(both[..., :9].reshape(batch, cameras, 3, 3))
    bad = np.argwhere(~(condition < SINGULAR_CONDITION))
    if len(bad):
        scene, camera = bad[0]
        raise ValueError(
            f"`cam_intrinsics` of camera {camera} in scene {scene} is singular: "
            f"{both[scene, camera, :9].reshape(3, 3).tolist()}. Expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in "
            "pixels."
        )
    return both.reshape(batch, -1)
