"""Safetensors shards, written tensor by tensor and hashed on the way."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from .recipe import Entry, dtype_name

INDEX_NAME = "model.safetensors.index.json"
SYNC_EVERY = 256 * 2**20  # bytes between two requests to bring written data to disk
READ_SIZE = 4 * 2**20  # bytes per read when a file is hashed
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(size: int | str) -> int:
    """Bytes of `5000000000`, `"5GB"` or `"500MiB"`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(size).strip())
    if not match or match[2].upper() not in UNITS or float(match[1]) <= 0:
        raise ValueError(f"`max_shard_size` must be a positive number of bytes, or such as '5GB', got {size!r}.")
    return int(float(match[1]) * UNITS[match[2].upper()])


@dataclass(frozen=True)
class Shard:
    """A file to write: its tensors in file order, and its header."""

    name: str
    entries: tuple[Entry, ...]
    header: bytes

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(entry.nbytes for entry in self.entries)


def plan_shards(entries: Iterable[Entry], max_shard_size: int) -> list[Shard]:
    """Fill shards in the order of the model; a tensor above the limit has one of its own."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.nbytes > max_shard_size:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.nbytes
    if len(groups) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    # Wider numbers first: every tensor then starts at a multiple of its item size.
    ordered = [tuple(sorted(group, key=lambda entry: -entry.info.dtype.itemsize)) for group in groups]
    return [Shard(name, group, _header(group)) for name, group in zip(names, ordered)]


def _header(entries: tuple[Entry, ...]) -> bytes:
    header: dict = {"__metadata__": {"format": "pt"}}
    begin = 0
    for entry in entries:
        stop = begin + entry.nbytes
        header[entry.target] = {
            "dtype": dtype_name(entry.info.dtype),
            "shape": list(entry.info.shape),
            "data_offsets": [begin, stop],
        }
        begin = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def index_of(shards: list[Shard]) -> dict:
    """Content of `model.safetensors.index.json`."""
    total = sum(entry.nbytes for shard in shards for entry in shard.entries)
    weight_map = {entry.target: shard.name for shard in shards for entry in shard.entries}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


class Hasher:
    """
    sha256 in a thread of its own: hashing costs about as much as writing, and both leave Python's lock.

    Two `SimpleQueue`s and not one `Queue` of limited size: an interruption in the middle of that one's Python code can
    lose the call that wakes the thread, and who then waits for the digest waits for ever.
    """

    AHEAD = 4  # pieces that may wait

    def __init__(self):
        self._hash = hashlib.sha256()
        self._pieces: queue.SimpleQueue = queue.SimpleQueue()
        self._places: queue.SimpleQueue = queue.SimpleQueue()
        for _ in range(self.AHEAD):
            self._places.put(None)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (data := self._pieces.get()) is not None:
            self._hash.update(data)
            self._places.put(None)

    def update(self, data) -> None:
        self._places.get()
        self._pieces.put(data)

    def hexdigest(self) -> str:
        self._pieces.put(None)
        self._thread.join()
        return self._hash.hexdigest()


class ShardWriter:
    """Writes shards one after the other; bringing them to disk goes on behind the next one.

    `on_done(shard, sha256)` is called, in a thread, once a shard is safe on disk. Use it as a context.
    """

    def __init__(self, folder: Path, on_done: Callable[[Shard, str], None], progress: Callable[[int], object]):
        self.folder, self.on_done, self.progress = folder, on_done, progress
        self._sync = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._pending: list[Future] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        # Also after an interruption: a shard that is complete shall not be written again.
        self._sync.shutdown(wait=True)
        if kind is None:
            self._collect()

    def _collect(self) -> None:
        """Raise what failed behind our back, such as a full disk found while syncing."""
        done, self._pending = self._pending, []
        for future in done:
            future.result()

    def write(self, shard: Shard, pieces: Callable[[Entry], Iterator[torch.Tensor]]) -> None:
        file = open(self.folder / shard.name, "wb", buffering=0)
        hasher = Hasher()
        unsynced, syncing = 0, None
        try:
            for data in self._data(shard, pieces):
                hasher.update(data)
                _write_all(file, data)
                unsynced += len(data)
                self.progress(len(data))
                if unsynced >= SYNC_EVERY and (syncing is None or syncing.done()):
                    syncing, unsynced = self._sync.submit(os.fdatasync, file.fileno()), 0
                    self._pending.append(syncing)
        except BaseException:
            self._sync.shutdown(wait=True)
            file.close()
            raise
        finally:
            digest = hasher.hexdigest()
        self._collect()
        self._pending.append(self._sync.submit(self._finish, file, shard, digest))

    def _data(self, shard: Shard, pieces: Callable[[Entry], Iterator[torch.Tensor]]) -> Iterator:
        yield shard.header
        for entry in shard.entries:
            for piece in pieces(entry):
                yield piece.view(torch.uint8).numpy()

    def _finish(self, file, shard: Shard, digest: str) -> None:
        with file:
            os.fsync(file.fileno())
        self.on_done(shard, digest)


def _write_all(file, data) -> None:
    """An unbuffered write may take part of the data; before a disk is full it does."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def sha256_of(path: Path, stop: threading.Event | None = None) -> str:
    """sha256 of a file; `stop` ends it early from outside, with an empty result."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(READ_SIZE))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if stop is not None and stop.is_set():
                return ""
    return digest.hexdigest()
