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

from ..tiny.space_models import NUMBERS, build_qwen_vl
from ..worlds.space import SpaceWorld
from ..worlds.space.readings import headings, track
from ..worlds.space.scene import COLOURS, SHAPES
from .rows import Mapped

SIDE = 112
COVERED = 0.35  # of a cell's pixels, from which it shows a thing
EMPTY = " room"
NUMBER_ROLES = 10  # place, distance, front and the camera's direction in two frames, and the cell's own column and row
WAVES = 8  # frequencies with which numbers are told


@dataclass
class CellsOutput(ModelOutput):
    """`loss`, `logits` `[cells, words]`, and `numbers` `[cells, 10]` that are told."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    numbers: torch.Tensor | None = None


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
        return words_of(torch.cat(tuple(cells)), self.get_input_embeddings(), labels)


class CellsDSRForConditionalGeneration(DSRForConditionalGeneration):
    """
    A DSR of which both vision tokens and spatial states learn the same, and spatial states also numbers: of the thing
    that a cell shows where it is, how far, and which way it faces in each of the cell's two frames, and for every cell
    which way the camera looks and where the cell is: what reads a state gets no other word of its place. What reads the
    numbers, a linear layer, is left behind.
    """

    accepts_loss_kwargs = False
    _auto_class = None  # saved as a DSR, whose code its folder gets with the next stage

    def __init__(self, config):
        super().__init__(config)
        self.cell_numbers = nn.Linear(config.text_config.hidden_size, NUMBER_ROLES * 2 * WAVES)
        self.post_init()

    def forward(self, pixel_values_videos, video_grid_thw, labels=None, numbers=None, **kwargs):  # type: ignore[override]
        """`labels`: `[cells of all videos]`. `numbers`: `[cells, 10]`, -100 for none. Logits are of spatial states."""
        features = self.get_video_features(pixel_values_videos, video_grid_thw)
        words, states = self.get_input_embeddings(), torch.cat(features.geometry_features)
        found = words_of(states, words, labels)
        if labels is not None:
            found.loss = found.loss + words_of(torch.cat(features.pooler_output), words, labels).loss
        if numbers is not None:
            told = self.cell_numbers(F.rms_norm(states, states.shape[-1:])).unflatten(-1, (NUMBER_ROLES, -1))
            told = told.float() @ _waves(told.device).T
            found.loss = found.loss + F.cross_entropy(told.flatten(0, 1), numbers.flatten())
            found.numbers = told.argmax(-1)
        return found


def _waves(device) -> torch.Tensor:
    """Numbers as smooth functions, `[100, 2·WAVES]`: what points to one points to its neighbours, too."""
    numbers = torch.arange(float(len(NUMBERS)), device=device)
    angles = numbers[:, None] * torch.linspace(-4, 0, WAVES, device=device).exp()
    return torch.cat([angles.sin(), angles.cos()], 1)


def words_of(cells: torch.Tensor, words: nn.Embedding, labels) -> CellsOutput:
    """How much vectors `[N, D]` are like each word, and the loss of their being like others than `labels` `[N]`."""
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
        if frames == 1:
            return {"image": Image.fromarray(sample.images[0]), "words": words}
        return {"video": sample.images, "words": words, "numbers": _numbers(sample, shares, world.tau)}

    return Mapped(world, row)


def _numbers(sample, shares: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """`[cells, 10]`, see [`CellsDSRForConditionalGeneration`]."""
    tracks = np.array([track(sample.scene, thing, tau) for thing in range(len(sample.names))])
    tracks = tracks.reshape(len(tracks), 3, -1, 2)  # [K, role, T, 2]
    looks = np.reshape(headings(sample.scene, tau), (-1, 2))
    found = np.full((*shares.shape[1:], NUMBER_ROLES), -100)
    for place in np.ndindex(shares.shape[1:]):
        thing = int(shares[(slice(None), *place)].argmax())
        if shares[(thing, *place)] >= COVERED / 2:
            found[place][:6] = tracks[thing, :, place[0]].reshape(-1)
        found[place][6:8] = looks[place[0]]
        found[place][8:] = [int(100 * (number + 0.5) / shares.shape[-1]) for number in place[:0:-1]]
    return found.reshape(-1, NUMBER_ROLES)


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
        batch = {**{name: inputs[name] for name in names if name in inputs}, "labels": labels}
        if "numbers" in rows[0]:
            batch["numbers"] = torch.from_numpy(np.concatenate([row["numbers"] for row in rows]))
        return batch


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
    if "numbers" in inputs:
        off = (outputs.numbers - inputs["numbers"]).abs()
        for role, name in enumerate(("place", "distance", "front", "look", "cell")):
            columns = slice(2 * role, 2 * role + 2)
            found[f"{name}_off"] = off[:, columns][inputs["numbers"][:, columns] >= 0].tolist()
    return found
