"""Messages between the sandbox's processes: a length and JSON, then a length and bytes. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterable

MAX_PAYLOAD = 256 * 2**20  # bytes that a child may send
MAX_REQUEST = 4 * 2**20
MAX_HEADER = 64 * 1024


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
    if length > MAX_REQUEST or size > 2 * MAX_PAYLOAD:
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


def send_descriptor(channel: socket.socket, descriptor: int) -> None:
    socket.send_fds(channel, [b"k"], [descriptor])


def receive_descriptor(channel: socket.socket) -> int | None:
    """A file descriptor, or None when the other side is gone."""
    mark, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not mark or not descriptors:
        return None
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


# --------------------------------------------------------------------------------------
# Answers of children, through a pipe
# --------------------------------------------------------------------------------------


def pack_answer(header: dict, buffers: Iterable[bytes] = ()) -> list[bytes]:
    """Lengths, header and buffers; `unpack_answer` sees whether it has arrived in full."""
    text, buffers = json.dumps(header).encode(), list(buffers)
    return [struct.pack("<IQ", len(text), sum(map(len, buffers))) + text, *buffers]


def is_complete(sent: bytes | bytearray) -> bool:
    """Whether everything that was announced has arrived, or more."""
    return len(sent) >= 12 and len(sent) >= 12 + sum(struct.unpack_from("<IQ", sent))


def unpack_answer(sent: bytes | bytearray) -> tuple[dict | None, bytes]:
    """(header, rest), or (None, b"") of what is no complete answer. The sender is not to be trusted."""
    if len(sent) < 12:
        return None, b""
    length, size = struct.unpack_from("<IQ", sent)
    if length > MAX_HEADER or len(sent) != 12 + length + size:
        return None, b""
    try:
        header = json.loads(bytes(sent[12 : 12 + length]).decode())
    except (ValueError, RecursionError):
        return None, b""
    return (header, bytes(sent[12 + length :])) if isinstance(header, dict) else (None, b"")
