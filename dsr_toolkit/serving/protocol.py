"""Uvicorn's server, less patient: requests whose head does not come are closed, and a stop does not wait for bodies."""

from __future__ import annotations

import asyncio
import math
import socket
from contextlib import suppress

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .front import Front


class ImpatientProtocol(H11Protocol):
    """Closes a connection that has begun a request, or none, and does not finish its head in `head_seconds`."""

    head_seconds = 20.0

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._head = None
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_head()

    def connection_lost(self, exc) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        """A head is awaited unless a request is being answered; its time runs from when that began."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect_nothing()
        elif self._head is None:
            self._head = self.loop.call_later(self.head_seconds, self.transport.close)

    def _expect_nothing(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


class Server(uvicorn.Server):
    """
    Args:
        on_stop: called as soon as the server is told to end, before it waits for what is under way.
        sockets: that listen. Then a process of its own does, and answers what `says` knows; see [`Front`].
        head_seconds, most: of that process.
    """

    def __init__(self, config: uvicorn.Config, on_stop, sockets=None, says=None, head_seconds=20.0, most=1000):
        super().__init__(config)
        self.on_stop, self.sockets, self.front = on_stop, sockets, None
        if sockets is not None:
            self.front = Front(sockets, says, self._take, self._listen, head_seconds, most)

    async def startup(self, sockets=None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets if self.front is None else [])
        if self.front is not None:
            self.front.start()

    async def shutdown(self, sockets=None) -> None:
        if self.front is not None:
            self.front.stop()
        self.on_stop()
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes them for connections that it accepts itself."""
        return self.config.http_protocol_class(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def _take(self, connection: socket.socket) -> None:
        with suppress(OSError):  # it was closed meanwhile
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        # Duplicates: the front closes its sockets at the end, and asyncio closes no server whose own are closed.
        self.servers += [await loop.create_server(self._protocol, sock=one.dup()) for one in self.sockets]


def make_server(
    app,
    host: str | list[socket.socket],
    port: int = 0,
    read_timeout: float = 20.0,
    stop_limit: float = 30.0,
    max_connections: int = 1000,
) -> Server:
    """
    A server that ends within about `stop_limit` seconds of SIGINT or SIGTERM; `run()` serves until then.

    Args:
        host: an address; or sockets that listen, for which a process of its own listens, see [`Front`].
    """
    protocol = type("Protocol", (ImpatientProtocol,), {"head_seconds": read_timeout})
    sockets = None if isinstance(host, str) else host
    config = uvicorn.Config(
        app, host=host if sockets is None else "", port=port, http=protocol, ws="none", access_log=False,
        log_config=None, server_header=False, limit_concurrency=max_connections, timeout_keep_alive=5,
        timeout_graceful_shutdown=max(1, math.ceil(stop_limit)),
    )  # fmt: skip
    return Server(config, app.state.door.stop_reading, sockets, app.state.says, read_timeout, max_connections)
