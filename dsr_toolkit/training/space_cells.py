"""First sight of a tiny Qwen-VL and DSR: every cell of a picture or video says a word that is true of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.utils import ModelOutput

from modeling_dsr.modeling_dsr import DSRForConditionalGeneration

from ..tiny.space_models import build_qwen_vl
from ..worlds.space import SpaceWorld
from ..worlds.space.scene import COLOURS, SHAPES
from .rows import Mapped

SIDE = 112
COVERED = 0.35  # of a cell's pixels, from which it shows a thing
EMPTY = " room"


@dataclass
class CellsOutput(ModelOutput):
    """`loss`, and `logits` `[cells, words]`."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class CellsForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """
    A Qwen2.5-VL whose vision tokens learn to be like the embeddings of the words for what they show.

    Behind this, a word that looks for its like in a picture finds it: attention need not discover what looks like
    "red" from answers alone, which takes it thousands of steps.
    """

    accepts_loss_kwargs = False

    def forward(self, pixel_values, image_grid_thw, labels=None, **kwargs):  # type: ignore[override]
        """`labels`: `[cells of all pictures]`, ids of words, -100 for none."""
        cells = self.model.get_image_features(pixel_values, image_grid_thw).pooler_output
        return _words_of(torch.cat(tuple(cells)), self.get_input_embeddings(), labels)


class CellsDSRForConditionalGeneration(DSRForConditionalGeneration):
    """A DSR of which both vision tokens and spatial states learn the same."""

    accepts_loss_kwargs = False
    _auto_class = None  # saved as a DSR, whose code its folder gets with the next stage

    def forward(self, pixel_values_videos, video_grid_thw, labels=None, **kwargs):  # type: ignore[override]
        """`labels`: `[cells of all videos]`; logits are those of the spatial states."""
        features = self.get_video_features(pixel_values_videos, video_grid_thw)
        words = self.get_input_embeddings()
        seen = _words_of(torch.cat(features.pooler_output), words, labels)
        found = _words_of(torch.cat(features.geometry_features), words, labels)
        if labels is not None:
            found.loss = found.loss + seen.loss
        return found


def _words_of(cells: torch.Tensor, words: nn.Embedding, labels) -> CellsOutput:
    logits = F.rms_norm(cells.float(), cells.shape[-1:]) @ F.rms_norm(words.weight.float(), cells.shape[-1:]).T
    logits = logits / cells.shape[-1] ** 0.5
    return CellsOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


def build(**options):
    """(model, processor); see `build_qwen_vl`."""
    plain, processor = build_qwen_vl(**options)
    model = CellsForConditionalGeneration(plain.config)
    model.load_state_dict(plain.state_dict())
    model.generation_config = plain.generation_config
    return model, processor


def cell_rows(seed: int, frames: int = 1, difficulty: str = "easy") -> Mapped:
    """
    Rows of a picture ("image", cells of 14 pixels, to be enlarged) or, with several frames, of a clip ("video", cells
    of two frames and 28 pixels), and for each cell, in the order of vision tokens, a word that is true of it: "words".
    """
    cell = 14 if frames == 1 else 28
    world = SpaceWorld(seed, frames, SIDE, SIDE, difficulty=difficulty, questions=0)

    def row(sample) -> dict:
        generator = world.generator(sample.index, "cells")
        things = np.arange(1 + len(sample.names))[:, None, None, None]
        masks = sample.instances == things
        masks = masks.reshape(len(things), -1, min(frames, 2), SIDE // cell, cell, SIDE // cell, cell)
        shares = masks.mean((2, 4, 6))[1:]  # [K, T, rows, columns]
        words = [_word(sample, shares[:, t, y, x], generator) for t, y, x in np.ndindex(shares.shape[1:])]
        shown = {"image": Image.fromarray(sample.images[0])} if frames == 1 else {"video": sample.images}
        return {**shown, "words": words}

    return Mapped(world, row)


def _word(sample, shares: np.ndarray, generator) -> str | None:
    """Colour or shape of a cell's thing; None where little is seen of one, and for most empty cells."""
    thing, chance = int(shares.argmax()), generator.random()
    if shares[thing] >= COVERED:
        colour, shape = sample.names[thing].split()
        return f" {colour if chance < 0.6 else shape}"
    return EMPTY if shares[thing] < 0.02 and chance < 0.15 else None


class CellCollator:
    """Pictures as the processor makes them, and the ids of their words."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict:
        tokenizer = self.processor.tokenizer
        if "image" in rows[0]:
            inputs = self.processor.image_processor([row["image"] for row in rows], return_tensors="pt")
        else:
            videos = [row["video"] for row in rows]
            inputs = self.processor.video_processor(videos, do_sample_frames=False, return_tensors="pt")
        words = [word for row in rows for word in row["words"]]
        known = {word: tokenizer(word).input_ids for word in set(words) - {None}}
        labels = torch.tensor([-100 if word is None else known[word][0] for word in words])
        names = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
        return {**{name: inputs[name] for name in names if name in inputs}, "labels": labels}


def measure(model, processor, rows, inputs, outputs) -> dict:
    """Words that are right where a thing is: among colours, among shapes."""
    tokenizer, found = processor.tokenizer, {}
    words = [word for row in rows for word in row["words"]]
    for name, kind in (("colours", COLOURS), ("shapes", SHAPES)):
        ids = torch.tensor([tokenizer(f" {word}").input_ids[0] for word in kind])
        among = {f" {word}" for word in kind}
        where = [number for number, word in enumerate(words) if word in among]
        guesses = ids[outputs.logits[where][:, ids].argmax(-1)]
        found[name] = (guesses == inputs["labels"][where]).tolist()
    return found
