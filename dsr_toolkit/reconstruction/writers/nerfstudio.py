"""nerfstudio/transforms.json, which nerfstudio and instant-ngp train from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ..names import image_name, write_names
from ..views import View
from .base import About, PointSample, cloud
from .tables import PlyWriter

TO_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # of the camera: x right, y up, z backward


class NerfstudioWriter:
    """
    nerfstudio: transforms.json, images, points.ply, from which splats start, and names.csv, as the images were called
    before.

    `transform_matrix` is camera-to-world with OpenGL's camera axes (x right, y up, z backward) in the world of the
    views; the principal point counts the first pixel's centre as (0.5, 0.5). Each frame has its own intrinsics.
    """

    def __init__(self, folder: Path, max_points: int, about: About):
        self.folder, self.about, self.frames = folder / "nerfstudio", about, []
        self.sample, self.names = PointSample(max_points), []
        (self.folder / "images").mkdir(parents=True)

    def add(self, view: View) -> None:
        name = image_name(len(self.frames) + 1, view.name)
        self.names.append((name, view.name, view.time))
        Image.fromarray(view.image).save(self.folder / "images" / name)
        height, width = view.depth.shape
        (fx, _, cx), (_, fy, cy), _ = view.intrinsics.tolist()
        self.frames.append(
            {
                "file_path": f"images/{name}",
                "w": width, "h": height, "fl_x": fx, "fl_y": fy, "cx": cx + 0.5, "cy": cy + 0.5,
                "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0,
                "transform_matrix": (view.camera_to_world @ TO_OPENGL).tolist(),
            }
        )  # fmt: skip
        self.sample.add(*cloud(view))

    def finish(self) -> list[Path]:
        points = PlyWriter(self.folder, 0, self.about, "points.ply")
        points.add_points(*self.sample.points())
        points.finish()
        document = {"camera_model": "OPENCV", "ply_file_path": "points.ply", "frames": self.frames}
        text = json.dumps(document, indent=1, allow_nan=False)
        (self.folder / "transforms.json").write_text(text + "\n", encoding="utf-8")
        write_names(self.folder / "names.csv", self.names)
        return [self.folder]
