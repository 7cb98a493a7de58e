"""geometry.npz: everything, for programs."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..views import View
from .base import About


@dataclass
class _Column:
    """What the views' values of one name look like, one after another in a raw file."""

    file: BinaryIO
    dtype: str
    shapes: list[tuple[int, ...]] = field(default_factory=list)


class NpzWriter:
    """
    geometry.npz: the fields of [`View`], stacked over the views (`names` and `times` among them).

    Where the images differ in size, maps do not stack: then each view has its own, `points_000000`, `points_000001` and
        so on,
    while cameras, names and times stay stacked.
    """

    FIELDS = ("image", "points", "depth", "confidence", "mask", "camera_to_world", "intrinsics", "dynamic")

    def __init__(self, folder: Path, max_points: int, about: About):
        self.path, self.columns = folder / "geometry.npz", {}
        self.names, self.times = [], []

    def add(self, view: View) -> None:
        for name in self.FIELDS:
            if (value := getattr(view, name)) is not None:
                if name not in self.columns:
                    self.columns[name] = _Column(open(self.path.with_suffix(f".{name}.raw"), "w+b"), value.dtype.str)
                self.columns[name].file.write(np.ascontiguousarray(value).tobytes())
                self.columns[name].shapes.append(value.shape)
        self.names.append(view.name)
        self.times.append(view.time)

    def finish(self) -> list[Path]:
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, column in self.columns.items():
                column.file.seek(0)
                if len(set(column.shapes)) == 1:
                    self._copy(archive, name, column, (len(column.shapes), *column.shapes[0]))
                else:
                    for number, shape in enumerate(column.shapes):
                        self._copy(archive, f"{name}_{number:06d}", column, shape)
                column.file.close()
                Path(column.file.name).unlink()
            for name, values in (("names", np.array(self.names)), ("times", np.array(self.times))):
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, values)
        return [self.path]

    @staticmethod
    def _copy(archive, name: str, column: _Column, shape: tuple[int, ...]) -> None:
        """An array of `.npy`, version 1.0, whose values are read from the raw file piece by piece."""
        text = repr({"descr": column.dtype, "fortran_order": False, "shape": shape})
        text = text.ljust(-(len(text) + 11) % 64 + len(text)).encode() + b"\n"
        left = int(np.prod(shape)) * np.dtype(column.dtype).itemsize
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
            while left:
                part = column.file.read(min(left, 1 << 22))
                file.write(part)
                left -= len(part)
