"""
Files that people open, written view by view: memory holds one view and, where a format needs it, a bounded sample of
    points.

A writer takes a folder, the number of points and an [`About`], gets every [`View`] in order through `add`, and
completes its files in `finish`, which returns their paths.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from ...extras import needs
from .base import OWN_SCALE, About, PointSample, Spread, cloud

__all__ = ["FORMATS", "OWN_SCALE", "About", "PointSample", "Spread", "check_formats", "cloud", "open_writers"]

# Imported when they are opened: the command line names the formats without loading what writes them.
WRITERS = {
    "glb": ("glb", "GlbWriter"),
    "html": ("page", "PageWriter"),
    "ply": ("tables", "PlyWriter"),
    "npz": ("arrays", "NpzWriter"),
    "colmap": ("colmap", "ColmapWriter"),
    "colmap-text": ("colmap", "ColmapWriter"),
    "nerfstudio": ("nerfstudio", "NerfstudioWriter"),
    "rrd": ("rerun", "RerunWriter"),
    "depth-video": ("video", "VideoWriter"),
    "tum": ("tables", "TumWriter"),
}
FORMATS = tuple(WRITERS)


def check_formats(formats: tuple[str, ...]) -> None:
    """Raise a ValueError or ImportError unless the writers of all `formats` can be opened."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(
            f"--format takes {', '.join(FORMATS)} or all, with commas; got {', '.join(unknown) or 'nothing'}."
        )
    if "rrd" in formats:
        needs("view", "The format rrd")


def open_writers(folder: Path, formats: tuple[str, ...], max_points: int, about: About = About()) -> dict:
    """The writers of `formats` (of `FORMATS`) in `folder`, which exists, by the first format that each writes."""
    check_formats(formats)
    writers = {}
    for name in dict.fromkeys(formats):
        if name == "colmap-text" and "colmap" in formats:
            continue
        more = {}
        if name.startswith("colmap"):
            more["formats"] = tuple(one for one in ("colmap", "colmap-text") if one in formats)
        module, writer = WRITERS[name]
        writers[name] = getattr(importlib.import_module(f".{module}", __package__), writer)(
            folder, max_points, about, **more
        )
    return writers
