"""The server's side of the process that listens for it; see `front_process`."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

from .bodies import environment

logger = logging.getLogger(__name__)

BEAT_SECONDS = 0.1  # how often the server says how it is


def open_sockets(host: str, port: int) -> list[socket.socket]:
    """
    Sockets that listen at every address of a host that this machine has, at one port.

    Raises:
        ValueError: there is no such host, or the port is taken.
    """
    opened: list[socket.socket] = []
    absent: OSError | None = None
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((one[0], one[4]) for one in found):
            chosen = port or (opened[0].getsockname()[1] if opened else 0)
            try:
                opened.append(_listening(family, (address[0], chosen, *address[2:])))
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                absent = error  # as ::1 of `localhost` is where there is no IPv6
        if absent and not opened:
            raise absent
    except OSError as error:
        for listener in opened:
            listener.close()
        raise ValueError(f"nothing can listen at --host {host} --port {port}: {error.strerror}.") from error
    return opened


def _listening(family: int, address: tuple) -> socket.socket:
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


class Front:
    """
    Args:
        listeners: sockets that listen. says: path -> status and content, of the moment.
        take: called with each connection. alone: called if the process ends by itself, to listen without it.
        head_seconds, most: see `front_process.Front`.
    """

    def __init__(
        self, listeners: list[socket.socket], says: dict[str, Callable[[], tuple[int, dict]]],
        take: Callable[[socket.socket], Awaitable], alone: Callable[[], Awaitable], head_seconds: float, most: int,
    ):  # fmt: skip
        self.listeners, self.says, self.take, self.alone = listeners, says, take, alone
        self.head_seconds, self.most = head_seconds, most
        self._tasks: set[asyncio.Future] = set()
        self._ended = False

    def start(self) -> None:
        """Within the server's loop."""
        self.channel, theirs = socket.socketpair(socket.AF_UNIX)
        files = [theirs.fileno(), *(listener.fileno() for listener in self.listeners)]
        numbers = [str(number) for number in (files[0], self.head_seconds, self.most, *files[1:])]
        # A group of its own: Ctrl-C in a terminal is for the server, with which it ends.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dsr_toolkit.serving.front_process", *numbers],
            pass_fds=files, env=environment(), stdin=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        theirs.close()
        self.channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self.channel, self._arrived)
        self._keep(self._beat())

    def stop(self) -> None:
        """Nobody listens from now on."""
        self._end()
        for listener in self.listeners:
            listener.close()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        asyncio.get_running_loop().remove_reader(self.channel)
        self.channel.close()
        self.process.kill()
        self.process.wait()

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._ended:
            told = {path: say() for path, say in self.says.items()}
            with suppress(OSError):  # it has ended, which is noticed where connections come
                await loop.sock_sendall(self.channel, json.dumps(told).encode() + b"\n")
            await asyncio.sleep(BEAT_SECONDS)

    def _arrived(self) -> None:
        while not self._ended:
            try:
                mark, files, _, _ = socket.recv_fds(self.channel, 1, 1)
            except BlockingIOError:
                return
            except OSError:
                mark, files = b"", []
            for file in files:
                self._keep(self.take(socket.socket(fileno=file)))
            if not mark:
                logger.error("the process that listens has ended; the server listens itself")
                self._end()
                self._keep(self.alone())

    def _keep(self, work: Awaitable) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
