"""
The process that listens. It answers `GET /health` and `GET /ready` by itself, from what the server last said of its
state, and hands every other connection over, unread.

    server → here:   a line of JSON, path → [status, content], several times a second
    here → server:   a byte and a connection

So these two never wait for an interpreter that computes or parses. A server that says nothing for `STALE_SECONDS` is
stuck, and they say so; where it has ended, this process ends, and nobody listens any more.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from contextlib import suppress
from http import HTTPStatus

STALE_SECONDS = 10.0
HEAD = 2**13  # bytes up to which the head of a request is looked at
MARK = b"."  # that comes with a connection


class Front:
    """
    Args:
        listeners: sockets that listen. server: the other end is the server's.
        head_seconds: that a connection may be silent. most: silent connections; for one more, the oldest goes.
    """

    def __init__(self, listeners: list[socket.socket], server: socket.socket, head_seconds: float, most: int):
        self.listeners, self.server, self.head_seconds, self.most = listeners, server, head_seconds, most
        self.told: dict[str, list] = {}
        self.heard = 0.0
        self.silent: dict[asyncio.Task, None] = {}  # in the order of their coming
        self.handing = asyncio.Lock()

    async def run(self) -> None:
        """Until the server ends."""
        for listener in self.listeners:
            listener.setblocking(False)
        accepting = [asyncio.ensure_future(self._accept(listener)) for listener in self.listeners]
        try:
            await self._listen()
        finally:
            for task in (*accepting, *self.silent):
                task.cancel()

    async def _listen(self) -> None:
        """What the server says of itself."""
        self.server.setblocking(False)
        loop, line = asyncio.get_running_loop(), b""
        while news := await loop.sock_recv(self.server, 2**16):
            *lines, line = (line + news).split(b"\n")
            if lines:
                self.told, self.heard = json.loads(lines[-1]), time.monotonic()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # no file may be opened any more: some close by themselves
                await asyncio.sleep(0.05)
                continue
            if len(self.silent) >= self.most:
                oldest = next(iter(self.silent))
                del self.silent[oldest]  # now: where many come at once, each of them takes another's place
                oldest.cancel()
            task = asyncio.ensure_future(self._welcome(connection))
            self.silent[task] = None
            task.add_done_callback(lambda task: self.silent.pop(task, None))
            await asyncio.sleep(0)  # accepting does not wait while somebody is there: the others have their turn

    async def _welcome(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, TimeoutError):
            connection.setblocking(False)
            async with asyncio.timeout(self.head_seconds):
                await _ready(connection, write=False)
                head = connection.recv(HEAD, socket.MSG_PEEK)
                if not head:
                    return
                if (path := asked_for(head)) in self.told:
                    connection.recv(len(head))
                    await asyncio.get_running_loop().sock_sendall(connection, self._reply(path))
                    return
            await self._hand_over(connection)

    def _reply(self, path: str) -> bytes:
        silence = time.monotonic() - self.heard
        status, content = self.told[path]
        if silence > STALE_SECONDS:
            status, content = 503, {"status": "stuck", "silent_seconds": round(silence, 1)}
        body = json.dumps(content, separators=(",", ":")).encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body

    async def _hand_over(self, connection: socket.socket) -> None:
        async with self.handing:
            while True:
                with suppress(BlockingIOError):
                    socket.send_fds(self.server, [MARK], [connection.fileno()])
                    return
                await _ready(self.server, write=True)


def asked_for(head: bytes) -> str:
    """The path of a GET without anything special about it; empty for what the server had better read itself."""
    lines = head.lower().split(b"\r\n")
    special = (b"origin:", b"content-length:", b"transfer-encoding:", b"expect:", b"upgrade:")
    whole = head.endswith(b"\r\n\r\n") and head.count(b"\r\n\r\n") == 1
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if not whole or len(words) != 3 or words[0] != b"GET" or not words[2].startswith(b"HTTP/1."):
        return ""
    if any(line.startswith(special) for line in lines):
        return ""
    return words[1].partition(b"?")[0].decode("latin-1")


async def _ready(connection: socket.socket, write: bool) -> None:
    """Wait until a socket can be read or written."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    add(connection, ready.set)
    try:
        await ready.wait()
    finally:
        remove(connection)


def main(server: str, head_seconds: str, most: str, *listeners: str) -> None:
    """Of numbers of open files, and settings."""
    sockets = [socket.socket(fileno=int(number)) for number in (server, *listeners)]
    with suppress(ConnectionError):
        asyncio.run(_front(sockets[1:], sockets[0], float(head_seconds), int(most)))


async def _front(*arguments) -> None:
    await Front(*arguments).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
