"""Rows of image, phrases and masks to the training inputs of FrozenQwenSAM."""

import numpy as np
import torch

from .training_collator import TrainingCollator


class FrozenQwenSAMCollator(TrainingCollator):
    """
    See [`TrainingCollator`]. `labels` is a list with the masks `[n, h, w]` of each row.

    Rows: "image", "phrases" (n of them), "masks" (bool [n, h, w], or n run lengths {"size", "counts"}); with "caption"
        the
    phrases stand in it, without they are captions of their own; "pieces" instead of both, see the processor;
    "instruction".

    Args:
        processor: a [`FrozenQwenSAMProcessor`].
        processor_options: for the processor, such as `max_pixels`.
    """

    def __init__(self, processor, **processor_options):
        super().__init__(processor)
        self.processor_options = processor_options

    def collate(self, rows: list[dict], seeds: list[int]) -> dict:
        self.need(rows, "image", "masks")
        labels = [self._masks(row["masks"]) for row in rows]
        for number, (row, masks) in enumerate(zip(rows, labels)):
            if ("phrases" in row) == ("pieces" in row):
                raise ValueError(f'Row {number} must have either "phrases" or "pieces", got {sorted(row)}.')
            if "phrases" in row and len(row["phrases"]) != len(masks):
                raise ValueError(f"Row {number} has {len(row['phrases'])} phrases and {len(masks)} masks.")
            if not len(masks):
                raise ValueError(f"Row {number} has no mask, so it teaches nothing.")

        def column(name: str):
            values = [row.get(name) for row in rows]
            return values if any(value is not None for value in values) else None

        batch = self.processor(
            images=[row["image"] for row in rows],
            text=column("instruction"),
            phrases=column("phrases"),
            captions=column("caption"),
            pieces=column("pieces"),
            **self.processor_options,
        )
        return {**batch, "labels": labels}

    @staticmethod
    def _masks(masks) -> torch.Tensor:
        if len(masks) and isinstance(masks[0], dict):
            masks = [_unrolled(rle) for rle in masks]
        return torch.from_numpy(np.stack([np.asarray(mask, bool) for mask in masks])) if len(masks) else torch.zeros(0)


def _unrolled(rle: dict) -> np.ndarray:
    """The mask `[H, W]` of COCO's uncompressed run lengths: column by column, beginning with background."""
    if not isinstance(rle["counts"], (list, tuple)):
        raise ValueError('Run lengths must be uncompressed: {"size": [H, W], "counts": [numbers]}.')
    values = np.arange(len(rle["counts"])) % 2 == 1
    return np.repeat(values, rle["counts"]).reshape(rle["size"], order="F")
