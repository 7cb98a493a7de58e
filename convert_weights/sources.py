"""Checkpoints as they are found: lazy readers that know every key, shape and dtype before a weight is read.

A source is one of

- a safetensors file, or a folder with one file or with shards and their index,
- a PyTorch pickle (`.pth`, `.pt`, `.bin`), read with `weights_only=True` and memory-mapped,
- `[datasets/]OWNER/NAME[@REVISION][:PATH]` on the Hub, downloaded into its cache,
- a `.json` list of keys and shapes, which serves a dry run and nothing else.

`#ENTRY` after a path picks the dictionary to use inside a pickle or key list that holds several, with dots for nested
ones: `checkpoint.pth#ema_state_dict.shadow`.

Tensors are views of memory-mapped files. They occupy page cache, not anonymous memory, however large the file is. What
a file says of itself is checked before it is believed: damage is a `ValueError` that names the file.
"""

from __future__ import annotations

import re
import time
from pathlib import Path, PurePosixPath

import torch

from .containers import KeyList, SafetensorsFile, TensorInfo, read_json
from .pickles import PickleFile
from .places import PICKLES, check_suffix, place_of

# transformers 5 writes the settings of all parts of a processor into one file.
PROCESSOR_FILE = "processor_config.json"
JOINT = {"preprocessor_config.json": "image_processor", "video_preprocessor_config.json": "video_processor"}
# What the Hub's repositories hold beside the weights and a conversion may need.
SMALL_FILES = ["*.json", "*.txt", "*.jinja", "*.model"]
CLOCK_TICK = 2_000_000_000  # nanoseconds in which a file system may give two changes one time


