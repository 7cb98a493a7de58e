"""Where items come from: a file, a folder, a glob, a manifest (JSONL, CSV, parquet) or a data set of `datasets`."""

from __future__ import annotations

import csv
import glob
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..outputs import is_report
from .columns import BY_SUFFIX, CALIBRATION, CAMERA_FILE, COLUMNS, IMAGES
from .source import REPORT, Source, writable
from .tables import Table

MANIFESTS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


def open_source(task: str, name: str, split: str = "train") -> Source:
    """
    The source that `name` means.

    Raises:
        ValueError: it means none, or there is nothing in it.
    """
    path = Path(name)
    if path.is_file() and path.suffix.lower() in MANIFESTS:
        return Table(task, name, split) if path.suffix.lower() == ".parquet" else Lines(task, name, split)
    if path.is_dir() and ((path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()):
        return Table(task, name, split)
    if path.exists() or glob.has_magic(name):
        return Media(task, name, split)
    if name.count("/") <= 1 and not path.suffix and not name.startswith((".", "/", "~")):
        return Table(task, name, split)
    raise ValueError(f"there is no file or folder at {name!r}, and it is no name of a data set (OWNER/NAME).")


class Lines(Source):
    """A manifest of text: JSON lines, or CSV (TSV) whose lists and objects are JSON in their cells."""

    def items(self) -> Iterator[dict]:
        path, names = Path(self.name), set()
        folder = path.resolve().parent
        rows = self._csv(path) if path.suffix.lower() in (".csv", ".tsv") else self._json(path)
        for number, row in enumerate(rows):
            if isinstance(row, str):
                yield {"id": f"row-{number}", "error": ["bad_request", row]}
                continue
            names |= row.keys()
            yield self.item(number, row, folder)
        self.note_columns(names)

    @staticmethod
    def _json(path: Path) -> Iterator[dict | str]:
        """Rows, or what is wrong with a line."""
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    yield f"line {number} of {path.name} is not JSON ({error})."
                else:
                    yield row if isinstance(row, dict) else f"line {number} of {path.name} is no JSON object."

    @staticmethod
    def _csv(path: Path) -> Iterator[dict | str]:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            for row in reader:
                if None in row or any(value is None for value in row.values()):
                    yield f"line {reader.line_num} of {path.name} has another number of cells than the first line."
                else:
                    yield {name: _cell(value) for name, value in row.items()}


def _cell(text: str):
    """A list or an object where a cell holds one; else its text."""
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _in_order(paths: Iterable[Path]) -> list[Path]:
    """Numbers in names by their value, without what operating systems leave in folders."""
    from modeling_dsr.image_reader import LITTER, natural_key

    found = [path for path in paths if not LITTER.fullmatch(path.name)]
    return sorted(found, key=lambda path: [natural_key(part) for part in path.parts])


def _named(pattern: str) -> Path:
    """The folder that a pattern names before anything in it stands for something else."""
    parts = Path(pattern).parts
    magic = next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:magic]).resolve()


class Media(Source):
    """
    Files and folders: each file that the task reads, each folder of images that make one scene. What a run of
    `dsr batch` left in a folder below the named one is no input of the next.
    """

    def items(self) -> Iterator[dict]:
        path = Path(self.name)
        if path.is_dir():
            root, found = path.resolve(), [path.resolve()]
        elif path.exists():
            root, found = path.resolve().parent, [path.resolve()]
        else:
            found = _in_order(Path(name).resolve() for name in glob.glob(self.name, recursive=True))
            if not found:
                raise ValueError(f"nothing matches {self.name!r}.")
            named = _named(self.name)
            found = [one for one in found if not any(named in up.parents and self._is_run(up) for up in one.parents)]
            root = Path(os.path.commonpath([str(one.parent) for one in found]))
        for one in found:
            for inside, inputs in self._inside(one):
                name = inside.relative_to(root).as_posix() if inside != root else root.name
                yield {"id": writable(name), "inputs": inputs, "parameters": {}}

    def _inside(self, path: Path) -> Iterator[tuple[Path, dict]]:
        """Places and inputs of what a file or a folder holds, in the order of names."""
        if path.is_file():
            column = BY_SUFFIX[self.task].get(path.suffix.lower())
            if column is None:
                self.left_out.append(path.name)
            else:
                yield path, {column: [str(path)] if COLUMNS[self.task][column] == "files" else str(path)}
            return
        if path != Path(self.name).resolve() and self._is_run(path):
            return
        files = _in_order(path.iterdir())
        images = [one for one in files if one.is_file() and one.suffix.lower() in IMAGES]
        if self.task == "scene" and any(one.name.startswith(CAMERA_FILE) for one in images):
            yield path, self._scene(path, images)
            return
        if self.task == "reconstruct" and images:
            yield path, {"images": [str(image) for image in images]}
        for one in files:
            if one.is_dir() or not (self.task == "reconstruct" and one in images):
                yield from self._inside(one)

    def _is_run(self, folder: Path) -> bool:
        """Whether a folder is the output of a run, which is left out then."""
        if not is_report(folder / REPORT):
            return False
        name = f"{folder.name} (of an earlier run)"
        if name not in self.left_out:
            self.left_out.append(name)
        return True

    @staticmethod
    def _scene(folder: Path, images: list[Path]) -> dict:
        inputs = {"images": {one.stem: str(one) for one in images if one.name.startswith(CAMERA_FILE)}}
        if (folder / CALIBRATION).is_file():
            inputs["calibration"] = str(folder / CALIBRATION)  # read by the worker
        return inputs
