"""FrozenQwenSAM in the space world: masks of every phrase of a picture."""

from __future__ import annotations

from collections import defaultdict

import torch
from PIL import Image

from ..worlds.space import SpaceWorld
from ..worlds.space.phrases import Phrase
from .segmentation_metrics import mask_overlaps, masks_from_logits

SIDE = 112
PICTURES_AT_ONCE = 8


def evaluate(model, processor, seed: int, count: int = 64, difficulty: str = "easy") -> dict:
    """
    Every phrase of the first `count` pictures of a space world.

    Each phrase is a caption of its own ("the red ball", "the box behind the red ball"); those that relate to another
    thing are asked once more behind its name ("the red ball and the box behind it").

    Args:
        model: a `FrozenQwenSAMModel`. seed: of the world, one that the model was not trained on.

    Returns:
        `{"model_type", "seed", "count", "metrics"}`; metrics: `ciou`, pixels in both ÷ pixels in either over all
        masks; `ciou_by_kind`; `giou`, the mean over masks; `ciou_coarse` and `giou_coarse`, before SAM; `phrases`, how
        many there were.
    """
    world = SpaceWorld(seed, 1, SIDE, SIDE, difficulty=difficulty, questions=0)
    pixels: dict[str, list] = defaultdict(lambda: [0, 0])
    by_kind: dict[tuple[str, str], list] = defaultdict(lambda: [0, 0])
    single: dict[str, list] = defaultdict(list)
    for start in range(0, count, PICTURES_AT_ONCE):
        rows = []
        for index in range(start, min(start + PICTURES_AT_ONCE, count)):
            sample = world[index]
            asked = [(phrase, it) for phrase in sample.phrases(0) for it in (False, True)]
            asked = [(phrase, it) for phrase, it in asked if not it or phrase.antecedent is not None]
            if asked:
                rows.append((sample, asked))
        for (sample, asked), (coarse, refined) in zip(rows, segment(model, processor, rows)):
            truth = torch.stack([torch.from_numpy(phrase.mask) for phrase, _ in asked])
            kinds = ["it" if it else phrase.kind for phrase, it in asked]
            for name, masks in (("coarse", coarse), ("refined", refined)):
                common, union = (values.tolist() for values in mask_overlaps(masks, truth))
                single[name] += [one / max(1, other) for one, other in zip(common, union)]
                for kind, one, other in zip(kinds, common, union):
                    for total in (pixels[name], by_kind[name, kind]):
                        total[0] += one
                        total[1] += other
    metrics = {
        "ciou": _share(pixels["refined"]),
        "ciou_coarse": _share(pixels["coarse"]),
        "giou": _mean(single["refined"]),
        "giou_coarse": _mean(single["coarse"]),
        "ciou_by_kind": {kind: _share(total) for (name, kind), total in by_kind.items() if name == "refined"},
        "phrases": len(single["refined"]),
    }
    return {"model_type": model.config.model_type, "seed": seed, "count": count, "metrics": metrics}


def _share(pixels: list[int]) -> float:
    common, union = pixels
    return common / max(1, union)


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


def caption_of(sample, phrase: Phrase, number: int, as_it: bool) -> list[tuple[str, int]]:
    """A caption as pieces (text, number of the phrase or -1): the phrase, or "it" behind the name of its antecedent."""
    if not as_it or phrase.antecedent is None:
        return [(phrase.text, number)]
    return [(f"the {sample.names[phrase.antecedent]} and", -1), (f" {phrase.it}", number)]


@torch.inference_mode()
def segment(model, processor, rows: list) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per row (sample, [(phrase, as "it")]) coarse and refined masks, bool `[n, H, W]`."""
    inputs = processor(
        images=[Image.fromarray(sample.images[0]) for sample, _ in rows],
        pieces=[
            [caption_of(sample, phrase, number, it) for number, (phrase, it) in enumerate(asked)]
            for sample, asked in rows
        ],
    )
    inputs = {name: value.to(model.device) if hasattr(value, "to") else value for name, value in inputs.items()}
    outputs = model(**inputs)
    found = []
    for (sample, _), coarse, refined in zip(rows, outputs.pred_masks, outputs.sam_pred_masks):
        size = sample.images.shape[-3:-1]
        found.append(tuple(masks_from_logits(masks, size).cpu() for masks in (coarse, refined)))
    return found
