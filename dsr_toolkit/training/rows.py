"""Rows that train: worlds without an end, files with one, each row with a seed of its own."""

import zlib
from collections.abc import Callable

import torch
from torch.utils.data import Dataset

ENDLESS = 1 << 40


class Rows(Dataset):
    """
    A source of rows (dictionaries) for Trainer's data loader.

    Every row gets its number as "row_number", and a "seed" that follows from the source's seed, the epoch and that
    number. Collators draw their noise from it: fresh in every epoch and on every worker, and the same after a resumed
    run as without an interruption.

    Args:
        source: anything with `[index]`; a length is used if it has one.
        seed: of the noise. count: rows; None: the source's length, or none at all.
    """

    def __init__(self, source, seed: int = 0, count: int | None = None):
        length = len(source) if hasattr(source, "__len__") else None
        if count is not None and length is not None and count > length:
            raise ValueError(f"`count` is {count}, but there are {length} rows.")
        self.source = source
        self.seed = seed
        self.count = length if count is None else count
        # In shared memory: workers that outlive an epoch (`dataloader_persistent_workers`) hold copies of the rows.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    @property
    def endless(self) -> bool:
        return self.count is None

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader, and by [`SpatialTrainer`] where that does not."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return ENDLESS if self.count is None else self.count

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = dict(self.source[index])
        row["row_number"] = index
        row.setdefault("seed", zlib.crc32(f"{self.seed} {self.epoch} {index}".encode()))
        return row


class Mapped:
    """`function(source[index])` for every index of an endless source: a world's samples as rows."""

    def __init__(self, source, function: Callable):
        self.source, self.function = source, function

    def __getitem__(self, index: int):
        return self.function(self.source[index])
