"""
One replica of a server on Ray: a handler and its queue, in an actor. It gets plain values and gives plain values; the
models, whose classes may come from a repository's own code, are loaded inside and never sent anywhere.

What happens to a request comes as events, each a tuple that begins with its kind:

    read      task, model, parameters         it is prepared, or failed at that
    token     row, token                      of an answer that streams
    answer    answer, seconds by stage        the end
    error     code, message, where, seconds   the end; `where` of a fault of ours alone
    ran       [(task, requests, seconds)]     batches that have run meanwhile
    stages    [(name, begin, end, attributes)]  for its trace, which the door keeps
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

from . import handler_module
from .application import make_handler
from .batching import BatchingQueue
from .logs import where
from .metrics import Metrics
from .settings import Settings
from .tickets import Ticket

END_SECONDS = 5.0  # for what is under way when Ray ends a replica, which has waited for it before


class Replica:
    """
    Args:
        settings: see [`Settings`]. by_model: whether requests come where their model is loaded already.
    """

    def __init__(self, settings: dict, by_model: bool):
        from ray import serve

        told = Settings.of(settings)
        self.handler = make_handler(told)
        self.queue = BatchingQueue(self.handler, told.max_batch, told.max_wait, told.max_requests, told.workers)
        self.queue.metrics = self.ran = Ran(self.queue)
        for name in told.preload:
            self.handler.processor(name), self.handler.model(name)

        async def resident(name: str) -> str:
            """Ray is told which models are here; the handler loads them, and gives them up."""
            return name

        most = told.max_models or -1
        self.resident = serve.multiplexed(resident, max_num_models_per_replica=most) if by_model else None

    async def answer(self, request, name: str, streams: bool) -> AsyncIterator[tuple]:
        """
        The events of a request.

        Args:
            name: of the request, for the log. streams: whether its tokens are wanted.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue()

        def tell(*event) -> None:
            with suppress(RuntimeError):  # the actor ends
                loop.call_soon_threadsafe(events.put_nowait, event)

        ticket = Ticket(name, stages=[])
        if streams:
            ticket.on_token = lambda row, token: tell("token", row, token)
        ticket.future.add_done_callback(lambda future: tell("end"))
        try:
            await self._tell_model()
            self.queue.enter(request, ticket, then=lambda: tell("read", ticket.task, ticket.model, ticket.parameters))
            del request
            while (event := await events.get())[0] != "end":
                yield event
            if ran := self.ran.take():
                yield "ran", ran
            yield "stages", ticket.stages
            yield _outcome(ticket)
        except handler_module().RequestError as error:  # there was no room
            yield "error", error.code, error.message, None, {}
        finally:
            if not ticket.future.done():
                ticket.cancel()

    async def _tell_model(self) -> None:
        from ray import serve

        if self.resident is not None and (model := serve.get_multiplexed_model_id()):
            await self.resident(model)

    def __del__(self):
        if hasattr(self, "queue"):
            self.queue.stop(END_SECONDS)


def _outcome(ticket: Ticket) -> tuple:
    error = ticket.future.exception()
    if error is None:
        return "answer", ticket.future.result(), ticket.seconds
    if isinstance(error, handler_module().RequestError):
        return "error", error.code, error.message, None, ticket.seconds
    return "error", "internal", "", where(error), ticket.seconds


class Ran(Metrics):
    """Keeps what batches have run for whoever counts for all replicas."""

    def __init__(self, queue):
        super().__init__(queue)
        self._batches: deque[tuple[str, int, float]] = deque()  # written and read by several threads

    def ran(self, task: str, requests: int, seconds: float) -> None:
        self._batches.append((task, requests, seconds))

    def take(self) -> list[tuple[str, int, float]]:
        taken = []
        while self._batches:
            taken.append(self._batches.popleft())
        return taken
