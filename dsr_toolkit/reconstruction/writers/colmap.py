"""A COLMAP model, in binary or as text, whose tracks a bundle adjustment can start from."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...quaternions import quaternion_of
from ..names import image_name, write_names
from ..views import View
from .base import About, PointSample, cloud
from .tracks import TrackBuilder

PINHOLE = 1  # number of the camera model in binary files
CAMERA_TOLERANCE = 0.005  # images whose focal lengths differ by no more than this part share a camera
NO_POINT = -1


@dataclass
class _Image:
    name: str
    shape: tuple[int, int]
    intrinsics: np.ndarray
    camera_to_world: np.ndarray
    pixels: np.ndarray
    tracks: np.ndarray
    camera: int = 0


@dataclass
class Observations:
    """
    Which images show each track, and as which of their points, one track after another.

    Args:
        pairs: `[n, 2]` int32, numbers of images from 1 and of their points from 0.
        starts: `[tracks + 1]`, where the pairs of each track begin, and where the last ones end.
    """

    pairs: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, tracks: list[np.ndarray], count: int) -> Observations:
        """Of the track, from 1, of each point of each image."""
        every = np.concatenate([np.zeros(0, int), *tracks])
        images = np.repeat(np.arange(1, len(tracks) + 1), [len(one) for one in tracks])
        numbers = np.concatenate([np.zeros(0, int), *(np.arange(len(one)) for one in tracks)])
        order = np.argsort(every, kind="stable")
        starts = np.append(0, np.cumsum(np.bincount(every, minlength=count + 1)[1:]))
        return cls(np.stack([images, numbers], 1)[order].astype("<i4"), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, track: int) -> np.ndarray:
        return self.pairs[self.starts[track] : self.starts[track + 1]]


class ColmapWriter:
    """
    colmap/images and colmap/sparse/0: a model that COLMAP and its many readers open, with the images it speaks of;
    names.csv says how these were called before.

    Points that several images show come first, with their tracks; after them the sample of the dense cloud, without,
    from which Gaussian splats start. Cameras are PINHOLE; images of one size whose intrinsics agree share one. COLMAP
    counts the first pixel's centre as (0.5, 0.5).

    Args:
        formats: of "colmap" (binary) and "colmap-text".
    """

    def __init__(self, folder: Path, max_points: int, about: About, formats: tuple[str, ...] = ("colmap",)):
        self.folder, self.formats, self.sample = folder / "colmap", formats, PointSample(max_points)
        self.sparse = self.folder / "sparse" / "0"
        self.sparse.mkdir(parents=True)
        (self.folder / "images").mkdir()
        self.images: list[_Image] = []
        self.names: list[tuple[str, str, float]] = []
        self.tracks = TrackBuilder()

    def add(self, view: View) -> None:
        name = image_name(len(self.images) + 1, view.name)
        Image.fromarray(view.image).save(self.folder / "images" / name)
        pixels, tracks = self.tracks.add(view)
        self.names.append((name, view.name, view.time))
        self.images.append(_Image(name, view.depth.shape, view.intrinsics, view.camera_to_world, pixels, tracks))
        self.sample.add(*cloud(view))

    def finish(self) -> list[Path]:
        cameras = shared_cameras(self.images)
        points, colours, seen = self.tracks.points()
        # Tracks of a single image say nothing of the geometry.
        number = np.full(len(seen), NO_POINT)
        number[seen > 1] = np.arange(1, (seen > 1).sum() + 1)
        for record in self.images:
            tracks = number[record.tracks]
            record.pixels, record.tracks = record.pixels[tracks > 0], tracks[tracks > 0]
        observations = Observations.of([record.tracks for record in self.images], int((seen > 1).sum()))
        points, colours = points[seen > 1], colours[seen > 1]
        errors = self._errors(points, cameras, observations)
        dense, dense_colours, _ = self.sample.points()
        points, colours = np.concatenate([points, dense]), np.concatenate([colours, dense_colours])
        for name in self.formats:
            (write_binary if name == "colmap" else write_text)(
                self.sparse, cameras, self.images, points, colours, errors, observations
            )
        write_names(self.folder / "names.csv", self.names)
        return [self.folder]

    def _errors(self, points: np.ndarray, cameras: dict, observations: Observations) -> np.ndarray:
        """Mean distance in pixels between where each point is seen and where the cameras expect it."""
        total = np.zeros(len(points))
        for record in self.images:
            local = points[record.tracks - 1] - record.camera_to_world[:3, 3]
            local = local @ record.camera_to_world[:3, :3]
            _, _, fx, fy, cx, cy = cameras[record.camera]
            place = local[:, :2] / local[:, 2:] * [fx, fy] + [cx - 0.5, cy - 0.5]
            np.add.at(total, record.tracks - 1, np.linalg.norm(place - record.pixels, axis=1))
        return total / np.maximum(np.diff(observations.starts), 1)


def shared_cameras(images: list[_Image]) -> dict[int, tuple]:
    """Cameras by number, (width, height, fx, fy, cx, cy) as COLMAP counts pixels; each image learns its own."""
    cameras: dict[int, tuple] = {}
    for shape in dict.fromkeys(image.shape for image in images):
        group = [image for image in images if image.shape == shape]
        values = np.array([[k[0, 0], k[1, 1], k[0, 2], k[1, 2]] for k in (image.intrinsics for image in group)])
        middle = np.median(values, 0)
        size = np.array([*middle[:2], *shape[::-1]])
        one = bool((np.abs(values - middle) <= CAMERA_TOLERANCE * size).all())
        for image, (fx, fy, cx, cy) in zip(group, values):
            if not one or image is group[0]:
                fx, fy, cx, cy = middle if one else (fx, fy, cx, cy)
                cameras[len(cameras) + 1] = (shape[1], shape[0], fx, fy, cx + 0.5, cy + 0.5)
            image.camera = len(cameras)
    return cameras


def _pose(image: _Image) -> list[float]:
    """Quaternion w, x, y, z and translation, world to camera."""
    pose = np.linalg.inv(image.camera_to_world)
    return [*quaternion_of(pose[:3, :3]).tolist(), *pose[:3, 3].tolist()]


def write_binary(folder: Path, cameras: dict, images: list[_Image], points, colours, errors, observations) -> None:
    """
    cameras.bin, images.bin and points3D.bin. The first points have `errors` and `observations`, the others no track.
    """
    with open(folder / "cameras.bin", "wb") as file:
        file.write(struct.pack("<Q", len(cameras)))
        for number, (width, height, *numbers) in cameras.items():
            file.write(struct.pack("<iiQQ4d", number, PINHOLE, width, height, *numbers))
    record = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
    with open(folder / "images.bin", "wb") as file:
        file.write(struct.pack("<Q", len(images)))
        for number, image in enumerate(images, 1):
            file.write(struct.pack("<i7di", number, *_pose(image), image.camera) + image.name.encode() + b"\0")
            seen = np.empty(len(image.pixels), record)
            seen["xy"], seen["point"] = image.pixels + 0.5, image.tracks
            file.write(struct.pack("<Q", len(seen)) + seen.tobytes())
    with open(folder / "points3D.bin", "wb") as file:
        file.write(struct.pack("<Q", len(points)))
        tracked = len(observations)
        for number in range(1, tracked + 1):
            seen = observations[number - 1]
            head = struct.pack("<Q3d", number, *points[number - 1]) + colours[number - 1].tobytes()
            file.write(head + struct.pack("<dQ", errors[number - 1], len(seen)) + seen.tobytes())
        # The others, of which there are many, all look alike.
        record = np.dtype([("number", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("seen", "<u8")])
        rest = np.zeros(len(points) - tracked, record)
        rest["number"] = np.arange(tracked + 1, len(points) + 1)
        rest["xyz"], rest["rgb"] = points[tracked:], colours[tracked:]
        file.write(rest.tobytes())


def write_text(folder: Path, cameras: dict, images: list[_Image], points, colours, errors, observations) -> None:
    """cameras.txt, images.txt and points3D.txt, whose heads say how much they hold, so that a cut one is known."""
    with open(folder / "cameras.txt", "w", encoding="utf-8") as file:
        file.write(f"# Number of cameras: {len(cameras)}\n")
        for number, (width, height, *numbers) in cameras.items():
            file.write(f"{number} PINHOLE {width} {height} {' '.join(f'{x:.9g}' for x in numbers)}\n")
    with open(folder / "images.txt", "w", encoding="utf-8") as file:
        file.write(f"# Number of images: {len(images)}\n")
        for number, image in enumerate(images, 1):
            file.write(f"{number} {' '.join(f'{x:.9g}' for x in _pose(image))} {image.camera} {image.name}\n")
            seen = (f"{x + 0.5:.9g} {y + 0.5:.9g} {track}" for (x, y), track in zip(image.pixels, image.tracks))
            file.write(" ".join(seen) + "\n")
    with open(folder / "points3D.txt", "w", encoding="utf-8") as file:
        file.write(f"# Number of points: {len(points)}\n")
        for number, (point, colour) in enumerate(zip(points, colours), 1):
            seen = observations[number - 1].tolist() if number <= len(observations) else ()
            error = errors[number - 1] if seen else 0.0
            line = "{} {:.9g} {:.9g} {:.9g} {} {} {} {:.6g}".format(number, *point, *colour, error)
            file.write(" ".join([line, *(f"{image} {index}" for image, index in seen)]) + "\n")
