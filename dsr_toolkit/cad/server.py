"""The fork server of the sandbox: CadQuery is imported once, every program runs in a child of its own.

    parent ── spawns ── zygote: imports CadQuery, enters the namespaces, then forks
                          └── keepers, one per program at a time: read a request, fork, watch the clock, answer
                                ├── child: confined, runs the program, writes its solid as B-rep into a pipe, ends
                                └── checker: confined likewise, has seen no program; reads the B-rep and measures it

What a child says about its solid is not asked for: only the checker's word goes to the parent. A keeper is the first
process of a namespace of process numbers, so that nothing outlives it, however it ends.

Neither zygote nor keeper ever makes geometry: the kernel's thread pool does not survive a fork, and children would
hang. Messages are a length and JSON, then a length and bytes; nothing is ever unpickled.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass

from . import confinement
from .messages import (
    MAX_PAYLOAD,
    is_complete,
    pack_answer,
    receive_descriptor,
    receive_message,
    send_message,
    unpack_answer,
)

POLL_SECONDS = 0.05
FILE_BYTES = 48 * 2**20  # largest file that a program may write
CHANNEL_LOST, FAILED = 71, 70  # exit statuses of a child


@dataclass
class Place:
    """What a keeper needs to know about where it is: confinements that hold, descriptor of /proc."""

    applied: frozenset[str]
    processes: int | None

    def has(self, name: str) -> bool:
        return name in self.applied


# --------------------------------------------------------------------------------------
# Zygote
# --------------------------------------------------------------------------------------


def main(settings: dict) -> None:
    """Body of the zygote. `settings`: control socket, confinements to leave out."""
    control = socket.socket(fileno=settings["control"])
    try:
        from . import measuring, program, warming  # noqa: F401  import cadquery, before its files disappear
    except ImportError as error:
        send_message(control, {"error": f"{error}. Running programs needs the extra `[cad]`."})
        return
    warming.load_solver()
    processes = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY) if os.path.isdir("/proc") else None
    skip = frozenset(settings["skip"])
    font = warming.font_bytes()
    missing = confinement.enter(skip, font, processes)
    place = Place(frozenset(confinement.CONFINEMENTS) - skip - {failure.name for failure in missing}, processes)
    folder = None
    if not place.has(confinement.MOUNT):
        folder = tempfile.mkdtemp(prefix="font-")
        os.chmod(folder, 0o755)
        with open(f"{folder}/{confinement.FONT}", "wb") as file:
            file.write(font)
    warming.use_font(f"{folder or ''}/{confinement.FONT}")
    send_message(control, {"missing": [[failure.name, failure.reason] for failure in missing]})
    confinement.become_reaper()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the server by closing the sockets
    keepers: set[int] = set()
    while (descriptor := receive_descriptor(control)) is not None:
        keepers -= _tidy(keepers, processes)
        keepers.add(_start_keeper(descriptor, control, place))
        os.close(descriptor)
    _end_descendants(processes)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)  # taking CadQuery down in order takes a second


def _start_keeper(descriptor: int, control: socket.socket, place: Place) -> int:
    pid = confinement.fork(confinement.CLONE_NEWPID if place.has(confinement.PID) else 0)
    if pid == 0:
        try:
            control.close()
            os.setsid()  # out of reach of who kills the server's group
            confinement.end_with_parent()
            keep(socket.socket(fileno=descriptor), place)
        finally:
            os._exit(0)
    return pid


def _tidy(keepers: set[int], processes: int | None) -> set[int]:
    """Keepers that are gone. What they leave behind, which only happens without a process namespace, is ended."""
    gone = {pid for pid in keepers if os.waitpid(pid, os.WNOHANG)[0]}
    if gone:
        _end_descendants(processes, but=keepers - gone)
    return gone


# --------------------------------------------------------------------------------------
# Keeper
# --------------------------------------------------------------------------------------


def keep(parent: socket.socket, place: Place) -> None:
    """Body of a keeper: one request after another until the parent closes the socket."""
    confinement.become_reaper()
    while True:
        request, payload = receive_message(parent)
        if request is None:
            return
        send_message(parent, {"begun": True})  # from here on the program may be to blame for how this process ends
        deadline = time.monotonic() + request["seconds"]
        job = Job(request, place, deadline, parent)
        seen, answer = job.solid() if request["job"] == "program" else job.step(payload)
        send_message(parent, seen, answer)
        job.end()  # after the answer: taking an address space down takes a while


class Ended(Exception):
    """The parent is gone."""


class Job:
    """One request: a child after the other, all of which are ended with it."""

    def __init__(self, request: dict, place: Place, deadline: float, parent: socket.socket):
        self.request, self.place, self.deadline, self.parent = request, place, deadline, parent
        self.start, self.folders = time.monotonic(), []

    def solid(self) -> tuple[dict, bytes]:
        """
        Run the program, then measure what it made: (what was seen, answer). `stage` says whose answer it is; of the
        checker's the last `brep` bytes are the solid itself, as the program's child wrote it.
        """
        from . import program

        seen, sent = self.child(program.answer, self.request)
        header, brep = unpack_answer(sent)
        if header is None or header.get("code") != "ok":
            return self.seen(seen, "program"), bytes(sent)
        return self.checked("measure", brep, header.get("notes"))

    def checked(self, what: str, brep: bytes, notes=()) -> tuple[dict, bytes]:
        from . import measuring

        seen, sent = self.child(measuring.answer, self.request, what, brep)
        keep = brep if what == "measure" else b""
        return self.seen(seen, "check", notes=notes, brep=len(keep)), bytes(sent) + keep

    def step(self, brep: bytes) -> tuple[dict, bytes]:
        return self.checked("step", brep)

    def seen(self, seen: dict, stage: str, **more) -> dict:
        return {**seen, "stage": stage, "seconds": time.monotonic() - self.start, **more}

    def child(self, body, *arguments) -> tuple[dict, bytes]:
        """`body(*arguments, channel)` in a confined child: (how it ended, what it wrote)."""
        folder = None
        if not self.place.has(confinement.MOUNT):
            folder = tempfile.mkdtemp(prefix="program-")
            os.chmod(folder, 0o777)  # the child is nobody
            self.folders.append(folder)
        reading, writing = os.pipe()
        child = confinement.fork(confinement.CLONE_NEWNS if self.place.has(confinement.MOUNT) else 0)
        if child == 0:
            self.become_child(body, arguments, writing, folder)
        os.close(writing)
        seen = {"timeout": False, "oversize": False, "signal": 0, "status": 0}
        try:
            sent = self.read(reading, child, seen)
            # Whoever has answered in full is ended on the spot; its signal would be ours.
            if unpack_answer(sent)[0] is None or seen["timeout"] or seen["oversize"]:
                status = self.finish(child, seen)
                seen["signal"] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                seen["status"] = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
        finally:
            os.close(reading)
            self.kill()
        return seen, sent

    def become_child(self, body, arguments, writing: int, folder: str | None) -> None:
        """Never returns."""
        status = FAILED
        try:
            if folder is not None:
                os.chdir(folder)
            if self.request["confined"]:
                seconds = int(self.request["seconds"]) + 2
                confinement.confine(
                    self.place.applied, seconds, self.request["memory"], FILE_BYTES, writing, self.place.processes
                )
            sys.stdout = sys.stderr = Silence()
            body(*arguments, Channel(writing))
            status = 0
        except Lost:
            status = CHANNEL_LOST
        finally:
            os._exit(status)

    def read(self, reading: int, child: int, seen: dict) -> bytearray:
        """What the child writes until it is complete or too much, the pipe is closed, the child or its time ends."""
        payload, ended = bytearray(), False
        while True:
            remaining = self.deadline - time.monotonic()
            if remaining <= 0:
                seen["timeout"] = True
                return payload
            ready = select.select([reading, self.parent], [], [], min(remaining, POLL_SECONDS))[0]
            self.watch_parent(ready)
            if not ready:
                if ended:  # a descendant may hold the pipe open
                    return payload
                ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
                continue
            piece = os.read(reading, 1 << 20)
            if not piece:
                return payload
            payload += piece
            if is_complete(payload):
                return payload
            if len(payload) > MAX_PAYLOAD:
                seen["oversize"] = True
                return payload

    def finish(self, child: int, seen: dict) -> int:
        """Wait for the child to end, or end it."""
        wait = 0.0005
        while not (seen["timeout"] or seen["oversize"]):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status
            seen["timeout"] = time.monotonic() >= self.deadline
            self.watch_parent(select.select([self.parent], [], [], wait)[0])
            wait = min(2 * wait, 0.02)
        for kill in (os.killpg, os.kill):
            try:
                kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return os.waitpid(child, 0)[1]

    def watch_parent(self, ready: list) -> None:
        """While a request is open the parent sends nothing: what can be read is its end."""
        if self.parent in ready:
            self.end()
            os._exit(0)

    def kill(self) -> None:
        """Every process that is left of the last child, without waiting for it to be gone."""
        if not self.place.has(confinement.PID):
            _end_descendants(self.place.processes)
            return
        try:
            os.kill(-1, signal.SIGKILL)  # of this namespace, but for this process, its first
        except ProcessLookupError:
            pass

    def end(self) -> None:
        self.kill()
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            pass
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)


class Lost(Exception):
    """The result channel is closed."""


class Channel:
    """The one way out of a child. Taken hold of before a program runs, so that nothing it replaces is used here."""

    def __init__(
        self, descriptor: int, write=os.write, own=os.getpid(), number=os.getpid, leave=os._exit, pack=pack_answer
    ):
        self.descriptor, self.write, self.number, self.leave, self.pack = descriptor, write, number, leave, pack
        self.own = number()

    def send(self, header: dict, *buffers: bytes) -> None:
        if self.number() != self.own:  # a fork of the program has come back here
            self.leave(0)
        try:
            for buffer in self.pack(header, buffers):
                view = memoryview(buffer)
                while view:
                    view = view[self.write(self.descriptor, view[: 1 << 20]) :]
        except OSError as error:
            raise Lost from error


class Silence:
    """Where programs print to."""

    encoding, errors = "utf-8", "replace"

    def write(self, text) -> int:
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def _end_descendants(processes: int | None, but: set[int] = frozenset()) -> None:
    """End what was left running; orphans have become this process's children."""
    own = os.getpid()
    while processes is not None:
        try:
            listing = os.open(f"{own}/task/{own}/children", os.O_RDONLY, dir_fd=processes)
        except OSError:
            break
        with open(listing) as file:
            children = {int(number) for number in file.read().split()} - set(but)
        if not children:
            return
        for number in children:
            try:
                os.kill(number, signal.SIGKILL)
                os.waitpid(number, 0)
            except (ProcessLookupError, ChildProcessError):
                continue
