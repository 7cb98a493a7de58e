"""What a row of the input may say, by task. Column names are those of the endpoint's inputs."""

from __future__ import annotations

from pathlib import Path

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".gif")
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".flv", ".3gp")
PARTS = (".stl", ".ply", ".obj", ".step", ".stp", ".npy", ".xyz", ".pts", ".asc")

# Task -> column -> kind. "file", "files", "cameras" (files by name) are paths, or bytes where a data set embeds them.
COLUMNS = {
    "ask": {"question": "texts", "video": "file", "images": "files"},
    "reconstruct": {"video": "file", "images": "files"},
    "segment": {"image": "file", "phrases": "texts", "caption": "text", "question": "text"},
    "cad": {"part": "file", "points": "cloud", "images": "files", "text": "text"},
    "scene": {"images": "cameras", "calibration": "object", "question": "texts"},
}
# Other names for the same, as data sets have them.
SYNONYMS = {"questions": "question", "image": "images", "phrase": "phrases", "prompt": "text", "mesh": "part"}
# The columns that stand for a single file of a folder, by suffix.
BY_SUFFIX = {
    "ask": {**dict.fromkeys(VIDEOS, "video"), **dict.fromkeys(IMAGES, "images")},
    "reconstruct": {**dict.fromkeys(VIDEOS, "video")},
    "segment": dict.fromkeys(IMAGES, "image"),
    "cad": {**dict.fromkeys(PARTS, "part"), **dict.fromkeys(IMAGES, "images")},
    "scene": {},
}
CAMERA_FILE, CALIBRATION = "CAM_", "calibration.json"  # of a scene's folder


class ItemError(ValueError):
    """What is wrong with one item; `code` is one of the endpoint's `ERRORS`."""

    def __init__(self, code: str, message: str):
        self.code, self.message = code, message
        super().__init__(message)


def column_of(task: str, name: str) -> str | None:
    """The column that a name of the input means; None if it means none."""
    return next((one for one in (name, SYNONYMS.get(name)) if one in COLUMNS[task]), None)


def inputs_of(task: str, row: dict, folder: Path | None) -> dict:
    """
    Inputs of a row of the input, in a form that JSON takes, but for bytes.

    Args:
        folder: that relative paths start from; None leaves them as they are.

    Raises:
        ItemError: a value of the wrong kind.
    """
    inputs = {}
    for name, value in row.items():
        column = column_of(task, name)
        if column is None or value is None or value == "" or value == []:
            continue
        if column in inputs:
            raise ItemError("bad_request", f"`{name}` says the same as another column; leave one out.")
        inputs[column] = READERS[COLUMNS[task][column]](name, value, folder)
    return inputs


def _text(name: str, value, folder) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise ItemError("bad_request", f"`{name}` must be a text, got {_shown(value)}.")
    return value


def _texts(name: str, value, folder) -> list:
    values = value if isinstance(value, list) else [value]
    for one in values:
        if one is not None and not isinstance(one, str):
            raise ItemError("bad_request", f"`{name}` must be a text or a list of texts, got {_shown(one)}.")
    return [one or "" for one in values]


def _file(name: str, value, folder) -> str | bytes:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():  # as data sets hold files
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise ItemError("bad_request", f"`{name}` must be the path of a file, got {_shown(value)}.")
    if "://" in value or value.startswith("data:"):
        raise ItemError("bad_request", f"`{name}` must be the path of a file; addresses are not opened.")
    return value if folder is None else str(folder / value)


def _files(name: str, value, folder) -> list:
    values = value if isinstance(value, list) else [value]
    return [_file(f"{name}[{number}]", one, folder) for number, one in enumerate(values)]


def _cameras(name: str, value, folder) -> dict:
    if not isinstance(value, dict):
        raise ItemError("bad_request", f"`{name}` must be files by camera name, got {_shown(value)}.")
    return {camera: _file(f"{name}.{camera}", one, folder) for camera, one in value.items() if one is not None}


def _cloud(name: str, value, folder):
    """Rows of numbers, or a file of them."""
    return value if isinstance(value, list) and len(value) > 1 else _file(name, value, folder)


def _object(name: str, value, folder) -> dict:
    if not isinstance(value, dict):
        raise ItemError("bad_request", f"`{name}` must be an object, got {_shown(value)}.")
    return value


READERS = {
    "text": _text, "texts": _texts, "file": _file, "files": _files, "cameras": _cameras, "cloud": _cloud,
    "object": _object,
}  # fmt: skip


def _shown(value) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"
