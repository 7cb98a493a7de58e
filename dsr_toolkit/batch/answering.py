"""A worker's answers to a chunk, as what is sent and kept."""

from __future__ import annotations

from collections.abc import Callable

from .rows import table_bytes
from .store import Chunk, Finished


def finished(worker, chunk: Chunk, alone: bool, given_up: list[int], began: Callable[[int], None]) -> Finished:
    """Run a chunk; see [`Worker.run`]."""
    found = worker.run(chunk.items(), alone, given_up, began)
    files = [(one.row["folder"], name, content) for one in found for name, content in one.files.items()]
    rows = [one.row for one in found]
    errors = sum(row["error_code"] is not None for row in rows)
    return Finished(chunk.number, table_bytes(worker.task_name, rows), files, len(rows), errors)
