"""Image sequences with true cameras and depth, in the folders in which they are published."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..reconstruction.inputs import TIME_FOLDER, is_multiview, multiview_files

LAYOUTS = ("tum", "bonn", "sintel", "kitti", "room", "multiview")
# The sequences on which camera motion is scored; the others hardly move or have no usable truth.
SINTEL_POSE = (
    "alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2", "market_5", "market_6", "shaman_3",
    "sleeping_1", "sleeping_2", "temple_2", "temple_3",
)  # fmt: skip
SINTEL_DEPTH_SKIPPED = ("market_5",)
SINTEL_TAG = 202021.25
LARGEST_GAP = 0.02  # seconds between a TUM colour image and the depth image, or the pose, of the same moment


@dataclass
class Sequence:
    """
    Args:
        name: of the sequence. layout: one of `LAYOUTS`.
        images: files, in order. times: seconds, or numbers, of each.
        poses: true camera-to-world `[M, 4, 4]`, or None. pose_times: `[M]`, on the clock of `times`.
        depth: number of an image → true depth float32 `[h, w]`, z, 0 where unknown; or None. Reads the file when asked.
        intrinsics: `[N, 3, 3]` in pixels of the images, or None.
        has_depth: bool `[N]`, which images have a true depth; None: all, if `depth` is there.
    """

    name: str
    layout: str
    images: list[Path]
    times: list[float]
    poses: np.ndarray | None = None
    pose_times: list[float] | None = None
    depth: Callable[[int], np.ndarray] | None = None
    intrinsics: np.ndarray | None = None
    has_depth: np.ndarray | None = None

    def first(self, count: int) -> Sequence:
        """Its first `count` images; poses stay, since they are matched by time."""
        if count >= len(self.images):
            return self
        same = self.poses is not None and len(self.poses) == len(self.images)
        keep = lambda values: None if values is None else values[:count]  # noqa: E731
        poses, times = (keep(self.poses), keep(self.pose_times)) if same else (self.poses, self.pose_times)
        return Sequence(
            self.name,
            self.layout,
            self.images[:count],
            self.times[:count],
            poses,
            times,
            self.depth,
            keep(self.intrinsics),
            keep(self.has_depth),
        )


def find_sequences(root: str | Path, layout: str | None = None) -> list[Sequence]:
    """
    The sequences of a folder.

    Args:
        root: TUM or Bonn: a sequence (`rgb` or `rgb_90`, `groundtruth.txt`) or a folder of sequences; Sintel: what
            holds `final` or `clean` beside `camdata_left` and `depth`, or its parent; KITTI: `image_gathered` and
            `groundtruth_depth_gathered`, or `sequences` and `poses`; room: `condition.npz` beside numbered images;
            multiview: `time_XX/viewY` with `geometry.npz`.
        layout: one of `LAYOUTS`; default: what the folder looks like.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"there is no folder at {str(root)!r}.")
    if layout is None:
        layout = next((name for name in LAYOUTS if READERS[name](root, True)), None)
        if layout is None:
            raise ValueError(
                f"{root} looks like none of the layouts {', '.join(LAYOUTS)}; `dsr eval` reads folders as they are "
                "published. Pass --layout to see what is missing."
            )
    sequences = READERS[layout](root, False)
    if not sequences:
        raise ValueError(f"{root} holds no {layout} sequence; expected {EXPECTED[layout]}.")
    return sorted(sequences, key=lambda sequence: sequence.name)


def _images(folder: Path) -> list[Path]:
    from modeling_dsr.image_reader import list_images

    if not folder.is_dir():
        return []
    return list_images(folder)[0]


def _depth_png(scale: float) -> Callable[[Path], np.ndarray]:
    """Reader of 16-bit images that hold depth · `scale`, 0 where unknown."""

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            if image.mode not in ("I;16", "I;16B", "I"):
                raise ValueError(f"{path} must be a 16-bit grey image of depths, got mode {image.mode!r}.")
            return np.asarray(image).astype(np.float32) / scale

    return read


