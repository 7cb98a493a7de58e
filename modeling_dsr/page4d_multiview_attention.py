"""Attention of the multi-view PAGE-4D: biases of keys, of times and of epipolar lines, and sparse neighbourhoods.

Each function takes the attention module first, then queries, keys and values `[B, heads, L, d]`, and returns
`[B, L, heads, d]`, as `VisionBlock` asks for. None holds a bias for every pair of tokens of a sequence.
"""

import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import eager_attention

CENTRE_EPS = 1e-8  # metres between two cameras below which there are no epipolar lines


def masked_attention(attn, query, key, value, mask: torch.Tensor) -> torch.Tensor:
    """Attention with an additive mask, by eager code or torch's own kernel, the two that take one."""
    eager = attn.config._attn_implementation == "eager"
    attend = eager_attention if eager else ALL_ATTENTION_FUNCTIONS["sdpa"]
    return attend(attn, query, key, value, mask.to(query.dtype), dropout=0.0, scaling=attn.scaling, is_causal=False)[0]


def key_biased_attention(attn, query, key, value, bias: torch.Tensor | None) -> torch.Tensor:
    """
    Logits gain one number per key, the same for every query and head.

    Args:
        bias: `[B, L]`, or None for plain attention. Broadcast where the implementation takes a mask (eager, sdpa), an
            additional channel of queries and keys where it does not (flash, flex).
    """
    if bias is None:
        return attn.attend(query, key, value)
    if attn.config._attn_implementation in ("eager", "sdpa"):
        return masked_attention(attn, query, key, value, bias[:, None, None])
    return widened_attention(attn, query, key, value, query.new_ones(1, 1, 1, 1), bias[:, None, :, None])


