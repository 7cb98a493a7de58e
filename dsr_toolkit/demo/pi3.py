"""π³: frames in any order to cameras and points."""

from pathlib import Path

from .geometry import show

TITLE = "π³: cameras and points of a video"


def run(folder: Path, model: str | None = None) -> dict:
    return show("pi3", folder, model)