def _numbers(path: Path, columns: int) -> np.ndarray:
    """Rows of numbers; lines that start with # are comments."""
    try:
        rows = np.loadtxt(path, comments="#", ndmin=2, encoding="utf-8-sig")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as rows of {columns} numbers: {error}.") from error
    if rows.shape[1] != columns or not np.isfinite(rows).all():
        raise ValueError(f"{path} must hold rows of {columns} finite numbers, got {rows.shape[1]} columns.")
    return rows


def read_trajectory(path: Path) -> tuple[np.ndarray, list[float]]:
    """Poses `[M, 4, 4]` and times of a file in TUM's format: `time tx ty tz qx qy qz qw`."""
    import torch

    from modeling_dsr.pose import quaternion_to_matrix

    rows = _numbers(path, 8)
    lengths = np.linalg.norm(rows[:, 4:], axis=1)
    if not lengths.all():
        raise ValueError(f"{path} holds a quaternion of length 0, expected rotations qx qy qz qw.")
    wrong = np.abs(lengths - 1)
    if wrong[-1] > 1e-3 + 10 * wrong[:-1].max(initial=0) and not path.read_bytes().endswith(b"\n"):
        raise ValueError(
            f"{path} was cut short: its last line has no end, and a quaternion of length {lengths[-1]:.3g}. Copy the "
            "file again, or take the line out."
        )
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = quaternion_to_matrix(torch.from_numpy(rows[:, 4:].copy())).numpy()
    poses[:, :3, 3] = rows[:, 1:4]
    return poses, rows[:, 0].tolist()


# --------------------------------------------------------------------------------------
# Layouts. A reader tells whether a folder is of its layout (`only_look`), or reads the sequences.
# --------------------------------------------------------------------------------------


def _tum(root: Path, only_look: bool, layout: str = "tum"):
    """TUM and Bonn RGB-D: images named by time; the cut versions have a number of frames in their names (rgb_90,
    rgb_110)."""
    folders = (
        [root] if any(root.glob("groundtruth*.txt")) else [path for path in sorted(root.iterdir()) if path.is_dir()]
    )
    found = []
    for folder in folders:
        truths = sorted(folder.glob("groundtruth*.txt"), key=lambda path: -len(path.name))  # a cut version first
        colour = next(
            (path for path in sorted(folder.glob("rgb*"), key=lambda path: -len(path.name)) if path.is_dir()), None
        )
        if not truths or colour is None:
            continue
        bonn = "bonn" in folder.name.lower() or "bonn" in root.name.lower()
        if (layout == "bonn") != bonn:
            continue
        if only_look:
            return True
        suffix = colour.name.removeprefix("rgb")
        truth = next((path for path in truths if path.stem == f"groundtruth{suffix}"), truths[-1])
        images = sorted(_images(colour), key=lambda path: float(path.stem))
        poses, pose_times = read_trajectory(truth)
        times = [float(path.stem) for path in images]
        depths = sorted(
            _images(folder / f"depth{suffix}") or _images(folder / "depth"), key=lambda path: float(path.stem)
        )
        depth, has_depth = None, None
        if depths:
            depth = _nearest_depth(times, depths, folder)
            if len(depths) != len(times):
                has_depth = gaps(times, [float(path.stem) for path in depths]) <= LARGEST_GAP
        found.append(Sequence(folder.name, layout, images, times, poses, pose_times, depth, has_depth=has_depth))
    return found


def gaps(times, others) -> np.ndarray:
    """How far each of `times` `[N]` is from the nearest of `others` `[M]`."""
    times, others = np.asarray(times, float), np.sort(np.asarray(others, float))
    after = np.searchsorted(others, times).clip(1, max(len(others) - 1, 1))
    return np.minimum(np.abs(times - others[after - 1]), np.abs(times - others[after.clip(max=len(others) - 1)]))


