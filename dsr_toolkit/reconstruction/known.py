"""Cameras and depths that are known beforehand, read from the files in which people have them."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..console import say
from ..extras import needs
from .colmap_check import check_colmap
from .names import plain

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # of a camera: x right, y up, z backward
LARGEST_GAP = 0.02  # seconds between a pose and the image that it belongs to
OUR_NUMBER = re.compile(r"^\d{6}-")  # before the names of images in the models that we write
DEPTH_SUFFIXES = (".png", ".npy", ".npz", ".tif", ".tiff")
# What a damaged file of arrays may raise.
DAMAGE = (
    ValueError, OSError, EOFError, OverflowError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Camera:
    """
    What is known of one image's camera; either may be None.

    Args:
        pose: camera-to-world `[4, 4]`, OpenCV axes. intrinsics: `[3, 3]`, the first pixel centre is (0, 0).
        size: (width, height) of the image that `intrinsics` speaks of, or None: of whatever image it is.
    """

    pose: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    size: tuple[int, int] | None = None


@dataclass
class Known:
    """
    What is known of the images of a scene.

    Args:
        about: where it comes from and how it was understood, for people.
        by_name: cameras by the name of the image; by_time: (time, camera) where a trajectory has no names; by_order: of
            the images in order.
        depths: file of each image by its stem. depth_scale: stored number of one unit of length in 16-bit images.
    """

    about: str = ""
    by_name: dict[str, Camera] = field(default_factory=dict)
    by_time: list[tuple[float, Camera]] = field(default_factory=list)
    by_order: list[Camera] = field(default_factory=list)
    depths: dict[str, Path] = field(default_factory=dict)
    ordered_depths: np.ndarray | None = None
    depth_scale: float = 1000.0

    def camera(self, frame, number: int) -> Camera:
        """Of a frame, the `number`th of the scene; empty if nothing is known."""
        if self.by_name:
            return self.by_name.get(_plain(frame.name), Camera())
        if self.by_time:
            times = np.array([time for time, _ in self.by_time])
            moment = _time_in_name(frame.name)
            moment = frame.time if moment is None else moment
            nearest = int(np.abs(times - moment).argmin())
            return self.by_time[nearest][1] if abs(times[nearest] - moment) <= LARGEST_GAP else Camera()
        return self.by_order[number] if number < len(self.by_order) else Camera()

    def depth(self, frame, number: int) -> np.ndarray | None:
        """Depth float32 `[h, w]`, 0 where unknown, or None."""
        if self.ordered_depths is not None:
            return _clean(self.ordered_depths[number]) if number < len(self.ordered_depths) else None
        path = self.depths.get(Path(frame.name).stem)
        return None if path is None else read_depth(path, self.depth_scale)


def read_cameras(path: str | Path) -> Known:
    """
    Cameras of a COLMAP model (a folder, text or binary), a `transforms.json` (nerfstudio, instant-ngp), a trajectory in
    TUM's format (`time tx ty tz qx qy qz qw`, camera-to-world), or an .npz with `poses` and `intrinsics` of the images
    in order.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"--cameras: there is nothing at {str(path)!r}.")
    if path.is_dir():
        if (path / "transforms.json").is_file():
            return _read_transforms(path / "transforms.json")
        return _read_colmap(path)
    if path.suffix == ".json":
        return _read_transforms(path)
    if path.suffix == ".npz":
        return _read_arrays(path)
    if path.suffix in (".txt", ".tum"):
        return _read_trajectory(path)
    raise ValueError(
        f"--cameras {path} is none of: a folder with a COLMAP model, transforms.json, a trajectory (.txt, .tum), "
        "an .npz file."
    )


