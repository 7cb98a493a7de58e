"""A queue in front of an [`EndpointHandler`] that runs compatible requests together.

    request ─ prepare (a few threads) ─ waiting ─ run (one thread, a batch at a time) ─ finish (a few threads) ─ answer

Batches form by themselves while the model is busy. When it is idle, the first request waits for others only as long as
some are being prepared, and never longer than `max_wait`.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from . import handler_module
from .metrics import Metrics

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1.0  # without any request, after which freed memory goes back to the system


@dataclass
class Ticket:
    """A request on its way: its future, its job once prepared, and when it came and was prepared."""

    future: Future
    task: str
    came: float
    job: object = None
    ready: float = 0.0


class BatchingQueue:
    """
    Args:
        handler: an `EndpointHandler`; only this queue may call it from now on.
        max_batch: rows of a batch (a CAD request has one per candidate, a reconstruction one per frame).
        max_wait: seconds that a request waits for company.
        max_requests: requests on their way; more are refused as "overloaded".
        workers: threads that prepare and finish.
    """

    def __init__(self, handler, max_batch: int = 16, max_wait: float = 0.02, max_requests: int = 64, workers: int = 4):
        for name, value in (("max_batch", max_batch), ("max_requests", max_requests), ("workers", workers)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if not max_wait >= 0:
            raise ValueError(f"`max_wait` must not be negative, got {max_wait}.")
        self.handler, self.max_batch, self.max_wait, self.max_requests = handler, max_batch, max_wait, max_requests
        self.metrics = Metrics(self)
        self.pending = self.preparing = 0
        self.stopping = self._used = False
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="requests")
        self._runner = threading.Thread(target=self._run_batches, name="model", daemon=True)
        self._runner.start()

    # ---- from outside --------------------------------------------------------------------

    def submit(self, data) -> Future:
        """
        Accept a request.

        Args:
            data: the request, or a function without arguments that returns it (to parse it off the caller's thread).

        Returns:
            A future of the answer; its exception is a `RequestError` or, for a fault of ours, anything.

        Raises:
            RequestError: "overloaded", if too many are on their way or the queue is stopping.
        """
        with self._changed:
            if self.stopping:
                raise self.error("overloaded", "the server is stopping.")
            if self.pending >= self.max_requests:
                raise self.error("overloaded", f"{self.pending} requests are on their way; try again in a moment.")
            self.pending += 1
            self.preparing += 1
            self._used = True
        ticket = Ticket(Future(), "none", time.perf_counter())
        self._pool.submit(self._prepare, ticket, data)
        return ticket.future

    @property
    def waiting(self) -> int:
        """Requests that are prepared and wait for the model."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._runner.is_alive() and not self.stopping

    def stop(self) -> None:
        """Accept nothing more, finish everything that was accepted, end all threads."""
        with self._changed:
            self.stopping = True
            self._changed.notify_all()
        self._runner.join()
        self._pool.shutdown()
        self.handler.close()

    def __enter__(self) -> BatchingQueue:
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    @staticmethod
    def error(code: str, message: str) -> Exception:
        return handler_module().RequestError(code, message)

    # ---- threads -------------------------------------------------------------------------

    def _prepare(self, ticket: Ticket, data) -> None:
        try:
            data = data() if callable(data) else data
            if isinstance(data, dict) and data.get("task") in tuple(self.handler.tasks):
                ticket.task = data["task"]
            ticket.job = self.handler.prepare(data)
        except BaseException as error:
            self._end(ticket, error=error, prepared=True)
            return
        with self._changed:
            ticket.ready = time.perf_counter()
            self.preparing -= 1
            self._waiting.append(ticket)
            self._changed.notify_all()

    def _run_batches(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._run(batch)

    def _next_batch(self) -> list[Ticket] | None:
        """The oldest ticket and those that can run with it; None when everything is done and nothing more comes."""
        with self._changed:
            while True:
                if not self._waiting:
                    if self.stopping and not self.preparing:
                        return None
                    if not self._changed.wait(IDLE_SECONDS if self._used else None) and not self.pending:
                        self._used = False
                        give_memory_back()
                    continue
                batch, full = self._gather()
                left = batch[0].ready + self.max_wait - time.perf_counter()
                if full or batch[0].job.key is None or not self.preparing or left <= 0:
                    for ticket in batch:
                        self._waiting.remove(ticket)
                    return batch
                self._changed.wait(left)

    def _gather(self) -> tuple[list[Ticket], bool]:
        """Tickets that can run with the oldest one, oldest first, and whether no more would fit."""
        first = self._waiting[0]
        batch, rows = [first], first.job.cost
        if first.job.key is None:
            return batch, True
        for ticket in self._waiting:
            if ticket is first or ticket.job.key != first.job.key:
                continue
            if rows + ticket.job.cost > self.max_batch:
                return batch, True
            batch.append(ticket)
            rows += ticket.job.cost
        return batch, rows >= self.max_batch

    def _run(self, batch: list[Ticket]) -> None:
        start = time.perf_counter()
        try:
            results = self.handler.run([ticket.job for ticket in batch])
        except Exception as error:
            if len(batch) > 1:  # whoever is at fault must not take the others along
                logger.warning(
                    "a batch of %d failed (%s); its requests run one by one", len(batch), type(error).__name__
                )
                for ticket in batch:
                    self._run([ticket])
            else:
                self._end(batch[0], error=error)
            return
        self.metrics.ran(batch[0].task, len(batch), time.perf_counter() - start)
        for ticket, result in zip(batch, results):
            self._pool.submit(self._finish, ticket, result)

    def _finish(self, ticket: Ticket, result) -> None:
        try:
            answer = self.handler.finish(ticket.job, result)
        except BaseException as error:
            self._end(ticket, error=error)
        else:
            self._end(ticket, answer)

    def _end(self, ticket: Ticket, answer=None, error: BaseException | None = None, prepared: bool = False) -> None:
        code = getattr(error, "code", "internal") if error is not None else "ok"
        if code == "internal":
            logger.error("a request for %s failed", ticket.task, exc_info=error)
        self.metrics.ended(ticket.task, code, time.perf_counter() - ticket.came)
        with self._changed:
            self.pending -= 1
            self.preparing -= prepared
            self._changed.notify_all()
        ticket.job = None
        if ticket.future.set_running_or_notify_cancel():
            if error is None:
                ticket.future.set_result(answer)
            else:
                ticket.future.set_exception(error)


def give_memory_back() -> None:
    """glibc keeps what many threads freed, several times what the models need; this returns it. Elsewhere: nothing to
    do."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
