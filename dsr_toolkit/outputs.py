"""
Where commands write, so that nothing of the user's is ever lost.

Every command writes through an [`Output`]: what exists is refused before any work, unless it is to be overwritten; and
even then only files are replaced that an earlier run listed in its own report and that are still as it left them.
Inputs, symbolic links and files that somebody else wrote are never touched. Files are made in a hidden folder inside
the output and renamed to their place when they are finished: the output itself may be a mount point, a link to a folder
or `.`, and what is finished stays when something later fails.
"""

import fnmatch
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from .console import say

FILES = "files"  # in every report: sha256 by name of what the run wrote


def free_folder(name: str) -> Path:
    """The folder of a command whose user named none: NAME, or NAME-2, NAME-3, … where that exists."""
    number, folder = 1, Path(name)
    while folder.exists() or folder.is_symlink():
        number += 1
        folder = Path(f"{name}-{number}")
    return folder


def add_output_arguments(parser, name: str, metavar: str = "DIR", help: str = "where to write") -> None:
    """`-o` and `--overwrite`; without `-o` a new folder is taken, see [`free_folder`]."""
    parser.add_argument("-o", "--output", metavar=metavar, help=f"{help} (default: {name}, or the next free {name}-N)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier run wrote there, and nothing else"
    )


class Output:
    """
    A folder that a command writes to. Use it as a context; the report is written last.

    Args:
        folder: where to write; made if need be.
        report: name of the command's report in it (JSON), which lists what the command wrote.
        names: patterns of the names that will be written, relative to `folder`: what exists under one of them is
            refused at once.
        inputs: files and folders that the command reads.
        overwrite: replace what an earlier report lists.

    Raises:
        ValueError: something is in the way; nothing has been done then.
    """

    def __init__(
        self,
        folder: str | Path,
        report: str,
        *,
        names: Iterable[str] = ("*",),
        inputs: Iterable[str | Path] = (),
        overwrite: bool = False,
    ):
        self.folder, self.report_name, self.overwrite = Path(folder), report, overwrite
        self.names = tuple(names)
        self.inputs = [Path(path) for path in inputs]
        self.work = self.folder / f".{Path(report).stem}.partial"
        self.written: dict[str, str] = {}
        self._earlier: dict[str, str] = {}
        self._content: dict = {}
        self.check()

    # ---- before any work -----------------------------------------------------------------

    def check(self) -> None:
        """Refuse what is in the way."""
        folder = self.folder
        check_folder(folder)
        for path in self.inputs:
            if path.is_dir() and folder.exists() and os.path.samefile(path, folder):
                raise ValueError(
                    f"-o {folder} is the folder that is read; what is written there would be read the next time. "
                    "Choose another one; a new folder inside it will do."
                )
        self._earlier = listed_files(folder / self.report_name)
        if self._exists(self.report_name) and not self.overwrite:
            raise ValueError(
                f"{folder / self.report_name} is there from an earlier run; choose another -o, or replace its files "
                "with --overwrite."
            )
        if self._exists(self.report_name) and not self._earlier and not is_report(folder / self.report_name):
            raise ValueError(
                f"{folder / self.report_name} is no report of this command: it is not overwritten. Choose another -o."
            )
        for name in self._present():
            self.check_target(name)

    def _present(self) -> list[str]:
        """Files and links under the names that will be written."""
        if not self.folder.is_dir():
            return []
        found = []
        for place, folders, files in os.walk(self.folder):
            inside = Path(place)
            folders[:] = [one for one in folders if inside / one != self.work]
            links = [one for one in folders if (inside / one).is_symlink()]
            for name in (*files, *links):
                relative = (inside / name).relative_to(self.folder).as_posix()
                if any(fnmatch.fnmatchcase(relative, pattern) for pattern in self.names):
                    found.append(relative)
            if inside == self.folder and all("/" not in pattern for pattern in self.names):
                break
        return sorted(found)

    def check_target(self, name: str) -> None:
        """Refuse to write `name` where something is that is not ours to replace."""
        target = self.folder / name
        for parent in list(Path(name).parents)[:-1]:
            if (self.folder / parent).is_symlink():
                raise ValueError(f"{self.folder / parent} is a link: nothing is written through it. Choose another -o.")
        if not self._exists(name):
            return
        if target.is_symlink() or target.is_dir():
            kind = "a link" if target.is_symlink() else "a folder"
            raise ValueError(f"{target} is {kind} where a file is to be written. Choose another -o.")
        if self._is_input(target):
            raise ValueError(f"{target} is an input: it is never overwritten. Choose another -o.")
        if not self.overwrite:
            raise ValueError(f"{target} is there already; choose another -o.")
        if name not in self._earlier and name != self.report_name:
            raise ValueError(
                f"{target} is in the way, and no report of an earlier run lists it: --overwrite replaces only what "
                "this command wrote. Choose another -o, or move it."
            )
        if name != self.report_name and sha256_of(target) != self._earlier[name]:
            raise ValueError(
                f"{target} was changed since an earlier run wrote it: it is not overwritten. Move it, or choose "
                f"another -o."
            )

    def _is_input(self, target: Path) -> bool:
        """Whether a file is read, by itself or in a folder inside the output: one run's results may be another's."""
        whole, places = self.folder.resolve(), target.resolve().parents
        return any(
            os.path.samefile(path, target) or (whole in path.resolve().parents and path.resolve() in places)
            for path in self.inputs
            if path.exists()
        )

    def _exists(self, name: str) -> bool:
        return os.path.lexists(self.folder / name)

    # ---- the work ------------------------------------------------------------------------

    def __enter__(self) -> "Output":
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.work.is_symlink() or (self.work.exists() and not self.work.is_dir()):
            raise ValueError(f"{self.work}, where unfinished files go, is something else; move it.")
        if self.work.exists():
            say(f"An interrupted run left unfinished files in {self.work}: they are removed.")
            shutil.rmtree(self.work)
        self.work.mkdir()
        return self

    def path(self, name: str) -> Path:
        """Where to make the file `name`; [`publish`] brings it to its place."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Write and publish a text."""
        self.path(name).write_text(text, encoding="utf-8")
        return self.publish(name)[0]

    def publish(self, *names: str) -> list[Path]:
        """Give finished files their place; without names, all that are in the work folder. Returns where they are."""
        if not names:
            files = (path for path in self.work.rglob("*") if path.is_file())
            names = tuple(sorted(path.relative_to(self.work).as_posix() for path in files))
        for name in names:
            self.check_target(name)
        for name in names:
            self.written[name] = sha256_of(self.work / name)
        self._save()  # before they have their place: whatever stops us now, the next run knows them for ours
        for name in names:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.work / name, target)
        return [self.folder / name for name in names]

    def clear(self) -> None:
        """Remove what an earlier run wrote and nobody has changed since, for work that writes straight to its place."""
        self._remove_stale()

    def keep(self, *names: str) -> None:
        """Files of the earlier run, which this one goes on with: they stay, as if this run had written them."""
        self.written |= {name: self._earlier[name] for name in names if name in self._earlier and self._exists(name)}

    def adopt(self, folder: str) -> list[Path]:
        """List the files of a new folder as ours, which somebody else's writer made straight in its place."""
        names = [path.relative_to(self.folder).as_posix() for path in sorted((self.folder / folder).rglob("*"))]
        names = [name for name in names if (self.folder / name).is_file() and not (self.folder / name).is_symlink()]
        self.written |= {name: sha256_of(self.folder / name) for name in names}
        self._save()
        return [self.folder / name for name in names]

    def report(self, content: dict) -> Path:
        """Write the command's report; `files` is added to it."""
        self._content = content
        self._save()
        return self.folder / self.report_name

    def _save(self) -> None:
        kept = {name: digest for name, digest in self._earlier.items() if self._exists(name)}
        beside = self.work / self.report_name
        beside.parent.mkdir(parents=True, exist_ok=True)
        content = {**self._content, FILES: {**kept, **self.written}}
        beside.write_text(readable_json(content), encoding="utf-8")
        os.replace(beside, self.folder / self.report_name)

    def __exit__(self, kind, error, trace) -> None:
        done = False
        try:
            if kind is None:
                self.publish()
                self._remove_stale()
                done = True
        finally:
            if self.written and not done:
                say(f"What was finished is kept in {self.folder}: {', '.join(sorted(self.written))}.")
            shutil.rmtree(self.work, ignore_errors=True)
            if not self.written and not done:
                self._remove_if_empty()

    def _remove_stale(self) -> None:
        """What an earlier run wrote, this one neither wrote nor read, and nobody has changed since."""
        kept = {}
        for name in self._earlier.keys() - self.written.keys():
            path = self.folder / name
            if not path.is_file() or path.is_symlink() or sha256_of(path) != self._earlier[name]:
                continue
            if self._is_input(path):
                kept[name] = self._earlier[name]
                continue
            path.unlink()
            self._remove_empty(path.parent)
        self._earlier = kept
        self._save()

    def _remove_empty(self, place: Path) -> None:
        """Folders that nothing is left in, up to the output."""
        while place != self.folder and place.is_dir() and not any(place.iterdir()):
            place.rmdir()
            place = place.parent

    def _remove_if_empty(self) -> None:
        try:
            self.folder.rmdir()
        except OSError:
            pass  # it holds something, or is not ours to remove


