"""
Whether the files of a COLMAP model are whole, before COLMAP reads them: its reader takes a file that was cut short for
an end, or reads without one.
"""

from __future__ import annotations

import mmap
import re
import struct
from contextlib import contextmanager
from pathlib import Path

import numpy as np

NEEDED, OPTIONAL = ("cameras", "images", "points3D"), ("rigs", "frames")
CLAIM = re.compile(r"# Number of \w+: (\d+)")
CURE = "Copy the model again, or write it anew with `colmap model_converter`."


def check_colmap(folder: Path) -> dict[int, str]:
    """
    The names of the images of the model in `folder` by number; COLMAP's reader of text ends a name at its first space.

    Raises:
        ValueError: names the file of the model in `folder` that is missing, ends too early or late, or contradicts
            itself or another.
    """
    for suffix in (".bin", ".txt"):  # COLMAP takes the binary files where all are there
        if all((folder / f"{name}{suffix}").is_file() for name in NEEDED):
            break
    else:
        suffix = ".bin" if (folder / "images.bin").is_file() else ".txt"
        missing = " and ".join(f"{name}{suffix}" for name in NEEDED if not (folder / f"{name}{suffix}").is_file())
        raise ValueError(
            f"--cameras {folder} holds images{suffix}, but not {missing}: a COLMAP model is all three files, though "
            "there may be no points (an empty points3D.txt)."
        )
    files = [folder / f"{name}{suffix}" for name in (*NEEDED, *OPTIONAL)]
    walks = _BINARY if suffix == ".bin" else _TEXT
    found = {path.stem: walks[path.stem](path) for path in files if path.is_file()}
    cameras, images = found["cameras"], found["images"]
    if not images:
        raise _broken(folder / f"images{suffix}", "it holds no image")
    for number, (camera, _) in images.items():
        if camera not in cameras:
            raise ValueError(
                f"{folder / 'images'}{suffix}: image {number} was taken by camera {camera}, which cameras{suffix} does "
                f"not hold; one of them is damaged. {CURE}"
            )
    return {number: name for number, (_, name) in images.items()}


