"""Whose turn it is to compute: threads that share a model's device take turns, in order."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """One thread at a time, first come first served, and the one whose turn it is may let all others have theirs."""

    def __init__(self):
        self._line: deque[int] = deque()
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._line.append(me)
            self._wait(me)

    def __exit__(self, *exception) -> None:
        with self._changed:
            self._line.popleft()
            self._changed.notify_all()

    def pass_on(self) -> None:
        """Go to the end of the line, and come back when it is this thread's turn again."""
        me = threading.get_ident()
        with self._changed:
            if len(self._line) > 1 and self._line[0] == me:
                self._line.rotate(-1)
                self._changed.notify_all()
                self._wait(me)

    def _wait(self, me: int) -> None:
        while self._line[0] != me:
            self._changed.wait()
