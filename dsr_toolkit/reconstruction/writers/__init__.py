"""
Files that people open, written view by view: memory holds one view and, where a format needs it, a bounded sample of points.

A writer takes a folder, the number of points and an [`About`], gets every [`View`] in order through `add`, and completes its
files in `finish`, which returns their paths.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from .arrays import NpzWriter
from .base import OWN_SCALE, About, PointSample, Spread, cloud
from .colmap import ColmapWriter
from .glb import GlbWriter
from .nerfstudio import NerfstudioWriter
from .page import PageWriter
from .rerun import RerunWriter
from .tables import PlyWriter, TumWriter
from .video import VideoWriter

__all__ = ["FORMATS", "OWN_SCALE", "About", "PointSample", "Spread", "cloud", "open_writers"]

WRITERS = {
    "glb": GlbWriter,
    "html": PageWriter,
    "ply": PlyWriter,
    "npz": NpzWriter,
    "colmap": ColmapWriter,
    "colmap-text": ColmapWriter,
    "nerfstudio": NerfstudioWriter,
    "rrd": RerunWriter,
    "depth-video": VideoWriter,
    "tum": TumWriter,
}
FORMATS = tuple(WRITERS)


def check_formats(formats: tuple[str, ...]) -> None:
    """Raise a ValueError or ImportError unless the writers of all `formats` can be opened."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(
            f"--format takes {', '.join(FORMATS)} or all, with commas; got {', '.join(unknown) or 'nothing'}."
        )
    if "rrd" in formats and importlib.util.find_spec("rerun") is None:
        raise ImportError('rrd needs rerun-sdk: pip install "dsr-models[view]".')


def open_writers(folder: Path, formats: tuple[str, ...], max_points: int, about: About = About()) -> dict:
    """The writers of `formats` (of `FORMATS`) in `folder`, which exists, by the first format that each writes."""
    check_formats(formats)
    writers = {}
    for name in dict.fromkeys(formats):
        if name == "colmap-text" and "colmap" in formats:
            continue
        more = {}
        if WRITERS[name] is ColmapWriter:
            more["formats"] = tuple(one for one in ("colmap", "colmap-text") if one in formats)
        writers[name] = WRITERS[name](folder, max_points, about, **more)
    return writers
