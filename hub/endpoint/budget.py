"""Memory that requests share: who needs more than is left waits until others give theirs back."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Callable

LOOK_SECONDS = 0.1  # how often somebody who waits looks whether it is still wanted


class Budget:
    """
    Bytes in use at the same time, given out in the order in which they were asked for.

    One request that wants more than there is gets it when nobody else holds any: whether a single request is too large
    is said by the limits of a request.
    """

    def __init__(self, total: int):
        self.total, self.used = total, 0
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()

    def reserve(self, count: int, check: Callable[[], None] = lambda: None) -> Reservation:
        """
        Wait for `count` bytes.

        A thread may hold one reservation at a time: two that wait for each other's would wait for ever.

        Args:
            check: called while waiting; raises what ends it.
        """
        mine = object()
        with self._changed:
            self._queue.append(mine)
            try:
                while self._queue[0] is not mine or (self.used and self.used + count > self.total):
                    self._changed.wait(LOOK_SECONDS)
                    check()
                self.used += count
            finally:
                self._queue.remove(mine)
                self._changed.notify_all()
        return Reservation(self, count)

    @property
    def full(self) -> bool:
        return self.used >= self.total

    def hold(self, count: int) -> Reservation:
        """Count bytes that are in use already."""
        self._change(count)
        return Reservation(self, count)

    def take(self, count: int) -> Reservation | None:
        """`count` bytes if they are there now."""
        with self._changed:
            if self.used and self.used + count > self.total:
                return None
            self.used += count
        return Reservation(self, count)

    def _change(self, count: int) -> None:
        with self._changed:
            self.used += count
            self._changed.notify_all()


class Reservation:
    """Bytes of a [`Budget`], until they are released."""

    def __init__(self, budget: Budget, count: int):
        self.budget, self.count = budget, count

    def resize(self, count: int) -> None:
        """Hold as many from now on, without waiting: for what turned out to be smaller."""
        self.budget._change(count - self.count)
        self.count = count

    def grow(self, count: int) -> bool:
        """Hold so many more, if they are there now."""
        with self.budget._changed:
            if self.budget.used - self.count and self.budget.used + count > self.budget.total:
                return False
            self.budget.used += count
        self.count += count
        return True

    def release(self) -> None:
        self.resize(0)

    def release_with(self, owner: object) -> None:
        """Release when nobody needs `owner` any more."""
        weakref.finalize(owner, self.release)


def give_memory_back() -> None:
    """glibc keeps what each of many threads freed, several times what is needed; this returns it to the system."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
