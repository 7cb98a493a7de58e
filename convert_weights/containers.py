"""Files that hold tensors by name, read lazily: safetensors, and lists of names and shapes."""

from __future__ import annotations

import json
import math
import mmap
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

MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors format
MAX_AXES = 64  # of a tensor, PyTorch's limit
# Private pages: nothing written through a tensor could reach the file. Without a reservation of memory for such
# writes (0x4000 is MAP_NORESERVE), which Linux would refuse for a file larger than its memory.
MAP_FLAGS = mmap.MAP_PRIVATE | (0x4000 if sys.platform == "linux" else 0)


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without reading it. `dtype` is None where a key list does not tell."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None


def read_json(path: Path) -> dict:
    """The object that a JSON file holds.

    Raises:
        ValueError: it holds something else, or no JSON.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}.")
    return content


def is_shape(value) -> bool:
    """Whether JSON's `value` is the shape of a tensor."""
    return isinstance(value, list) and len(value) <= MAX_AXES and all(map(_is_size, value)) and _fits(value)


def _is_size(value) -> bool:
    return type(value) is int and value >= 0  # neither a boolean nor a number with a point


def _fits(shape: list[int]) -> bool:
    """Whether the axes that are not empty multiply to what PyTorch can count."""
    return math.prod(size for size in shape if size) < 2**63


class SafetensorsFile:
    """One safetensors file: the header read and checked, the data memory-mapped at the first read.

    Raises:
        ValueError: the header is damaged in whatever way, or the data is not of the size that it says.
    """

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
        header = self._parse(size)
        entries = [(*self._entry(key, value), key) for key, value in header.items() if key != "__metadata__"]
        data, end = self.data_start, 0
        for begin, stop, info, key in sorted(entries, key=lambda entry: entry[:2]):
            expected = math.prod(info.shape) * info.dtype.itemsize
            if begin != end or stop - begin != expected:
                raise ValueError(
                    f"{self.path}: `{key}` is recorded at bytes {begin} to {stop}, expected {end} to {end + expected} "
                    f"for {DTYPE_NAMES[info.dtype]} {list(info.shape)}. The header is damaged: download the file again."
                )
            if data + stop > size:
                raise ValueError(
                    f"{self.path} is truncated in `{key}`: it ends at byte {data + stop}, the file has {size}. "
                    "Download the file again."
                )
            self.tensors[key], self._offsets[key], end = info, data + begin, stop
        if data + end != size:
            raise ValueError(f"{self.path} has {size - data - end} bytes after its last tensor: it is damaged.")

    def _parse(self, size: int) -> dict:
        """The header, a JSON object; sets where the data begins."""
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
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{self.path} is not a safetensors file: its header is no JSON ({error}).") from None
        if not isinstance(header, dict):
            raise ValueError(
                f"{self.path} is not a safetensors file: its header is a JSON {type(header).__name__}, expected "
                "an object."
            )
        self.data_start = 8 + length
        return header

    def _entry(self, key: str, value) -> tuple[int, int, TensorInfo]:
        """First byte, end, shape and dtype of a tensor, from what the header holds under its name."""
        if not isinstance(value, dict):
            raise ValueError(self._damaged(key, f"a {type(value).__name__}", "an object"))
        dtype, shape, offsets = (value.get(name) for name in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"{self.path}: `{key}` has dtype {dtype!r}, expected one of {sorted(DTYPES)}.")
        if not is_shape(shape):
            raise ValueError(self._damaged(key, f"shape {shape!r:.80}", "a list of sizes"))
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_size, offsets))):
            raise ValueError(self._damaged(key, f"data_offsets {offsets!r:.80}", "two numbers of bytes"))
        return offsets[0], offsets[1], TensorInfo(tuple(shape), DTYPES[dtype])

    def _damaged(self, key: str, found: str, expected: str) -> str:
        return (
            f"{self.path}: the header has {found} for `{key}`, expected {expected}. It is damaged: download the file "
            "again."
        )

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


class KeyList:
    """Names and shapes without weights: `{key: [dtype, shape]}`, to check a full-size layout."""

    def __init__(self, path: Path, entry: str | None = None):
        self.path = path
        self.ignored: dict[str, str] = {}
        loaded = read_json(path)
        entries = loaded.get(entry or "keys")
        if not isinstance(entries, dict):
            names = [name for name, value in loaded.items() if isinstance(value, dict)]
            raise ValueError(f"{path} has no key list `{entry or 'keys'}`: pick one of {names} with `{path}#NAME`.")
        self.tensors = {key: self._info(key, value) for key, value in entries.items()}

    def _info(self, key: str, value) -> TensorInfo:
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and is_shape(value[1])):
            raise ValueError(f"{self.path}: `{key}` is {value!r:.80}, expected [dtype, shape].")
        # "bfloat16 (inferred)" names a dtype, "unknown" none.
        named = getattr(torch, value[0].split()[0], None) if value[0].split() else None
        return TensorInfo(tuple(value[1]), named if isinstance(named, torch.dtype) else None)

    def read(self, key: str) -> torch.Tensor:
        raise ValueError(f"{self.path} lists names and shapes, not weights: it serves a dry run only.")
