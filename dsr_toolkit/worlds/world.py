"""What all worlds share: numbered samples, each drawn from generators of its own."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from pathlib import Path

import numpy as np


class World:
    """
    An endless list of samples.

    Args:
        seed: a non-negative integer. Worlds of different seeds share no sample.
    """

    def __init__(self, seed: int):
        self.seed = _whole("seed", seed)

    def __getitem__(self, index: int):
        return self.sample(_whole("index", index))

    def __iter__(self) -> Iterator:
        index = 0
        while True:
            yield self[index]
            index += 1

    def sample(self, index: int):
        """Sample `index`. Draws from `self.generator(index, …)` alone, so it depends on no other sample."""
        raise NotImplementedError

    def generator(self, index: int, purpose: str = "") -> np.random.Generator:
        """Random numbers of sample `index`; those for one purpose (scene, wording, …) do not move when another's
        change."""
        return np.random.default_rng([self.seed, index, *purpose.encode()])


def _whole(name: str, value) -> int:
    try:
        value = operator.index(value)
    except TypeError:
        raise ValueError(f"`{name}` must be an integer of at least 0, got {value!r}.") from None
    if value < 0:
        raise ValueError(f"`{name}` must be an integer of at least 0, got {value}.")
    return value


def new_folder(folder: str | Path) -> Path:
    """The folder, made where it is missing; a ValueError where anything is in it."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`folder` {folder} exists and is not an empty folder; name a new one.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
