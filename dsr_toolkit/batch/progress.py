"""How far a run is, for whoever watches."""

from __future__ import annotations

import sys
import time

from ..console import say

EVERY = 10.0  # seconds between lines where no terminal shows one that changes


class Progress:
    """
    Args:
        total: items. done: of an earlier run; they do not count in the rate.
    """

    def __init__(self, total: int, done: int = 0):
        self.total, self.done, self.errors = total, done, 0
        self.first: tuple[int, float] | None = None  # items and time when the first chunk came: the models are loaded
        self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def add(self, items: int, errors: int) -> None:
        self.done, self.errors, now = self.done + items, self.errors + errors, time.monotonic()
        self.first = self.first or (self.done, now)
        if self.terminal:
            print(f"\r\x1b[K{self.line()}", end="", file=sys.stderr, flush=True)
        elif now - self.shown >= EVERY or self.done == self.total:
            self.shown = now
            say(self.line())

    def line(self) -> str:
        """`120 of 200 items, 3 errors, 4.2 items/s, 19 s left`"""
        parts = [f"{self.done} of {self.total} items"]
        if self.errors:
            parts.append(f"{self.errors} errors")
        if self.first and self.done > self.first[0]:
            rate = (self.done - self.first[0]) / (time.monotonic() - self.first[1])
            parts.append(f"{rate:.3g} items/s")
            if self.done < self.total:
                parts.append(f"{(self.total - self.done) / rate:.0f} s left")
        return ", ".join(parts)

    def close(self) -> None:
        if self.terminal and self.first:
            print(file=sys.stderr, flush=True)
