"""Where everything sits in a prompt with captions: image tokens, captions, phrases and rotary positions.

Pure functions on integer tensors. They run on the CPU once per forward pass, so that inputs which do not fit each other
are refused with a readable error before any network runs. No function loops over samples, captions or phrases.
"""

from dataclasses import dataclass

import torch


@dataclass
class PhraseLayout:
    """
    Index tensors of `B` rows of tokens, all on the CPU.

    Each row is a *prefix* (system turn, one image, instruction), which is read once, and *captions*: continuations of
    the prefix that do not see each other. Both are stored without the padding of the row. `n` counts the phrases of
    all rows, in order.

    Attributes:
        prefix_index: `[B, P]` positions in the row. prefix_lengths: `[B]`, what lies beyond is padding.
        prefix_positions: `[3, B, P]` rotary positions (time, row, column).
        image_columns: `[B, N]` positions of the image tokens in the prefix, 0 for padding.
        grids: `[B, 2]` image tokens per column and row (h, w), after merging.
        caption_index: `[B, R]` positions in the row of the caption tokens, up to each caption's last phrase token.
        caption_positions: `[3, B, R]` rotary positions.
        caption_mask: `[B, 1, R, P + R]`, True where a caption token sees a token.
        rows: `[B, K]` positions of the phrase tokens among the caption tokens, 0 for padding.
        row_phrase: `[B, K]` phrase of each of them, `n` for padding.
        phrase_image: `[n]` row of each phrase. phrases_per_image: `[B]`.
        tokens: `[n, T]` flat indices into the `B·K` phrase tokens. token_mask: `[n, T]`, False for padding.
    """

    prefix_index: torch.Tensor
    prefix_lengths: torch.Tensor
    prefix_positions: torch.Tensor
    image_columns: torch.Tensor
    grids: torch.Tensor
    caption_index: torch.Tensor
    caption_positions: torch.Tensor
    caption_mask: torch.Tensor
    rows: torch.Tensor
    row_phrase: torch.Tensor
    phrase_image: torch.Tensor
    phrases_per_image: torch.Tensor
    tokens: torch.Tensor
    token_mask: torch.Tensor