class Source:
    """A checkpoint under the name that the architecture's rules know it by (`qwen`, `pi3`, …).

    Attributes:
        name: the name.
        location: the Hub id, or the name of the file or folder. It says nothing of the machine.
        folder: the folder of the weights, or None.
        files: the files that hold weights.
        config: `config.json` beside the weights, `{}` if there is none.
        states: of each file what tells whether it is still the same: size, times, place on disk.
        has_weights: False for a key list.
        ignored: entries of a checkpoint that are no weights, with the reason.
    """

    def __init__(self, name: str, location: str, containers: list, folder: Path | None):
        self.name, self.location, self.folder = name, location, folder
        self.files = [container.path for container in containers]
        self._opened = time.time_ns()
        self.states = {path: _state_of(path) for path in self.files}
        self.has_weights = not any(isinstance(container, KeyList) for container in containers)
        self.ignored = {key: why for container in containers for key, why in container.ignored.items()}
        self.config = self.json("config.json")
        self._container = {}
        for container in containers:
            for key in container.tensors:
                if key in self._container:
                    raise ValueError(f"`{key}` is in both {self._container[key].path} and {container.path}.")
                self._container[key] = container

    def __contains__(self, key: str) -> bool:
        return key in self._container

    def keys(self) -> list[str]:
        return list(self._container)

    def info(self, key: str) -> TensorInfo:
        return self._container[key].tensors[key]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of `key`; a `ValueError` that names the files if it is not there."""
        if key not in self:
            raise ValueError(f"Source `{self.name}` ({self.location}) has no tensor `{key}`. {self.describe()}")
        return self.info(key).shape

    def match(self, pattern: str) -> list[re.Match]:
        """Matches of `pattern` with whole keys."""
        return [match for key in self.keys() if (match := re.fullmatch(pattern, key))]

    def file(self, key: str) -> Path:
        return self._container[key].path

    def read(self, key: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """The tensor, or its rows `[start, stop)` along the first axis, as a view of the mapped file."""
        tensor = self._container[key].read(key)
        return tensor if rows is None else tensor[rows[0] : rows[1]]

    def changed(self, path: Path) -> bool:
        """Whether a file is not what it was when it was opened."""
        try:
            return _state_of(path) != self.states[path]
        except FileNotFoundError:
            return True

    def is_fresh(self, path: Path) -> bool:
        """Whether it had been written so lately that another change might not show in its times."""
        size, modified, changed, *place = self.states[path]
        return max(modified, changed) > self._opened - CLOCK_TICK

    def path(self, filename: str) -> Path | None:
        """A file beside the weights, or None."""
        path = self.folder / filename if self.folder else None
        return path if path and path.is_file() else None

    def json(self, filename: str) -> dict:
        """A JSON file beside the weights, or its place in the file that newer transformers write; `{}` if there is
        none."""
        path = self.path(filename)
        if path is not None:
            return read_json(path)
        joint = self.path(PROCESSOR_FILE) if filename in JOINT else None
        return {} if joint is None else read_json(joint).get(JOINT[filename], {})

    def describe(self) -> str:
        names = ", ".join(f"`{key}`" for key in self.keys()[:3])
        return f"It holds {len(self._container)} tensors: {names} …"


def open_source(name: str, location: str | Path) -> Source:
    """Open the checkpoint at `location` (see the head of this module) without reading weights.

    Raises:
        FileNotFoundError: there is neither such a path nor such a repository.
        ValueError: the files are damaged, incomplete or of another kind.
    """
    path, entry, hub_id = place_of(name, location)
    if hub_id:
        location, path = hub_id[0], _download(name, hub_id)
    else:
        location = path.absolute().name if path.is_dir() else f"{path.absolute().parent.name}/{path.name}"
    if path.is_dir():
        return Source(name, location, _open_folder(path, entry), path)
    if not path.is_file():
        raise ValueError(f"Source `{name}`: {path} is neither a file nor a folder, but a pipe, socket or device.")
    return Source(name, location, [_open_file(path, entry)], path.parent)


def _state_of(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev


def _open_file(path: Path, entry: str | None):
    check_suffix(path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in PICKLES:
        return PickleFile(path, entry)
    return KeyList(path, entry)


def _open_folder(folder: Path, entry: str | None) -> list:
    """The weight files of a folder: by its index, else the only one there is; safetensors before pickles."""
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index_name).is_file():
            return _open_shards(folder, folder / index_name)
    for standard in ("model.safetensors", "pytorch_model.bin"):
        if (folder / standard).is_file():
            return [_open_file(folder / standard, entry)]
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = [p for p in files if p.suffix == ".safetensors"] or [p for p in files if p.suffix in PICKLES]
    if len(found) == 1:
        return [_open_file(found[0], entry)]
    if not found:
        raise FileNotFoundError(f"{folder} holds no weights: expected *.safetensors or one of {', '.join(PICKLES)}.")
    names = ", ".join(p.name for p in found[:8])
    raise ValueError(
        f"{folder} holds {names} and no index (*.index.json) to join them: name one file, or add the index."
    )


def _open_shards(folder: Path, index: Path) -> list:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} is no checkpoint index: it has no `weight_map`.")
    for key, shard in weight_map.items():
        if not (isinstance(shard, str) and _is_inside(shard)):
            raise ValueError(
                f"{index}: `weight_map` has {shard!r:.80} for `{key:.80}`, expected the name of a file beside it."
            )
    missing = {shard: key for key, shard in reversed(weight_map.items()) if not (folder / shard).is_file()}
    if missing:
        shard, key = next(iter(sorted(missing.items())))
        raise FileNotFoundError(
            f"{folder / shard} is missing ({len(missing)} of {len(set(weight_map.values()))} shards); {index.name} "
            f"expects `{key}` in it. Download it again."
        )
    containers = [_open_file(folder / shard, None) for shard in sorted(set(weight_map.values()))]
    for container in containers:
        listed = {key for key, shard in weight_map.items() if folder / shard == container.path}
        if absent := sorted(listed - container.tensors.keys()):
            raise ValueError(
                f"{container.path} lacks `{absent[0]}` ({len(absent)} keys), which {index.name} expects in it."
            )
        if extra := sorted(container.tensors.keys() - listed):
            raise ValueError(
                f"{container.path} holds `{extra[0]}` ({len(extra)} keys), which {index.name} does not list."
            )
    return containers


def _is_inside(name: str) -> bool:
    """Whether a relative path stays in its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _download(name: str, hub_id: re.Match) -> Path:
    """Fetch a repository into the Hub cache: its small files and its weights, pickles only if there is nothing else."""
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str], ignored: list[str] | None = None) -> Path:
        try:
            return Path(
                snapshot_download(
                    hub_id["repo"],
                    repo_type="dataset" if hub_id["kind"] else "model",
                    revision=hub_id["revision"],
                    allow_patterns=patterns,
                    ignore_patterns=ignored,
                )
            )
        except Exception as error:  # the client raises its own, its transport's and plain errors for one fact
            raise FileNotFoundError(
                f"Source `{name}`: {hub_id[0]} is no path here, and the Hub does not give it "
                f"({type(error).__name__}: {str(error).strip().splitlines()[0]})."
            ) from error

    if hub_id["path"]:
        path = fetch([hub_id["path"], f"{hub_id['path']}/*"]) / hub_id["path"]
        if not path.exists():
            raise FileNotFoundError(f"Source `{name}`: {hub_id['repo']} on the Hub has no `{hub_id['path']}`.")
        return path
    folder = fetch([*SMALL_FILES, "*.safetensors"], ["*/*"])
    if not any(folder.glob("*.safetensors")):
        folder = fetch([*SMALL_FILES, *(f"*{suffix}" for suffix in PICKLES)], ["*/*"])
    return folder
