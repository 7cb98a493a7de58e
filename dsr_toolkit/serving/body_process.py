"""
The process that parses large bodies, so that the server's interpreter answers others meanwhile.

    in:   length, JSON                                      (lengths are 8 bytes, little-endian)
    out:  length, pickle; number of buffers; each: length, bytes

Long texts that are base64 come back as the bytes of the file, and rows of numbers as arrays, where files and clouds may
stand: what is sent is what the server would have made of them, and it takes them over without looking at every letter.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickle
import struct
import sys

import numpy as np

from .bodies import NotJson

LONG = 2**16  # characters from which a text may be a file
ROWS = 256  # from which a list may be a cloud
CLOUDS = ("points", "vertices", "faces")  # fields of rows of numbers
WORDS = ("text", "question", "caption", "content", "phrases")  # fields that hold no file, however long they are
MEMORY = 4 * 2**30  # bytes of address space that parsing may take


def main() -> None:
    _limit_memory()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while header := source.read(8):
        body = source.read(struct.unpack("<Q", header)[0])
        try:
            value = shrunk(json.loads(body))
        except (ValueError, RecursionError) as error:
            value = NotJson(str(error)[:200])
        buffers: list[pickle.PickleBuffer] = []
        said = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        sink.write(struct.pack("<Q", len(said)) + said + struct.pack("<Q", len(buffers)))
        for buffer in buffers:
            raw = buffer.raw()
            sink.write(struct.pack("<Q", raw.nbytes))
            sink.write(raw)
        sink.flush()
        del body, value, buffers, said


def shrunk(value, name: str = ""):
    """Files as bytes and clouds as arrays, where they may stand; `name` is of the field."""
    if isinstance(value, dict):
        return {key: shrunk(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return _cloud(value) if len(value) >= ROWS and name in CLOUDS else [shrunk(one, name) for one in value]
    if isinstance(value, str) and len(value) >= LONG and name not in WORDS:
        return _file(value)
    return value


def _cloud(rows: list):
    """float64 `[n, columns]` where all rows are of as many numbers; else the list as it is."""
    first = rows[0]
    if not isinstance(first, list) or not all(isinstance(row, list) and len(row) == len(first) for row in rows):
        return rows
    if not all(type(number) in (int, float) for row in rows for number in row):
        return rows
    try:
        return np.array(rows, np.float64)
    except (ValueError, OverflowError):
        return rows


def _file(text: str):
    """The bytes of base64 text, with the head of a data URL or without; else the text."""
    head, comma, rest = text.partition(",") if text[:5].lower() == "data:" else ("", "", text)
    if comma and not head.endswith(";base64"):
        return text
    try:
        content = base64.b64decode("".join(rest.split()), validate=True)
    except (binascii.Error, ValueError):
        return text
    return pickle.PickleBuffer(bytearray(content))


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):
        return


if __name__ == "__main__":
    main()
