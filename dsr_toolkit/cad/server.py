"""The fork server of the sandbox: CadQuery is imported once, every program runs in a child of its own.

    parent ── spawns ── zygote: imports CadQuery, enters the namespaces, then forks
                          └── keepers, one per program at a time: read a request, fork, watch the clock, answer
                                └── child: confined, runs the program, writes arrays into a pipe, ends

Neither zygote nor keeper ever makes geometry: the kernel's thread pool does not survive a fork, and children would hang.
Messages are a length and JSON, then a length and bytes; nothing is ever unpickled.
"""

import json
import os
import secrets
import select
import shutil
import signal
import socket
import struct
import tempfile
import time

from . import confinement

MAX_PAYLOAD = 256 * 2**20  # bytes that a child may send
MAX_REQUEST = 4 * 2**20
POLL_SECONDS = 0.05
FILE_BYTES = 48 * 2**20  # largest file that a program may write


def main(settings: dict) -> None:
    """Body of the zygote. `settings`: sockets of parent and keepers, confinements to leave out."""
    control = socket.socket(fileno=settings["control"])
    keepers = settings["keepers"]
    try:
        from . import extraction  # noqa: F401  imports cadquery, before the files it lies in disappear
    except ImportError as error:
        send_message(control, {"error": f"{error}. Running programs needs the extra `[cad]`."})
        return
    null = os.open(os.devnull, os.O_RDWR)
    processes = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY) if os.path.isdir("/proc") else None
    skip = frozenset(settings["skip"])
    missing = confinement.enter(skip)
    absent = skip | {failure.name for failure in missing}
    applied = frozenset(confinement.CONFINEMENTS) - absent
    send_message(control, {"missing": [[failure.name, failure.reason] for failure in missing]})
    go, _ = receive_message(control)
    if not go:
        return
    confinement.become_reaper()
    for descriptor in keepers:
        if os.fork() == 0:
            control.close()
            for other in keepers:
                if other != descriptor:
                    os.close(other)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the server by closing the sockets
            try:
                keep(socket.socket(fileno=descriptor), applied, null, processes)
            finally:
                os._exit(0)
    for descriptor in keepers:
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    send_message(control, {"ready": True})
    control.recv(1)  # returns when the parent closes it or is gone
    _end_descendants(processes)
    os._exit(0)  # taking CadQuery down in order takes a second


def keep(parent: socket.socket, applied: frozenset[str], null: int, processes: int | None) -> None:
    """Body of a keeper: one request after another until the parent closes the socket."""
    confinement.become_reaper()
    while True:
        request, _ = receive_message(parent)
        if request is None:
            return
        send_message(parent, *execute(request, applied, null, processes))


def execute(request: dict, applied: frozenset[str], null: int, processes: int | None) -> tuple[dict, bytes]:
    """Run one program in a child; (what the keeper saw, what the child wrote)."""
    flags = confinement.CLONE_NEWPID if confinement.PID in applied else 0
    flags |= confinement.CLONE_NEWNS if confinement.MOUNT in applied else 0
    folder = None if confinement.MOUNT in applied else tempfile.mkdtemp(prefix="program-")
    nonce = secrets.token_bytes(16)
    reading, writing = os.pipe()
    start = time.monotonic()
    child = confinement.fork(flags)
    if child == 0:
        _child(request, applied, null, writing, nonce, folder)
    os.close(writing)
    seen = {"timeout": False, "oversize": False}
    payload = _read(reading, child, start + request["seconds"], seen)
    status = _finish(child, start + request["seconds"], seen)
    os.close(reading)
    if confinement.PID not in applied:
        _end_descendants(processes)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    seen["signal"] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    seen["seconds"] = time.monotonic() - start
    genuine = payload[:16] == nonce
    return {**seen, "genuine": genuine}, bytes(payload[16:]) if genuine else b""


def _child(request, applied, null, writing, nonce, folder) -> None:
    """Never returns."""
    try:
        if folder is not None:
            os.chdir(folder)
        seconds = int(request["seconds"]) + 2
        if request["confined"]:
            confinement.confine(applied, seconds, request["memory"], FILE_BYTES, writing, null)
        from . import extraction

        extraction.answer(request, writing, nonce)
    finally:
        os._exit(0)


def _read(reading: int, child: int, deadline: float, seen: dict) -> bytearray:
    """What the child writes until it closes the pipe or ends, its time is over or it is too much."""
    payload, ended = bytearray(), False
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            seen["timeout"] = True
            return payload
        if not select.select([reading], [], [], min(remaining, POLL_SECONDS))[0]:
            if ended:  # a descendant may hold the pipe open
                return payload
            ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            continue
        piece = os.read(reading, 1 << 20)
        if not piece:
            return payload
        payload += piece
        if len(payload) > MAX_PAYLOAD:
            seen["oversize"] = True
            return payload


def _finish(child: int, deadline: float, seen: dict) -> int:
    """Wait for the child to end, or end it: with its namespace, or with its process group."""
    wait = 0.0005
    while not (seen["timeout"] or seen["oversize"]):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if time.monotonic() >= deadline:
            seen["timeout"] = True
        time.sleep(wait)
        wait = min(2 * wait, 0.02)
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return os.waitpid(child, 0)[1]


def _end_descendants(processes: int | None) -> None:
    """End what a program left running; orphans have become this process's children."""
    own = os.getpid()
    while processes is not None:
        try:
            listing = os.open(f"{own}/task/{own}/children", os.O_RDONLY, dir_fd=processes)
        except OSError:
            break
        with open(listing) as file:
            children = [int(number) for number in file.read().split()]
        if not children:
            return
        for number in children:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)


# --------------------------------------------------------------------------------------
# Messages
# --------------------------------------------------------------------------------------


def send_message(channel: socket.socket, header: dict, payload: bytes = b"") -> None:
    text = json.dumps(header).encode()
    channel.sendall(struct.pack("<IQ", len(text), len(payload)) + text)
    if payload:
        channel.sendall(payload)


def receive_message(channel: socket.socket) -> tuple[dict | None, bytes]:
    """A message, or (None, b"") when the other side is gone."""
    start = _receive(channel, 12)
    if start is None:
        return None, b""
    length, size = struct.unpack("<IQ", start)
    if length > MAX_REQUEST or size > MAX_PAYLOAD:
        raise ValueError(f"a message of {length} + {size} bytes is larger than any that is sent")
    text, payload = _receive(channel, length), _receive(channel, size)
    if text is None or payload is None:
        return None, b""
    return json.loads(text.decode()), bytes(payload)


def _receive(channel: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = channel.recv_into(view)
        if not got:
            return None
        view = view[got:]
    return data
