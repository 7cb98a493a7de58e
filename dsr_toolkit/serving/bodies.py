"""Bodies of requests: read within limits of size, memory and time, and parsed where the server does not wait for it."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import LifoQueue

from . import handler_module

# Bytes of a request beside its files: texts, names, numbers.
JSON_OVERHEAD = 2**20
# Bytes per second that a client has to send at least, once `read_timeout` is over.
SLOWEST = 32 * 2**10
# A body of more bytes, or of more numbers and names, is parsed in a process of its own: parsing holds the interpreter.
SMALL_BYTES, SMALL_PARTS = 2**18, 10_000
LOOK_SECONDS = 0.25  # how often a read looks whether the server is stopping


class Bodies:
    """
    Args:
        limits: of requests.
        memory: bytes of bodies at a time, of all requests until they are read.
        read_timeout: seconds within which a body has to come; large ones have more, by `SLOWEST`.
        readers: processes that parse large bodies; each starts when it is first needed.
    """

    def __init__(self, limits, memory: int, read_timeout: float, readers: int = 2):
        self.read_timeout, self.stopping = read_timeout, False
        # Points may come as text, of up to about 60 characters each.
        self.most_bytes = max(limits.bytes * 4 // 3, 60 * limits.points) + JSON_OVERHEAD
        # A point is three numbers in a list of its own, a mesh has points and faces.
        self.most_parts = 2 * 4 * limits.points + JSON_OVERHEAD // 8
        self.budget = handler_module().budget.Budget(max(memory, self.most_bytes))
        self.readers = Readers(readers)

    async def read(self, headers, receive) -> Body:
        """
        The whole body, unparsed.

        Raises:
            RequestError: too large, too slow, no room, or the server is stopping. ClientLeft: nobody is there any more.
        """
        error = handler_module().RequestError
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self.most_bytes:
            raise error("too_large", f"a request may have at most {self.most_bytes} bytes.")
        body, received, parts, refused, start = bytearray(), 0, 0, None, time.monotonic()
        held = self.budget.hold(0)
        try:
            more = True
            while more:
                deadline = start + self.read_timeout + received / SLOWEST
                if refused is not None:  # what has been refused is not waited for where nothing more comes
                    deadline = min(deadline, time.monotonic() + self.read_timeout)
                try:
                    message = await self._receive(receive, deadline)
                except error as late:
                    if refused is not None and late.code == "too_slow":
                        raise refused from late
                    raise
                chunk, more = message.get("body", b""), message.get("more_body", False)
                received += len(chunk)
                if received > self.most_bytes:
                    raise error("too_large", f"a request may have at most {self.most_bytes} bytes.")
                if refused is not None:
                    continue  # read to its end and dropped: who still sends would see a reset connection, not why
                if not held.grow(len(chunk)):
                    raise error("overloaded", "too many bytes of requests are on their way; try again in a moment.")
                body += chunk
                parts += chunk.count(b",") + chunk.count(b"[") + chunk.count(b"{")
                if parts > self.most_parts:
                    refused = error("too_large", f"a request may have at most {self.most_parts} numbers and names.")
                    body.clear()
            if refused is not None:
                raise refused
        except BaseException:
            held.release()
            raise
        large = len(body) > SMALL_BYTES or parts > SMALL_PARTS
        return Body(len(body), large, lambda: self.readers.parse(body) if large else parse(body), held.release)

    async def _receive(self, receive, deadline: float) -> dict:
        error = handler_module().RequestError
        waiting = asyncio.ensure_future(receive())
        try:
            while True:
                left = deadline - time.monotonic()
                done, _ = await asyncio.wait({waiting}, timeout=max(0.0, min(left, LOOK_SECONDS)))
                if done:
                    break
                if self.stopping:
                    raise error("overloaded", "the server is stopping.")
                if left <= 0:
                    raise error("too_slow", "the request was not sent in time.")
        finally:
            if not waiting.done():
                waiting.cancel()
        message = waiting.result()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        return message

    def close(self) -> None:
        self.readers.close()


@dataclass
class Body:
    """
    A body that was read.

    Args:
        size: in bytes. large: whether it takes long to parse. parse: it, in another thread than the server's.
        release: its memory, once it is not needed any more.
    """

    size: int
    large: bool
    parse: Callable[[], object]
    release: Callable[[], None]


class ClientLeft(Exception):
    """Whoever sent a request has hung up."""


def parse(body: bytes | bytearray):
    """JSON of a request."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise not_json(error) from error


def not_json(error) -> Exception:
    return handler_module().RequestError("bad_request", f"the body is not JSON ({str(error)[:200]}).")


class Readers:
    """Processes that parse; see `body_process`. One that fails is replaced."""

    def __init__(self, count: int):
        self._free: LifoQueue[Reader | None] = LifoQueue()
        for _ in range(count):
            self._free.put(None)
        self._all: set[Reader] = set()
        self._closed = False

    def parse(self, body: bytearray):
        reader = self._free.get()
        kept = None
        try:
            if self._closed:
                raise handler_module().RequestError("overloaded", "the server is stopping.")
            reader = reader or self._new()
            result = reader.parse(body)
            kept = reader
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise handler_module().RequestError(
                "too_large", "the request takes more memory or time to parse than it may."
            ) from error
        finally:
            if kept is None and reader is not None:
                self._all.discard(reader)
                reader.close()
            self._free.put(kept)
        if isinstance(result, NotJson):
            raise not_json(result.args[0])
        return result

    def _new(self) -> Reader:
        reader = Reader()
        self._all.add(reader)
        return reader

    def close(self) -> None:
        self._closed = True
        for reader in list(self._all):
            reader.close()


class NotJson(Exception):
    """What a parsing process says of a body."""


class Reader:
    """One process that parses bodies, one after the other."""

    SECONDS = 60.0

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dsr_toolkit.serving.body_process"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(),
        )  # fmt: skip

    def parse(self, body: bytearray):
        watch = threading.Timer(self.SECONDS, self.process.kill)
        watch.start()
        try:
            self.process.stdin.write(struct.pack("<Q", len(body)))
            self.process.stdin.write(body)
            self.process.stdin.flush()
            said = self._take()
            files = [self._take() for _ in range(struct.unpack("<Q", self._exactly(8))[0])]
        finally:
            watch.cancel()
        return pickle.loads(said, buffers=files)

    def _take(self) -> bytearray:
        return self._exactly(struct.unpack("<Q", self._exactly(8))[0])

    def _exactly(self, count: int) -> bytearray:
        """So many bytes, read piece by piece: reading waits without the interpreter."""
        content, place = bytearray(count), 0
        while place < count:
            got = self.process.stdout.readinto(memoryview(content)[place : place + 2**20])
            if not got:
                raise EOFError("the process that parses has ended")
            place += got
        return content

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except OSError:
                continue


def environment() -> dict[str, str]:
    """Of a process beside the server: it imports this package and numpy from where this process has them."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
