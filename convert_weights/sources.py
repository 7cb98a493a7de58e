"""Checkpoints as they are found: lazy readers that know every key, shape and dtype before a weight is read.

A source is one of

- a safetensors file, or a folder with one file or with shards and their index,
- a PyTorch pickle (`.pth`, `.pt`, `.bin`), read with `weights_only=True` and memory-mapped,
- `[datasets/]OWNER/NAME[@REVISION][:PATH]` on the Hub, downloaded into its cache,
- a `.json` list of keys and shapes, which serves a dry run and nothing else.

`#ENTRY` after a path picks the dictionary to use inside a pickle or key list that holds several, with dots for nested
ones: `checkpoint.pth#ema_state_dict.shadow`.

Tensors are views of memory-mapped files. They occupy page cache, not anonymous memory, however large the file is.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

# Names of dtypes in a safetensors header.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Under these keys trainers keep the weights, beside epochs and optimiser states.
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "qformer")

PICKLES = (".pth", ".pt", ".bin")
MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors format
# Private pages: nothing written through a tensor could reach the file. Without a reservation of memory for such
# writes (0x4000 is MAP_NORESERVE), which Linux would refuse for a file larger than its memory.
MAP_FLAGS = mmap.MAP_PRIVATE | (0x4000 if sys.platform == "linux" else 0)
HUB_ID = re.compile(r"(?P<kind>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<path>.+))?")
# What the Hub's repositories hold beside the weights and a conversion may need.
SMALL_FILES = ["*.json", "*.txt", "*.jinja", "*.model"]


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without reading it. `dtype` is None where a key list does not tell."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None


class SafetensorsFile:
    """One safetensors file: the header read and checked, the data memory-mapped at the first read."""

    def __init__(self, path: Path):
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        self.ignored: dict[str, str] = {}
        self._offsets: dict[str, int] = {}
        self._map: mmap.mmap | None = None
        self.data_start = 0
        self._read_header()

    def _read_header(self) -> None:
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise ValueError(f"{self.path} is truncated: {size} bytes cannot hold a safetensors header.")
            length = int.from_bytes(start, "little")
            if start == b"version ":
                raise ValueError(
                    f"{self.path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`."
                )
            if length > MAX_HEADER:
                raise ValueError(f"{self.path} is not a safetensors file: its header would be {length} bytes long.")
            if 8 + length > size:
                raise ValueError(f"{self.path} is truncated: the header takes {8 + length} bytes, the file has {size}.")
            try:
                header = json.loads(file.read(length))
            except ValueError as error:
                raise ValueError(f"{self.path} is not a safetensors file: its header is no JSON ({error}).") from None
        header.pop("__metadata__", None)
        self.data_start = data = 8 + length
        end = 0
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"{self.path}: `{key}` has dtype {entry['dtype']}, expected one of {sorted(DTYPES)}.")
            info = TensorInfo(tuple(entry["shape"]), DTYPES[entry["dtype"]])
            begin, stop = entry["data_offsets"]
            expected = math.prod(info.shape) * info.dtype.itemsize
            if begin != end or stop - begin != expected:
                raise ValueError(
                    f"{self.path}: `{key}` is recorded at bytes {begin} to {stop}, expected {end} to {end + expected} "
                    f"for {entry['dtype']} {list(info.shape)}. The header is damaged: download the file again."
                )
            if data + stop > size:
                raise ValueError(
                    f"{self.path} is truncated in `{key}`: it ends at byte {data + stop}, the file has {size}. "
                    "Download the file again."
                )
            self.tensors[key], self._offsets[key], end = info, data + begin, stop
        if data + end != size:
            raise ValueError(f"{self.path} has {size - data - end} bytes after its last tensor: it is damaged.")

    def read(self, key: str) -> torch.Tensor:
        info = self.tensors[key]
        count = math.prod(info.shape)
        if count == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        if self._map is None:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, flags=MAP_FLAGS, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        data = torch.frombuffer(
            self._map, dtype=torch.uint8, offset=self._offsets[key], count=count * info.dtype.itemsize
        )
        return data.view(info.dtype).view(info.shape)


class PickleFile:
    """A state dict saved with `torch.save`, alone or inside a trainer's checkpoint."""

    def __init__(self, path: Path, entry: str | None = None):
        self.path = path
        self.ignored: dict[str, str] = {}
        self._state = self._find_state(self._load(), entry)
        self.tensors = {key: TensorInfo(tuple(value.shape), value.dtype) for key, value in self._state.items()}

    def _load(self):
        with open(self.path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        try:
            # Files of torch < 1.6 are no zip archives and cannot be mapped; those in use are small.
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipped)
        except Exception as error:  # torch reports damage and refused classes through half a dozen types
            refused = re.search(r"GLOBAL (\S+)", str(error))
            if refused:
                raise ValueError(
                    f"{self.path} is not a plain state dict: unpickling it would run `{refused[1]}`. Save the "
                    "`state_dict()` alone, without the objects around it."
                ) from None
            raise ValueError(
                f"{self.path} cannot be read as a PyTorch state dict; it is truncated or of another kind "
                f"({type(error).__name__}: {str(error).splitlines()[0]})."
            ) from None

    def _find_state(self, loaded, entry: str | None) -> dict[str, torch.Tensor]:
        if entry is not None:
            for part in entry.split("."):
                if not isinstance(loaded, dict) or part not in loaded:
                    raise ValueError(f"{self.path} has no entry `{entry}`; it holds {_names(loaded)}.")
                loaded = loaded[part]
        elif isinstance(loaded, dict) and not _is_state(loaded):
            found = [name for name in WRAPPERS if _is_state(loaded.get(name))]
            if len(found) > 1:
                raise ValueError(f"{self.path} holds the state dicts {found}: pick one with `{self.path}#NAME`.")
            if found:
                others = {key: "beside the weights in the checkpoint" for key in loaded if key != found[0]}
                self.ignored, loaded = others, loaded[found[0]]
        if not _is_state(loaded):
            raise ValueError(
                f"{self.path} is not a plain state dict: it holds {_names(loaded)}, expected tensors by name, alone or "
                f"under one of {list(WRAPPERS)}."
            )
        return loaded

    def read(self, key: str) -> torch.Tensor:
        return self._state[key].detach()