def check_folder(folder: Path) -> None:
    """
    Raises:
        ValueError: nothing can be written into what has this name.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"-o {folder} is a file; choose a folder.")
    if folder.is_symlink() and not folder.exists():
        raise ValueError(f"-o {folder} is a link that leads nowhere; choose a folder.")


def readable_json(content: dict) -> str:
    """JSON in every script's own letters; what steers a terminal or turns the direction of reading is written out."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return "".join(mark if mark.isprintable() or mark == "\n" else json.dumps(mark)[1:-1] for mark in text) + "\n"


def earlier_report(path: Path, settings: dict) -> dict:
    """
    The report of an earlier run with the same `settings`, that one can go on with; empty if there is none, or if it is
    about something else.
    """
    if not is_report(path):
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if content.get("settings") == settings else {}


def is_report(path: Path) -> bool:
    """Whether a file is a report that lists what a run wrote."""
    try:
        return not path.is_symlink() and isinstance(json.loads(path.read_text(encoding="utf-8")).get(FILES), dict)
    except (ValueError, AttributeError, OSError):
        return False


def listed_files(report: Path) -> dict[str, str]:
    """sha256 by name of the files that a report lists; empty if it is none."""
    if not is_report(report):
        return {}
    files = json.loads(report.read_text(encoding="utf-8"))[FILES]
    return {name: digest for name, digest in files.items() if isinstance(digest, str) and _is_inside(name)}


def _is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
