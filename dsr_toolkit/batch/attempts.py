"""Which chunk ended its worker, and which of its items is at fault."""

from __future__ import annotations

from collections import Counter

TRIES = 2  # workers that may end at one item before it is given up


class Attempts:
    """
    Keeps count of what workers begin and finish. A worker that ends without a word leaves a chunk begun: the next one
    takes its items one by one, and an item at which workers end again and again is given up.
    """

    def __init__(self):
        self._chunks: set[int] = set()
        self._at: dict[int, int] = {}
        self._deaths: Counter[tuple[int, int]] = Counter()

    def begin(self, chunk: int) -> tuple[bool, list[int]]:
        """A worker takes a chunk: whether it was begun before, and the items of it that are given up."""
        again = chunk in self._chunks
        self._chunks.add(chunk)
        if (item := self._at.pop(chunk, None)) is not None:
            self._deaths[chunk, item] += 1
        return again, [number for (of, number), count in self._deaths.items() if of == chunk and count >= TRIES]

    def item(self, chunk: int, number: int) -> None:
        """A worker takes an item by itself."""
        self._at[chunk] = number

    def done(self, chunk: int) -> None:
        self._chunks.discard(chunk)
        self._at.pop(chunk, None)
        for key in [key for key in self._deaths if key[0] == chunk]:
            del self._deaths[key]
