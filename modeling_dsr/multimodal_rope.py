"""Rotary positions of Qwen2-VL prompts (time, row, column) for a whole batch at once."""

import torch


def multimodal_positions(
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor | None,
    media: list[tuple[int, torch.LongTensor | None]],
    merge_size: int,
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """
    Positions of every token. Text counts on by one; the tokens of a medium span a grid that starts after what stands
    before it; what follows starts after the grid's largest coordinate. Nothing is read back from the device.

    Args:
        input_ids: `[B, S]`. attention_mask: `[B, S]` or None for no padding.
        media: per kind the id of its placeholder and its grids `[n, 3]` (time, rows, columns in patches) in the order
            of the prompts, or None.
        merge_size: patches per token along rows and along columns.

    Returns:
        Positions `[3, B, S]`, 0 on padding, and deltas `[B, 1]`: next position minus the length S of the padded row, so
        that the token at index i of the cache stands at position i + delta.
    """
    batch, length = input_ids.shape
    device = input_ids.device
    valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
    column = torch.arange(length, device=device).expand(batch, -1)
    is_medium = torch.zeros_like(valid)
    start_column = torch.zeros_like(input_ids)  # where the medium of a token starts in its row
    extent = torch.ones(batch, length, 3, dtype=torch.long, device=device)  # merged grid of a token's medium
    advance = torch.zeros_like(input_ids)  # at the first token of a medium: how far it moves what follows
    for token_id, grids in media:
        if grids is None or not len(grids):
            continue
        of_kind = (input_ids == token_id) & valid
        starts = of_kind.clone()
        starts[:, 1:] &= ~of_kind[:, :-1]
        number = (starts.flatten().cumsum(0) - 1).clamp(0, len(grids) - 1).view(batch, length)
        merged = grids.to(device) // torch.tensor([1, merge_size, merge_size], device=device)
        extent = torch.where(of_kind[..., None], merged[number], extent)
        advance = torch.where(starts, merged.amax(1)[number], advance)
        start_column = torch.where(of_kind, torch.where(starts, column, 0).cummax(1).values, start_column)
        is_medium |= of_kind

    is_text = valid & ~is_medium
    moved = advance.cumsum(1)  # by all media that started up to here, the token's own included
    own = advance.gather(1, start_column) * is_medium
    before = is_text.cumsum(1) - is_text.long() + moved - own  # [B, S] first free position
    offset = column - start_column
    _, rows, columns = extent.unbind(-1)
    grid = torch.stack([offset // (rows * columns), offset // columns % rows, offset % columns])  # [3, B, S]
    positions = torch.where(is_medium, before + grid, before) * valid
    ends = is_text.sum(1, keepdim=True) + moved[:, -1:]
    return positions, ends - length


def count_media(input_ids: torch.Tensor, token_id: int) -> torch.Tensor:
    """Number of runs of `token_id` in each row of `input_ids` `[B, S]`; `[B]` on the CPU."""
    is_token = input_ids.cpu() == token_id
    starts = is_token.clone()
    starts[:, 1:] &= ~is_token[:, :-1]
    return starts.sum(1)
