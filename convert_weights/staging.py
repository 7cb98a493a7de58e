"""A folder that appears complete or not at all, and whose making can be interrupted and continued.

Work goes on in a hidden folder beside the output, `.NAME.partial`, with a journal, `.NAME.journal`, that tells which
files in it are finished. The journal is locked while a process works. At the end the folder is renamed to its name,
in one step of the file system. After an interruption, SIGKILL included, both stay, and the next run for the same
output goes on from them; after an error both are removed.

What is there already is not touched. With the user's leave an earlier output is replaced, if it holds nothing but
files that its own report lists and that are still what the report says: it is put aside, `.NAME.replaced`, just before
the new folder takes its name, and removed just after, by the list of its files that the journal holds. What bears one
of these names and is not what the journal tells of is somebody else's: it is refused, and stays.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

from .writer import sha256_of

JOURNAL = "unfinished conversion"  # what its first line says
HASHED = 16 * 2**20  # bytes of an earlier output's file up to which its content is compared, and not its size alone
Listing = Callable[[Path], dict[str, dict]]


class Staging:
    """The making of `output`. Use it as a context and call `commit` at the end.

    Args:
        output: the folder to make. It must not exist, or be empty, or be replaceable.
        fingerprint: of everything that determines the content; what an interrupted run with another one left is
            removed, with a warning.
        replaceable: see [`check_output`].

    Raises:
        FileExistsError: `output` has content that is not to be replaced, or something else bears a name of the work.
        BlockingIOError: another process is making it.
    """

    def __init__(self, output: Path, fingerprint: str, replaceable: Listing | None = None):
        self.output = resolve_output(output)
        self.fingerprint = fingerprint
        self.replaceable = replaceable
        self.folder = self.output.with_name(f".{self.output.name}.partial")
        self.journal = self.output.with_name(f".{self.output.name}.journal")
        self.aside = self.output.with_name(f".{self.output.name}.replaced")
        self.finished: dict[str, dict] = {}
        self.facts: dict[str, str] = {}
        self._append_lock = threading.Lock()
        self._new_parents: list[Path] = []
        self._ours = self._tells = self._begun = self._committed = False

    def __enter__(self) -> Staging:
        self._check()
        self._new_parents = [parent for parent in self.output.parents if not parent.exists()]
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._lock()
        try:
            lines = self._read_journal()
            self._settle_aside(next((line["replaced"] for line in reversed(lines) if "replaced" in line), {}))
            self._check()  # again: another process may have finished it before we had the lock
            self._continue_or_start(lines)
        except BaseException:
            self._remove()
            raise
        return self

    def _check(self) -> None:
        if not self.aside.exists():  # else the output is on its way out or back
            check_output(self.output, self.replaceable)

    def _settle_aside(self, put_aside: dict[str, list[int]]) -> None:
        """End what a run that was killed between two steps began: the earlier output comes back, or goes for good."""
        if not os.path.lexists(self.aside):
            return
        if _is_no_folder(self.aside) or not _is_as_listed(self.aside, put_aside):
            raise _in_the_way(self.aside)
        if self.output.exists():
            shutil.rmtree(self.aside)
        else:
            os.rename(self.aside, self.output)

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

    def _read_journal(self) -> list[dict]:
        """Its lines; what was cut off by an interruption is cut off."""
        self._file.seek(0)
        content, start = self._file.read(), json.dumps({"journal": JOURNAL}).encode()[:-1]
        if content[: len(start)] != start[: len(content)]:
            raise _in_the_way(self.journal)
        lines, good = [], 0
        for line in content.splitlines(keepends=True):
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(lines[-1], dict):
                lines.pop()
                break
            good += len(line)
        self._file.truncate(good)
        self._ours, self._tells = True, bool(lines)
        return lines

    def _continue_or_start(self, lines: list[dict]) -> None:
        head = {"journal": JOURNAL, "fingerprint": self.fingerprint}
        there = os.path.lexists(self.folder)
        if there and (_is_no_folder(self.folder) or (not lines and any(self.folder.iterdir()))):
            raise _in_the_way(self.folder)
        self._begun = True
        if lines[:1] == [head] and there:
            for line in lines[1:]:
                if "fact" in line:
                    self.facts[line["fact"]] = line["value"]
                elif "file" in line and self._is_finished(line):
                    self.finished[line["file"]] = line
            self._remove_unfinished()
            return
        if there and lines:
            warnings.warn(
                f"{self.folder} is of an interrupted run with other settings or sources: it begins anew.", stacklevel=4
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self._file.truncate(0)
        self._append(head)

    def _is_finished(self, line: dict) -> bool:
        path = self.folder / line["file"]
        return path.is_file() and path.stat().st_size == line["bytes"]

    def _remove_unfinished(self) -> None:
        """Files of the interrupted run that are half written, or tell of a state that is past, such as a report."""
        for path in self.folder.rglob("*"):
            if not path.is_dir() and path.relative_to(self.folder).as_posix() not in self.finished:
                path.unlink()

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
        self._check()  # nothing that was put there meanwhile shall be lost
        put_aside = {}
        if self.output.is_dir() and any(self.output.iterdir()):
            put_aside = _listing(self.output)
            self._append({"replaced": put_aside})
            os.rename(self.output, self.aside)
        os.rename(self.folder, self.output)
        sync(self.output.parent)
        self._committed = True
        if put_aside and _is_as_listed(self.aside, put_aside):
            shutil.rmtree(self.aside, ignore_errors=True)

    def __exit__(self, kind, error, trace) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        if self._committed or not interrupted:
            self._remove()
        else:
            self._file.close()

    def _remove(self) -> None:
        if self._begun and not self._committed:
            shutil.rmtree(self.folder, ignore_errors=True)
        needed = self._tells and any(os.path.lexists(path) for path in (self.folder, self.aside))
        if self._begun or (self._ours and not needed):
            self.journal.unlink(missing_ok=True)
        self._file.close()
        if not self._committed:
            for parent in self._new_parents:
                try:
                    parent.rmdir()
                except OSError:
                    break


def _listing(folder: Path) -> dict[str, list[int]]:
    """Size and time of last change (ns) of every file in a folder, by name."""
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    states = {path.relative_to(folder).as_posix(): path.lstat() for path in files}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}


def _is_as_listed(folder: Path, listed: dict[str, list[int]]) -> bool:
    """Whether a folder holds nothing but what was listed; some of it may be gone. Without a list it is strange."""
    return bool(listed) and all(listed.get(name) == state for name, state in _listing(folder).items())


def _is_no_folder(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()


def _in_the_way(path: Path) -> FileExistsError:
    problem = "bears a name of unfinished work, and no journal knows all of it: move it, or choose another output"
    return FileExistsError(errno.EEXIST, problem, str(path))


def resolve_output(output: Path) -> Path:
    """The folder that a name stands for: a link to a folder is that folder, on its own disk.

    Raises:
        OSError: the name is a circle of links, or a disk is mounted there, which no folder can take the place of.
    """
    try:
        resolved = output.expanduser().resolve()
    except RuntimeError:
        raise OSError(errno.ELOOP, "is a circle of links", str(output)) from None
    if os.path.ismount(resolved):
        raise OSError(
            errno.EBUSY,
            "is where a disk is mounted, and what appears in one step cannot appear there: name a folder in it",
            str(output),
        )
    return resolved


def check_output(output: Path, replaceable: Listing | None = None) -> None:
    """
    Refuse an output that is there already.

    Args:
        replaceable: bytes and sha256 of the files that an earlier run wrote into the folder that it is given, by name;
            then a folder of those files alone may be replaced.

    Raises:
        FileExistsError: there is something, and not just that.
        OSError: nothing can be made under this name, see [`resolve_output`].
    """
    output = resolve_output(output)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if replaceable is None or not output.is_dir():
        advice = ", or replace it with --overwrite" if output.is_dir() else ""
        raise FileExistsError(errno.EEXIST, f"already exists: choose another output{advice}", str(output))
    try:
        listed = replaceable(output)
    except (OSError, ValueError):
        raise FileExistsError(
            errno.EEXIST, "holds no report of an earlier run, so nothing in it is replaced: choose another", str(output)
        ) from None
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if path.is_symlink() or name not in listed:
            problem = f"holds {name}, which no earlier run wrote"
        elif not _is_unchanged(path, listed[name]):
            problem = f"holds {name}, which was changed since an earlier run wrote it"
        else:
            continue
        raise FileExistsError(errno.EEXIST, f"{problem}, so it is not replaced: choose another output", str(output))


def _is_unchanged(path: Path, facts: dict) -> bool:
    """Whether a file is what a report says; large ones by their size alone. Without facts it is a report itself."""
    if not facts:
        return True
    return path.stat().st_size == facts["bytes"] and (facts["bytes"] > HASHED or sha256_of(path) == facts["sha256"])


def sync(path: Path) -> None:
    """fsync of a file or folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
