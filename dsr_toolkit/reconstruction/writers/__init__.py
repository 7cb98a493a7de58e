"""
Files that people open, written view by view: memory holds one view and, where a format needs it, a bounded sample of
    points.

A writer takes a folder, the number of points and an [`About`], gets every [`View`] in order through `add`, and
completes its files in `finish`, which returns their paths.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from ..formats import FORMATS, WRITERS, check_formats
from .base import OWN_SCALE, About, PointSample, Spread, cloud

__all__ = ["FORMATS", "OWN_SCALE", "About", "PointSample", "Spread", "check_formats", "cloud", "open_writers"]


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
