"""What is known of the frames of one call, for models that read it, and for placing and judging what others say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .known import Known


@dataclass
class Conditions:
    """
    Of each frame of a call: camera-to-world pose, intrinsics in pixels of its image, depth; None where unknown.
    """

    poses: list[np.ndarray | None]
    intrinsics: list[np.ndarray | None]
    depths: list[np.ndarray | None]

    def counts(self) -> dict[str, int]:
        return {
            name: sum(value is not None for value in getattr(self, name)) for name in ("poses", "intrinsics", "depths")
        }

    @classmethod
    def none(cls, count: int) -> Conditions:
        return cls([None] * count, [None] * count, [None] * count)

    def over(self, other: Conditions) -> Conditions:
        """This, and where it knows nothing, the other."""
        pick = lambda name: [  # noqa: E731
            theirs if own is None else own for own, theirs in zip(getattr(self, name), getattr(other, name))
        ]
        return Conditions(pick("poses"), pick("intrinsics"), pick("depths"))


def conditions_of(known: Known, frames: Sequence, numbers: Sequence[int]) -> Conditions:
    """What is known of `frames`, the `numbers`th of their scene."""
    found = Conditions([], [], [])
    for frame, number in zip(frames, numbers):
        camera = known.camera(frame, number)
        k = None if camera.intrinsics is None else rescaled(camera.intrinsics, camera.size, frame.image.size)
        found.poses.append(camera.pose)
        found.intrinsics.append(k)
        found.depths.append(known.depth(frame, number))
    return found


def conditions_of_views(views: Sequence, sizes: Sequence[tuple[int, int]]) -> Conditions:
    """What earlier predictions say, as if it were known; `sizes` (width, height) of the images."""
    found = Conditions([], [], [])
    for view, size in zip(views, sizes):
        found.poses.append(view.camera_to_world)
        found.intrinsics.append(rescaled(view.intrinsics, view.depth.shape[::-1], size))
        found.depths.append(np.where(view.mask, view.depth, 0).astype(np.float32))
    return found


def model_inputs(conditions: Conditions) -> tuple[dict, dict]:
    """
    What the processor takes and the masks `[1, N]` that the model takes beside; frames of which nothing is known get
    fillers.
    """
    import torch

    given, masks = {}, {}
    fillers = {
        "poses": np.eye(4),
        "intrinsics": np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]),
        "depths": np.zeros((1, 1)),
    }
    for name, mask in (("poses", "pose_mask"), ("intrinsics", "ray_mask"), ("depths", "depth_mask")):
        values = getattr(conditions, name)
        known = [value for value in values if value is not None]
        if not known or (name == "poses" and len(known) < 2):
            continue  # a single pose says nothing
        # Where a camera is unknown another's stands in: distances between cameras set the scale of all.
        filler = known[0] if name == "poses" else fillers[name]
        given[name] = [filler if value is None else value for value in values]
        masks[mask] = torch.tensor([[value is not None for value in values]])
    return given, masks


def rescaled(intrinsics: np.ndarray, size: tuple[int, int] | None, to: tuple[int, int]) -> np.ndarray:
    """Intrinsics of an image at another size (width, height)."""
    if size is None or tuple(size) == tuple(to):
        return intrinsics
    found = intrinsics.copy()
    for axis, (old, new) in enumerate(zip(size, to)):
        found[axis] *= new / old
        found[axis, 2] = (intrinsics[axis, 2] + 0.5) * new / old - 0.5
    return found
