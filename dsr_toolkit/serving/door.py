"""The way of one request through the server: who it is, its body, the queue, and its answer, whole or word by word."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from . import handler_module
from .admission import Admission
from .answers import as_response
from .bodies import Bodies, ClientLeft
from .keys import Keys, Shares
from .logs import request_id, where
from .settings import Settings
from .tickets import Ticket
from .tracing import request_span

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1
ID_HEADER = "X-Request-ID"


@dataclass
class Dialect:
    """
    How a route speaks.

    Args:
        request: parsed JSON -> the handler's request; called in another thread than the server's.
        answer: (ticket, the handler's answer) -> JSON.
        error: a `RequestError` and the request's name -> JSON.
        stream: (ticket, tokens as they come) -> server-sent events, the last of which hold the rest of the answer.
    """

    request: Callable[[object, Ticket], dict]
    answer: Callable[[Ticket, object], object]
    error: Callable[[Exception, str], dict]
    stream: Callable[[Ticket, AsyncIterator[tuple[int, int]]], AsyncIterator[str]]


@dataclass
class Door:
    """What every request passes. `stopping` is set when the server has been told to end."""

    queue: Admission
    settings: Settings
    keys: Keys
    bodies: Bodies = field(init=False)
    shares: Shares = field(init=False)

    def __post_init__(self):
        limits = self.queue.handler.limits
        self.bodies = Bodies(limits, self.settings.body_memory, self.settings.read_timeout)
        self.shares = Shares(self.settings.per_client)

    def stop_reading(self) -> None:
        """Take no more requests; those that are still being sent are refused."""
        self.bodies.stopping = True

    def refusal(self, error, dialect: Dialect, name: str) -> Response:
        headers = {ID_HEADER: name}
        if error.code in ("interrupted", "overloaded", "too_many"):
            headers["Retry-After"] = str(RETRY_SECONDS)
        if error.code == "unauthorized":
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(dialect.error(error, name), error.status, headers)

    async def pass_through(self, request: Request, dialect: Dialect) -> Response:
        """The answer to a request, or why there is none."""
        ticket = Ticket(request_id(request.headers.get(ID_HEADER)))
        visit = Visit(self, request, dialect, ticket)
        try:
            response = await visit.answer()
        except ClientLeft:
            response = self.refusal(self.queue.error("cancelled", "the client has left."), dialect, ticket.name)
            visit.code = "cancelled"
        except handler_module().RequestError as error:
            response, visit.code = self.refusal(error, dialect, ticket.name), error.code
        except asyncio.CancelledError:  # the server ends, and waits no longer
            ticket.cancel()
            raise
        except Exception as error:  # what it says is nobody else's business
            if not ticket.accepted:  # the queue tells of those that it has accepted
                logger.error("a request failed: %s", where(error), extra={"request": ticket.name})
            internal = self.queue.error("internal", "the server failed on this request; its log says why.")
            response, visit.code = self.refusal(internal, dialect, ticket.name), "internal"
        response.headers[ID_HEADER] = ticket.name
        if not isinstance(response, StreamingResponse):
            await visit.leave(response.status_code)
        return response


class Visit:
    """One request and what it holds until it is answered."""

    def __init__(self, door: Door, request: Request, dialect: Dialect, ticket: Ticket):
        self.door, self.request, self.dialect, self.ticket = door, request, dialect, ticket
        self.client, self.code, self.size, self.start = "-", "ok", 0, time.perf_counter()
        self.holds = AsyncExitStack()

    async def answer(self) -> Response:
        door, ticket, request = self.door, self.ticket, self.request
        address = request.client.host if request.client else "-"
        self.client = door.keys.client(request.headers, address)
        self.holds.enter_context(door.shares.one(self.client))
        self.holds.enter_context(request_span(ticket, dict(request.headers)))
        door.queue.check_room()  # before anything of the body is kept
        body = await door.bodies.read(request.headers, request.receive)
        self.size = body.size
        streams: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        tokens = Tokens()

        def read():
            data = self.dialect.request(body.parse(), ticket)
            wanted = isinstance(data, dict) and data.pop("stream", False)
            if not isinstance(wanted, bool):
                raise door.queue.error("bad_request", "`stream` must be true or false.")
            if wanted:
                ticket.on_token = tokens.put
            tokens.loop.call_soon_threadsafe(lambda: streams.done() or streams.set_result(wanted))
            return data

        try:
            door.queue.enter(read, ticket, body.large, body.release)
        except BaseException:
            body.release()
            raise
        ticket.future.add_done_callback(tokens.end)
        watch = asyncio.ensure_future(self._watch())
        self.holds.callback(watch.cancel)
        deadline = self.start + door.settings.time_limit
        await self._first(streams, tokens, deadline)
        if ticket.future.done() and ticket.future.exception() is not None:
            raise ticket.future.exception()
        if streams.done() and streams.result():
            events = self._events(tokens, deadline)
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        answer = await self._within(asyncio.wrap_future(ticket.future), deadline)
        return await asyncio.to_thread(as_response, self.dialect.answer(ticket, answer))

    async def _first(self, streams: asyncio.Future, tokens: Tokens, deadline: float) -> None:
        """Wait until it is known whether the answer streams and, if so, that it has begun or failed."""
        begun = asyncio.ensure_future(tokens.begun.wait())
        try:
            await self._within(asyncio.wait({begun, streams}, return_when=asyncio.FIRST_COMPLETED), deadline)
            if streams.done() and streams.result():
                await self._within(begun, deadline)
        finally:
            begun.cancel()

    async def _within(self, waiting, deadline: float):
        """A result within the time limit, after which the request is given up."""
        task = asyncio.ensure_future(waiting)
        try:
            done, _ = await asyncio.wait({task}, timeout=max(deadline - time.perf_counter(), 0.001))
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()
            self.ticket.cancel()
            seconds = self.door.settings.time_limit
            raise self.door.queue.error("timed_out", f"the answer took more than {seconds:g} seconds.")
        return task.result()

    async def _watch(self) -> None:
        """Give the request up when its client hangs up."""
        while (await self.request.receive())["type"] != "http.disconnect":
            continue
        self.ticket.cancel()

    async def _events(self, tokens: Tokens, deadline: float) -> AsyncIterator[str]:
        """What the dialect makes of tokens; an error in the midst of an answer is its last event."""
        error = handler_module().RequestError
        try:
            async for event in self.dialect.stream(self.ticket, tokens.until(self._within, deadline)):
                yield event
        except error as refused:
            self.code = refused.code
            yield event_of(self.dialect.error(refused, self.ticket.name))
        except Exception:  # the queue has logged it
            self.code = "internal"
            internal = self.door.queue.error("internal", "the server failed on this request; its log says why.")
            yield event_of(self.dialect.error(internal, self.ticket.name))
        finally:
            if not self.ticket.future.done():
                self.ticket.cancel()
            with suppress(Exception):
                await asyncio.shield(self.leave(200))

    async def leave(self, status: int) -> None:
        """Give back what the request held, and write its line of the log."""
        if not self.ticket.accepted:
            self.door.queue.metrics.refused(self.code)
        await self.holds.aclose()
        ticket = self.ticket
        logger.info(
            "request",
            extra={
                "request": ticket.name, "client": self.client, "path": self.request.url.path, "status": status,
                "code": self.code, "task": ticket.task, "model": ticket.model, "bytes": self.size,
                "seconds": round(time.perf_counter() - self.start, 4),
            },
        )  # fmt: skip


class Tokens:
    """Tokens of an answer on their way from the thread that writes them to the server's."""

    def __init__(self):
        self.loop, self.begun = asyncio.get_running_loop(), asyncio.Event()
        self._queue: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()

    def put(self, row: int, token: int) -> None:
        self._later((row, token))

    def end(self, future) -> None:
        self._later(None)

    def _later(self, item) -> None:
        with suppress(RuntimeError):  # the server has ended meanwhile
            self.loop.call_soon_threadsafe(self._arrived, item)

    def _arrived(self, item) -> None:
        self._queue.put_nowait(item)
        self.begun.set()

    async def until(self, within, deadline: float) -> AsyncIterator[tuple[int, int]]:
        while (item := await within(self._queue.get(), deadline)) is not None:
            yield item


def event_of(content: dict | str) -> str:
    """A server-sent event."""
    return f"data: {content if isinstance(content, str) else json.dumps(content)}\n\n"
