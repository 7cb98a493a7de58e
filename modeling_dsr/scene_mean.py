"""Losses averaged over scenes, so that gradient accumulation and several processes change nothing."""

from collections.abc import Callable

import torch


def mean_over_scenes(losses_of: Callable[[int], dict[str, torch.Tensor]], scenes: int) -> dict[str, torch.Tensor]:
    """
    The mean of the losses of single scenes, term by term.

    The published losses are means over everything that is valid in a batch. How much a scene weighs in them depends on
    its neighbours in the batch, so a batch of four is not four batches of one, which is what Trainer makes of it under
    accumulation and on several devices.

    Args:
        losses_of: scene -> its losses, scalars. scenes: how many there are.
    """
    each = [losses_of(scene) for scene in range(scenes)]
    if len(each) == 1:
        return each[0]
    return {name: torch.stack([losses[name] for losses in each]).mean(0) for name in each[0]}
