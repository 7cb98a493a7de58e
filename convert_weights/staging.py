"""A folder that appears complete or not at all, and whose making can be interrupted and continued.

Work goes on in a hidden folder beside the output, `.NAME.partial`, with a journal, `.NAME.journal`, that tells which
files in it are finished. The journal is locked while a process works. At the end the folder is renamed to its name,
in one step of the file system. After an interruption, SIGKILL included, both stay, and the next run for the same
output goes on from them; after an error both are removed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
from pathlib import Path


class Staging:
    """The making of `output`. Use it as a context and call `commit` at the end.

    Args:
        output: the folder to make. It must not exist, or be empty.
        fingerprint: of everything that determines the content; what an earlier run with another one left is removed.

    Raises:
        FileExistsError: `output` has content.
        BlockingIOError: another process is making it.
    """

    def __init__(self, output: Path, fingerprint: str):
        self.output = output.expanduser().absolute()
        self.fingerprint = fingerprint
        self.folder = self.output.with_name(f".{self.output.name}.partial")
        self.journal = self.output.with_name(f".{self.output.name}.journal")
        self.finished: dict[str, dict] = {}
        self.facts: dict[str, str] = {}
        self._append_lock = threading.Lock()
        self._new_parents: list[Path] = []
        self._committed = False

    def __enter__(self) -> Staging:
        check_output(self.output)
        self._new_parents = [parent for parent in self.output.parents if not parent.exists()]
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._lock()
        try:
            check_output(self.output)  # again: another process may have finished it before we had the lock
            self._continue_or_start()
        except BaseException:
            self._remove()
            raise
        return self

    def _lock(self) -> None:
        while True:
            self._file = open(self.journal, "a+b")  # writes always append
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise BlockingIOError(
                    errno.EAGAIN, "is in use: another process is converting to it right now", str(self.output)
                ) from None
            # The process that had the lock before us may have removed the file that we opened.
            try:
                if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.journal)):
                    return
            except FileNotFoundError:
                pass
            self._file.close()

    def _continue_or_start(self) -> None:
        self._file.seek(0)
        lines, good = [], 0
        for line in self._file.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):  # cut off by the interruption
                break
            lines.append(json.loads(line))
            good += len(line)
        head = {"journal": "unfinished conversion", "fingerprint": self.fingerprint}
        if lines[:1] == [head] and self.folder.is_dir():
            self._file.truncate(good)
            for line in lines[1:]:
                if "fact" in line:
                    self.facts[line["fact"]] = line["value"]
                elif (path := self.folder / line["file"]).is_file() and path.stat().st_size == line["bytes"]:
                    self.finished[line["file"]] = line
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            self._file.truncate(0)
            self._append(head)

    def _append(self, line: dict) -> None:
        with self._append_lock:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self, file: str, **facts) -> None:
        """Note that `file` is complete and on disk, with facts about it that a continued run needs."""
        self.finished[file] = {"file": file, "bytes": (self.folder / file).stat().st_size, **facts}
        self._append(self.finished[file])

    def remember(self, fact: str, value: str) -> None:
        """Note a result that a continued run need not compute again."""
        self.facts[fact] = value
        self._append({"fact": fact, "value": value})

    def commit(self) -> None:
        """Bring every file to disk and give the folder its name."""
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.name not in self.finished:
                sync(path)
        for folder in [self.folder, *(path for path in self.folder.rglob("*") if path.is_dir())]:
            sync(folder)
        os.rename(self.folder, self.output)
        sync(self.output.parent)
        self._committed = True

    def __exit__(self, kind, error, trace) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        if self._committed or not interrupted:
            self._remove()
        else:
            self._file.close()

    def _remove(self) -> None:
        if not self._committed:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.journal.unlink(missing_ok=True)
        self._file.close()
        if not self._committed:
            for parent in self._new_parents:
                try:
                    parent.rmdir()
                except OSError:
                    break


def check_output(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(errno.EEXIST, "already exists: choose another output or delete it", str(output))


def sync(path: Path) -> None:
    """fsync of a file or folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