def _is_state(value) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(item, torch.Tensor) for key, item in value.items())
    )


def _names(value) -> str:
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    names = [f"`{key}` ({type(item).__name__})" for key, item in list(value.items())[:6]]
    return ", ".join(names) + (" …" if len(value) > 6 else "") or "nothing"


class KeyList:
    """Names and shapes without weights: `{key: [dtype, shape]}`, to check a full-size layout."""

    def __init__(self, path: Path, entry: str | None = None):
        self.path = path
        self.ignored: dict[str, str] = {}
        loaded = _read_json(path)
        entries = loaded.get(entry or "keys")
        if not isinstance(entries, dict):
            names = [name for name, value in loaded.items() if isinstance(value, dict)]
            raise ValueError(f"{path} has no key list `{entry or 'keys'}`: pick one of {names} with `{path}#NAME`.")
        self.tensors = {}
        for key, (dtype, shape) in entries.items():
            # "bfloat16 (inferred)" names a dtype, "unknown" none.
            named = getattr(torch, dtype.split()[0], None)
            self.tensors[key] = TensorInfo(tuple(shape), named if isinstance(named, torch.dtype) else None)

    def read(self, key: str) -> torch.Tensor:
        raise ValueError(f"{self.path} lists names and shapes, not weights: it serves a dry run only.")