def build_phrase_layout(
    input_ids: torch.Tensor,
    mask_ids: torch.Tensor,
    image_grid_thw: torch.Tensor,
    image_token_id: int,
    merge_size: int = 2,
    attention_mask: torch.Tensor | None = None,
    caption_ids: torch.Tensor | None = None,
    num_phrases: list[int] | None = None,
) -> PhraseLayout:
    """
    Args:
        input_ids: `[B, S]`, padded on either side.
        mask_ids: `[B, S]`, phrase of each token (0, 1, … in each row), -1 outside.
        image_grid_thw: `[B, 3]` patches (time, rows, columns) of the image of each row.
        attention_mask: `[B, S]`, 0 for padding.
        caption_ids: `[B, S]`, 0 for the prefix and 1, 2, … for the captions; None: everything from a row's first phrase
            token on is one caption.
        num_phrases: phrases that each row must have, if known.

    Raises:
        ValueError: naming what does not fit.
    """
    input_ids, mask_ids = input_ids.cpu(), mask_ids.cpu()
    batch, length = input_ids.shape
    keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
    for name, value in (("mask_ids", mask_ids), ("attention_mask", keep), ("caption_ids", caption_ids)):
        if value is not None and tuple(value.shape) != (batch, length):
            raise ValueError(
                f"`{name}` must have the shape of `input_ids`, {(batch, length)}, got {tuple(value.shape)}."
            )
    column = torch.arange(length).expand(batch, -1)
    is_phrase = (mask_ids >= 0) & keep
    if caption_ids is None:
        first_phrase = torch.where(is_phrase, column, length).amin(1, keepdim=True)
        caption = (column >= first_phrase).long()
    else:
        caption = caption_ids.cpu().long()
    _check_phrases(mask_ids, is_phrase, caption, num_phrases)

    # The prefix and its image.
    prefix_index, prefix_lengths, prefix_valid = _compact(keep & (caption == 0))
    grids, image_columns, prefix_positions, after = _read_prefix(
        input_ids.gather(1, prefix_index), prefix_valid, image_grid_thw.cpu(), image_token_id, merge_size
    )

    # Captions, without what follows their last phrase: nothing looks at it.
    captions = int(caption.max()) + 1
    place = torch.arange(batch)[:, None] * captions + caption  # flat (row, caption)
    last = _per_place(place, torch.where(is_phrase, column, -1), batch * captions, "amax")
    first = _per_place(place, torch.where(keep, column, length), batch * captions, "amin")
    read = keep & (caption > 0) & (column <= last)
    caption_index, _, caption_valid = _compact(read)
    positions = (prefix_lengths + after)[:, None] + (column - first).gather(1, caption_index)
    of = caption.gather(1, caption_index)
    size = of.shape[1]
    earlier = torch.ones(size, size, dtype=torch.bool).tril()
    same = (of[:, :, None] == of[:, None]) & earlier & caption_valid[:, None]
    same = same | torch.eye(size, dtype=torch.bool)  # padding sees itself, so that no row of the softmax is empty
    seen = prefix_valid[:, None].expand(-1, size, -1)

    # Phrases.
    phrases_per_image = torch.where(is_phrase, mask_ids + 1, 0).amax(1)
    before = phrases_per_image.cumsum(0) - phrases_per_image
    total = int(phrases_per_image.sum())
    phrase_rows, _, valid = _compact(is_phrase.gather(1, caption_index) & caption_valid)
    row_phrase = (mask_ids.gather(1, caption_index) + before[:, None]).gather(1, phrase_rows)
    row_phrase = torch.where(valid, row_phrase, total)
    tokens, token_mask = _tokens_of_phrases(row_phrase, total)
    return PhraseLayout(
        prefix_index=prefix_index,
        prefix_lengths=prefix_lengths,
        prefix_positions=prefix_positions,
        image_columns=image_columns,
        grids=grids,
        caption_index=caption_index,
        caption_positions=positions.expand(3, -1, -1),
        caption_mask=torch.cat([seen, same], dim=2)[:, None],
        rows=torch.where(valid, phrase_rows, 0),
        row_phrase=row_phrase,
        phrase_image=torch.repeat_interleave(torch.arange(batch), phrases_per_image),
        phrases_per_image=phrases_per_image,
        tokens=tokens,
        token_mask=token_mask,
    )


def _check_phrases(mask_ids, is_phrase, caption, num_phrases) -> None:
    if not is_phrase.any():
        raise ValueError("`mask_ids` marks no phrase: every token is -1. Mark the tokens of phrase i with i.")
    numbers = torch.where(is_phrase, mask_ids + 1, 0)
    counts = numbers.amax(1)
    tokens = is_phrase.sum(1)
    if num_phrases is not None:
        wanted = torch.tensor([int(n) for n in num_phrases])
        if len(wanted) != len(counts):
            raise ValueError(f"Masks are given for {len(wanted)} rows, but `mask_ids` has {len(counts)}.")
        counts = torch.maximum(counts, wanted)
        if (counts > wanted).any():
            row = int((counts > wanted).nonzero()[0])
            raise ValueError(
                f"Row {row} of `mask_ids` has {int(counts[row])} phrases, but {int(wanted[row])} masks are given."
            )
    if (counts > tokens).any():
        row = int((counts > tokens).nonzero()[0])
        raise ValueError(
            f"Row {row} has {int(counts[row])} phrases but only {int(tokens[row])} tokens that belong to one. Every "
            "phrase needs a token of its own; phrases that share words go into captions of their own."
        )
    present = torch.zeros(len(counts), int(counts.max()) + 1, dtype=torch.bool)
    present.scatter_(1, numbers, True)
    missing = ~present[:, 1:] & (torch.arange(present.shape[1] - 1) < counts[:, None])
    if missing.any():
        row, phrase = missing.nonzero()[0].tolist()
        raise ValueError(
            f"Phrase {phrase} of row {row} has no token in `mask_ids`. Number the phrases 0, 1, … without gaps."
        )
    if (is_phrase & (caption < 1)).any():
        row = int((is_phrase & (caption < 1)).any(1).nonzero()[0])
        raise ValueError(
            f"Row {row} marks phrase tokens in its prefix (`caption_ids` 0). Phrases belong into a caption."
        )


