"""
What a run leaves, and how: nothing is lost, nothing is there twice, whenever it stops.

    OUT/batch.json          what was asked for and how far it is
    OUT/results.parquet     a row per item, in the order of the input
    OUT/items/NAME/         files of an item
    OUT/parts/              while it runs: plan.jsonl, and a folder per finished chunk

A chunk is the items `number · size …` of the plan. Its folder in `parts` gets its name, by one renaming, when all of it
is written: a chunk is done if and only if that folder is there. Everything else follows from these folders and can be
done again.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..console import say
from ..outputs import FILES, check_folder, listed_files, readable_json, sha256_of
from .rows import schema_of
from .source import REPORT

RESULTS, PARTS, PLAN, ROWS, ITEMS = "results.parquet", "parts", "plan.jsonl", "rows.parquet", "items"
EARLIER = "earlier_results"  # sha256 of the table that a new one is about to replace
CHUNK = re.compile(r"\.?[0-9]{8}")  # a folder in `parts`; with a dot it is being written


@dataclass
class Chunk:
    """Items that one worker answers in one go: their number and the lines of the plan."""

    number: int
    lines: list[bytes]

    def items(self) -> list[dict]:
        return [json.loads(line) for line in self.lines]


@dataclass
class Finished:
    """
    A chunk's answers.

    Args:
        table: a parquet file. files: (folder, name, content) of items.
    """

    number: int
    table: bytes
    files: list[tuple[str, str, bytes]] = field(default_factory=list)
    count: int = 0
    errors: int = 0


class Store:
    """
    The output folder of one run. Use it as a context: nobody else writes there meanwhile.

    Args:
        settings: what the answers depend on; a run can be resumed only with the same.
        resume: go on where a run stopped; without one, begin.

    Raises:
        ValueError: the folder holds something else, or another run.
    """

    def __init__(self, folder: str | Path, settings: dict, chunk_size: int, resume: bool):
        self.folder, self.parts, self.settings = Path(folder), Path(folder) / PARTS, settings
        self.resume, self._new = resume, {**settings, "chunk_size": chunk_size, "finished": False, FILES: {}}
        self._open()

    def _open(self) -> None:
        """What an earlier run left, or a report of nothing yet."""
        self.report = self._earlier() or dict(self._new)
        self.chunk_size = self.report["chunk_size"]

    def _earlier(self) -> dict:
        """The report of the run that goes on; empty where there is none. What is something else is refused."""
        folder, found = self.folder, {}
        check_folder(folder)
        report = folder / REPORT
        if report.is_file():
            try:
                found = json.loads(report.read_text(encoding="utf-8"))
                earlier = {name: found[name] for name in self.settings}
                found["chunk_size"], found["finished"], found[FILES]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{report} is no report of `dsr batch`; choose another -o.") from error
            if not self.resume:
                raise ValueError(f"-o {folder} holds a run already; go on with --resume, or choose another folder.")
            for name, value in self.settings.items():
                if earlier[name] != value:
                    raise ValueError(
                        f"--resume: the run in {folder} has {name} {earlier[name]!r}, and {value!r} is asked for now; "
                        "repeat the settings of that run, or choose another -o."
                    )
        elif folder.is_dir() and any(one.name != f".{REPORT}.partial" for one in folder.iterdir()):
            raise ValueError(f"-o {folder} is not empty and holds no run of `dsr batch`; choose another folder.")
        result = folder / RESULTS
        if os.path.lexists(result) and not self._wrote(result):
            raise ValueError(f"{result} is not what the run wrote; move it, and call --resume again.")
        return found

    def _wrote(self, result: Path) -> bool:
        """Whether it is the table that the report lists, or the one before that."""
        report = self.folder / REPORT
        if result.is_symlink() or not result.is_file() or not report.is_file():
            return False
        known = (listed_files(report).get(RESULTS), json.loads(report.read_text(encoding="utf-8")).get(EARLIER))
        return sha256_of(result) in known

    def __enter__(self) -> Store:
        self._lock = self._locked()
        try:
            self._open()  # again: another process may have begun or ended a run before we had the lock
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def _locked(self) -> int:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The process that had the lock before us may have removed the folder that we opened.
                if self.folder.exists() and os.path.samestat(os.fstat(lock), os.stat(self.folder)):
                    return lock
            except BlockingIOError as error:
                os.close(lock)
                raise ValueError(f"-o {self.folder}: another process is at work on it.") from error
            os.close(lock)

    def __exit__(self, *exception) -> None:
        os.close(self._lock)

    def save(self, **news) -> None:
        self.report |= news
        write_file(self.folder / REPORT, readable_json(self.report).encode())

    @property
    def is_finished(self) -> bool:
        return self.report["finished"]

    # ---- the plan ------------------------------------------------------------------------

    @property
    def has_plan(self) -> bool:
        return (self.parts / PLAN).is_file()

    def plan(self, items: Iterable[dict]) -> None:
        """
        Write down all items, once and for all: what a folder or a manifest is later does not matter.

        Raises:
            ValueError: there is none, or two have the same id.
        """
        self.parts.mkdir(parents=True, exist_ok=True)
        beside, seen = self.parts / f".{PLAN}", array("Q")
        with open(beside, "wb") as file:
            for item in items:
                seen.append(_number(item["id"]))
                file.write(json.dumps(item, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            if not seen:
                raise ValueError("the input holds no item.")
            _check_ids(beside, np.sort(np.frombuffer(seen, np.uint64)))
        except ValueError:
            beside.unlink()
            raise
        self.save(items=len(seen))
        os.replace(beside, self.parts / PLAN)

    @property
    def num_chunks(self) -> int:
        return -(-self.report["items"] // self.chunk_size)

    @property
    def num_left(self) -> int:
        return sum(not self.is_done(number) for number in range(self.num_chunks))

    def is_done(self, number: int) -> bool:
        return (self.parts / f"{number:08d}").is_dir()

    def left(self) -> Iterator[Chunk]:
        """The chunks that are not done, in order; only one at a time is in memory."""
        with open(self.parts / PLAN, "rb") as file:
            for number in range(self.num_chunks):
                done = self.is_done(number)
                lines = [file.readline() for _ in range(min(self.chunk_size, self._items_from(number)))]
                if not done:
                    yield Chunk(number, lines)

    def _items_from(self, number: int) -> int:
        return self.report["items"] - number * self.chunk_size

    def done_items(self) -> int:
        """Items of chunks that are done."""
        return sum(
            min(self.chunk_size, self._items_from(number)) for number in range(self.num_chunks) if self.is_done(number)
        )

    @property
    def has_answers(self) -> bool:
        return self.has_plan and any(self.is_done(number) for number in range(self.num_chunks))

    def discard(self) -> None:
        """Leave nothing of a run that answered nothing."""
        self._remove_parts()
        (self.folder / REPORT).unlink(missing_ok=True)
        try:
            self.folder.rmdir()
        except OSError:
            pass  # it holds something, or is a place that stays: `.`, or where a disk is mounted

    # ---- chunks --------------------------------------------------------------------------

    def commit(self, finished: Finished) -> None:
        """Keep a chunk's answers."""
        done, beside = self.parts / f"{finished.number:08d}", self.parts / f".{finished.number:08d}"
        shutil.rmtree(beside, ignore_errors=True)  # of a run that was stopped while it wrote there
        beside.mkdir()
        for folder, name, content in finished.files:
            (beside / folder).mkdir(parents=True, exist_ok=True)
            (beside / folder / name).write_bytes(content)
        write_file(beside / ROWS, finished.table)
        os.rename(beside, done)
        self._place(done)

    def _place(self, done: Path) -> None:
        """Bring a finished chunk's folders of items to their place; those that are there already have left here."""
        waiting = done / ITEMS
        if not waiting.is_dir():
            return
        (self.folder / ITEMS).mkdir(exist_ok=True)
        for item in sorted(waiting.iterdir()):
            target = self.folder / ITEMS / item.name
            if os.path.lexists(target):
                raise ValueError(f"{target} is in the way, and this run did not write it; move it and call --resume.")
            os.rename(item, target)
        waiting.rmdir()

    # ---- the end -------------------------------------------------------------------------

    def compact(self) -> tuple[int, int]:
        """
        `results.parquet` of all chunks that are done, in the order of the input; one chunk at a time is in memory.

        Returns:
            numbers of rows, and of rows with an error.
        """
        import pyarrow.parquet as parquet

        rows = errors = 0
        beside = self.folder / f".{RESULTS}"
        with parquet.ParquetWriter(beside, schema_of(self.settings["task"])) as writer:
            for number in range(self.num_chunks):
                if self.is_done(number):
                    self._place(self.parts / f"{number:08d}")
                    table = parquet.read_table(self.parts / f"{number:08d}" / ROWS)
                    writer.write_table(table)
                    rows, errors = rows + len(table), errors + len(table) - table["error_code"].null_count
        # Said before it is done: whatever stops us in between, the next run knows the file for ours.
        result = self.folder / RESULTS  # what is there, and not what was to be there: this may be the second try
        earlier = sha256_of(result) if self._wrote(result) else None
        self.save(done=rows, errors=errors, **{FILES: {RESULTS: sha256_of(beside)}, EARLIER: earlier})
        os.replace(beside, result)
        return rows, errors

    def finish(self) -> None:
        """Everything is in its place: `parts` is needed no longer."""
        self.save(finished=True)
        self.clean()

    def clean(self) -> None:
        """Remove `parts`, if need be once more."""
        self._remove_parts()
        if self.parts.is_dir():
            say(f"{self.parts} holds files that this run did not write: they stay.")

    def _remove_parts(self) -> None:
        """What the run wrote there, and nothing else."""
        if self.parts.is_symlink() or not self.parts.is_dir():
            return
        for path in sorted(self.parts.iterdir()):
            if path.name in (PLAN, f".{PLAN}"):
                path.unlink()
            elif CHUNK.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                if path.name.startswith("."):
                    shutil.rmtree(path)
                    continue
                (path / ROWS).unlink(missing_ok=True)
                _remove_empty(path)
        _remove_empty(self.parts)


def _remove_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _number(name: str) -> int:
    """64 bits of an id: what a run remembers of each item."""
    return hash(name) & (2**64 - 1)


def _check_ids(plan: Path, numbers: np.ndarray) -> None:
    twice = set(numbers[:-1][numbers[:-1] == numbers[1:]].tolist())
    if not twice:
        return
    known: set[str] = set()
    with open(plan, "rb") as file:
        for name in (json.loads(line)["id"] for line in file):
            if _number(name) in twice and name in known:
                raise ValueError(f"two items have the id {name!r}; ids must tell items apart.")
            known |= {name} if _number(name) in twice else set()


def write_file(path: Path, content: bytes) -> None:
    """A file that is there whole, or as it was."""
    beside = path.with_name(f".{path.name}.partial")
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
