"""Example inputs of the Space, which lie beside it in `space_files`: a clip, frames of it, a part, a street through six
cameras. `python -m dsr_toolkit.demo.space_examples` made them from the worlds that the tiny models learn."""

import json
import shutil
from pathlib import Path

FOLDER = Path(__file__).parent / "space_files"
CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
TEXTS = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))


def write(folder: Path) -> dict:
    """Copies the files to `folder`; returns their paths by what they show."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    return {
        "video": folder / "clip.mp4",
        "room": sorted(folder.glob("room-*.png")),
        "street": {name: folder / f"{name}.png" for name in CAMERAS},
        "calibration": folder / "calibration.json",
        "part": folder / "part.stl",
    }
