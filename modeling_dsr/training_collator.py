"""
What the collators of every architecture share: rows with gaps, noise that is fresh and can be repeated, labels that
    teach.
"""

import numpy as np
import torch

IGNORE_INDEX = -100


class TrainingCollator:
    """
    From a list of rows (dictionaries) to the inputs of a model, labels included: `data_collator` of a `Trainer` with
    `remove_unused_columns=False`.

    It holds nothing but a processor and plain settings, so it can be pickled to workers of any start method. What a row
    has as None counts as absent, since Arrow fills gaps with None. Random numbers of a row come from its "seed", if it
    has one; else they are new at every call, in every worker and in every epoch.

    Args:
        processor: of the model.
    """

    label_names = ("labels",)

    def __init__(self, processor):
        self.processor = processor
        self.calls = 0

    def __call__(self, rows: list[dict]) -> dict:
        rows = [without_none(row) for row in rows]
        if not rows:
            raise ValueError("A batch must have at least one row, got none.")
        batch = self.collate(rows, self.seeds(rows))
        self.calls += 1
        return batch

    def collate(self, rows: list[dict], seeds: list[int]) -> dict:
        """The batch of rows without gaps; `seeds` has a number for the noise of each."""
        raise NotImplementedError

    def seeds(self, rows: list[dict]) -> list[int]:
        """
        One per row. torch's initial seed is another one in every worker and, there, in every epoch; the number of calls
        tells the batches of one process apart.
        """
        fresh = np.random.SeedSequence([torch.initial_seed() % 2**63, self.calls]).generate_state(len(rows), np.uint64)
        return [int(row.get("seed", new)) for row, new in zip(rows, fresh)]

    def need(self, rows: list[dict], *names: str) -> None:
        """ValueError for the first row that lacks one of `names`."""
        for number, row in enumerate(rows):
            missing = [name for name in names if name not in row]
            if missing:
                raise ValueError(
                    f"Row {number} of the batch lacks {missing}; it has {sorted(row)}. {type(self).__name__} reads: "
                    f"{' '.join((type(self).__doc__ or '').split('Rows:')[-1].split())}"
                )

    @staticmethod
    def check_supervised(labels: torch.Tensor) -> None:
        """ValueError for a row of labels `[B, S]` that teaches nothing."""
        empty = (labels == IGNORE_INDEX).all(1).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"Row {empty[0]} of the batch has no supervised token: its answer is empty or was cut off. Give it an "
                "answer, or leave it out."
            )


def without_none(value):
    """A copy without dictionary entries that are None, at any depth."""
    if isinstance(value, dict):
        return {name: without_none(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [without_none(part) for part in value]
    return value


def chat_answers(
    input_ids: torch.Tensor, im_start: int, header: list[int], real: torch.Tensor | None = None
) -> torch.BoolTensor:
    """
    The assistant's turns of ChatML rows `[B, S]`: everything behind `<|im_start|>assistant⏎`, through `<|im_end|>⏎`, as
    the published training of Qwen and DSR supervises it.

    Args:
        im_start: id of `<|im_start|>`. header: ids of "assistant" and the line break. real: `[B, S]`, False on padding.
    """
    opens = input_ids == im_start
    answering = opens.clone()
    for offset, token in enumerate(header, 1):
        answering &= torch.nn.functional.pad(input_ids[:, offset:], (0, offset), value=-1) == token
    # The opening token that each position belongs to, and how far behind it the position is.
    position = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    start = torch.where(opens, position, -1).cummax(1).values
    inside = (start >= 0) & answering.gather(1, start.clamp_min(0)) & (position - start > len(header))
    return inside if real is None else inside & real.bool()
