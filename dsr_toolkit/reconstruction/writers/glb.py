"""scene.glb: points and cameras as binary glTF 2.0."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from modeling_dsr.pictures import heat_colours

from ..views import View
from .base import FRUSTUM, About, PointSample, cloud, frustum_lines, upright

POINTS, LINES = 0, 1  # modes of a primitive
FLOAT = 5126  # component type
ARRAY_BUFFER = 34962


class GlbWriter:
    """
    scene.glb. Everything hangs below the node "opencv", in the world frame of the views; its own matrix puts the root
    camera upright at glTF's origin, where y points up. Nodes: "points", "moving" if anything moves, and "camera_000000"
    and so on, whose matrices are camera-to-world. Cameras run from dark to light in time.

    Colours are linear, as glTF wants them: a conforming viewer shows the image's own. (trimesh takes the numbers for
        sRGB;
    [`srgb`] brings back the bytes of what it loads.)
    """

    def __init__(self, folder: Path, max_points: int, about: About):
        self.path, self.about, self.sample = folder / "scene.glb", about, PointSample(max_points)
        self.cameras, self.depth = [], None

    def add(self, view: View) -> None:
        self.sample.add(*cloud(view))
        self.cameras.append((view.camera_to_world, view.intrinsics, view.depth.shape))
        if self.depth is None and view.mask.any():
            self.depth = float(np.median(view.depth[view.mask]))

    def finish(self) -> list[Path]:
        file = GlbFile()
        points, colours, moving = self.sample.points()
        children = []
        for name, chosen in (("points", ~moving), ("moving", moving)):
            if chosen.any():
                children.append(file.node(name, file.mesh(name, points[chosen], colours[chosen], POINTS)))
        for number, (camera_to_world, intrinsics, shape) in enumerate(self.cameras):
            lines = frustum_lines(intrinsics, shape, FRUSTUM * abs(self.depth or 1.0)).reshape(-1, 3)
            level = np.array(number / max(len(self.cameras) - 1, 1))
            colour = np.tile(heat_colours(level).astype(np.uint8), (len(lines), 1))
            name = f"camera_{number:06d}"
            children.append(file.node(name, file.mesh(name, lines, colour, LINES), camera_to_world))
        root = self.cameras[0][0] if self.about.root is None else self.about.root
        file.write(self.path, file.node("opencv", None, upright(root), children), self.about.title)
        return [self.path]


class GlbFile:
    """Meshes of points or lines with colours, nodes over them, and the file of all."""

    def __init__(self):
        self.nodes, self.meshes, self.accessors, self.views, self.blobs, self.size = [], [], [], [], [], 0

    def mesh(self, name: str, points: np.ndarray, colours: np.ndarray, mode: int) -> int:
        """Number of a mesh of `points` `[n, 3]` with sRGB `colours` uint8 `[n, 3]`."""
        points = np.ascontiguousarray(points, "<f4")
        position = self._accessor(points, FLOAT, "VEC3", min=points.min(0).tolist(), max=points.max(0).tolist())
        # Floats: bytes would band in the dark, and readers that know no normalised shorts (trimesh) wrap those around.
        colour = self._accessor(linear(np.arange(256)).astype("<f4")[colours], FLOAT, "VEC3")
        attributes = {"POSITION": position, "COLOR_0": colour}
        primitive = {"attributes": attributes, "mode": mode, "material": 0}
        self.meshes.append({"name": name, "primitives": [primitive]})
        return len(self.meshes) - 1

    def node(self, name: str, mesh: int | None, matrix: np.ndarray | None = None, children: list[int] = ()) -> int:
        node: dict = {"name": name}
        if mesh is not None:
            node["mesh"] = mesh
        if matrix is not None:
            node["matrix"] = np.asarray(matrix, float).T.ravel().tolist()  # by columns
        if children:
            node["children"] = list(children)
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _accessor(self, values: np.ndarray, component: int, kind: str, **more) -> int:
        self.views.append({"buffer": 0, "byteOffset": self.size, "byteLength": values.nbytes, "target": ARRAY_BUFFER})
        self.blobs.append(values.tobytes())
        self.size += values.nbytes
        view = {"bufferView": len(self.views) - 1, "componentType": component, "count": len(values), "type": kind}
        self.accessors.append(view | more)
        return len(self.accessors) - 1

    def write(self, path: Path, root: int, title: str) -> None:
        document = {
            "asset": {"version": "2.0", "generator": "dsr reconstruct"},
            "extensionsUsed": ["KHR_materials_unlit"],
            "scene": 0,
            "scenes": [{"name": title, "nodes": [root]}],
            "nodes": self.nodes,
            "materials": [{"name": "unlit", "extensions": {"KHR_materials_unlit": {}}}],
        }
        if self.meshes:
            document |= {
                "meshes": self.meshes,
                "accessors": self.accessors,
                "bufferViews": self.views,
                "buffers": [{"byteLength": self.size}],
            }
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + (8 + self.size if self.size else 0)
        with open(path, "wb") as file:
            file.write(struct.pack("<4sII", b"glTF", 2, total) + struct.pack("<I4s", len(text), b"JSON") + text)
            if self.size:
                file.write(struct.pack("<I4s", self.size, b"BIN\0"))
                for blob in self.blobs:
                    file.write(blob)


def linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB bytes to linear light in 0 … 1 (IEC 61966-2-1)."""
    level = np.asarray(srgb, float) / 255
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


def srgb(level: np.ndarray) -> np.ndarray:
    """The inverse of [`linear`], uint8."""
    level = np.clip(np.asarray(level, float), 0, 1)
    return np.round(255 * np.where(level <= 0.0031308, 12.92 * level, 1.055 * level ** (1 / 2.4) - 0.055)).astype(
        np.uint8
    )
