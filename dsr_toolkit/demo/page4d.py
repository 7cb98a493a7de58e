"""PAGE-4D: cameras, depth and what moves."""

from pathlib import Path

from .geometry import show
from .page import Panel

TITLE = "PAGE-4D: depth, cameras and what moves"


def run(folder: Path, model: str | None = None) -> tuple[dict, Panel]:
    return show("page4d", TITLE, folder, model)
