"""The values of the output, piece by piece: from mapped sources, through a rule's function, checked to be finite."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from .recipe import Entry, Read
from .sources import Source

PIECE = 16 * 2**20  # bytes; what is in memory at a time is a few of these, and the result of a rule's function


def pieces(entry: Entry, sources: dict[str, Source], seed: int) -> Iterator[torch.Tensor]:
    """Flat pieces of an output tensor, in order and in the dtype on disk.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    if entry.initialiser is not None:
        yield from _initial_values(entry, seed)
        return
    tensors = [sources[read.source].read(read.key, read.rows) for read in entry.reads]
    tensor = entry.function(*tensors) if entry.function else tensors[0]
    flat, dtype = tensor.reshape(-1), entry.info.dtype  # a view wherever the source is contiguous
    for piece in flat.split(max(1, PIECE // max(dtype.itemsize, flat.dtype.itemsize))) if flat.numel() else ():
        stored = piece.to(dtype)
        if not is_finite(stored):
            raise ValueError(_describe_non_finite(entry, sources, piece, dtype))
        yield stored


def is_finite(piece: torch.Tensor) -> bool:
    """Whether every number is finite, in one pass without temporaries: a NaN or an infinity shows in the extremes."""
    if not piece.is_floating_point() or piece.numel() == 0:
        return True
    low, high = torch.aminmax(piece)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _describe_non_finite(entry: Entry, sources: dict[str, Source], piece: torch.Tensor, dtype: torch.dtype) -> str:
    places = ", ".join(f"`{read.key}` of {sources[read.source].file(read.key)}" for read in entry.reads)
    if is_finite(piece):
        largest = piece.abs().max().item()
        return f"{places} holds {largest:g}, too large for {dtype}: convert to another dtype."
    kind = "NaN" if piece.isnan().any() else "an infinite value"
    return f"{places} holds {kind}, at `{entry.target}` of the output: the checkpoint is damaged."


def _initial_values(entry: Entry, seed: int) -> Iterator[torch.Tensor]:
    digest = hashlib.sha256(f"{seed}:{entry.target}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    dtype = entry.info.dtype
    work_dtype = torch.float32 if dtype.is_floating_point else dtype
    remaining = entry.nbytes // dtype.itemsize
    while remaining:
        piece = torch.empty(min(remaining, PIECE // 4), dtype=work_dtype)
        entry.initialiser.fill(piece, generator, entry.info.shape)
        yield piece.to(dtype)
        remaining -= piece.numel()


def check_equal(read: Read, entry: Entry, sources: dict[str, Source]) -> None:
    """Compare the second copy of a tied tensor with the one that is kept.

    Raises:
        ValueError: they differ, so the checkpoint is not tied.
    """
    first = sources[read.source].read(read.key, read.rows).reshape(-1)
    kept = entry.reads[0]
    second = sources[kept.source].read(kept.key, kept.rows).reshape(-1)
    step = PIECE // first.dtype.itemsize
    if first.shape != second.shape or not all(map(torch.equal, first.split(step), second.split(step))):
        raise ValueError(
            f"`{read.key}` of {sources[read.source].file(read.key)} differs from `{kept.key}`, but the configuration "
            'ties the two. Give {"tie_word_embeddings": false} as configuration override to keep both.'
        )