def _nearest_depth(times: list[float], files: list[Path], folder: Path) -> Callable[[int], np.ndarray]:
    read, moments = _depth_png(5000.0), np.array([float(path.stem) for path in files])

    def depth(index: int) -> np.ndarray:
        nearest = int(np.abs(moments - times[index]).argmin())
        if len(files) != len(times) and abs(moments[nearest] - times[index]) > LARGEST_GAP:
            raise ValueError(
                f"{folder} has no depth image within {LARGEST_GAP} s of the colour image at {times[index]} s."
            )
        return read(files[index if len(files) == len(times) else nearest])

    return depth


def _bonn(root: Path, only_look: bool):
    return _tum(root, only_look, "bonn")


def _sintel(root: Path, only_look: bool):
    base = next(
        (path for path in (root, root / "training") if (path / "final").is_dir() or (path / "clean").is_dir()), None
    )
    if base is None or only_look:
        return base is not None
    colour, found = base / ("final" if (base / "final").is_dir() else "clean"), []
    for folder in sorted(path for path in colour.iterdir() if path.is_dir()):
        images = _images(folder)
        cameras = [base / "camdata_left" / folder.name / f"{path.stem}.cam" for path in images]
        depths = [base / "depth" / folder.name / f"{path.stem}.dpt" for path in images]
        poses = intrinsics = None
        if images and all(path.is_file() for path in cameras):
            intrinsics, poses = (np.stack(values) for values in zip(*map(read_sintel_camera, cameras)))
        has_depth = bool(images) and all(path.is_file() for path in depths)
        depth = (lambda index, files=depths: read_sintel_depth(files[index])) if has_depth else None
        times = [float(number) for number in range(len(images))]
        found.append(
            Sequence(
                folder.name, "sintel", images, times, poses, times if poses is not None else None, depth, intrinsics
            )
        )
    return found