class Source:
    """A checkpoint under the name that the architecture's rules know it by (`qwen`, `pi3`, …).

    Attributes:
        name: the name.
        location: the Hub id, or the name of the file or folder. It says nothing of the machine.
        folder: the folder of the weights, or None.
        files: the files that hold weights.
        config: `config.json` beside the weights, `{}` if there is none.
        has_weights: False for a key list.
        ignored: entries of a checkpoint that are no weights, with the reason.
    """

    def __init__(self, name: str, location: str, containers: list, folder: Path | None):
        self.name, self.location, self.folder = name, location, folder
        self.files = [container.path for container in containers]
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

    def path(self, filename: str) -> Path | None:
        """A file beside the weights, or None."""
        path = self.folder / filename if self.folder else None
        return path if path and path.is_file() else None

    def json(self, filename: str) -> dict:
        """A JSON file beside the weights; `{}` if there is none."""
        path = self.path(filename)
        if path is None:
            return {}
        return _read_json(path)

    def describe(self) -> str:
        names = ", ".join(f"`{key}`" for key in self.keys()[:3])
        return f"It holds {len(self._container)} tensors: {names} …"


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}.")
    return content


def open_source(name: str, location: str | Path) -> Source:
    """Open the checkpoint at `location` (see the head of this module) without reading weights.

    Raises:
        FileNotFoundError: there is neither such a path nor such a repository.
        ValueError: the files are damaged, incomplete or of another kind.
    """
    location = str(location)
    path, entry = Path(location).expanduser(), None
    if not path.exists() and "#" in location:
        location, entry = location.rsplit("#", 1)
        path = Path(location).expanduser()
    if not path.exists():
        hub_id = HUB_ID.fullmatch(location)
        if not hub_id:
            raise FileNotFoundError(f"Source `{name}`: {path} does not exist and is no Hub id of the form OWNER/NAME.")
        path = _download(name, hub_id)
    else:
        location = path.absolute().name if path.is_dir() else f"{path.absolute().parent.name}/{path.name}"
    if path.is_dir():
        return Source(name, location, _open_folder(path, entry), path)
    return Source(name, location, [_open_file(path, entry)], path.parent)


def _open_file(path: Path, entry: str | None):
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in PICKLES:
        return PickleFile(path, entry)
    if path.suffix == ".json":
        return KeyList(path, entry)
    raise ValueError(f"{path}: expected a .safetensors, {', '.join(PICKLES)} or .json file.")


def _open_folder(folder: Path, entry: str | None) -> list:
    """The weight files of a folder: by its index, else the only one there is; safetensors before pickles."""
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index_name).is_file():
            return _open_shards(folder, folder / index_name)
    for standard in ("model.safetensors", "pytorch_model.bin"):
        if (folder / standard).is_file():
            return [_open_file(folder / standard, entry)]
    found = sorted(folder.glob("*.safetensors")) or sorted(p for p in folder.iterdir() if p.suffix in PICKLES)
    if len(found) == 1:
        return [_open_file(found[0], entry)]
    if not found:
        raise FileNotFoundError(f"{folder} holds no weights: expected *.safetensors or one of {', '.join(PICKLES)}.")
    names = ", ".join(p.name for p in found[:8])
    raise ValueError(
        f"{folder} holds {names} and no index (*.index.json) to join them: name one file, or add the index."
    )


def _open_shards(folder: Path, index: Path) -> list:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} is no checkpoint index: it has no `weight_map`.")
    missing = {shard: key for key, shard in reversed(weight_map.items()) if not (folder / shard).is_file()}
    if missing:
        shard, key = next(iter(sorted(missing.items())))
        raise FileNotFoundError(
            f"{folder / shard} is missing ({len(missing)} of {len(set(weight_map.values()))} shards); {index.name} "
            f"expects `{key}` in it. Download it again."
        )
    containers = [_open_file(folder / shard, None) for shard in sorted(set(weight_map.values()))]
    for container in containers:
        listed = {key for key, shard in weight_map.items() if shard == container.path.name}
        if absent := sorted(listed - container.tensors.keys()):
            raise ValueError(
                f"{container.path} lacks `{absent[0]}` ({len(absent)} keys), which {index.name} expects in it."
            )
        if extra := sorted(container.tensors.keys() - listed):
            raise ValueError(
                f"{container.path} holds `{extra[0]}` ({len(extra)} keys), which {index.name} does not list."
            )
    return containers


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
