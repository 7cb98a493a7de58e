"""PyTorch's pickles: state dicts that `torch.save` wrote, read without running anything that is in them.

`weights_only=True` keeps a pickle from calling what it likes, not from asking for memory: a few bytes of it can stand
for a set, a tensor, a storage of any size. What it would make is counted before it is made.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from .containers import DTYPE_NAMES, TensorInfo

# Under these keys trainers keep the weights, beside epochs and optimiser states.
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "qformer")

# Objects that a pickle may make: tensors and the like take some 5 kB each, containers some 200 bytes. The largest
# checkpoints, with the states of an optimiser, have some ten thousand tensors.
MAX_CALLS, MAX_CONTAINERS = 100_000, 1_000_000
CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "BUILD", "BINPERSID", "PERSID"}
CONTAINERS = {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "DICT", "LIST", "TUPLE", "FROZENSET"}
LEGACY_PICKLES = 5  # one after the other in a file of torch < 1.6: magic, version, machine, objects, storages


class PickleFile:
    """A state dict saved with `torch.save`, alone or inside a trainer's checkpoint.

    Raises:
        ValueError: it is damaged, compressed, no state dict, would run code or take memory without measure, or holds
            tensors that are more than plain numbers.
    """

    def __init__(self, path: Path, entry: str | None = None):
        self.path = path
        self.ignored: dict[str, str] = {}
        self._state = self._find_state(self._load(), entry)
        self.tensors = {key: self._info(key, value) for key, value in self._state.items()}

    def _load(self):
        size = self.path.stat().st_size
        if size == 0:
            raise ValueError(f"{self.path} is empty: download it again.")
        with open(self.path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        try:
            self._check_archive() if zipped else self._check_legacy(size)
            # Files of torch < 1.6 are no zip archives and cannot be mapped; those in use are small.
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipped)
        except _Refused as refused:
            raise ValueError(f"{self.path} {refused}") from None
        except Exception as error:  # torch reports damage and refused classes through half a dozen types
            refused = re.search(r"GLOBAL (\S+)", str(error))
            if refused:
                raise ValueError(
                    f"{self.path} is not a plain state dict: unpickling it would run `{refused[1]}`. Save the "
                    "`state_dict()` alone, without the objects around it."
                ) from None
            words = next(iter(str(error).strip().splitlines()), "no more is known")
            raise ValueError(
                f"{self.path} cannot be read as a PyTorch state dict; it is truncated or of another kind "
                f"({type(error).__name__}: {words})."
            ) from None

    def _check_archive(self) -> None:
        """Of a zip archive: entries are stored as they are, and the pickle in it is of a measure."""
        with zipfile.ZipFile(self.path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise _Refused(
                        f"is a compressed archive (`{entry.filename}`), which cannot be mapped: read it with "
                        "`torch.load` and save it again with `torch.save`."
                    )
                if entry.filename.rpartition("/")[2] == "data.pkl":
                    with archive.open(entry) as file:
                        _check_measure(file)

    def _check_legacy(self, size: int) -> None:
        """Of a file of torch < 1.6: its pickles are of a measure, and the storages that they ask for fit the file."""
        with open(self.path, "rb") as file:
            for _ in range(LEGACY_PICKLES):
                asked = _check_measure(file)
                # Such a pickle asks for its storages by their number of elements, which is the last but one number.
                if asked > size:
                    raise _Refused(f"asks for a storage of {asked} elements, it has {size} bytes: it is damaged.")
                if file.tell() >= size:
                    break

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
                others = {str(key): "beside the weights in the checkpoint" for key in loaded if key != found[0]}
                self.ignored, loaded = others, loaded[found[0]]
        if not _is_state(loaded):
            raise ValueError(
                f"{self.path} is not a plain state dict: it holds {_names(loaded)}, expected tensors by name, alone or "
                f"under one of {list(WRAPPERS)}."
            )
        return loaded

    def _info(self, key: str, tensor: torch.Tensor) -> TensorInfo:
        """Shape and dtype of a tensor of plain numbers, each in a place of its own."""
        kind = None
        if tensor.is_nested:
            kind = "nested"
        elif tensor.is_meta:
            kind = "without numbers (on the meta device)"
        elif tensor.layout != torch.strided:
            kind = f"sparse ({tensor.layout})"
        elif tensor.is_quantized:
            kind = "quantised"
        elif tensor.dtype not in DTYPE_NAMES:
            kind = f"of dtype {tensor.dtype}"
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            kind = f"of shape {list(tensor.shape)} over {tensor.untyped_storage().nbytes()} bytes"
        if kind:
            raise ValueError(f"{self.path}: `{key}` is a tensor {kind}, expected plain numbers, each in its own place.")
        return TensorInfo(tuple(tensor.shape), tensor.dtype)

    def read(self, key: str) -> torch.Tensor:
        return self._state[key].detach()


class _Refused(Exception):
    """What is wrong with the file, in words that follow its name."""


def _check_measure(file: BinaryIO) -> int:
    """
    Count what the pickle at the place of `file` would make, without making it; the place is behind it afterwards.

    Returns:
        The largest number of elements that it asks a storage for (of a file of torch < 1.6).
    """
    calls, containers, largest, last = 0, 0, 0, 0
    for name, value in _operations(file):
        calls += name in CALLS
        containers += name.rstrip("123") in CONTAINERS
        if isinstance(value, int) and not name.endswith(("GET", "PUT")):
            last = value
        if name in ("BINPERSID", "PERSID"):  # ("storage", class, key, device, elements, …)
            largest = max(largest, last)
        if calls > MAX_CALLS or containers > MAX_CONTAINERS:
            raise _Refused(
                f"holds more objects than any checkpoint ({MAX_CALLS} calls, {MAX_CONTAINERS} containers): it is "
                "damaged, or made to fill the memory."
            )
    return largest


def _operations(file: BinaryIO) -> Iterator[tuple[str, object]]:
    for operation, value, _ in pickletools.genops(file):
        yield operation.name, value


def _is_state(value) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(item, torch.Tensor) for key, item in value.items())
    )


def _names(value) -> str:
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    names = [f"`{str(key):.80}` ({type(item).__name__})" for key, item in list(value.items())[:6]]
    return ", ".join(names) + (" …" if len(value) > 6 else "") or "nothing"