def _sintel_floats(path: Path, dtype: str) -> np.ndarray:
    data = path.read_bytes()
    if len(data) < 4 or np.frombuffer(data[:4], "<f4")[0] != np.float32(SINTEL_TAG):
        raise ValueError(f"{path} does not start with Sintel's tag {SINTEL_TAG}; it is damaged or another format.")
    body = data[4 : 4 + (len(data) - 4) // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize]
    return np.frombuffer(body, dtype)


def read_sintel_depth(path: Path) -> np.ndarray:
    """Depth float32 `[h, w]` of a .dpt file."""
    values = _sintel_floats(path, "<f4")
    width, height = (int(x) for x in values[:2].view("<i4"))
    if width < 1 or height < 1 or values.size != 2 + width * height:
        raise ValueError(f"{path} announces {width}×{height} depths and holds {values.size - 2}; it is damaged.")
    return values[2:].reshape(height, width).copy()


def read_sintel_camera(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics `[3, 3]` and camera-to-world `[4, 4]` of a .cam file, which holds world-to-camera."""
    values = _sintel_floats(path, "<f8")
    if values.size != 21:
        raise ValueError(f"{path} must hold 9 + 12 numbers, got {values.size}; it is damaged.")
    extrinsics = np.vstack([values[9:].reshape(3, 4), [0, 0, 0, 1]])
    return values[:9].reshape(3, 3).copy(), np.linalg.inv(extrinsics)


def _kitti(root: Path, only_look: bool):
    """Odometry, with poses; or the gathered depth selection."""
    for base in (root, root / "dataset"):
        if (base / "sequences").is_dir() and (base / "poses").is_dir():
            return True if only_look else _kitti_odometry(base)
    for base in (root, root / "val_selection_cropped", root / "depth_selection" / "val_selection_cropped"):
        if (base / "image_gathered").is_dir() and (base / "groundtruth_depth_gathered").is_dir():
            return True if only_look else _kitti_depth(base)
    return [] if not only_look else False


def _kitti_odometry(base: Path) -> list[Sequence]:
    found = []
    for file in sorted((base / "poses").glob("*.txt")):
        folder = base / "sequences" / file.stem
        images = _images(folder / "image_2") or _images(folder / "image_0")
        if not images:
            continue
        rows = _numbers(file, 12)
        if len(rows) != len(images):
            raise ValueError(f"{file} holds {len(rows)} poses for {len(images)} images.")
        poses = np.tile(np.eye(4), (len(rows), 1, 1))
        poses[:, :3] = rows.reshape(-1, 3, 4)
        clock = folder / "times.txt"
        times = (
            _numbers(clock, 1)[:, 0].tolist() if clock.is_file() else [float(number) for number in range(len(images))]
        )
        if len(times) != len(images):
            raise ValueError(f"{clock} holds {len(times)} times for {len(images)} images.")
        found.append(Sequence(file.stem, "kitti", images, times, poses, times))
    return found


def _kitti_depth(base: Path) -> list[Sequence]:
    found, read = [], _depth_png(256.0)
    truths = {path.name: path for path in (base / "groundtruth_depth_gathered").iterdir() if path.is_dir()}
    for folder in sorted(path for path in (base / "image_gathered").iterdir() if path.is_dir()):
        images = _images(folder)
        files = _images(truths.get(folder.name, base / "groundtruth_depth_gathered" / folder.name))
        if len(files) != len(images):
            raise ValueError(f"{folder} holds {len(images)} images and {len(files)} depth maps; each needs its own.")
        depth = lambda index, files=files: read(files[index])  # noqa: E731
        found.append(Sequence(folder.name, "kitti", images, [float(i) for i in range(len(images))], depth=depth))
    return found


def _arrays(path: Path, names: tuple[str, ...], count: int) -> dict[str, np.ndarray]:
    """Arrays of an .npz file, with a row per image each; pickled objects are refused by numpy."""
    with np.load(path) as file:
        missing = [name for name in names if name not in file.files]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(file.files)}.")
        arrays = {name: file[name] for name in names}
    for name, value in arrays.items():
        if len(value) != count:
            raise ValueError(f"{path}: `{name}` has {len(value)} rows for {count} images.")
    return arrays


def _known(depth: np.ndarray) -> np.ndarray:
    depth = depth.astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0)


def _room(root: Path, only_look: bool):
    if not (root / "condition.npz").is_file() or only_look:
        return (root / "condition.npz").is_file()
    numbered = sorted((int(path.stem), path) for path in _images(root) if re.fullmatch(r"\d+", path.stem))
    images = [path for _, path in numbered]
    data = _arrays(root / "condition.npz", ("intrinsics", "poses", "depths"), len(images))
    times = [float(number) for number in range(len(images))]
    depth = lambda index: _known(data["depths"][index])  # noqa: E731
    poses, intrinsics = data["poses"].astype(float), data["intrinsics"].astype(float)
    return [Sequence(root.resolve().name, "room", images, times, poses, times, depth, intrinsics)]


def _multiview(root: Path, only_look: bool):
    """Each time is a sequence of its views."""
    marked = is_multiview(root) and any(
        (path / "geometry.npz").is_file() for path in root.iterdir() if TIME_FOLDER.fullmatch(path.name)
    )
    if not marked or only_look:
        return marked
    found = []
    for name, images in multiview_files(root).items():
        data = _arrays(root / name / "geometry.npz", ("depth", "intrinsics", "extrinsics"), len(images))
        extrinsics = np.tile(np.eye(4), (len(images), 1, 1))
        extrinsics[:, :3] = data["extrinsics"]
        times = [float(number) for number in range(len(images))]
        depth = lambda index, data=data: _known(data["depth"][index])  # noqa: E731
        intrinsics = data["intrinsics"].astype(float)
        found.append(Sequence(name, "multiview", images, times, np.linalg.inv(extrinsics), times, depth, intrinsics))
    return found


READERS = {"tum": _tum, "bonn": _bonn, "sintel": _sintel, "kitti": _kitti, "room": _room, "multiview": _multiview}
EXPECTED = {
    "tum": "folders with groundtruth.txt and rgb",
    "bonn": "folders with groundtruth.txt and rgb, and `bonn` in a name",
    "sintel": "final or clean, camdata_left, depth",
    "kitti": "sequences and poses, or image_gathered and groundtruth_depth_gathered",
    "room": "condition.npz and 0.png, 1.png, …",
    "multiview": "time_XX folders with viewY.png and geometry.npz",
}
