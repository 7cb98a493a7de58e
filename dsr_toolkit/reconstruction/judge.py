"""How a result compares with what is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from ..console import say
from .conditions import Conditions, conditions_of, rescaled
from .known import Known
from .views import View

FEWEST_SCORED = 3  # known cameras from which a trajectory is scored


class Judge:
    """
    What is known of a scene's frames: given to the model where it reads it, and held against the result in any case.
    """

    def __init__(self, known: Known, given: bool):
        self.known, self.given = known, given
        self.numbers: dict[tuple[str, float], int] = {}
        self.of: dict[tuple[str, float], Conditions] = {}
        self.sizes: dict[tuple[str, float], tuple[int, int]] = {}
        self.counts = dict.fromkeys(("poses", "intrinsics", "depths"), 0)
        self.pairs, self.focal, self.depth = [], [], []
        cameras = [*known.by_name.values(), *(camera for _, camera in known.by_time), *known.by_order]
        self.has_poses = any(camera.pose is not None for camera in cameras)

    def numbered(self, frames: Iterable) -> Iterator:
        for number, frame in enumerate(frames):
            found = conditions_of(self.known, [frame], [number])
            self.of[frame.name, frame.time] = replace(
                found, depths=[None]
            )  # depths are read again when they are needed
            self.sizes[frame.name, frame.time] = frame.image.size
            self.numbers[frame.name, frame.time] = number
            for name, count in found.counts().items():
                self.counts[name] += count
            yield frame
        if not any(self.counts.values()):
            raise ValueError(
                "nothing that --cameras or --depths holds belongs to an image of INPUT: images are matched by their "
                f"names, and by time in trajectories. ({self.known.about})"
            )

    def conditions(self, frames: list) -> Conditions:
        return conditions_of(self.known, frames, [self.numbers[frame.name, frame.time] for frame in frames])

    def poses(self, views: list[View]) -> list[np.ndarray | None]:
        return [self.of[view.name, view.time].poses[0] for view in views]

    def watched(self, views: Iterable[View]) -> Iterator[View]:
        """The same views, after a look at how they compare."""
        for view in views:
            known = self.of[view.name, view.time]
            if (pose := known.poses[0]) is not None:
                self.pairs.append((view.camera_to_world, pose))
            if known.intrinsics[0] is not None:
                k = rescaled(known.intrinsics[0], self.sizes[view.name, view.time], view.depth.shape[::-1])
                self.focal.append(float(np.sqrt(view.intrinsics[0, 0] * view.intrinsics[1, 1] / (k[0, 0] * k[1, 1]))))
            depth = self.known.depth(view, self.numbers[view.name, view.time])
            if depth is not None:
                rows, columns = (
                    ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(view.depth.shape, depth.shape)
                )
                depth = depth[np.ix_(rows, columns)]
                both = view.mask & (depth > 0) & (view.depth > 0)
                if both.any():
                    ratio = depth[both] / view.depth[both]
                    self.depth.append(float(np.mean(np.abs(np.median(ratio) / ratio - 1))))
            yield view

    def report(self) -> dict:
        """For the report, and told on the screen."""
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)
        use = "given to the model, and compared" if self.given else "this model reads images alone: they are compared"
        say(f"Known: {counts} ({self.known.about or 'depth maps'}); {use}.")
        found: dict = {"about": self.known.about, "counts": self.counts, "given_to_the_model": self.given}
        if len(self.pairs) >= FEWEST_SCORED:
            from ..evaluation.geometry_metrics import trajectory_metrics

            try:
                found["trajectory"] = trajectory_metrics(*(np.stack(side) for side in zip(*self.pairs)))
                ate, trans, rot = (found["trajectory"][name] for name in ("ate", "rpe_trans", "rpe_rot"))
                say(
                    f"Cameras against the known ones: ATE {ate:.4g}, RPE {trans:.4g} and {rot:.3g}°, in the known unit."
                )
            except ValueError as error:
                say(f"Cameras are not compared with the known ones: {error}")
        if self.focal:
            found["focal_ratio"] = float(np.median(self.focal))
            say(f"Focal lengths are {found['focal_ratio']:.4g} of the known ones (median).")
        if self.depth:
            found["depth_abs_rel"] = float(np.mean(self.depth))
            say(f"Depths differ from the known ones by {found['depth_abs_rel']:.2%}, each image scaled by its median.")
        return found
