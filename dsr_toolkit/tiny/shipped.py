"""The tiny models that this library trained on its worlds and carries along: a converted folder each in `assets/tiny`.

`python -m dsr_toolkit.training.ship` puts them there. Beside weights and code lie `recipe.json`, which repeats the
training, and `figures.json`, what was measured on samples that were never trained on.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "assets" / "tiny"
FIGURES = "figures.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Tiny:
    """
    What is known of a tiny model before it is measured.

    Args:
        world: of `dsr_toolkit.worlds`, on which it was trained.
        knows: what it knows, as it is told to people.
        larger: the published model of its kind. parameters: of that one, language model and towers included.
        targets: {figure of `dsr eval world`: what it should reach}; parts of figures are named as in "by_input.text".
    """

    world: str
    knows: str
    larger: str
    parameters: int
    targets: dict[str, float]


LOWER_IS_BETTER = ("rotation_error_median",)
# Parameters are counted in the published checkpoints' headers, those of the scene Q-Former in its published design.
MODELS = {
    "dsr": Tiny(
        "space", "what moves where in short clips of coloured things", "DSR", 9_159_344_128, {"accuracy": 0.85}
    ),
    "pi3": Tiny(
        "space", "depth and cameras of rooms with coloured things", "π³", 958_696_738,
        {"abs_rel_ratio": 3.0, "rotation_error_median": 5.0},
    ),
    "page4d": Tiny(
        "space", "depth, cameras and what moves in rooms with coloured things", "PAGE-4D", 1_256_810_413,
        {"abs_rel_ratio": 3.0, "rotation_error_median": 5.0, "mask_iou": 0.7},
    ),
    "page4d_multiview": Tiny(
        "space", "rooms with coloured things, seen by several cameras at once", "the multi-view PAGE-4D", 1_513_268_668,
        {"mask_iou": 0.7},
    ),
    "frozen_qwen_sam": Tiny(
        "space", 'masks of coloured things for phrases like "the box behind it"', "F-LMM with Qwen2.5-VL-3B and SAM-L",
        4_079_070_021, {"ciou": 0.7},
    ),
    "cadrille": Tiny(
        "parts", "programs of simple parts (boxes, plates, brackets, flanges, …)", "Cadrille", 2_209_065_472,
        {"valid": 0.98, "median_iou": 0.9, "by_input.views.median_iou": 0.75, "by_input.text.median_iou": 0.75},
    ),
    "cad_recode": Tiny(
        "parts", "programs of simple parts (boxes, plates, brackets, flanges, …)", "CAD-Recode", 1_543_794_176,
        {"valid": 0.98, "median_iou": 0.9},
    ),
    "scene_qformer": Tiny(
        "surround", "what is where in a drawn street, through the six cameras of a car",
        "the published design with its language model", 6_774_340_342, {"accuracy": 0.85},
    ),
}  # fmt: skip


def shipped() -> list[str]:
    """Names of the models that are carried."""
    return [name for name in MODELS if (FOLDER / name / WEIGHTS).is_file()]


def parameters(name: str) -> int:
    """Of a carried model, from the header of its weights."""
    from safetensors import safe_open

    with safe_open(FOLDER / name / WEIGHTS, "pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())


def figures(name: str) -> dict:
    """What was measured of a carried model, see `dsr_toolkit.training.ship.measure`."""
    return json.loads((FOLDER / name / FIGURES).read_text(encoding="utf-8"))


def about(name: str) -> str:
    """What a carried model is and knows, in a line."""
    tiny = MODELS[name]
    size = f"{tiny.parameters / parameters(name):,.0f} times smaller than {tiny.larger}"
    return f"a tiny model of the {tiny.world} world, {size}: it knows {tiny.knows}"


def figure(metrics: dict, name: str) -> float:
    """A figure by its name, in which points lead into parts."""
    for part in name.split("."):
        metrics = metrics[part]
    return metrics


def reached(name: str, value: float, target: float) -> bool:
    return value <= target if name in LOWER_IS_BETTER else value >= target
