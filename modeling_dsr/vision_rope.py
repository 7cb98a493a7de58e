"""Rotary positions over the two axes of an image, as π³ and VGGT use them. Pure functions."""

import torch


def patch_positions(rows: int, columns: int, num_special: int, device=None) -> torch.Tensor:
    """
    (y, x) of every token of one frame, `[num_special + rows·columns, 2]` int64.

    Special tokens stand first at (0, 0), which rotates by nothing; patches follow in row-major order and count from 1.
    """
    y = torch.arange(1, rows + 1, device=device)
    x = torch.arange(1, columns + 1, device=device)
    patches = torch.cartesian_prod(y, x).view(-1, 2)
    return torch.cat([patches.new_zeros(num_special, 2), patches])


def axial_rope_tables(positions: torch.Tensor, head_dim: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cosines and signed sines of [`apply_axial_rope`], in float32 whatever the precision of the model.

    The first half of a head turns with y, the second with x; inside a half of width D channel j pairs with channel
    j + D/2 and turns by `position · base^(-2j/D)`. The sine of the first of the two carries the minus of the rotation.

    Args:
        positions: `[T, 2]` (y, x).
        head_dim: a multiple of 4.

    Returns:
        Two tables `[T, head_dim]`.
    """
    if head_dim % 4:
        raise ValueError(f"`head_dim` must be a multiple of 4 (two axes, each in pairs), got {head_dim}.")
    half = head_dim // 2
    exponent = torch.arange(0, half, 2, device=positions.device, dtype=torch.float32) / half
    with torch.autocast(positions.device.type, enabled=False):
        angles = positions.float().unsqueeze(-1) / base**exponent  # [T, 2, half/2]
        cos, sin = angles.cos(), angles.sin()
    return torch.stack([cos, cos], dim=2).flatten(1), torch.stack([-sin, sin], dim=2).flatten(1)


def apply_axial_rope(hidden_states: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """
    Rotate queries or keys.

    Args:
        hidden_states: `[..., L, head_dim]`, where L is the tokens of one frame or of several frames one after another.
        tables: of [`axial_rope_tables`], for the T tokens of one frame; L is a multiple of T.

    Returns:
        The same shape and dtype; cosines and sines are rounded to that dtype, angles are not.
    """
    cos, sin = (table.to(hidden_states.dtype) for table in tables)
    frames = hidden_states.unflatten(-2, (-1, len(cos)))  # [..., frames, T, head_dim]
    swapped = frames.unflatten(-1, (2, -1)).roll(cos.shape[-1] // 4, -1).flatten(-2)  # the partner of each channel
    return torch.addcmul(frames * cos, swapped, sin).flatten(-3, -2)
