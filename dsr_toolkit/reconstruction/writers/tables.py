"""Files of rows: cloud.ply and trajectory.tum."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...quaternions import quaternion_of
from ..views import View
from .base import About, cloud


class PlyWriter:
    """cloud.ply, binary: every trusted point with its colour and whether it moves."""

    RECORD = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("moving", "u1")])

    def __init__(self, folder: Path, max_points: int, about: About, name: str = "cloud.ply"):
        self.path, self.count = folder / name, 0
        self.file = open(self.path, "wb")
        self.file.write(self._header())

    def _header(self) -> bytes:
        # The number comes last and is padded, so that the header keeps its length.
        properties = [f"property float {axis}" for axis in "xyz"]
        properties += [f"property uchar {name}" for name in ("red", "green", "blue", "moving")]
        vertex = f"element vertex {self.count:<20d}"
        lines = ["ply", "format binary_little_endian 1.0", vertex, *properties, "end_header"]
        return ("\n".join(lines) + "\n").encode()

    def add(self, view: View) -> None:
        self.add_points(*cloud(view))

    def add_points(self, points: np.ndarray, colours: np.ndarray, moving: np.ndarray) -> None:
        records = np.empty(len(points), self.RECORD)
        records["xyz"], records["rgb"], records["moving"] = points, colours, moving
        self.file.write(records.tobytes())
        self.count += len(points)

    def finish(self) -> list[Path]:
        self.file.seek(0)
        self.file.write(self._header())
        self.file.close()
        return [self.path]


class TumWriter:
    """
    trajectory.tum: a line per view, `time tx ty tz qx qy qz qw`, camera-to-world.

    Times have all their digits: those of real recordings count microseconds since 1970. A comment names the image of
        each line
    where times do not tell images apart.
    """

    def __init__(self, folder: Path, max_points: int, about: About, name: str = "trajectory.tum"):
        self.path, self.previous = folder / name, None
        self.file = open(self.path, "w", encoding="utf-8")

    def add(self, view: View) -> None:
        if view.time == self.previous:
            self.file.write(f"# {view.name}\n")
        self.previous = view.time
        w, x, y, z = quaternion_of(view.camera_to_world[:3, :3])
        numbers = [*view.camera_to_world[:3, 3], x, y, z, w]
        self.file.write(" ".join([repr(float(view.time)), *(f"{number:.9g}" for number in numbers)]) + "\n")

    def finish(self) -> list[Path]:
        self.file.close()
        return [self.path]
