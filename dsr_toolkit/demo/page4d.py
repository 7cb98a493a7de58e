"""PAGE-4D: cameras, depth and what moves."""

from pathlib import Path

from .geometry import show

TITLE = "PAGE-4D: cameras, points and what moves"


def run(folder: Path, model: str | None = None) -> dict:
    return show("page4d", folder, model)
