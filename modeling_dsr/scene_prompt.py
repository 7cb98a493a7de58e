"""Placeholders of scenes in prompts."""

import torch

IGNORE_INDEX = -100


def expand_placeholders(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None,
    placeholder: int,
    replacement: int,
    num_tokens: int,
    padding_side: str = "right",
    max_length: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """
    Make room for scene tokens as LLaVA does: each placeholder becomes `num_tokens` of them, without labels; padding is
    taken out before and put back after, on one side.

    Args:
        input_ids: `[B, L]`. attention_mask: `[B, L]`, nonzero on real tokens, or None. labels: `[B, L]` or None.
        placeholder, replacement: the id to look for, and the id of the tokens in its place.
        max_length: rows are cut to this many tokens at their end.

    Returns:
        ids `[B, L']` (0 on padding), mask `[B, L']`, labels `[B, L']` (-100 on padding and scenes) or None.
    """
    batch, device = len(input_ids), input_ids.device
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    is_scene = (input_ids == placeholder) & real
    repeats = torch.where(is_scene, num_tokens, real.long())  # padding disappears
    lengths = repeats.sum(1)
    source = torch.repeat_interleave(torch.arange(input_ids.numel(), device=device), repeats.flatten())
    row = source // input_ids.shape[1]
    column = torch.arange(len(source), device=device) - (lengths.cumsum(0) - lengths)[row]
    if max_length is not None:
        kept = column < max_length
        source, row, column, lengths = source[kept], row[kept], column[kept], lengths.clamp_max(max_length)
    length = int(lengths.max())
    if padding_side == "left":
        column = column + (length - lengths)[row]

    def fill(values: torch.Tensor, padding: int) -> torch.Tensor:
        return values.new_full((batch, length), padding).index_put((row, column), values.flatten()[source])

    ids = fill(torch.where(is_scene, replacement, input_ids), 0)
    mask = fill(real.long(), 0)
    if labels is not None:
        labels = fill(labels.masked_fill(is_scene, IGNORE_INDEX), IGNORE_INDEX)
    return ids, mask, labels
