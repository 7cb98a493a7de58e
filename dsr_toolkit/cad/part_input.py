"""What `dsr cad` is given: parts and programs. What can be seen to be wrong is refused before anything large is
imported."""

from __future__ import annotations

import json
from pathlib import Path

MESHES, CLOUDS, PICTURES = (
    (".stl", ".ply", ".obj", ".step", ".stp"),
    (".npy", ".xyz", ".txt", ".csv", ".asc", ".pts"),
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"),
)
BEGINNINGS = {  # of files that have one
    ".step": b"ISO-10303-21", ".stp": b"ISO-10303-21", ".ply": b"ply", ".npy": b"\x93NUMPY", ".png": b"\x89PNG",
    ".jpg": b"\xff\xd8", ".jpeg": b"\xff\xd8",
}  # fmt: skip


def kind_of(paths: list[str]) -> str:
    """
    "mesh", "cloud" or "views", by names and first bytes.

    Raises:
        ValueError: a file is missing, empty, of no known kind or not what its name says, or there are too many.
    """
    files = [Path(path) for path in paths]
    for path in files:
        if not path.is_file():
            raise ValueError(f"there is no file at {str(path)!r}.")
    suffixes = {path.suffix.lower() for path in files}
    if not suffixes <= set(PICTURES) and len(files) > 1:
        raise ValueError("one mesh or cloud at a time; only pictures come in several.")
    for path in files:
        suffix = path.suffix.lower()
        if suffix not in MESHES + CLOUDS + PICTURES:
            raise ValueError(f"{path.name!r}: expected one of {', '.join(MESHES + CLOUDS + PICTURES)}.")
        with open(path, "rb") as file:
            start = file.read(64)
        if not start:
            raise ValueError(f"{path.name!r} is empty.")
        if not start.lstrip(b"\xef\xbb\xbf \r\n").startswith(BEGINNINGS.get(suffix, b"")):
            raise ValueError(f"{path.name!r} is named like a {suffix[1:].upper()} file and is none: {start[:12]!r}.")
    return "views" if suffixes <= set(PICTURES) else "mesh" if suffixes <= set(MESHES) else "cloud"


def read_input(kind: str, paths: list[str]) -> tuple[str, object]:
    """
    ("mesh", `TriangleMesh`), ("cloud", array `[P, 3]`) or ("views", picture); a PLY file is what it holds.

    Args:
        kind: from `kind_of`.
    """
    import numpy as np

    from modeling_dsr.cad_files import load_part
    from modeling_dsr.cad_views import compose_views
    from modeling_dsr.image_reader import read_image

    if kind == "views":
        views = [read_image(path) for path in paths]
        return kind, views[0] if len(views) == 1 else compose_views(views)
    part = load_part(paths[0])
    if not isinstance(part, np.ndarray):
        return "mesh", part
    if not np.isfinite(part).all():
        raise ValueError(f"{Path(paths[0]).name!r} holds NaN or infinite coordinates. Remove those points.")
    return "cloud", part[:, :3]


def read_programs(paths: list[str]) -> list[str]:
    """Programs of .py files and of .json files that hold a list of texts."""
    programs = []
    for path in map(Path, paths):
        if not path.is_file():
            raise ValueError(f"there is no file at {str(path)!r}.")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text: {error}") from error
        if path.suffix.lower() != ".json":
            programs.append(text)
            continue
        try:
            listed = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if not isinstance(listed, list) or not all(isinstance(program, str) for program in listed):
            raise ValueError(f"{path} must hold a list of programs as texts.")
        programs += listed
    if not programs:
        raise ValueError("--programs holds no program.")
    return programs
