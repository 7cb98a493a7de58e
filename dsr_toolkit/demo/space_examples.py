"""What the Space shows at first, from the worlds (`python -m dsr_toolkit.demo.space_examples`, in the source tree)."""

import json
import shutil
from pathlib import Path

from PIL import Image

from convert_weights.repository.files import beside

from ..worlds.parts import PartsWorld
from ..worlds.surround import SurroundWorld
from ..worlds.surround_export import write_scene
from . import cad, clip, scene_qformer
from .frozen_qwen_sam import PHRASES

VIEWS = (0, 16, 32)  # frames of the clip
ASKED = "direction"  # type of the question about the street


def write(folder: Path) -> Path:
    """Into a new folder: `clip.mp4`, `room-N.png`, `CAMERA.png` with `calibration.json`, `part.stl`, `texts.json`."""
    import trimesh

    street, part = SurroundWorld(scene_qformer.SEED)[scene_qformer.INDEX], PartsWorld(cad.SEED)[cad.INDEX]
    seen = clip.sample()
    write_scene(street, folder)
    shutil.copyfile(clip.CLIP, folder / "clip.mp4")
    for number, frame in enumerate(VIEWS):
        Image.fromarray(seen.images[frame]).save(folder / f"room-{number}.png")
    (folder / "part.stl").write_bytes(trimesh.exchange.stl.export_stl(trimesh.Trimesh(*part.mesh())))
    question, about_street = clip.question(seen), next(one for one in street.questions if one.type == ASKED)
    texts = {
        "ask": question.prompt,
        "ask_true": f"{question.letter} {question.options[question.answer]}",
        "segment": ", ".join(PHRASES),
        "scene": about_street.text,
        "scene_true": about_street.answer,
        "program": part.program,
    }
    (folder / "texts.json").write_text(json.dumps(texts, indent=1) + "\n", encoding="utf-8")
    return folder


if __name__ == "__main__":
    shutil.rmtree(beside("hub") / "space_files", ignore_errors=True)
    print(write(beside("hub") / "space_files"))
