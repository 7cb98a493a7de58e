"""Samples packed into one row: where they begin, and that none predicts the next one's first token."""

import torch

IGNORE_INDEX = -100


def packed_samples(
    position_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    cu_seq_lens: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """
    Number the samples of packed rows, as trainers announce them: by positions that begin again, or by cumulative
    lengths.

    Args:
        position_ids: `[B, S]` text positions. attention_mask: `[B, S]`, 0 on padding. cu_seq_lens: `[0, L1, L1+L2, …]`
            of a single row.

    Returns:
        `[B, S]`: 0 on padding, 1, 2, … on samples; None where no row holds two.
    """
    if cu_seq_lens is not None and cu_seq_lens.ndim == 1 and len(cu_seq_lens) > 2:
        length = int(cu_seq_lens[-1])
        starts = torch.zeros(length, dtype=torch.long, device=cu_seq_lens.device)
        starts[cu_seq_lens[:-1].long()] = 1
        return starts.cumsum(0)[None]
    if position_ids is None or position_ids.ndim != 2 or position_ids.shape[1] < 2:
        return None
    numbers = (position_ids == 0).cumsum(1)
    if isinstance(attention_mask, torch.Tensor):
        if attention_mask.shape != position_ids.shape or int(attention_mask.max()) > 1:
            return None  # numbered already, or of another form
        numbers = numbers * (attention_mask != 0)
    highest = numbers.amax(1)
    lowest = torch.where(numbers > 0, numbers, numbers.amax()).amin(1)
    return numbers if bool((highest > lowest).any()) else None


def separate_samples(labels: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Labels of packed rows with the first token of each sample unsupervised: nothing before it may predict it."""
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim > 2:
        return labels
    if attention_mask.ndim == 1:
        first = torch.zeros(labels.shape[1], dtype=torch.bool, device=labels.device)
        first[attention_mask[:-1].long().to(labels.device)] = True
        return labels.masked_fill(first, IGNORE_INDEX)
    changes = torch.ones_like(attention_mask, dtype=torch.bool)
    changes[:, 1:] = attention_mask[:, 1:] != attention_mask[:, :-1]
    return labels.masked_fill((changes | (attention_mask == 0)).to(labels.device), IGNORE_INDEX)
