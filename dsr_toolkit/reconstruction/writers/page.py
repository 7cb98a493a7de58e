"""scene.html: the scene for a browser, one file that needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_dsr.pictures import heat_colours

from ..depth_scale import DepthScale, shrunk
from ..views import View
from .base import FRUSTUM, About, PointSample, Spread, cloud, frustum_corners, upright

TEMPLATE = Path(__file__).resolve().parents[2] / "assets" / "scene.html"
FRAMES, SIDE = 100, 320  # images that the page holds, at most, and their longer side


class PageWriter:
    """
    scene.html: points, cameras with their images, the way of the camera, and each image with its depth beside; drawn by
        WebGL
    code of the page's own.
    """

    def __init__(self, folder: Path, max_points: int, about: About):
        self.path, self.about, self.sample = folder / "scene.html", about, PointSample(max_points)
        self.cameras, self.frames, self.depth = [], Spread(FRAMES), None

    def add(self, view: View) -> None:
        self.sample.add(*cloud(view))
        if self.depth is None and view.mask.any():
            self.depth = float(np.median(view.depth[view.mask]))
        if self.frames.wants():
            image, depth = shrunk(view, SIDE)
            self.frames.add((len(self.cameras), view.name, _data_url(image, "JPEG"), depth))
        else:
            self.frames.add(None)
        self.cameras.append((view.camera_to_world, view.intrinsics, view.depth.shape))

    def finish(self) -> list[Path]:
        points, colours, moving = self.sample.points()
        order = np.argsort(moving, kind="stable")  # what moves comes last, so that the page can leave it out
        points, colours = points[order].astype("<f4"), colours[order]
        frames = self.frames.chosen()
        scale = DepthScale.of([depth for *_, depth in frames])
        poses = np.stack([pose for pose, _, _ in self.cameras])
        middle, radius = _extent(points, poses[:, :3, 3])
        size = min(max(FRUSTUM * (self.depth or 1.0), 0.03 * radius), 0.2 * radius)
        corners = {}  # cameras that are alike share theirs
        corners_of = []
        for _, intrinsics, shape in self.cameras:
            entry = json.dumps(np.round(frustum_corners(intrinsics, shape, size), 9).tolist())
            corners_of.append(corners.setdefault(entry, len(corners)))
        way = poses[:, :3, 3]
        data = {
            "title": self.about.title,
            "unit": self.about.unit,
            "root": _columns(upright(poses[0] if self.about.root is None else self.about.root)),
            "count": len(points),
            "moves": int(moving.sum()),
            "places": _base64(points.tobytes()),
            "pointColours": _base64(np.ascontiguousarray(colours).tobytes()),
            "cameras": [_columns(pose) for pose in poses],
            "colours": [_hex(colour) for colour in heat_colours(np.linspace(0, 0.9, len(poses)))],
            "corners": [json.loads(entry) for entry in corners],
            "cornersOf": corners_of,
            "frames": [
                {"camera": number, "name": name, "image": image, "depth": _data_url(scale.colours(depth), "PNG")}
                for number, name, image, depth in frames
            ],
            "depth": [scale.near, scale.far],
            "ramp": [_hex(colour) for colour in heat_colours(np.linspace(0, 1, 12))],
            "middle": middle.tolist(),
            "radius": radius,
            "length": float(np.linalg.norm(np.diff(way, axis=0), axis=1).sum()),
        }
        text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        page = TEMPLATE.read_text(encoding="utf-8")
        page = page.replace("$TITLE$", html.escape(self.about.title)).replace("$DATA$", text)
        self.path.write_text(page, encoding="utf-8")
        return [self.path]


def _extent(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Middle and radius of what matters: all cameras and the points without their furthest hundredths."""
    low, high = centres.min(0), centres.max(0)
    if len(points):
        inner = np.percentile(points[:: max(len(points) // 50_000, 1)], [2, 98], axis=0)
        low, high = np.minimum(low, inner[0]), np.maximum(high, inner[1])
    return (low + high) / 2, max(float(np.linalg.norm(high - low)) / 2, 1e-6)


def _columns(matrix: np.ndarray) -> list[float]:
    return np.asarray(matrix, float).T.ravel().tolist()


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{int(value):02x}" for value in colour)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _data_url(pixels: np.ndarray, kind: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 82} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{_base64(buffer.getvalue())}"
