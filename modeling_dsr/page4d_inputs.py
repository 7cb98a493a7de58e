"""What may be given to PAGE-4D: every check before anything is computed."""

import torch

from .configuration_page4d import Page4DConfig
from .frame_sizes import page4d_image_size
from .page4d_dynamic_mask import pool_mask
from .page4d_losses import scene_targets
from .pose import check_cameras


def check_pixels(pixel_values, config: Page4DConfig) -> tuple[torch.Tensor, tuple[int, int]]:
    if not isinstance(pixel_values, torch.Tensor):
        raise ValueError(
            f"`pixel_values` must be one tensor [B, S, 3, H, W], got {type(pixel_values).__name__}. Frames of "
            "different sizes do not stack; GeometryProcessor brings them to one size."
        )
    if pixel_values.ndim == 4:
        pixel_values = pixel_values.unsqueeze(0)
    if pixel_values.ndim not in (5, 6) or pixel_values.shape[-3] != 3 or 0 in pixel_values.shape:
        raise ValueError(
            "`pixel_values` must be [B, S, 3, H, W], [S, 3, H, W] or, of synchronised cameras, [B, T, V, 3, H, W], "
            f"with at least one frame, got {tuple(pixel_values.shape)}."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"`pixel_values` must be floating point in [0, 1], got {pixel_values.dtype}. Divide 8-bit images by 255."
        )
    patch = config.patch_size
    height, width = pixel_values.shape[-2:]
    if height % patch or width % patch:
        chosen = page4d_image_size(width, height, config.img_size, patch)
        raise ValueError(
            f"`pixel_values` are {height}×{width} (height × width), but both sides must be multiples of {patch}. "
            f"GeometryProcessor would choose {min(chosen[1], config.img_size)}×{chosen[0]} for them."
        )
    return pixel_values, (height // patch, width // patch)


def check_patches(name: str, value, images: tuple[int, int, int], grid) -> torch.Tensor | None:
    """`[B, T, V, P]` of a value per patch."""
    if value is None:
        return None
    shape = (*images, grid[0] * grid[1])
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise ValueError(
            f"`{name}` must be a tensor of floating-point numbers {list(shape)}, got {type(value).__name__}."
        )
    if tuple(value.shape) not in (shape, (*shape, 1)):
        raise ValueError(f"`{name}` must hold one value per patch, {list(shape)}, got {list(value.shape)}.")
    return value.reshape(shape)


def check_memory(memory, batch: int, config: Page4DConfig):
    """The memory that the window before returned, if it fits."""
    if memory is None:
        return None
    if not config.enable_sparse_global or config.sparse_strategy != "memory_bank":
        raise ValueError('`memory_state` belongs to `sparse_strategy="memory_bank"` with `enable_sparse_global`.')
    pair = isinstance(memory, (tuple, list))
    shape = (batch, config.memory_tokens_num, config.embed_dim)
    found = [tuple(x.shape) for x in (memory if pair else [memory])]
    if pair != config.enable_dual_stream or found != [shape] * (2 if pair else 1):
        wanted = f"a pair (pose, geometry) of {list(shape)}" if config.enable_dual_stream else str(list(shape))
        raise ValueError(f"`memory_state` must be {wanted}, got {found}: pass what the window before returned.")
    return memory


def check_queries(query_points, batch: int, config: Page4DConfig):
    """Points to track as `[B, Q, 2]`."""
    if query_points is None:
        return None
    if not config.enable_track:
        raise ValueError(
            "`query_points` need a track head, but `config.enable_track` is False. Load weights that have one."
        )
    if query_points.ndim == 2:
        query_points = query_points.unsqueeze(0).expand(batch, -1, -1)
    if query_points.ndim != 3 or query_points.shape[-1] != 2 or len(query_points) != batch or not query_points.shape[1]:
        raise ValueError(f"`query_points` must be [{batch}, Q, 2] or [Q, 2] (x, y), got {tuple(query_points.shape)}.")
    return query_points


def check_alpha(mask_alpha, config: Page4DConfig) -> None:
    """The strength of the dynamics-aware mask."""
    if isinstance(mask_alpha, torch.Tensor) or not 0 <= mask_alpha <= 1:
        raise ValueError(f"`mask_alpha` must be a number in 0…1, got {mask_alpha!r}.")
    if mask_alpha > 0 and config.spatial_mask_variant is None:
        raise ValueError(
            "`mask_alpha` > 0 needs a mask head, but `config.spatial_mask_variant` is None (VGGT weights)."
        )


def check_mask_labels(labels, pixel_values, grid, mask_alpha, config: Page4DConfig) -> torch.Tensor | None:
    """True dynamic masks of a video as shares of patches, `[B, S, h, w]`."""
    if labels is None:
        return None
    if not mask_alpha > 0:
        raise ValueError(
            "`mask_labels` train the dynamics-aware mask, which is off: `mask_alpha` is 0. Set it in the configuration "
            "or pass it."
        )
    batch, frames = pixel_values.shape[:2]
    views = labels.unsqueeze(2) if isinstance(labels, torch.Tensor) else labels
    pooled = pool_mask(views, (batch, frames, 1), grid, config.patch_size, "mask_labels")
    return pooled.view(batch, frames, *grid)


def check_targets(pixel_values, depths, extrinsics, intrinsics, world_points, point_masks):
    given = {
        "depths": depths,
        "extrinsics": extrinsics,
        "intrinsics": intrinsics,
        "world_points": world_points,
        "point_masks": point_masks,
    }
    if all(value is None for value in given.values()):
        return None
    batch, frames, _, height, width = pixel_values.shape
    missing = [name for name in ("depths", "extrinsics", "intrinsics") if given[name] is None]
    if missing:
        raise ValueError(f"The loss needs `depths`, `extrinsics` and `intrinsics` together; `{missing[0]}` is missing.")
    shapes = {
        "depths": [(height, width)],
        "extrinsics": [(3, 4), (4, 4)],
        "intrinsics": [(3, 3)],
        "world_points": [(height, width, 3)],
        "point_masks": [(height, width)],
    }
    for name, value in given.items():
        if value is None:
            continue
        if value.ndim == 2 + len(shapes[name][0]) - 1:  # one scene without the axis of scenes
            given[name] = value = value.unsqueeze(0)
        allowed = [(batch, frames, *shape) for shape in shapes[name]]
        if tuple(value.shape) not in allowed:
            raise ValueError(f"`{name}` must be {list(allowed[0])} to match `pixel_values`, got {list(value.shape)}.")
    check_cameras(given["extrinsics"], given["intrinsics"])
    return scene_targets(**given)
