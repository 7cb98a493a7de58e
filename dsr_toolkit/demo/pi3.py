"""π³: frames in any order to cameras and points."""

from pathlib import Path

from .geometry import show
from .page import Panel

TITLE = "π³: cameras, depth and points of a video"


def run(folder: Path, model: str | None = None) -> tuple[dict, Panel]:
    return show("pi3", TITLE, folder, model)
