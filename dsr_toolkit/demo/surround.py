"""A street around a car, drawn into six cameras: images and calibration for the demo and the tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from modeling_dsr.configuration_scene_qformer import SCENE_CAMERAS

WIDTH, HEIGHT, FOCAL = 800, 448, 520.0
# Degrees to the left of forward, in the order of SCENE_CAMERAS.
YAWS = dict(zip(SCENE_CAMERAS, (0, -55, 55, 180, 110, -110)))
# Camera axes (right, down, forward) in vehicle axes (forward, left, up) for a camera that looks ahead.
AHEAD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
# Boxes on the ground: centre (forward, left), size (length, width, height) in metres, colour.
BOXES = (
    ((12, 0), (4, 1.8, 1.5), (190, 40, 40)),
    ((6, -6), (4, 1.8, 1.6), (40, 90, 190)),
    ((-9, 0.5), (8, 2.4, 3.0), (230, 160, 30)),
    ((3, 9), (6, 5, 7.0), (120, 110, 100)),
    ((-8, -10), (8, 6, 9.0), (140, 125, 110)),
    ((-5, 8), (0.6, 0.6, 1.8), (40, 150, 70)),
)
NEAR = 0.3


def calibration() -> dict[str, dict[str, list]]:
    """Per camera `intrinsics` `[3, 3]` in pixels and `extrinsics` `[4, 4]` camera → vehicle in metres."""
    cameras = {}
    for name, yaw in YAWS.items():
        angle = np.deg2rad(yaw)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turn @ AHEAD, (1.4 * np.cos(angle), 0.8 * np.sin(angle), 1.6)
        intrinsics = [[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]]
        cameras[name] = {"intrinsics": intrinsics, "extrinsics": pose.tolist()}
    return cameras


def _clipped(points: np.ndarray) -> np.ndarray:
    """A polygon `[n, 3]` in camera axes, cut off in front of the camera."""
    kept = []
    for a, b in zip(points, np.roll(points, -1, axis=0)):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * (NEAR - a[2]) / (b[2] - a[2]))
    return np.array(kept)


def _polygons() -> list[tuple[np.ndarray, tuple[int, int, int]]]:
    """Polygons `[n, 3]` in vehicle axes: road, lane marks, a crossing, the faces of the boxes."""
    ground = [(np.array([[-60, -4, 0], [60, -4, 0], [60, 4, 0], [-60, 4, 0]], float), (70, 70, 75))]
    for x in range(-57, 60, 6):
        ground.append((np.array([[x, -0.1, 0], [x + 3, -0.1, 0], [x + 3, 0.1, 0], [x, 0.1, 0]]), (230, 230, 230)))
    for y in np.arange(-3.5, 4, 1.0):
        ground.append((np.array([[6, y, 0], [8.5, y, 0], [8.5, y + 0.5, 0], [6, y + 0.5, 0]]), (240, 240, 240)))
    faces = []
    for (x, y), (length, width, height), color in BOXES:
        low, high = np.array([x - length / 2, y - width / 2, 0]), np.array([x + length / 2, y + width / 2, height])
        for axis in range(3):
            for end, shade in ((low, 0.75), (high, 1.0)):
                others = [other for other in range(3) if other != axis]
                face = np.tile(end, (4, 1))
                for corner, (i, j) in enumerate(((0, 0), (1, 0), (1, 1), (0, 1))):
                    face[corner, others[0]] = (low, high)[i][others[0]]
                    face[corner, others[1]] = (low, high)[j][others[1]]
                bright = shade * (0.8 + 0.1 * axis)
                faces.append((face, tuple(int(min(255, channel * bright)) for channel in color)))
    return ground, faces


def draw() -> dict[str, Image.Image]:
    """Six images by camera name, painted from far to near."""
    ground, faces = _polygons()
    images = {}
    for name, camera in calibration().items():
        pose, intrinsics = np.array(camera["extrinsics"]), np.array(camera["intrinsics"])
        image = Image.new("RGB", (WIDTH, HEIGHT), (150, 190, 230))
        pen = ImageDraw.Draw(image)
        pen.rectangle((0, HEIGHT // 2, WIDTH, HEIGHT), fill=(105, 125, 85))
        distant_first = sorted(faces, key=lambda face: -np.linalg.norm(face[0].mean(0) - pose[:3, 3]))
        for polygon, color in (*ground, *distant_first):
            seen = _clipped((polygon - pose[:3, 3]) @ pose[:3, :3])
            if len(seen) >= 3:
                pixels = seen @ intrinsics.T
                pen.polygon([tuple(point[:2] / point[2]) for point in pixels], fill=color)
        images[name] = image
    return images


def write(folder: Path) -> Path:
    """A folder as `dsr scene` reads it: an image per camera and calibration.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in draw().items():
        image.save(folder / f"{name}.png")
    (folder / "calibration.json").write_text(json.dumps(calibration(), indent=1) + "\n", encoding="utf-8")
    return folder