def widened_attention(attn, query, key, value, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """
    Logits gain `rows @ columnsᵀ`, through E more channels of queries and keys: any kernel will do.

    Args:
        rows, columns: broadcastable to `[B, heads, L, E]`.
    """
    width, extra = query.shape[-1], rows.shape[-1]
    fill = -(width + extra) % 8  # kernels want multiples of 8

    def widen(heads: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        channels = channels.to(heads.dtype).expand(*heads.shape[:-1], -1)
        return torch.cat([heads, channels, heads.new_zeros(*heads.shape[:-1], fill)], -1)

    query, key = widen(query, rows), widen(key, columns / attn.scaling)
    return attn.attend(query, key, F.pad(value, (0, extra + fill)))[..., :width]


def time_biased_attention(attn, query, key, value, frames: int, bias: torch.Tensor | None) -> torch.Tensor:
    """
    ALiBi over time: head h of H loses `2^(-8(h+1)/H)` per step between the times of query and key.

    A distance from any of T times is one of T columns, chosen by the query's time: T more channels instead of a matrix.

    Args:
        frames: T; the sequence is T times as many tokens, time by time.
        bias: of the keys, `[B, L]`, or None.
    """
    heads, length = query.shape[1:3]
    times = torch.arange(frames, device=query.device)
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=query.device) / heads)
    distance = (times[:, None] - times).abs()  # [T of the key, T of the query]
    columns = -slopes[:, None, None] * distance.repeat_interleave(length // frames, 0)  # [heads, L, T]
    rows = (times[:, None] == times).repeat_interleave(length // frames, 0)  # [L, T], one true in each row
    if bias is not None:
        columns = columns + bias[:, None, :, None]  # every query chooses exactly one column
    else:
        columns = columns[None]
    return widened_attention(attn, query, key, value, rows.to(query.dtype), columns)


# --------------------------------------------------------------------------------------
# Epipolar prior
# --------------------------------------------------------------------------------------


def fundamental_matrices(intrinsics: torch.Tensor, extrinsics: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Of all ordered pairs of V cameras: `line in view j = F[i, j] @ pixel in view i`.

    Args:
        intrinsics: `[..., V, 3, 3]` in pixels. extrinsics: `[..., V, 4, 4]` or `[..., V, 3, 4]`, camera from world.

    Returns:
        `[..., V, V, 3, 3]`, and where lines exist `[..., V, V]`: not for one and the same camera centre.
    """
    rotation, translation = extrinsics[..., :3, :3], extrinsics[..., :3, 3]
    turn = rotation.unsqueeze(-4) @ rotation.unsqueeze(-3).transpose(-1, -2)  # from camera i (axis -4) to j (axis -3)
    shift = translation.unsqueeze(-3) - (turn @ translation.unsqueeze(-2).unsqueeze(-1)).squeeze(-1)
    x, y, z = shift.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    inverse = torch.linalg.inv(intrinsics)
    matrices = inverse.unsqueeze(-4).transpose(-1, -2) @ cross @ turn @ inverse.unsqueeze(-3)
    views = torch.arange(shift.shape[-2], device=shift.device)
    return matrices, (shift.norm(dim=-1) >= CENTRE_EPS) & (views[:, None] != views)


def epipolar_distance(matrices: torch.Tensor, grid: tuple[int, int], patch_size: int) -> torch.Tensor:
    """
    Pixels from the centre of each patch of view j to the line of each patch centre of view i.

    Args:
        matrices: `[..., V, 3, 3]` from one view i to all.

    Returns:
        `[..., P, V, P]`.
    """
    rows, columns = (torch.arange(side, device=matrices.device, dtype=matrices.dtype) for side in grid)
    y, x = torch.meshgrid((rows + 0.5) * patch_size, (columns + 0.5) * patch_size, indexing="ij")
    centres = torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)  # [P, 3]
    lines = torch.einsum("...vab,pb->...pva", matrices, centres)
    return torch.einsum("...pva,qa->...pvq", lines, centres).abs() / lines[..., :2].norm(dim=-1, keepdim=True)


def epipolar_attention(
    attn, query, key, value, matrices, known, grid, patch_size: int, band: float, penalty: float, bias=None
) -> torch.Tensor:
    """
    Attention over the V views of one time in which patches far from each other's epipolar line see each other less.

    The bias exists for the queries of one view at a time.

    Args:
        matrices, known: of [`fundamental_matrices`], `[B, V, V, …]`.
        band: pixels from the line within which nothing changes. penalty: logits lost outside.
        bias: of the keys, `[B, L]`, or None.
    """
    views, patches = matrices.shape[1], grid[0] * grid[1]
    special = query.shape[2] // views - patches
    parts = []
    for view, rows in enumerate(query.chunk(views, 2)):
        far = (epipolar_distance(matrices[:, view], grid, patch_size) > band) & known[:, view, None, :, None]
        prior = F.pad(-penalty * far.to(query.dtype), (special, 0, 0, 0, special, 0))  # [B, N, V, N]
        prior = prior.flatten(2).unsqueeze(1)
        prior = prior if bias is None else prior + bias[:, None, None]
        parts.append(masked_attention(attn, rows, key, value, prior))
    return torch.cat(parts, 1)


# --------------------------------------------------------------------------------------
# Sparse attention over all images
# --------------------------------------------------------------------------------------


def landmarks(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Positions `[B, I·k]`, in the sequence of all I images, of the k best tokens of each, by scores `[B, I, N]`."""
    length = scores.shape[2]
    best = scores.topk(min(k, length), dim=2).indices
    return (best + length * torch.arange(scores.shape[1], device=scores.device).view(1, -1, 1)).flatten(1)


def hub_attention(attn, query, key, value, hubs: torch.Tensor, bias=None, mutual: bool = True) -> torch.Tensor:
    """
    Attention where token i sees token j if either is a hub. Exact, in two calls.

    Args:
        hubs: positions of the hubs, `[B, K]`, K ≤ L.
        bias: of the keys, `[B, L]`, or None.
        mutual: False: hubs too see hubs alone.
    """
    index = hubs[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    hub_bias = None if bias is None else bias.gather(1, hubs)
    result = key_biased_attention(attn, query, key.gather(2, index), value.gather(2, index), hub_bias)
    if not mutual:
        return result
    seen_all = key_biased_attention(attn, query.gather(2, index), key, value, bias)
    index = index.transpose(1, 2)
    if torch.is_grad_enabled():  # attention keeps its result for the backward pass
        return result.scatter(1, index, seen_all)
    return result.scatter_(1, index, seen_all)


def dilated_neighbours(times: int, views: int, levels: tuple[int, ...]) -> list[list[int]]:
    """
    For each image of a grid of T × V, those that it attends: itself, and those `level` times and/or views away.

    Images are numbered time by time; nothing wraps around.
    """
    steps = {(0, 0)} | {(dt, dv) for level in levels for dt in (-level, 0, level) for dv in (-level, 0, level)}
    return [
        sorted((t + dt) * views + v + dv for dt, dv in steps if 0 <= t + dt < times and 0 <= v + dv < views)
        for t in range(times)
        for v in range(views)
    ]


def dilated_attention(attn, query, key, value, neighbours: list[list[int]], bias=None) -> torch.Tensor:
    """
    Every image attends its neighbours.

    Images with equally many neighbours go together, so many at a time that their gathered keys take no more memory than
    the keys themselves.

    Args:
        neighbours: per image, see [`dilated_neighbours`]; the sequence holds the images one after another.
        bias: of the keys, `[B, L]`, or None.
    """
    batch, heads, length, width = query.shape
    images = len(neighbours)
    query, key, value = (x.unflatten(2, (images, -1)) for x in (query, key, value))
    bias = None if bias is None else bias.unflatten(1, (images, -1))
    result = query.new_empty(batch, images, length // images, heads, width)
    for degree in sorted({len(near) for near in neighbours}):
        group = [image for image, near in enumerate(neighbours) if len(near) == degree]
        size = max(1, images // degree)
        for start in range(0, len(group), size):
            chosen = torch.tensor(group[start : start + size], device=query.device)
            near = torch.tensor([neighbours[image] for image in group[start : start + size]], device=query.device)

            def gather(x):  # [B, heads, images, N, d] -> [B·G, heads, degree·N, d]
                return x[:, :, near].movedim(2, 1).flatten(0, 1).flatten(2, 3)

            rows = query[:, :, chosen].transpose(1, 2).flatten(0, 1)
            near_bias = None if bias is None else bias[:, near].flatten(2).flatten(0, 1)
            found = key_biased_attention(attn, rows, gather(key), gather(value), near_bias)
            result[:, chosen] = found.unflatten(0, (batch, -1))
    return result.flatten(1, 2)
