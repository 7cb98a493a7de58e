"""Phrases of the space world as rows: for a Qwen-VL that says where things are, and for FrozenQwenSAM's masks."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from modeling_dsr.image_reader import read_image

from ..evaluation.segmentation_metrics import mask_overlaps, masks_from_logits
from ..evaluation.world_frozen_qwen_sam import caption_of
from ..tiny.space_models import DESCRIBE
from ..worlds.space import SpaceWorld
from .rows import Mapped


def _world(seed: int, difficulty: str, side: int) -> SpaceWorld:
    return SpaceWorld(seed, 1, side, side, difficulty=difficulty, questions=0)


# ---- a language model that says where things are ------------------------------------------


class PlacedPhrases:
    """
    Rows of a picture and what is where in it: "image", "question", and as "answer" phrases, each followed by centre and
    width of its thing in hundredths of the picture, as in "the red ball35 60 20 and the box behind it70 42 18 ".

    A number follows a phrase directly, so that the phrase's last word must look for the thing.

    Args:
        seed, difficulty: see [`SpaceWorld`]. side: of the picture.
    """

    def __init__(self, seed: int, difficulty: str = "easy", side: int = 112):
        self.world = _world(seed, difficulty, side)

    def __getitem__(self, index: int) -> dict:
        sample = self.world[index]
        generator = self.world.generator(index, "phrases")
        known, answer = sample.phrases(0), ""
        # One phrase of each thing: a second one could be answered by looking at the first one's numbers.
        of_thing = {known[number].thing: known[number] for number in generator.permutation(len(known))}
        for thing in generator.permutation(list(of_thing)):
            phrase, related = of_thing[thing], ""
            if phrase.antecedent is not None and generator.random() < 0.5:
                related, text = f"the {sample.names[phrase.antecedent]} and ", phrase.it
            else:
                text = phrase.text
            numbers = "".join(f"{value:02d} " for value in place(phrase.mask))
            answer += f"{' and ' if answer else ''}{related}{text}{numbers}".replace("  ", " ")
        return {"image": Image.fromarray(sample.images[0]), "question": DESCRIBE, "answer": answer}


def place(mask: np.ndarray) -> tuple[int, int, int]:
    """Centre across and down, and width, of a mask `[H, W]`, in hundredths of the picture."""
    rows, columns = np.nonzero(mask)
    values = (
        (columns.mean() + 0.5) / mask.shape[1],
        (rows.mean() + 0.5) / mask.shape[0],
        (np.ptp(columns) + 1) / mask.shape[1],
    )
    return tuple(int(min(99, 100 * value)) for value in values)  # type: ignore[return-value]


def measure_places(model, processor, rows, inputs, outputs) -> dict:
    """How far numbers are from the true ones, in hundredths of the picture, given all that stands before them."""
    tokenizer = processor.tokenizer
    first = tokenizer.convert_tokens_to_ids("00 ")
    labels, guesses = inputs["labels"][:, 1:], outputs.logits[:, :-1, first : first + 100].argmax(-1)
    number = (labels >= first) & (labels < first + 100)
    centre = number & ~torch.nn.functional.pad(number, (1, 0))[:, :-1]  # the first of three
    off = (guesses + first - labels).abs()
    return {"across_off": off[centre].tolist(), "across_off_median": off[centre].tolist(), "off": off[number].tolist()}


# ---- masks ----------------------------------------------------------------------------------


def phrase_rows(seed: int, most: int = 6, difficulty: str = "easy", side: int = 112) -> Mapped:
    """
    Rows of FrozenQwenSAM: "image", "pieces" (see its processor) and "masks": up to `most` phrases of a picture, each in
    a caption of its own, those with "it" behind the name of what it stands for.
    """
    world = _world(seed, difficulty, side)

    def row(sample) -> dict:
        known = sample.phrases(0)
        generator = world.generator(sample.index, "phrases")
        chosen = [known[number] for number in generator.permutation(len(known))[:most]]
        as_it = generator.random(len(chosen)) < 0.5
        return {
            "image": Image.fromarray(sample.images[0]),
            "pieces": [caption_of(sample, one, number, it) for number, (one, it) in enumerate(zip(chosen, as_it))],
            "masks": np.stack([one.mask for one in chosen]),
        }

    return Mapped(world, row)


def measure_masks(model, processor, rows, inputs, outputs) -> dict:
    """cIoU (pixels of all masks together) and gIoU (mean over masks) of coarse and refined masks."""
    found: dict = {}
    for name, predictions in (("", outputs.sam_pred_masks), ("_coarse", outputs.pred_masks)):
        counts = [
            mask_overlaps(masks_from_logits(logits, truth.shape[-2:]), truth)
            for logits, truth in zip(predictions, inputs["labels"])
        ]
        common, union = (torch.cat(some) for some in zip(*counts))
        found[f"ciou{name}"] = int(common.sum()), int(union.sum())
        found[f"giou{name}"] = (common / union.clamp_min(1)).tolist()
    return found


def show_masks(model, processor, rows, inputs) -> list[dict]:
    """Each picture with its refined masks, and their phrases."""
    results = processor.post_process_masks(model(**inputs), [phrases_of(row) for row in rows])
    shown = []
    for row, result in zip(rows, results):
        image = read_image(row["image"])
        times = max(1, 336 // max(image.size))
        picture = processor.draw_masks(image.resize([times * side for side in image.size]), _enlarged(result, times))
        shown.append({"image": picture, "phrases": phrases_of(row)})
    return shown


def phrases_of(row: dict) -> list[str]:
    """The phrase of each mask of a row, as its collator takes it."""
    if row.get("phrases") is not None:
        return list(row["phrases"])
    said: dict[int, str] = {}
    for text, number in (piece for caption in row["pieces"] for piece in caption):
        if number >= 0:
            said[number] = said.get(number, "") + text
    return [said[number].strip() for number in sorted(said)]


def _enlarged(result: dict, times: int) -> dict:
    masks = result["masks"].repeat_interleave(times, 1).repeat_interleave(times, 2)
    return {**result, "masks": masks}
