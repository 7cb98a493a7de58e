"""Losses and training metrics of FrozenQwenSAM, as the published training computes them."""

import torch
from torch.nn import functional as F

from .frozen_qwen_sam_refiner import overlap

# The published losses divide by a count plus this.
EPSILON = torch.finfo(torch.float32).eps


def mask_bce(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy over all pixels of `logits`, `targets` `[n, H, W]`."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / (logits.numel() + EPSILON)


def mask_dice(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Dice loss with plain sums and one pixel of smoothing, averaged over the masks."""
    probabilities, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    common = (probabilities * targets).sum(1)
    loss = 1 - (2 * common + 1) / (probabilities.sum(1) + targets.sum(1) + 1)
    return loss.sum() / (len(loss) + EPSILON)


def mask_losses(predictions, targets) -> dict[str, torch.Tensor]:
    """
    Losses and metrics of the masks of several images, weighted by the number of masks.

    Args:
        predictions: per image logits `[n, H, W]`.
        targets: per image binary masks `[n, h, w]`; resized (nearest) to the predictions.

    Returns:
        Scalars: `loss_mask`, `loss_dice`, and without gradient `accuracy` (of pixels), `aiou`.
    """
    sums, total = {}, 0
    for logits, target in zip(predictions, targets):
        if not len(logits):
            continue
        logits = logits.float()
        target = F.interpolate(target[None].to(logits), size=logits.shape[-2:])[0]
        values = {"loss_mask": mask_bce(logits, target), "loss_dice": mask_dice(logits, target)}
        with torch.no_grad():
            found, wanted = logits.sigmoid() > 0.5, target > 0.5
            values["accuracy"] = (found == wanted).float().mean()
            values["aiou"] = overlap(found, wanted).mean()
        sums = {name: sums.get(name, 0) + len(logits) * value for name, value in values.items()}
        total += len(logits)
    return {name: value / total for name, value in sums.items()}
