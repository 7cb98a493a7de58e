"""Metrics of referring segmentation (RefCOCO) and Panoptic Narrative Grounding."""

from dataclasses import dataclass, field

import torch

THRESHOLD_STEP = 1e-5  # of the recall curve


def mask_overlaps(found: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels in both and in either of boolean masks `[n, H, W]`, as `[n]` int64 each."""
    if found.shape != wanted.shape or found.ndim != 3:
        raise ValueError(
            f"Masks must be two [n, H, W] of one shape, got {tuple(found.shape)} and {tuple(wanted.shape)}."
        )
    found, wanted = found.bool().flatten(1), wanted.bool().flatten(1)
    return (found & wanted).sum(1), (found | wanted).sum(1)


def masks_from_logits(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Boolean masks `[n, H, W]` at the size of the annotation: probabilities are resized, then compared with one
    half."""
    probabilities = logits.float().sigmoid()[None]
    return (
        torch.nn.functional.interpolate(probabilities, size=tuple(size), mode="bilinear", align_corners=False)[0] > 0.5
    )


def average_recall(ious: torch.Tensor) -> float:
    """Area under recall over the IoU threshold, from 0 to 1 in steps of 1e-5, as a left Riemann sum."""
    if not len(ious):
        return float("nan")
    thresholds = torch.arange(0, 1, THRESHOLD_STEP, dtype=torch.float64)
    order = ious.double().sort().values
    reached = len(order) - torch.searchsorted(order, thresholds)  # masks whose IoU is at least the threshold
    return (reached.double() / len(order)).sum().item() * THRESHOLD_STEP


@dataclass
class SegmentationMetrics:
    """
    Collects masks, gives cIoU and gIoU (RefCOCO), average recall (PNG), accuracy at IoU 0.5 and of pixels.

    `add(found, wanted, plural, thing)` takes the masks of an image, and for PNG two flags per mask.
    """

    intersections: list[torch.Tensor] = field(default_factory=list)
    unions: list[torch.Tensor] = field(default_factory=list)
    groups: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    right_pixels: int = 0
    pixels: int = 0

    def add(self, found: torch.Tensor, wanted: torch.Tensor, plural=None, thing=None) -> None:
        intersection, union = mask_overlaps(found, wanted)
        self.intersections.append(intersection.cpu())
        self.unions.append(union.cpu())
        self.right_pixels += int((found.bool() == wanted.bool()).sum())
        self.pixels += found.numel()
        if plural is not None and thing is not None:
            plural, thing = torch.as_tensor(plural).bool(), torch.as_tensor(thing).bool()
            thing = thing | plural  # as published, several things together are things
            for name, member in (("singular", ~plural), ("plural", plural), ("thing", thing), ("stuff", ~thing)):
                self.groups.setdefault(name, []).append(member)

    def compute(self) -> dict[str, float]:
        """`ciou`, `giou`, `accuracy@0.5`, `pixel_accuracy` in percent; `average_recall` and its groups from 0 to 1."""
        if not self.intersections:
            raise ValueError("No mask was added, so there is nothing to compute.")
        intersection, union = torch.cat(self.intersections), torch.cat(self.unions)
        ious = intersection / (union + 1e-12)
        result = {
            "ciou": 100 * intersection.sum().item() / max(union.sum().item(), 1),
            "giou": 100 * ious.mean().item(),
            "accuracy@0.5": 100 * (ious > 0.5).float().mean().item(),
            "pixel_accuracy": 100 * self.right_pixels / max(self.pixels, 1),
            "average_recall": average_recall(ious),
        }
        if self.groups and len(torch.cat(self.groups["singular"])) == len(ious):
            result |= {
                f"average_recall_{name}": average_recall(ious[torch.cat(members)])
                for name, members in self.groups.items()
            }
        return result
