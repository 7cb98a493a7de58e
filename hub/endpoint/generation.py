"""Generation of rows that share a batch and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.generation import LogitsProcessor, StoppingCriteria


@dataclass(frozen=True)
class Sampling:
    """How one row is continued: greedily at temperature 0, else with random numbers of its own."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: tuple[int, int] = (0, 0)


class SampleRows(LogitsProcessor):
    """
    Makes a greedy search sample: argmax(logits / temperature + Gumbel noise) is a draw from their softmax.

    The noise of a row comes from its own generator, so a row is the same alone and in any batch.
    """

    def __init__(self, rows: list[Sampling]):
        self.greedy = torch.tensor([row.temperature == 0 for row in rows])
        self.temperature = torch.tensor([row.temperature or 1.0 for row in rows])
        self.top_p = torch.tensor([row.top_p for row in rows])
        mixed = [np.random.SeedSequence(row.seed).generate_state(1, np.uint64)[0] for row in rows]
        self.generators = [torch.Generator().manual_seed(int(seed) & (2**63 - 1)) for seed in mixed]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        device, size = scores.device, scores.shape[-1]
        scaled = scores.float() / self.temperature.to(device)[:, None]
        ordered, order = scaled.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        kept = (before < self.top_p.to(device)[:, None]).scatter(1, order, before < self.top_p.to(device)[:, None])
        noise = torch.stack([torch.empty(size).exponential_(generator=one) for one in self.generators]).log().neg()
        sampled = torch.where(kept, scaled + noise.to(device), -torch.inf)
        return torch.where(self.greedy.to(device)[:, None], scores.float(), sampled)


class StopRows(StoppingCriteria):
    """Ends each row at its own limit, and counts the tokens that were written: some models lengthen their prompts."""

    def __init__(self, rows: list[Sampling]):
        self.limits, self.steps = torch.tensor([row.max_new_tokens for row in rows]), 0

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        self.steps += 1
        return (self.steps >= self.limits).to(input_ids.device)


def generate_rows(model, inputs: dict, rows: list[Sampling]) -> list[tuple[list[int], bool]]:
    """Per row the new tokens, without the one that ends it, and whether there was one."""
    stop = StopRows(rows)
    with torch.inference_mode():
        sequences = model.generate(
            **inputs,
            max_new_tokens=max(row.max_new_tokens for row in rows),
            do_sample=False, temperature=None, top_p=None, top_k=None, num_beams=1,
            logits_processor=[SampleRows(rows)] if any(row.temperature for row in rows) else [],
            stopping_criteria=[stop],
        )  # fmt: skip
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, (list, tuple)) else [ends])
    answers = []
    for tokens, row in zip(sequences[:, sequences.shape[1] - stop.steps :].tolist(), rows):
        tokens = tokens[: row.max_new_tokens]
        end = next((place for place, token in enumerate(tokens) if token in ends), None)
        answers.append((tokens[:end], end is not None))
    return answers


def pad_rows(rows: list[torch.Tensor], value: int | None, side: str = "left") -> torch.Tensor:
    """
    `[B, S]` of rows `[1, s]`.

    Args:
        value: of the padding; None repeats a row's last token, so that a penalty on repetition finds nothing new in it.
    """
    unused = torch.iinfo(rows[0].dtype).min if value is None else value
    padded = pad_sequence([row[0] for row in rows], batch_first=True, padding_value=unused, padding_side=side)
    if value is None:
        padded = torch.where(padded == unused, torch.cat([row[:, -1:] for row in rows]), padded)
    return padded