def _read_colmap(folder: Path) -> Known:
    places = [folder, folder / "sparse" / "0", folder / "sparse", folder / "colmap" / "sparse" / "0"]
    model = next(
        (place for place in places if (place / "images.bin").is_file() or (place / "images.txt").is_file()), None
    )
    if model is None:
        raise ValueError(f"--cameras {folder} holds no COLMAP model: images.bin or images.txt, here or in sparse/0.")
    needs("geometry", "A COLMAP model", "pycolmap")
    import pycolmap

    bent, curved, names = 0, 0, check_colmap(model)
    try:
        found = pycolmap.Reconstruction(str(model))
    except (ValueError, RuntimeError, OSError, MemoryError, IndexError) as error:
        raise ValueError(f"--cameras {model} cannot be read as a COLMAP model: {error}.") from error
    if len(found.images) != len(names):
        raise ValueError(
            f"--cameras {model}: COLMAP reads {len(found.images)} images of the {len(names)} that are listed; the "
            "model is damaged. Copy it again."
        )
    cameras = {}
    for image in found.images.values():
        camera, where, k = found.camera(image.camera_id), f"--cameras {model}: {names[image.image_id]}", None
        if camera.model_name.endswith("FISHEYE") or camera.model_name == "EQUIRECTANGULAR":
            curved += 1  # no pinhole is like it
        else:
            k = np.array(camera.calibration_matrix(), float)
            k[:2, 2] -= 0.5  # COLMAP's first pixel centre is (0.5, 0.5)
            k = _pinhole(k, where)
            bent += bool(np.abs(np.array(camera.params)[list(camera.extra_params_idxs())]).max(initial=0) > 0)
        pose = _rigid(image.cam_from_world().inverse().matrix(), where) if image.has_pose else None
        cameras[names[image.image_id]] = Camera(pose, k, (camera.width, camera.height))
    if curved:
        say(f"{curved} images of {model} are fisheye or panorama images: their poses are used, their intrinsics not.")
    if bent:
        say(f"{bent} cameras of {model} have lens distortion, which is not used: undistort the images first.")
    return Known(f"COLMAP model {model}: world-to-camera turned into camera-to-world", _by_name(cameras, model))


def _read_transforms(path: Path) -> Known:
    document = _json(path)
    frames = document.get("frames")
    if not isinstance(frames, list) or not frames:
        raise ValueError(f"--cameras {path} has no `frames`; a transforms.json lists them.")
    cameras, bent = {}, 0
    for number, frame in enumerate(frames):
        where = f"--cameras {path}: frame {number}"
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise ValueError(f"{where} has no `file_path`.")
        both = {**document, **frame}
        try:
            pose = np.array(frame["transform_matrix"], float) if "transform_matrix" in frame else None
            size = (int(both["w"]), int(both["h"])) if "w" in both and "h" in both else None
            k = _json_intrinsics(both, size)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{where} holds what is no number: {error}.") from error
        if size is not None and min(size) < 1:
            raise ValueError(f"{where} speaks of an image of {size[0]} × {size[1]} pixels.")
        bent += any(both.get(name) for name in ("k1", "k2", "k3", "k4", "p1", "p2"))
        pose = None if pose is None else _rigid(pose, where) @ OPENGL
        cameras[frame["file_path"]] = Camera(pose, None if k is None else _pinhole(k, where), size)
    if bent:
        say(f"{bent} frames of {path} have lens distortion, which is not used: undistort the images first.")
    return Known(f"{path}: camera-to-world, OpenGL axes turned into OpenCV's", _by_name(cameras, path))


def _json_intrinsics(values: dict, size: tuple[int, int] | None) -> np.ndarray | None:
    fx = values.get("fl_x")
    if fx is None and values.get("camera_angle_x") and size:
        fx = 0.5 * size[0] / np.tan(0.5 * values["camera_angle_x"])
    if fx is None:
        return None
    fy = values.get("fl_y") or fx
    cx, cy = values.get("cx"), values.get("cy")
    if cx is None or cy is None:
        if size is None:
            return None
        cx, cy = size[0] / 2, size[1] / 2
    return np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]], float)


def _read_trajectory(path: Path) -> Known:
    from ..datasets.geometry import read_trajectory

    poses, times = read_trajectory(path)
    cameras = [(time, Camera(_rigid(pose, f"--cameras {path}"))) for time, pose in zip(times, poses)]
    return Known(f"trajectory {path}: camera-to-world, matched by time within {LARGEST_GAP} s", by_time=cameras)


