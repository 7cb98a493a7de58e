"""Uvicorn's server, less patient: requests whose head does not come are closed, and a stop does not wait for bodies."""

from __future__ import annotations

import math

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


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
    """

    def __init__(self, config: uvicorn.Config, on_stop):
        super().__init__(config)
        self.on_stop = on_stop

    async def shutdown(self, sockets=None) -> None:
        self.on_stop()
        await super().shutdown(sockets)


def make_server(
    app, host: str, port: int, read_timeout: float = 20.0, stop_limit: float = 30.0, max_connections: int = 1000
) -> Server:
    """A server that ends within about `stop_limit` seconds of SIGINT or SIGTERM; `run()` serves until then."""
    protocol = type("Protocol", (ImpatientProtocol,), {"head_seconds": read_timeout})
    config = uvicorn.Config(
        app, host=host, port=port, http=protocol, ws="none", access_log=False, log_config=None, server_header=False,
        limit_concurrency=max_connections, timeout_keep_alive=5,
        timeout_graceful_shutdown=max(1, math.ceil(stop_limit)),
    )  # fmt: skip
    return Server(config, app.state.door.stop_reading)
