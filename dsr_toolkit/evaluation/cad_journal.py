"""Samples of an evaluation on disk as soon as they are measured: an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from .cad import Sample

NAME = "samples.jsonl"
MARK = "dsr eval cad"


class Journal:
    """
    A line per sample, after one with the settings.

    Args:
        folder: where it lies; made if need be.
        settings: what the numbers depend on. A journal of other settings is not gone on with.
        resume: go on with what is there.

    Raises:
        ValueError: there is a journal and `resume` is False, or it is another evaluation's.
    """

    def __init__(self, folder: Path, settings: dict, resume: bool = False):
        self.path, self.settings = folder / NAME, settings
        self.known: dict[str, Sample] = {}
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            raise ValueError(f"{self.path}, where samples are noted, is something else; choose another -o.")
        if self.path.exists():
            if not resume:
                raise ValueError(
                    f"{self.path} is there from an interrupted evaluation: go on with --resume, or choose another -o."
                )
            self._read()

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").split("\n")
        try:
            first = json.loads(lines[0])
            mark, settings = first["journal_of"], first["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is no journal of an evaluation; choose another -o.") from error
        if mark != MARK or settings != self.settings:
            raise ValueError(
                f"{self.path} was begun with other settings ({settings}); repeat these, or choose another -o."
            )
        for line in lines[1:]:
            try:
                entry = json.loads(line)
                name = entry.pop("digest")
                self.known[name] = Sample(**entry)
            except (ValueError, KeyError, TypeError):  # the line that was being written
                continue

    def open(self) -> Journal:
        """Begin to write: what is known already, then what is added."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "w", encoding="utf-8")
        self._line({"journal_of": MARK, "settings": self.settings})
        for digest, sample in self.known.items():
            self._line({"digest": digest, **asdict(sample)})
        return self

    def add(self, digest: str, sample: Sample) -> None:
        self._line({"digest": digest, **asdict(sample)})

    def _line(self, entry: dict) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def finish(self) -> None:
        """Everything is in the report: the journal goes."""
        self._file.close()
        self.path.unlink()


def digest(shape: str, program: Path, truth: Path) -> str:
    """Of one sample: its names and the contents of both files."""
    parts = [shape.encode(), program.name.encode(), program.read_bytes(), truth.read_bytes()]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]
