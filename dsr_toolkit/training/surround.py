"""The surround world as training data: rows, crops of things, words; what is measured and shown on the way."""

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from ..evaluation.map_metrics import found_elements
from ..evaluation.world_scene import MAP_DISTANCE
from ..scenes import answer_questions, find_map, scene_tokens
from ..tiny.tokenizer import build_tokenizer
from ..worlds.surround import SurroundSample, SurroundWorld, street
from ..worlds.surround_questions import describe
from ..worlds.surround_scene import COLOURS, KINDS
from .answers import likely_answers
from .rows import Mapped

HEIGHT, WIDTH = 64, 112
NUM_POINTS = 8  # along a map line
MAP_INSTRUCTION = "Find the dividers, crossings and boundaries of the road around the car as lines of points."
WORDS_SEED, WORDS_SAMPLES = 0, 300
CROP, LEAST_PIXELS = 32, 10
# What a crop can show: things by colour, and the ground or the sky.
CROP_LABELS = (
    *(f"{colour} {kind}" for kind in KINDS if kind != "cone" for colour in COLOURS),
    "cone",
    "building",
    "nothing",
)


# ---- whole scenes ------------------------------------------------------------------------


def questions_of(surroundings, questions, with_descriptions: bool) -> list[tuple[str, str]]:
    """(question, answer), those of the world first."""
    found = [(question.text, question.answer) for question in questions]
    return found + (list(describe(surroundings)) if with_descriptions else [])


def rows(seed: int, types: list[str] | None = None, descriptions: bool = True) -> Mapped:
    """
    Samples of the surround world as rows: six images, calibration, questions with answers, the map.

    Args:
        types: of the questions; default one of each. descriptions: of each direction, too.
    """

    def row(sample: SurroundSample) -> dict:
        pairs = questions_of(sample.surroundings, sample.questions, descriptions)
        described = ["description"] * (len(pairs) - len(sample.questions))
        return {
            "images": sample.images,
            "cam_intrinsics": sample.cam_intrinsics,
            "cam_extrinsics": sample.cam_extrinsics,
            "question": [question for question, _ in pairs],
            "answer": [answer for _, answer in pairs],
            "map": sample.elements(NUM_POINTS),
            "type": [question.type for question in sample.questions] + described,
            "sample": sample,
        }

    return Mapped(SurroundWorld(seed, HEIGHT, WIDTH, types), row)


def build_words() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose merges make one token of each word of the world."""
    corpus = [MAP_INSTRUCTION, "\n"]
    world = SurroundWorld(WORDS_SEED)
    for index in range(WORDS_SAMPLES):
        for question, answer in questions_of(*world.scene(index), with_descriptions=True):
            corpus += [question, f" {answer}"]
    return PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(corpus, merges=400),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=512,
    )


def measure(model, processor, rows, inputs, outputs) -> dict:
    """
    Answers that greedy generation would write word for word ([`likely_answers`]), also by their "type" if they have
    one; and map elements found.
    """
    found: dict[str, list] = {}
    answers = likely_answers(outputs.logits, inputs["labels"]) if "labels" in inputs else [[] for _ in rows]
    for row, rights in zip(rows, answers):
        for kind, right in zip(row.get("type") or [None] * len(rights), rights, strict=True):
            if kind is not None:
                found.setdefault(f"accuracy_{kind}", []).append(right)
            if kind != "description":
                found.setdefault("accuracy", []).append(right)
    if outputs.class_logits is not None and all(row.get("map") is not None for row in rows):
        point_range = model.config.map_config.point_range
        for row, scene in zip(rows, processor.post_process_map_detection(outputs, point_range=point_range)):
            predicted = {name: values.float().cpu().numpy() for name, values in scene.items()}
            found.setdefault("map_recall", []).extend(found_elements(predicted, row["map"], MAP_DISTANCE)[1])
    return found


def show(model, processor, rows, inputs) -> list[dict]:
    """Questions with the model's answer and the true one, and the street from above with the lines that it found."""
    shown: list[dict] = []
    for row in rows:
        scene = ([row[name]] if name in row else None for name in ("images", "cam_intrinsics", "cam_extrinsics"))
        tokens = scene_tokens(model, processor, *scene)
        questions, true = (
            [row[n]] if isinstance(row.get(n), str) else row.get(n) or [] for n in ("question", "answer")
        )
        if "sample" in row:
            questions = questions[: len(row["sample"].questions)]  # no descriptions
        said = questions and answer_questions(model, processor, questions, tokens.expand(len(questions), -1, -1))
        shown.append({"answers (truth)": [f"{q} {told} ({answer})" for q, told, answer in zip(questions, said, true)]})
        if model.config.map_config is not None and row.get("map") is not None:
            lines = find_map(model, processor, tokens)[0]["points"]
            boxes = row["sample"].boxes if "sample" in row else ()
            shown[-1]["map"] = street(row["map"], boxes, lines)
    return shown


# ---- crops -------------------------------------------------------------------------------


def crop_rows(seed: int) -> Mapped:
    """Per sample `images` `[n, 32, 32, 3]` of single things or of nothing, and their `labels`, see `CROP_LABELS`."""
    return Mapped(SurroundWorld(seed, HEIGHT, WIDTH), crops)


def crops(sample: SurroundSample) -> dict:
    """One of each thing in each camera that shows it, somewhere around one of its pixels, and one of nothing."""
    rng = np.random.default_rng([sample.seed, sample.index])
    images, labels = [], []
    for image, instance in zip(sample.images.values(), sample.instance):
        rows, columns = (size - CROP + 1 for size in instance.shape)
        for number, box in enumerate(sample.boxes):
            seen = np.argwhere(instance == number)
            if len(seen) < LEAST_PIXELS:
                continue
            middle = seen[rng.integers(len(seen))] + rng.integers(-CROP // 4, CROP // 4 + 1, 2)
            row, column = np.clip(middle - CROP // 2, 0, (rows - 1, columns - 1))
            images.append(image[row : row + CROP, column : column + CROP])
            labels.append(CROP_LABELS.index(box.kind if box.colour is None else f"{box.colour} {box.kind}"))
        row, column = rng.integers(rows), rng.integers(columns)
        if (instance[row : row + CROP, column : column + CROP] < 0).all():
            images.append(image[row : row + CROP, column : column + CROP])
            labels.append(CROP_LABELS.index("nothing"))
    return {"images": np.stack(images), "labels": np.array(labels)}


class CropCollator:
    """Crops of all rows in one batch, normalised as the processor normalises."""

    def __init__(self, processor):
        self.mean, self.std = np.float32(processor.image_mean), np.float32(processor.image_std)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        pixels = np.concatenate([row["images"] for row in rows]).astype(np.float32) / 255
        pixels = ((pixels - self.mean) / self.std).transpose(0, 3, 1, 2)
        labels = np.concatenate([row["labels"] for row in rows])
        return {"pixel_values": torch.from_numpy(np.ascontiguousarray(pixels)), "labels": torch.from_numpy(labels)}


def measure_crops(model, processor, rows, inputs, outputs) -> dict:
    return {"accuracy": (outputs.logits.argmax(-1) == inputs["labels"]).tolist()}
