"""What every queue of requests does, wherever they are answered: count them in, and tell how each came to its end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from . import handler_module
from .logs import where
from .metrics import Metrics
from .tickets import Ticket

logger = logging.getLogger(__name__)


class Admission:
    """
    Args:
        handler: an `EndpointHandler`. max_requests: on their way at a time; more are refused as "overloaded".
    """

    def __init__(self, handler, max_requests: int):
        if max_requests < 1:
            raise ValueError(f"`max_requests` must be at least 1, got {max_requests}.")
        self.handler, self.max_requests = handler, max_requests
        self.pending, self.stopping = 0, False
        self._under_way: set[Ticket] = set()
        self._changed = threading.Condition()
        self.metrics = Metrics(self)

    def gauges(self) -> dict[str, tuple[str, Callable[[], float]]]:
        """What `/metrics` shows of the moment: about, and how much, by name."""
        return {"dsr_requests_pending": ("requests on their way", lambda: self.pending)}

    @property
    def alive(self) -> bool:
        return not self.stopping

    def enter(
        self, data, ticket: Ticket | None = None, large: bool = False, then: Callable[[], None] = lambda: None
    ) -> Ticket:
        """
        Accept a request, for whoever wants to listen to the answer or may give it up.

        Args:
            data: the request, or a function without arguments that returns it (to parse it off the caller's thread).
            large: whether it takes long to parse; such requests have threads of their own.
            then: called once the request is read, and what it was made of is not needed any more.

        Returns:
            the ticket, whose `future` is of the answer; its exception is a `RequestError` or, for a fault of ours,
            anything.

        Raises:
            RequestError: "overloaded", if too many are on their way or the queue is stopping.
        """
        raise NotImplementedError

    def check_room(self) -> None:
        """Raises "overloaded" where another request would not be accepted."""
        if self.stopping:
            raise self.error("overloaded", "the server is stopping.")
        if self.pending >= self.max_requests:
            raise self.error("overloaded", f"{self.pending} requests are on their way; try again in a moment.")

    def give_up_all(self) -> None:
        """Cancel every request."""
        with self._changed:
            under_way = list(self._under_way)
        for ticket in under_way:
            ticket.cancel()

    @staticmethod
    def error(code: str, message: str) -> Exception:
        return handler_module().RequestError(code, message)

    def _admit(self, ticket: Ticket) -> None:
        """Under `_changed`."""
        self.check_room()
        self.pending += 1
        ticket.accepted = True
        self._under_way.add(ticket)

    def _check_wanted(self, ticket: Ticket) -> None:
        if ticket.cancelled:
            raise self.error("cancelled", "the request was given up.")

    def _end(self, ticket: Ticket, answer=None, error: BaseException | None = None) -> None:
        code = getattr(error, "code", "internal") if error is not None else "ok"
        if code == "internal":
            place = getattr(error, "place", None) or where(error)
            logger.error("a request for %s failed: %s", ticket.task, place, extra={"request": ticket.name})
        self.metrics.ended(ticket, code, time.perf_counter() - ticket.came)
        with self._changed:
            self.pending -= 1
            self._under_way.discard(ticket)
            self._changed.notify_all()
        ticket.job = None
        if ticket.future.set_running_or_notify_cancel():
            if error is None:
                ticket.future.set_result(answer)
            else:
                ticket.future.set_exception(error)
