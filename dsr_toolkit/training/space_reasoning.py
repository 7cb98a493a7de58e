"""What teaches a tiny DSR's language model to reason: it reads true numbers in the place of geometry tokens, and no
picture."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch

from modeling_dsr.chunked_loss import next_token_loss
from modeling_dsr.dsr_outputs import DSRCausalLMOutputWithPast
from modeling_dsr.dsr_token_layout import build_token_layout, sample_ids_from_mask
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration

from ..tiny.space_models import NUMBERS, marks_of_slots
from .space_cells import EMPTY
from .space_questions import CELL, FRAMES, SIDE, THINGS_SHOWN, ClipQuestions, SlotCollator
from .space_readings import reads_of

# What looking gets wrong at worst: places, distances and fronts of both things, headings.
NOISE = np.repeat([6.0, 5.0, 8.0] * THINGS_SHOWN + [3.0, 0.0], [FRAMES] * (3 * THINGS_SHOWN + 1) + [2])
HEADS, READING_LAYERS = 4, 2  # of the tiny language model
SHOWING, KEPT = 0.25, 8  # share of a made-up picture's cells that show a thing; how many of its cells are there


class ToldQuestions(ClipQuestions):
    """Rows as of [`ClipQuestions`] without pictures, which take most of the time: "names" of things, "fps", texts."""

    def __getitem__(self, index: int) -> dict:
        scene, asked = self.world.asked(index)
        fps = (self.world.frames - 1) / self.world.seconds
        return {"names": [thing.name for thing in scene.things], "fps": fps, **self.texts(index, scene, asked)}


class ToldCollator(SlotCollator):
    """
    Prompts of [`ToldQuestions`], with "told_ids": the same ids, where geometry tokens would stand the words of their
    numbers, more or less blurred, and words of some things where vision tokens would; of these, most are left out:
    "columns" `[N]` are those of the prompts that remain.
    """

    def collate(self, rows: list[dict], seeds: list[int]) -> dict:
        rows = [row for row in rows if row["question"]] or rows  # there may be nothing to ask of a scene
        batch = super(SlotCollator, self).collate([{**row, "video": "unseen"} for row in rows], seeds)
        generator = np.random.default_rng(seeds)
        tokenizer = self.processor.tokenizer
        slots = np.array([one for row in rows for one in row["slots"]])
        slots[:, -2:] = -1  # the camera's way, which nobody finds by looking
        names = [row["names"] for row in rows for _ in row["question"]]
        # Half of the prompts are told exact numbers: what is blurred alone is hardly found at all.
        blurred = (2 * generator.random((len(slots), 1)) - 1).clip(0)
        blur = NOISE * blurred * generator.standard_normal(slots.shape)
        near = np.clip(np.rint(slots + blur), 0, len(NUMBERS) - 1).astype(int)
        told = np.where(slots < 0, generator.integers(len(NUMBERS), size=slots.shape), near)
        first = tokenizer.convert_tokens_to_ids(NUMBERS[0])
        room, ids = tokenizer(EMPTY).input_ids[0], batch["input_ids"].clone()
        for line, numbers, things in zip(ids, told, names):
            words = [tokenizer(f" {word}").input_ids[0] for name in things for word in name.split()]
            places = (line == self.processor.video_token_id).nonzero().flatten()
            seen = len(places) - self.processor.num_geometry_tokens
            shown = np.where(generator.random(seen) < SHOWING, generator.choice(words, seen), room)
            line[places[:seen]] = torch.from_numpy(shown)
            line[places[seen:][: len(numbers)]] = torch.from_numpy(numbers + first)
        answers = [answer for row in rows for answer in row["answer"]]
        batch["true_option"] = torch.stack([self.option(*pair) for pair in zip(batch["input_ids"], answers)])
        drawn = generator.permutation(np.arange(seen))[: seen - KEPT]
        columns = np.delete(np.arange(ids.shape[1]), places[drawn].numpy())  # placeholders begin every prompt
        seconds = [2 / row["fps"] for row in rows for _ in row["question"]]
        batch["reads"] = torch.tensor([reads_of(kind, HEADS, READING_LAYERS) for row in rows for kind in row["kind"]])
        batch |= {"told_ids": ids, "columns": torch.from_numpy(columns), "second_per_grid_ts": torch.tensor(seconds)}
        return batch

    def option(self, ids: torch.Tensor, answer: str) -> torch.Tensor:
        """Which tokens of a prompt are the words of the option whose letter ends the answer; none of an open one."""
        tokenizer = self.processor.tokenizer
        letter, line_end, colon, turn_end = (
            tokenizer.convert_tokens_to_ids(text) for text in (answer[-1], "Ċ", ":Ċ", "<|im_end|>")
        )
        found = torch.zeros(len(ids), dtype=torch.bool)
        begins = (ids[:-1] == line_end) | (ids[:-1] == colon)
        starts = ((ids[1:] == letter) & begins).nonzero().flatten() + 1
        if len(starts):
            ends = (ids[starts[0] :] == line_end) | (ids[starts[0] :] == turn_end)
            found[starts[0] + 1 : starts[0] + int(ends.int().argmax())] = True
        return found

    def encode(self, texts, images, videos, copies, options):
        """Prompts of videos that nobody drew."""
        rest = {name: options[name] for name in ("padding", "padding_side", "return_tensors")}
        patches = SIDE // CELL * 2
        grids = torch.tensor([[FRAMES // 2, patches, patches]]).repeat(len(texts), 1)
        prompts = self.processor(text=texts, video_grid_thw=grids, **rest)
        prompts["video_grid_thw"] = grids
        return prompts


class ReasoningDSRForConditionalGeneration(DSRForConditionalGeneration):
    """
    A DSR of which the language model alone runs, on the words of `told_ids`.

    Its layers but for the first and the last are also told which geometry tokens to read before each of the two
    numbers, see `READS`, and the last one, before the letter, the words of the true option; the loss of a head that
    looks elsewhere is -log of what it gives to these. From answers alone it did not find where the numbers stand in a
    thousand steps, nor how letters belong to options.
    """

    _auto_class = None
    accepts_loss_kwargs = False

    def forward(  # type: ignore[override]
        self,
        input_ids,
        told_ids,
        columns,
        attention_mask,
        video_grid_thw,
        second_per_grid_ts,
        reads=None,
        true_option=None,
        labels=None,
        **kwargs,
    ) -> DSRCausalLMOutputWithPast:
        """Logits are of the `columns`. `reads`: `[prompts, 2, heads of the reading layers]`, geometry tokens by their
        number, -1 for none. `true_option`: bool `[prompts, S]`, its words."""
        sample_ids = sample_ids_from_mask(attention_mask, input_ids)
        layout = build_token_layout(input_ids, sample_ids, None, video_grid_thw, second_per_grid_ts, self.config)
        words, video = self.get_input_embeddings()(told_ids), input_ids == self.config.video_token_id
        count = self.config.num_geometry_tokens
        is_geometry = video & (video.flip(1).cumsum(1).flip(1) <= count)  # the last of the placeholders
        marks = marks_of_slots(count, words.shape[-1]).to(words).repeat(len(words), 1)
        words = words.masked_scatter(is_geometry[..., None], words[is_geometry] + marks)
        guided = labels is not None and reads is not None and self.training
        outputs = self.model.language_model(
            inputs_embeds=words[:, columns],
            attention_mask=attention_mask[:, columns],
            position_ids=layout.position_ids[..., columns].to(told_ids.device),
            use_cache=False,
            output_attentions=guided,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None if labels is None else next_token_loss(logits, labels[:, columns])
        if guided:
            first = is_geometry[0, columns].int().argmax()
            starts = (labels[:, columns] >= 0).int().argmax(1)
            if reading := outputs.attentions[-2:0:-1]:
                loss = loss + _reading(reading, starts, first, reads)
            loss = loss + _choosing(outputs.attentions[-1], starts, true_option[:, columns])
        return DSRCausalLMOutputWithPast(loss=loss, logits=logits)


def _reading(attentions: tuple[torch.Tensor, ...], starts: torch.Tensor, first, reads: torch.Tensor) -> torch.Tensor:
    """-log of what heads of `attentions`, each `[B, heads, S, S]`, give to what they shall read before both numbers."""
    weights = torch.cat(attentions, 1)
    asking = torch.stack([starts - 1, starts], 1)
    given = weights[torch.arange(len(starts))[:, None], :, asking]  # [B, 2, heads, S]
    reads = reads[..., : given.shape[2]]
    given = given.gather(-1, (first + reads.clamp_min(0))[..., None]).squeeze(-1)
    return -torch.log(given[reads >= 0] + 1e-6).mean()


def _choosing(attention: torch.Tensor, starts: torch.Tensor, option: torch.Tensor) -> torch.Tensor:
    """-log of what heads of the last layer give to the words of the true option before its letter."""
    given = attention[torch.arange(len(starts)), :, starts + 1]  # [B, heads, S]
    given = (given * option[:, None]).sum(-1)[option.any(1)]
    return -torch.log(given + 1e-6).mean()


@torch.no_grad()
def measure_reasoning(model, processor, rows, inputs, outputs) -> dict:
    """Letters of greedy answers to told numbers, over all and by type of question; and how far its own two are off."""
    types = [kind.split("/")[0] for row in rows for kind in row["kind"]]
    answers = [answer for row in rows for answer in row["answer"]]
    given = copy.copy(inputs)
    given["told_ids"] = inputs["told_ids"].clone()
    starts = (inputs["labels"] >= 0).int().argmax(1)
    lines, left_out = torch.arange(len(starts)), inputs["labels"].shape[1] - len(inputs["columns"])
    for step in range(3):
        if step:
            outputs = model(**{name: value for name, value in given.items() if name != "labels"})
        given["told_ids"][lines, starts + step] = outputs.logits[lines, starts + step - 1 - left_out].argmax(-1)
    found: dict[str, list] = {"accuracy": [], "numbers_off": []}
    for line, start, kind, answer in zip(given["told_ids"], starts, types, answers):
        told = processor.tokenizer.decode(line[start : start + 3]).split()
        first, second, *rest = answer.split()
        if len(rest) > 1:  # a sentence
            continue
        found["accuracy"].append(told[-1:] == rest)
        found.setdefault(f"accuracy_{kind}", []).append(found["accuracy"][-1])
        found["numbers_off"] += [
            abs(int(said) - int(true)) if said.isdecimal() else 50 for said, true in zip(told, (first, second))
        ]
    return found


def joined(folders: dict, output: Path, looking: str = "look", reasoning: str = "reason") -> None:
    """`make` of a recipe: eyes and geometry tokens of one stage, the language model of another."""
    from modeling_dsr.processing_dsr import DSRProcessor

    model = DSRForConditionalGeneration.from_pretrained(folders[looking], dtype="float32")
    other = DSRForConditionalGeneration.from_pretrained(folders[reasoning], dtype="float32")
    for name in ("layers", "norm"):
        part = getattr(model.model.language_model, name)
        part.load_state_dict(getattr(other.model.language_model, name).state_dict())
    model.lm_head.load_state_dict(other.lm_head.state_dict())
    model.save_pretrained(output)
    DSRProcessor.from_pretrained(folders[looking]).save_pretrained(output)
