"""What teaches a tiny DSR's geometry tokens to look: each is told which number it shall tell, and where to read it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps

import torch
from transformers.utils import ModelOutput

from modeling_dsr.dsr_outputs import DSRVisionFeatures
from modeling_dsr.dsr_token_layout import build_token_layout, sample_ids_from_mask
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration

from ..tiny.space_models import NUMBERS, marks_of_slots
from .space_cells import words_of
from .space_questions import FRAMES, THINGS_SHOWN

ROLES = ("place", "distance", "front")


@dataclass
class LookingOutput(ModelOutput):
    """`loss`, and `words` `[prompts, slots]`, ids of what geometry tokens tell."""

    loss: torch.Tensor | None = None
    words: torch.Tensor | None = None


class GuidedDSRForConditionalGeneration(DSRForConditionalGeneration):
    """
    A DSR whose geometry tokens learn, beside the answer, to be like the words of numbers plus their marks, and which
    cells to read.

    The loss of a token that tells another number is a cross-entropy over words, that of a head that looks elsewhere
    -log of what it gives to its cells.
    """

    _auto_class = None  # saved as a DSR, whose code its folder gets with the next stage

    @wraps(DSRForConditionalGeneration.forward)  # whose signature `generate` looks at
    def forward(self, *args, slots=None, slot_cells=None, **kwargs):
        """`slots`: `[prompts, slots]`, ids of words, -100 for none. `slot_cells`: bool `[prompts, slots, cells]`."""
        if slots is None:
            return super().forward(*args, **kwargs)
        outputs = super().forward(*args, **kwargs, output_geometry_attentions=True)
        if outputs.loss is not None:
            weights = torch.stack(outputs.geometry_attentions)
            outputs.loss = outputs.loss + self.looking(outputs.geometry_tokens, weights, slots, slot_cells).loss
        return outputs

    def looking(self, tokens, weights, slots, slot_cells) -> LookingOutput:
        """Of geometry tokens, and of what their heads read, `[prompts, heads, Q, …]`."""
        tokens = tokens[:, : slots.shape[1]]
        words = (tokens - marks_of_slots(*tokens.shape[1:]).to(tokens)).flatten(0, 1)
        told = words_of(words, self.get_input_embeddings(), slots.flatten())
        given = (weights.float().flatten(3)[:, :, : slots.shape[1]] * slot_cells[:, None]).sum(-1)
        guided = slot_cells.any(-1)[:, None].expand_as(given)
        loss = told.loss - torch.log(given[guided] + 1e-6).mean()
        return LookingOutput(loss=loss, words=told.logits.argmax(-1).view_as(slots))


class LookingDSRForConditionalGeneration(GuidedDSRForConditionalGeneration):
    """The same without an answer: neither the vision tower nor the language model runs."""

    _auto_class = None
    accepts_loss_kwargs = False

    def forward(  # type: ignore[override]
        self, input_ids, attention_mask, pixel_values_videos, video_grid_thw, video_copies, slots, slot_cells,
        second_per_grid_ts=None, labels=None, **kwargs,
    ) -> LookingOutput:  # fmt: skip
        states = self.model.encode_geometry(pixel_values_videos, video_grid_thw)
        order = torch.arange(len(video_copies)).repeat_interleave(video_copies.cpu())
        seconds = None if second_per_grid_ts is None else torch.as_tensor(second_per_grid_ts)[order]
        shown = DSRVisionFeatures(
            geometry_features=tuple(states[number] for number in order.tolist()), grid_thw=video_grid_thw[order]
        )
        sample_ids = sample_ids_from_mask(attention_mask, input_ids)
        layout = build_token_layout(input_ids, sample_ids, None, shown.grid_thw, seconds, self.config)
        tokens, weights = self.model.select_geometry(
            layout,
            self.model.question_mask(input_ids, attention_mask, labels).cpu(),
            sample_ids,
            self.get_input_embeddings()(input_ids),
            {"video": shown},
            output_attentions=True,
        )
        return self.looking(tokens, torch.stack(weights), slots, slot_cells)


def measure_looking(model, processor, rows, inputs, outputs) -> dict:
    """How far told numbers are from the true ones, by what they tell; another word is off by 50."""
    first = processor.tokenizer.convert_tokens_to_ids(NUMBERS[0])
    off, known = (outputs.words - inputs["slots"]).abs(), inputs["slots"] >= 0
    off = torch.where((outputs.words >= first) & (outputs.words < first + len(NUMBERS)), off, 50)
    found: dict[str, list] = {f"{role}_off": [] for role in ROLES}
    for number in range(3 * THINGS_SHOWN):
        columns = slice(number * FRAMES, (number + 1) * FRAMES)
        found[f"{ROLES[number % 3]}_off"] += off[:, columns][known[:, columns]].tolist()
    start = 3 * THINGS_SHOWN * FRAMES
    for name, columns in (("heading_off", slice(start, start + FRAMES)), ("way_off", slice(start + FRAMES, None))):
        found[name] = off[:, columns].flatten().tolist()
    return found
