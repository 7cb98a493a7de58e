"""A queue in front of an [`EndpointHandler`] that runs compatible requests together.

    request ─ prepare (a few threads) ─ waiting ─ run (a batch at a time) ─ finish (a few threads) ─ answer

Batches form by themselves while the model is busy. When it is idle, the first request waits for others only as long as
some are being prepared, and never longer than `max_wait`.

A batch that writes long answers does not keep short ones waiting: requests whose longest answer is at most half of what
the batch still has to write run beside it, in a batch of their own, and the batches take turns token by token. So what
is under way keeps a request waiting for at most twice the length of its own longest answer, and few batches are under
way at a time, as their lengths halve. Videos, whose decoding takes long, pictures, which may wait for each other's
memory, and programs in the sandbox have threads of their own.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from . import handler_module
from .admission import Admission
from .tickets import Ticket
from .tracing import stage_span
from .turns import Turns

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1.0  # without any request, after which freed memory goes back to the system

LOOK_SECONDS = 0.1  # how often a request that waits for memory looks again
GIVE_UP_SECONDS = 5.0  # that what was given up gets to notice it


class Lane:
    """A batch that runs: `left` is how many more tokens its longest answer may have."""

    def __init__(self, batch: list[Ticket]):
        self.batch, self.left = batch, max(ticket.job.length for ticket in batch)


class BatchingQueue(Admission):
    """
    Args:
        handler: an `EndpointHandler`; only this queue may call it from now on.
        max_batch: rows of a batch (a CAD request has one per candidate, a reconstruction one per frame).
        max_wait: seconds that a request waits for company.
        max_requests: requests on their way; more are refused as "overloaded".
        workers: threads that prepare and finish, of each kind.
    """

    def __init__(self, handler, max_batch: int = 16, max_wait: float = 0.02, max_requests: int = 64, workers: int = 4):
        for name, value in (("max_batch", max_batch), ("workers", workers)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if not max_wait >= 0:
            raise ValueError(f"`max_wait` must not be negative, got {max_wait}.")
        super().__init__(handler, max_requests)
        self.max_batch, self.max_wait = max_batch, max_wait
        self.preparing, self._used = 0, False
        self._waiting: deque[Ticket] = deque()
        kinds = ("read", "parse", "look", "watch", "write", "execute")
        self._pools = {kind: ThreadPoolExecutor(workers, thread_name_prefix=kind) for kind in kinds}
        self._lanes: dict[int, Lane] = {}
        self._here = threading.local()  # the lane that a thread runs
        self._turns, self._lane_pool = Turns(), ThreadPoolExecutor(64, thread_name_prefix="lane")
        handler.pause = self._pause
        self._runner = threading.Thread(target=self._run_batches, name="model", daemon=True)
        self._runner.start()

    # ---- from outside --------------------------------------------------------------------

    def submit(self, data) -> Future:
        """Accept a request; returns a future of its answer. See `enter`."""
        return self.enter(data).future

    def enter(
        self, data, ticket: Ticket | None = None, large: bool = False, then: Callable[[], None] = lambda: None
    ) -> Ticket:
        ticket = ticket or Ticket()
        with self._changed:
            self._admit(ticket)
            self.preparing += 1
            self._used = True
        ticket.on_cancel = self._given_up
        self._pools["parse" if large else "read"].submit(self._read, ticket, data, then)
        return ticket

    def gauges(self) -> dict[str, tuple[str, Callable[[], float]]]:
        handler = self.handler
        return super().gauges() | {
            "dsr_requests_waiting": ("of these, prepared and waiting for the model", lambda: self.waiting),
            "dsr_models_loaded": ("models in memory", lambda: handler.loaded),
            "dsr_media_bytes": (
                "unpacked media and prepared requests", lambda: handler.media_budget.used + handler.prepared.used,
            ),
        }  # fmt: skip

    @property
    def waiting(self) -> int:
        """Requests that are prepared and wait for the model."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._runner.is_alive() and super().alive

    def stop(self, limit: float | None = None) -> bool:
        """
        Accept nothing more, finish everything that was accepted, end all threads.

        Args:
            limit: seconds after which what is not finished is given up.

        Returns:
            whether everything has ended; False where a model does not come back from a single call in time.
        """
        with self._changed:
            self.stopping = True
            self._changed.notify_all()
        self._runner.join(limit)
        if self._runner.is_alive():
            self.give_up_all()
            self._runner.join(GIVE_UP_SECONDS)
        ended = not self._runner.is_alive()
        for pool in (self._lane_pool, *self._pools.values()):
            pool.shutdown(wait=ended, cancel_futures=not ended)
        self.handler.close()
        return ended

    def __enter__(self) -> BatchingQueue:
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    # ---- threads -------------------------------------------------------------------------

    def _read(self, ticket: Ticket, data, then: Callable[[], None]) -> None:
        """Parse; media go on in threads of their own, and do not fill those of what is read at once."""
        try:
            self._check_wanted(ticket)
            data = data() if callable(data) else data
            if isinstance(data, dict) and data.get("task") in tuple(self.handler.tasks):
                ticket.task = data["task"]
        except BaseException as error:
            then()
            self._unprepared(ticket, error)
            return
        self._pools[_reading(data)].submit(self._prepare, ticket, data, then)

    def _wait_for_room(self, ticket: Ticket) -> None:
        """Prepared requests take memory, too: where they have enough, some are answered first."""
        with self._changed:
            while self.handler.prepared.full and (self._waiting or self._lanes) and not ticket.cancelled:
                self._changed.wait(LOOK_SECONDS)

    def _prepare(self, ticket: Ticket, data, then: Callable[[], None]) -> None:
        try:
            self._wait_for_room(ticket)
            self._check_wanted(ticket)
            with stage_span(ticket, "prepare"):
                ticket.job = self.handler.prepare(data, ticket)
            ticket.task, ticket.model, ticket.parameters = ticket.job.task, ticket.job.model, ticket.job.parameters
        except BaseException as error:
            self._unprepared(ticket, error)
            return
        finally:
            del data
            then()
        ticket.seconds["prepare"] = time.perf_counter() - ticket.came
        with self._changed:
            ticket.ready = time.perf_counter()
            self.preparing -= 1
            self._waiting.append(ticket)
            self._changed.notify_all()
        if ticket.cancelled:
            self._given_up(ticket)

    def _unprepared(self, ticket: Ticket, error: BaseException) -> None:
        with self._changed:
            self.preparing -= 1
        self._end(ticket, error=error)

    def _given_up(self, ticket: Ticket) -> None:
        """Of a request that waits nothing more is done; one that is under way notices itself."""
        with self._changed:
            if ticket not in self._waiting:
                return
            self._waiting.remove(ticket)
        self._end(ticket, error=self.error("cancelled", "the request was given up."))

    def _run_batches(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._lane_pool.submit(self._run_lane, batch)

    def _next_batch(self) -> list[Ticket] | None:
        """Tickets that can run now, together; None when everything is done and nothing more comes."""
        with self._changed:
            while True:
                first = next(filter(self._may_start, self._waiting), None)
                if first is None:
                    if self.stopping and not self.preparing and not self._waiting and not self._lanes:
                        return None
                    if not self._changed.wait(IDLE_SECONDS if self._used else None) and not self.pending:
                        self._used = False
                        give_memory_back()
                    continue
                batch, full = self._gather(first)
                left = first.ready + self.max_wait - time.perf_counter()
                if full or first.job.key is None or not self.preparing or left <= 0:
                    for ticket in batch:
                        self._waiting.remove(ticket)
                        ticket.seconds["wait"] = time.perf_counter() - ticket.ready
                    self._lanes[id(batch)] = Lane(batch)
                    return batch
                self._changed.wait(left)

    def _may_start(self, ticket: Ticket) -> bool:
        """Whether its answer is short beside what every batch that runs has still to write."""
        return all(2 * ticket.job.length <= lane.left for lane in self._lanes.values())

    def _gather(self, first: Ticket) -> tuple[list[Ticket], bool]:
        """Tickets that can run with `first`, oldest first, and whether no more would fit."""
        batch, rows = [first], first.job.cost
        if first.job.key is None:
            return batch, True
        for ticket in self._waiting:
            if ticket is first or ticket.job.key != first.job.key or not self._may_start(ticket):
                continue
            if rows + ticket.job.cost > self.max_batch:
                return batch, True
            batch.append(ticket)
            rows += ticket.job.cost
        return batch, rows >= self.max_batch

    def _run_lane(self, batch: list[Ticket]) -> None:
        place, lane = id(batch), self._lanes[id(batch)]
        self._here.lane = lane
        try:
            self._load(batch)
            with self._turns:
                self._run(batch)
        finally:
            self._here.lane = None
            with self._changed:
                del self._lanes[place]
                self._changed.notify_all()

    def _load(self, batch: list[Ticket]) -> None:
        """A model is loaded before it is its turn: others go on answering."""
        try:
            self.handler.model(batch[0].job.model)
        except Exception:  # `run` meets it again, and tells each request
            return

    def _pause(self) -> None:
        """Between two tokens of a batch."""
        if (lane := getattr(self._here, "lane", None)) is not None:
            lane.left -= 1
            self._turns.pass_on()

    def _run(self, batch: list[Ticket]) -> None:
        start = time.perf_counter()
        try:
            with stage_span(batch[0], "run", requests=len(batch)):
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
        seconds = time.perf_counter() - start
        self.metrics.ran(batch[0].task, len(batch), seconds)
        for ticket, result in zip(batch, results):
            ticket.seconds["run"] = seconds
            execute = ticket.job.parameters.get("execute")
            self._pools["execute" if execute else "write"].submit(self._finish, ticket, result)

    def _finish(self, ticket: Ticket, result) -> None:
        start = time.perf_counter()
        try:
            self._check_wanted(ticket)
            with stage_span(ticket, "finish"):
                answer = self.handler.finish(ticket.job, result)
        except BaseException as error:
            self._end(ticket, error=error)
        else:
            ticket.seconds["finish"] = time.perf_counter() - start
            self._end(ticket, answer)


def _reading(data) -> str:
    """The threads that prepare a request: those for videos, for pictures, or for what is read at once."""
    inputs = data.get("inputs") if isinstance(data, dict) else None
    if not isinstance(inputs, dict):
        return "read"
    turns = inputs.get("messages")
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    shown = [name for name, value in inputs.items() if value is not None] + [part.get("type") for part in parts]
    return "watch" if "video" in shown else "look" if "image" in shown or "images" in shown else "read"


def give_memory_back() -> None:
    """
    Collect garbage, and return to the system what is free then.

    What is left after a collection is not looked at by later ones, which would hold the interpreter for long: libraries
    and models stay. Whoever gives a model up lets everything be looked at again.
    """
    gc.collect()
    gc.freeze()
    handler_module().budget.give_memory_back()
