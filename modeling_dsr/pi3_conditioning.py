"""What Pi3X may be told besides images: poses, rays and depth, normalised so that no unit or world frame matters."""

from dataclasses import dataclass

import torch
from torch import nn

from .pose import intrinsics_problem, invert_rigid, pose_problem
from .vision_blocks import VisionAttention, VisionBlock, in_chunks
from .vision_rope import apply_axial_rope, axial_rope_tables

STATIC_TRANSLATION = 0.02  # a camera that moves less stands still, and its path has no scale


@dataclass
class Pi3Conditions:
    """
    Normalised conditions of B scenes of N frames, float32. What was not given is zero, or the identity, and masked out.

    Args:
        rays: `[B, N, H, W, 2]`, (x, y) of the ray of each pixel at depth 1. ray_mask: `[B, N]`.
        depths: `[B, N, H, W]`, 0 where unknown. depth_mask: `[B, N]`.
        poses: `[B, N, 4, 4]`, camera-to-(first camera). pose_mask: `[B, N]`.
        norm_factor: `[B]`, by which depths and translations were divided.
        given: names of the conditions that were given.
        all_posed: every frame has a pose, known without looking at `pose_mask`.
    """

    rays: torch.Tensor | None
    ray_mask: torch.Tensor
    depths: torch.Tensor | None
    depth_mask: torch.Tensor
    poses: torch.Tensor
    pose_mask: torch.Tensor
    norm_factor: torch.Tensor
    given: tuple[str, ...]
    all_posed: bool


def prepare_conditions(
    shape: tuple[int, int, int, int],
    device: torch.device,
    depths: torch.Tensor | None = None,
    intrinsics: torch.Tensor | None = None,
    rays: torch.Tensor | None = None,
    poses: torch.Tensor | None = None,
    depth_mask: torch.Tensor | None = None,
    ray_mask: torch.Tensor | None = None,
    pose_mask: torch.Tensor | None = None,
) -> Pi3Conditions:
    """
    Normalise conditions; the caller's tensors are left as they are.

    Depths are divided by the mean of a scene's positive depths, poses made relative to the first camera and their
    translations divided by the same number. A scene whose depths are not used is divided by the mean distance of its
    cameras from the first one instead, unless the camera stands still. A pose alone says nothing and is dropped.

    Args:
        shape: (B, N, H, W).
        depths … poses, masks: as in [`Pi3Model.forward`]; a mask that is None is True wherever something was given.
    """
    batch, frames, height, width = shape
    nothing = torch.zeros(batch, frames, dtype=torch.bool, device=device)
    everything = torch.ones_like(nothing)

    def mask_of(condition, mask):
        if condition is None:
            return nothing
        return everything if mask is None else mask.to(device=device, dtype=torch.bool)

    ray_mask = mask_of(rays if intrinsics is None else intrinsics, ray_mask)
    if rays is not None:
        rays = rays.float()
        rays = rays[..., :2] / (rays[..., 2:] + 1e-6)
    elif intrinsics is not None:
        rays = pixel_rays(intrinsics.float(), height, width)

    factor = torch.ones(batch, device=device)
    depth_mask = mask_of(depths, depth_mask)
    if depths is not None:
        depths = depths.float()
        positive = depths > 0
        count = positive.flatten(1).sum(1)
        mean = torch.where(positive, depths, 0.0).flatten(1).sum(1) / count.clamp_min(1)
        factor = torch.where(count > 0, mean + 1e-8, factor)
        depths = torch.where(positive, depths / factor.view(-1, 1, 1, 1), 0.0)

    all_posed = poses is not None and pose_mask is None and frames > 1
    pose_mask = mask_of(poses, pose_mask)
    pose_mask = pose_mask & (pose_mask.sum(1, keepdim=True) != 1)
    relative = torch.eye(4, device=device).expand(batch, frames, 4, 4)
    if poses is not None:
        poses = poses.float()
        relative = invert_rigid(poses[:, :1]) @ poses
        translation = relative[..., :3, 3] / factor.view(-1, 1, 1)
        if frames > 1:
            distance = translation.norm(dim=-1)
            moving = ~depth_mask.any(1) & (distance.amax(1) >= STATIC_TRANSLATION)
            path = torch.where(moving, distance[:, 1:].mean(1) + 1e-8, 1.0)
            translation = translation / path.view(-1, 1, 1)
            factor = factor * path
            depths = None if depths is None else depths / path.view(-1, 1, 1, 1)
        top = torch.cat([relative[..., :3, :3], translation.unsqueeze(-1)], -1)
        relative = torch.cat([top, relative[..., 3:, :]], -2)

    names = (("rays", rays), ("depths", depths), ("poses", poses))
    given = tuple(name for name, value in names if value is not None)
    return Pi3Conditions(rays, ray_mask, depths, depth_mask, relative, pose_mask, factor, given, all_posed)