def _broken(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is damaged: {what}. {CURE}")


# ---- binary -----------------------------------------------------------------------------


class _Bytes:
    """Reads a file from its start to its end, and nothing beyond it."""

    def __init__(self, path: Path, data):
        self.path, self.data, self.place, self.record = path, data, 0, "its count"

    def take(self, form: str) -> tuple:
        size = struct.calcsize("<" + form)
        self.skip(size)
        return struct.unpack_from("<" + form, self.data, self.place - size)

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.place:
            raise _broken(self.path, f"it ends after {len(self.data):,} bytes, within {self.record}")
        self.place += size

    def records(self, what: str):
        """The numbers 1 … n of its records; afterwards the file must end."""
        (count,) = self.take("Q")
        for number in range(1, count + 1):
            self.record = f"{what} {number:,} of the {count:,} of which its first bytes speak"
            yield number
        if self.place != len(self.data):
            more = len(self.data) - self.place
            raise _broken(self.path, f"{more:,} bytes follow the {count:,} {what}s of which its first bytes speak")


@contextmanager
def _opened(path: Path):
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise _broken(path, "it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _Bytes(path, data)


def _parameters(model: int | str) -> int | None:
    """How many numbers a camera model has, by its number or name."""
    import pycolmap

    models = pycolmap.CameraModelId
    known = [one for one in models.__members__.values() if one != models.INVALID]
    found = [one for one in known if model in (one.value, one.name)]
    return len(pycolmap.Camera.create_from_model_id(1, found[0], 1.0, 1, 1).params) if found else None


def _once(path: Path, found: dict, number: int, what: str) -> None:
    if number in found:
        raise _broken(path, f"it holds {what} {number} twice")


def _binary_cameras(path: Path) -> dict[int, bool]:
    found: dict[int, bool] = {}
    with _opened(path) as data:
        for _ in data.records("camera"):
            number, model, width, height = data.take("IiQQ")
            count = _parameters(model)
            if count is None:
                raise _broken(path, f"camera {number} has the unknown model {model}")
            _check_camera(path, number, width, height, data.take(f"{count}d"))
            _once(path, found, number, "camera")
            found[number] = True
    return found


def _binary_images(path: Path) -> dict[int, tuple[int, str]]:
    """Camera and name by number."""
    found: dict[int, tuple[int, str]] = {}
    with _opened(path) as data:
        for _ in data.records("image"):
            number, *pose, camera = data.take("I7dI")
            start, end = data.place, data.data.find(b"\0", data.place)
            data.skip(end + 1 - start if end >= 0 else len(data.data))
            name = data.data[start:end].decode(errors="surrogateescape")
            data.skip(24 * data.take("Q")[0])
            _check_pose(path, number, pose)
            _once(path, found, number, "image")
            found[number] = camera, name
    return found


def _binary_points(path: Path) -> None:
    with _opened(path) as data:
        for _ in data.records("point"):
            data.skip(43)
            data.skip(8 * data.take("Q")[0])


def _binary_rigs(path: Path) -> None:
    with _opened(path) as data:
        for _ in data.records("rig"):
            _, sensors = data.take("II")
            data.skip(8 * bool(sensors))
            for _ in range(sensors - 1):
                *_, has_pose = data.take("iIB")
                data.skip(56 * bool(has_pose))


def _binary_frames(path: Path) -> None:
    with _opened(path) as data:
        for _ in data.records("frame"):
            number, _, *pose, count = data.take("II7dI")
            _check_pose(path, number, pose, "frame")
            data.skip(16 * count)


# ---- text -------------------------------------------------------------------------------


def _lines(path: Path) -> tuple[list[tuple[int, str]], int | None]:
    """Numbered lines that are no comments, and how many records the file claims to have, where it does."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    lines = text.split("\n")
    claim = next((int(match[1]) for line in lines[:10] if (match := CLAIM.match(line))), None)
    if not lines[-1]:
        del lines[-1]
    elif claim is not None:  # who writes such a head ends every line
        raise _broken(path, f"its last line, {len(lines)}, has no end; it is cut short")
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if not line.startswith("#")], claim


def _numbers(path: Path, line: int, fields: list[str]) -> list[float]:
    try:
        return [float(field) for field in fields]
    except ValueError as error:
        raise _broken(path, f"line {line} holds what is no number ({error})") from error


def _whole(path: Path, line: int, field: str) -> int:
    try:
        return int(field)
    except ValueError as error:
        raise _broken(path, f"line {line} holds what is no whole number ({error})") from error


def _counted(path: Path, claim: int | None, count: int, what: str) -> None:
    if claim is not None and claim != count:
        raise _broken(path, f"its head speaks of {claim:,} {what}s, and it holds {count:,}")


def _text_cameras(path: Path) -> dict[int, bool]:
    found: dict[int, bool] = {}
    lines, claim = _lines(path)
    for line, text in lines:
        if not text:
            continue
        fields = text.split()
        count = _parameters(fields[1]) if len(fields) > 1 else None
        if count is None or len(fields) != 4 + count:
            raise _broken(path, f"line {line} is not `CAMERA_ID MODEL WIDTH HEIGHT` and as many numbers as MODEL has")
        number, (width, height, *values) = _whole(path, line, fields[0]), _numbers(path, line, fields[2:])
        _once(path, found, number, "camera")
        _check_camera(path, number, width, height, values)
        found[number] = True
    _counted(path, claim, len(found), "camera")
    return found


def _text_images(path: Path) -> dict[int, tuple[int, str]]:
    """
    Camera and name by number. Two lines an image, of which the second, its 2-D points, may be empty; COLMAP leaves out
    an image without it.
    """
    found: dict[int, tuple[int, str]] = {}
    lines, claim = _lines(path)
    rest = iter(lines)
    for line, text in rest:
        if not text:
            continue
        fields = text.split(maxsplit=9)
        if len(fields) < 10:
            raise _broken(path, f"line {line} is not `IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME`")
        number, camera = (_whole(path, line, field) for field in (fields[0], fields[8]))
        _once(path, found, number, "image")
        _check_pose(path, number, _numbers(path, line, fields[1:8]))
        found[number] = camera, fields[9]
        line, text = next(rest, (line, None))
        if text is None:
            what = f"it ends after line {line}, and the line of the points of image {number}, which may be empty,"
            raise _broken(path, f"{what} is missing")
        if len(text.split()) % 3:
            raise _broken(path, f"line {line} is not made of `X Y POINT3D_ID`; it may be cut short")
    _counted(path, claim, len(found), "image")
    return found


def _text_points(path: Path) -> None:
    lines, claim = _lines(path)
    lines = [(line, len(text.split())) for line, text in lines if text]
    for line, count in lines:
        if count < 8 or count % 2:
            raise _broken(path, f"line {line} is not `POINT3D_ID X Y Z R G B ERROR` and pairs `IMAGE_ID POINT2D_IDX`")
    _counted(path, claim, len(lines), "point")


def _text_rigs(path: Path) -> None:
    lines, claim = _lines(path)
    _counted(path, claim, sum(bool(text) for _, text in lines), "rig")


def _text_frames(path: Path) -> None:
    lines, claim = _lines(path)
    _counted(path, claim, sum(bool(text) for _, text in lines), "frame")


# ---- both -------------------------------------------------------------------------------


def _check_camera(path: Path, number: int, width: float, height: float, values) -> None:
    if not (0 < width < 2**31 and 0 < height < 2**31 and np.isfinite(values).all()):
        raise _broken(path, f"camera {number} has {width} × {height} pixels and the parameters {list(values)}")


def _check_pose(path: Path, number: int, pose, what: str = "image") -> None:
    length = np.linalg.norm(pose[:4])
    if not (np.isfinite(pose).all() and 0.99 < length < 1.01):
        raise _broken(path, f"{what} {number} has no rotation, its quaternion has the length {length:.4g}")


_BINARY = {
    "cameras": _binary_cameras, "images": _binary_images, "points3D": _binary_points, "rigs": _binary_rigs,
    "frames": _binary_frames,
}  # fmt: skip
_TEXT = {
    "cameras": _text_cameras, "images": _text_images, "points3D": _text_points, "rigs": _text_rigs,
    "frames": _text_frames,
}  # fmt: skip