def _read_prefix(ids, valid, grid_thw, image_token_id, merge):
    """Grid `[B, 2]`, columns `[B, N]`, positions `[3, B, P]`, and position minus index of what follows the image
    `[B]`."""
    batch, length = ids.shape
    is_image = (ids == image_token_id) & valid
    counts = is_image.sum(1)
    if (counts == 0).any():
        row = int((counts == 0).nonzero()[0])
        raise ValueError(
            f"Row {row} of `input_ids` shows no image before its first phrase: token {image_token_id} does not occur "
            "there. Phrases are looked up in one image, which comes before them."
        )
    if grid_thw.ndim != 2 or tuple(grid_thw.shape) != (batch, 3):
        raise ValueError(
            f"`image_grid_thw` must be [{batch}, 3], one image per row of `input_ids`, got {tuple(grid_thw.shape)}."
        )
    grids = grid_thw[:, 1:] // merge
    column = torch.arange(length)
    start = is_image.long().argmax(1)
    wanted = grids.prod(1)
    run = (column >= start[:, None]) & (column < (start + counts)[:, None])
    wrong = (
        (counts != wanted) | (grid_thw[:, 0] != 1) | (grid_thw[:, 1:] % merge != 0).any(1) | (run != is_image).any(1)
    )
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"Image token count {int(counts[row])} of row {row} does not match `image_grid_thw` "
            f"{grid_thw[row].tolist()}, which makes {int(wanted[row])} tokens in one piece. Pass both as one call of "
            "the processor returned them."
        )
    widest = int(counts.max())
    cell = torch.arange(widest)
    inside = cell < counts[:, None]
    image_columns = torch.where(inside, start[:, None] + cell, 0)
    # Text counts on from the largest position of the image.
    after = grids.amax(1) - wanted
    positions = torch.where(column < start[:, None], column, column + after[:, None]).expand(3, -1, -1).clone()
    cell = (column - start[:, None]).clamp_min(0)
    width = grids[:, 1:]
    offsets = torch.stack([torch.zeros_like(cell), cell // width, cell % width])
    positions = torch.where(is_image, start[:, None] + offsets, positions)
    return grids, image_columns, torch.where(valid, positions, 0), after


def _compact(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions `[B, n]` of the True elements of each row of `mask` `[B, S]`, their number `[B]`, and which are
    real."""
    counts = mask.sum(1)
    widest = int(counts.max())
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, :widest]
    return order, counts, torch.arange(widest) < counts[:, None]


def _per_place(place, values, number, reduce) -> torch.Tensor:
    """Extremum of `values` `[B, S]` over all tokens of a place, at every token."""
    start = -1 if reduce == "amax" else values.shape[1]
    result = torch.full((number,), start).scatter_reduce(0, place.flatten(), values.flatten(), reduce)
    return result[place]


def _tokens_of_phrases(row_phrase: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat indices `[n, T]` of each phrase's tokens in order, and which are real."""
    flat = row_phrase.flatten()
    order = torch.argsort(flat, stable=True)
    phrase = flat[order]
    order, phrase = order[phrase < total], phrase[phrase < total]
    counts = torch.bincount(phrase, minlength=total)
    position = torch.arange(len(phrase)) - (counts.cumsum(0) - counts)[phrase]
    tokens = torch.zeros(total, int(counts.max()), dtype=torch.long)
    tokens[phrase, position] = order
    return tokens, torch.arange(tokens.shape[1]) < counts[:, None]