def pixel_rays(intrinsics: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(x, y) at depth 1 of the ray through each pixel's centre (u + ½, v + ½), `[..., H, W, 2]`, of `[..., 3, 3]`."""
    u = torch.arange(width, device=intrinsics.device) + 0.5
    v = torch.arange(height, device=intrinsics.device) + 0.5
    u, v = torch.broadcast_tensors(u, v.unsqueeze(1))
    pixels = torch.stack([u, v, torch.ones_like(u)], -1)
    inverse = torch.linalg.inv_ex(intrinsics).inverse  # `inv` would wait for the device to report singular matrices
    return torch.einsum("...ij,hwj->...hwi", inverse, pixels)[..., :2]


class RayEmbedding(nn.Module):
    """One convolution from the rays of a patch to its token. A new one starts at zero: no rays, no change."""

    def __init__(self, dim: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(2, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, rays: torch.Tensor) -> torch.Tensor:
        """`[n, H, W, 2]` to `[n, P, dim]`."""
        return self.proj(rays.permute(0, 3, 1, 2).to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class PoseAttention(VisionAttention):
    """
    Attention in which queries and keys meet in the world frame (PRoPE, arXiv 2507.10496, without intrinsics).

    With P the pose of a token's frame and E = P⁻¹, groups of four of the first half of a head's channels are
    multiplied by Eᵀ (queries) and P (keys and values), and by E on the way out. The second half turns by minus the
    token's column, then row, in queries, keys and values, and back on the way out. Poses enter as ratios alone.
    """

    def forward(self, hidden_states, poses, turn, turn_back, attention_mask=None):
        """
        Args:
            hidden_states: `[B, N·P, dim]`.
            poses: `[B, N, 4, 4]`, float32.
            turn, turn_back: rotary tables of half a head for the P patches of a frame, see [`pose_rope_tables`].
            attention_mask: additive, `[B, 1, 1, N·P]`.
        """
        query, key, value = self.project(hidden_states)
        to_camera = invert_rigid(poses)
        query = _transform(query, to_camera.mT, turn)
        key, value = _transform(key, poses, turn), _transform(value, poses, turn)
        output = self.attend(query, key, value, attention_mask).transpose(1, 2)
        return self.proj(_transform(output, to_camera, turn_back).transpose(1, 2).flatten(2))


def pose_rope_tables(rows: int, columns: int, head_dim: int, base: float, device) -> tuple:
    """Tables (there and back) that turn half a head of every patch by minus its column, then row, counted from 0."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    positions = torch.stack([x.flatten(), y.flatten()], -1)
    return axial_rope_tables(-positions, head_dim // 2, base), axial_rope_tables(positions, head_dim // 2, base)


def _transform(heads: torch.Tensor, matrices: torch.Tensor, tables) -> torch.Tensor:
    """Tokens `[B, heads, N·P, d]`: their frames' matrices `[B, N, 4, 4]` on the first half, rotation on the second."""
    frames = matrices.shape[1]
    first, second = heads.chunk(2, dim=-1)
    groups = first.unflatten(2, (frames, -1)).unflatten(-1, (-1, 4)).flatten(3, 4).float()  # [B, heads, N, P·d/8, 4]
    with torch.autocast(heads.device.type, enabled=False):
        moved = (groups @ matrices.mT.unsqueeze(1)).to(heads.dtype)
    return torch.cat([moved.reshape(first.shape), apply_axial_rope(second, tables)], -1)


class PoseInjectionBlock(VisionBlock):
    """`ls1(Attn(norm1(x))) + ls2(MLP(norm2(x)))`: what poses add to the patch tokens, both branches read the same x."""

    def __init__(self, config):
        dim, heads = config.hidden_size, config.num_attention_heads
        scales = dict(qk_norm_eps=config.qk_norm_eps, layer_scale=config.layer_scale_init, mlp_ratio=config.mlp_ratio)
        super().__init__(config, dim, heads, config.layer_norm_eps, **scales)
        self.attn = PoseAttention(config, dim, heads, config.qk_norm_eps)

    def forward(self, patches, poses, turn, turn_back, attention_mask=None, chunk_size: int = 0):
        attended = self.ls1(self.attn(self.norm1(patches), poses, turn, turn_back, attention_mask))
        moved = in_chunks(lambda x: self.ls2(self.mlp(self.norm2(x))), patches.flatten(0, 1), chunk_size=chunk_size)
        return attended + moved.view_as(attended)


def pose_attention_mask(pose_mask: torch.Tensor, patches: int, dtype: torch.dtype) -> torch.Tensor:
    """
    Additive mask `[B, 1, 1, N·P]` that hides the patches of frames without a pose.

    Such frames do not receive what the block computes, so hiding them as keys is enough. The bias is finite: a scene
    without any pose then computes something that nobody reads, instead of dividing by zero.
    """
    bias = torch.zeros(pose_mask.shape, dtype=dtype, device=pose_mask.device)
    bias = bias.masked_fill(~pose_mask, torch.finfo(dtype).min)
    return bias.repeat_interleave(patches, dim=1)[:, None, None]


# --------------------------------------------------------------------------------------
# Checks
# --------------------------------------------------------------------------------------


def check_conditions(shape: tuple[int, int, int, int], conditions: dict[str, torch.Tensor | None]) -> None:
    """
    Refuse conditions of the wrong shape, and values that are no cameras.

    Values are looked at where that costs nothing: on the CPU. On an accelerator it would stall the device; the
    processor, which prepares conditions on the CPU, calls the same rules.

    Args:
        shape: (B, N, H, W) of the images.
        conditions: of [`Pi3Model.forward`] by name.
    """
    batch, frames, height, width = shape
    expected = {
        "depths": (batch, frames, height, width),
        "intrinsics": (batch, frames, 3, 3),
        "rays": (batch, frames, height, width, 3),
        "poses": (batch, frames, 4, 4),
        "depth_mask": (batch, frames),
        "ray_mask": (batch, frames),
        "pose_mask": (batch, frames),
    }
    needs = {"depth_mask": ("depths",), "ray_mask": ("intrinsics", "rays"), "pose_mask": ("poses",)}
    for name, value in conditions.items():
        if value is None:
            continue
        if tuple(value.shape) != expected[name]:
            raise ValueError(
                f"`{name}` must be {list(expected[name])} for images [{batch}, {frames}, 3, {height}, {width}], got "
                f"{list(value.shape)}. Let the processor resize images and conditions together."
            )
        if name in needs and all(conditions.get(other) is None for other in needs[name]):
            raise ValueError(
                f"`{name}` says where to use {' or '.join(f'`{n}`' for n in needs[name])}, which was not given."
            )
    if conditions.get("rays") is not None and conditions.get("intrinsics") is not None:
        raise ValueError("`rays` and `intrinsics` say the same thing; pass one of them.")
    if torch.compiler.is_compiling():
        return
    for name, problem in (("intrinsics", intrinsics_problem), ("poses", pose_problem)):
        value = conditions.get(name)
        if value is not None and value.device.type == "cpu":
            found = problem(value.detach().flatten(0, 1))  # on the CPU this asks no device
            if found:
                raise ValueError(f"`{name}` {found}")
