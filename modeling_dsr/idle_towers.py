"""Towers that a batch has nothing for: training in several processes needs them all the same."""

from collections.abc import Callable, Iterable

import torch
from torch import nn


def reach(
    inputs_embeds: torch.Tensor, towers: Iterable[nn.Module], features: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """
    `inputs_embeds` plus nothing, by way of towers that have no input in this batch: in training their gradients are
    zeros, not absent.

    DistributedDataParallel never averages the gradients that come after an absent one, and sharded weights are gathered
    by all processes or none: a batch of points on one and of views on another would wait for ever.

    Args:
        inputs_embeds: `[B, S, D]`. towers: whose parameters matter. features: what they make of some small input.
    """
    if not torch.is_grad_enabled():
        return inputs_embeds
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not together and not any(parameter.requires_grad for tower in towers for parameter in tower.parameters()):
        return inputs_embeds
    return inputs_embeds + 0.0 * features().mean().to(inputs_embeds)


def grey_patches(vision_config, device) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest video of Qwen-VL's vision towers, one token: patches `[P, channels]` of zeros, grid `[1, 3]`."""
    vision, merge = vision_config, vision_config.spatial_merge_size
    channels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return torch.zeros(merge**2, channels, device=device), torch.tensor([[1, merge, merge]], device=device)