def _read_arrays(path: Path) -> Known:
    arrays = {name: value for name, value in _load(path).items() if name in ("poses", "intrinsics", "depths")}
    if not arrays or any(value.ndim < 3 or value.dtype.kind not in "fiu" for value in arrays.values()):
        raise ValueError(
            f"--cameras {path} holds none of `poses` [N, 4, 4], `intrinsics` [N, 3, 3], `depths` [N, h, w] as numbers."
        )
    counts = {name: len(value) for name, value in arrays.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"--cameras {path} holds arrays of different lengths: {counts}.")
    count = next(iter(counts.values()))
    poses, intrinsics = (arrays.get(name, [None] * count) for name in ("poses", "intrinsics"))
    checked = lambda check, value, number: (  # noqa: E731
        None if value is None else check(np.asarray(value, float), f"--cameras {path}: number {number}")
    )
    known = Known(f"{path}: camera-to-world, OpenCV axes, in the order of the images")
    known.by_order = [
        Camera(checked(_rigid, pose, number), checked(_pinhole, k, number))
        for number, (pose, k) in enumerate(zip(poses, intrinsics))
    ]
    known.ordered_depths = arrays.get("depths")
    return known


def read_depths(known: Known, folder: str | Path, scale: float) -> None:
    """Add the depth maps of a folder, which are named as their images are."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"--depths: there is no folder at {str(folder)!r}.")
    known.depths = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in DEPTH_SUFFIXES}
    if not known.depths:
        raise ValueError(f"--depths {folder} holds no depth map; expected files ending in {', '.join(DEPTH_SUFFIXES)}.")
    known.depth_scale = scale
    known.ordered_depths = None


def read_depth(path: Path, scale: float) -> np.ndarray:
    """
    Depth float32 `[h, w]`, 0 where unknown: 16-bit images hold depth · `scale`, arrays and float images hold it as it
    is.
    """
    if path.suffix.lower() in (".npy", ".npz"):
        depth = next(iter(_load(path).values()), np.zeros(0))
    else:
        try:
            with Image.open(path) as image:
                mode, depth = image.mode, np.asarray(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{path} cannot be read as an image of depths: {error}.") from error
        if mode not in ("I;16", "I;16B", "I", "F"):
            raise ValueError(f"{path} must be a 16-bit grey or float image of depths, got mode {mode!r}.")
        depth = depth.astype(np.float32) / (1.0 if mode == "F" else scale)
    if depth.ndim != 2 or not depth.size or depth.dtype.kind not in "fiu":
        raise ValueError(f"{path} must hold one depth map [h, w], got {depth.dtype} of shape {list(depth.shape)}.")
    return _clean(depth)


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, or the one of an .npy file."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {path.stem: found}
        with found:
            return {name: found[name] for name in found.files}
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read as arrays of numbers, it may be cut short: {error}.") from error


def _by_name(cameras: dict[str, Camera], path: Path) -> dict[str, Camera]:
    """By plain names; names that would be confused are refused."""
    found: dict[str, Camera] = {}
    for name, camera in cameras.items():
        if _plain(name) in found:
            raise ValueError(f"--cameras {path} names two images {Path(name).stem!r}: which is meant cannot be told.")
        found[_plain(name)] = camera
    return found


def _plain(name: str) -> str:
    """Names without folder, suffix and the number that our own writers put before them; the rest as these write it."""
    return plain(OUR_NUMBER.sub("", Path(name).stem))


def _time_in_name(name: str) -> float | None:
    """TUM's and Bonn's images are named by their time."""
    stem = Path(name).stem
    return float(stem) if re.fullmatch(r"\d{6,}\.\d+", stem) else None


def _clean(depth: np.ndarray) -> np.ndarray:
    depth = np.asarray(depth, np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0)


def _rigid(pose: np.ndarray, where: str) -> np.ndarray:
    """A pose with an exact rotation; a scale common to its axes is no part of a camera."""
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0, 0, 0, 1]])
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise ValueError(f"{where} must hold finite matrices [4, 4], got shape {list(pose.shape)}.")
    u, singular, vt = np.linalg.svd(pose[:3, :3])
    if np.linalg.det(pose[:3, :3]) <= 0 or singular.min() < 0.99 * singular.max():
        raise ValueError(
            f"{where} holds a 3×3 block that is no rotation (singular values {np.round(singular, 3).tolist()})."
        )
    found = pose.copy()
    found[:3, :3] = u @ vt
    return found


def _pinhole(k: np.ndarray, where: str) -> np.ndarray:
    """Intrinsics that a camera can have."""
    if k.shape != (3, 3) or not np.isfinite(k).all() or not min(k[0, 0], k[1, 1]) > 0:
        raise ValueError(
            f"{where} must hold intrinsics [3, 3], finite and with positive focal lengths, got {k.tolist()}."
        )
    return k


def _json(path: Path) -> dict:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold an object, got {type(document).__name__}.")
    return document
