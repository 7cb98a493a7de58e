"""
Generation of rows that share a batch and nothing else.

`generate` of transformers does the work. Its stopping criteria are called after every token, and that is where a row is
heard, ended, or given up, and where the model is lent to others: several calls of `generate` may be under way in
threads of their own, as long as only one of them computes at a time.
"""

from __future__ import annotations

from collections.abc import Callable
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
    stop: tuple[str, ...] = ()


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


class Listener:
    """Follows a request while it is answered. This one wants every answer and listens to none."""

    cancelled = False

    def token(self, row: int, token: int) -> None:
        """`token` was written in a row of the request."""


@dataclass
class Row:
    """A row of a batch: how it is continued, and who listens. `number` is its place in its request."""

    sampling: Sampling
    listener: Listener
    number: int = 0


class StopRows(StoppingCriteria):
    """
    Ends each row at its own limit, at its own texts, or when nobody wants it any more, and tells who listens.

    It counts the tokens that were written itself: some models lengthen their prompts.

    Args:
        ends: ids that end a row. decode: ids -> text, for rows that end at texts. pause: called between two tokens.
    """

    def __init__(self, rows: list[Row], ends: set[int], decode: Callable[[list[int]], str], pause: Callable[[], None]):
        self.rows, self.ends, self.decode, self.pause = rows, ends, decode, pause
        self.steps = 0
        self.written: list[list[int]] = [[] for _ in rows]
        self.finished, self.done = [False] * len(rows), [False] * len(rows)

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        self.steps += 1
        for place, token in enumerate(input_ids[:, -1].tolist()):
            if not self.done[place]:
                self._one(place, token)
        self.pause()
        return torch.tensor(self.done, device=input_ids.device)

    def _one(self, place: int, token: int) -> None:
        row, written = self.rows[place], self.written[place]
        if token in self.ends:
            self.finished[place] = self.done[place] = True
            return
        written.append(token)
        row.listener.token(row.number, token)
        if row.sampling.stop and first_stop(self.decode(written), row.sampling.stop) is not None:
            self.finished[place] = self.done[place] = True
        elif len(written) >= row.sampling.max_new_tokens or row.listener.cancelled:
            self.done[place] = True


def first_stop(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the first of `stops` begins in a text."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return min(places, default=None)


def until_stop(text: str, stops: tuple[str, ...]) -> str:
    """A text up to the first of `stops`."""
    return text[: first_stop(text, stops)]


def end_tokens(model) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, (list, tuple)) else [ends])


def generate_rows(
    model, inputs: dict, rows: list[Row], decode=None, pause: Callable[[], None] = lambda: None
) -> list[tuple[list[int], bool]]:
    """
    Continue every row of a batch; for `decode` and `pause` see [`StopRows`].

    Returns:
        per row the new tokens, without the one that ends it, and whether it came to an end of its own.
    """
    stop = stop_rows(model, rows, decode, pause)
    samplings = [row.sampling for row in rows]
    with torch.inference_mode():
        model.generate(
            **inputs,
            max_new_tokens=max(one.max_new_tokens for one in samplings),
            do_sample=False, temperature=None, top_p=None, top_k=None, num_beams=1,
            logits_processor=[SampleRows(samplings)] if any(one.temperature for one in samplings) else [],
            stopping_criteria=[stop],
        )  # fmt: skip
    return list(zip(stop.written, stop.finished))


def stop_rows(model, rows: list[Row], decode=None, pause: Callable[[], None] = lambda: None) -> StopRows:
    """
    [`StopRows`] for one call of `generate`.

    Qwen's models keep the distance from tokens to rotary positions on themselves, for one `generate` at a time: it is
    put back when others have used the model meanwhile.
    """
    keepers = [module for module in model.modules() if "rope_deltas" in vars(module)]

    def lend() -> None:
        kept = [module.rope_deltas for module in keepers]
        pause()
        for module, deltas in zip(keepers, kept):
            module.rope_deltas = deltas

    return StopRows(rows, end_tokens(model), decode, lend)


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
