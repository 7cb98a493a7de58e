"""33 windows of depth with 2 % noise: how far the scale of the last has drifted, and what the joins cost.

Every window is predicted by a real π³ (tiny, on frames of 224×168 pixels), so that the time of the joins is held
against the time of true predictions; the geometry itself is known, with noise, because random weights have none.
"""

import time
from dataclasses import replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from benchmarks.harness import row
from dsr_toolkit.reconstruction import View
from dsr_toolkit.reconstruction.joins import join_views
from dsr_toolkit.reconstruction.similarity import Similarity, umeyama
from dsr_toolkit.reconstruction.windows import reconstruct_windows, windows

NAME = "geo.windows"
WINDOWS, SIZE, OVERLAP, NOISE = 33, 16, 4, 0.02
HEIGHT, WIDTH, FOCAL = 168, 224, 200.0
LARGEST_DRIFT, LARGEST_SHARE = 0.01, 0.05


def truth(count: int) -> list[View]:
    """A camera on a wide curve before a hilly ground."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([(u - (WIDTH - 1) / 2) / FOCAL, (v - (HEIGHT - 1) / 2) / FOCAL, np.ones_like(u)], -1)
    intrinsics = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]])
    generator, views = np.random.default_rng(0), []
    for number in range(count):
        camera = np.eye(4)
        camera[:3, :3] = Rotation.from_euler("y", 0.01 * number).as_matrix()
        camera[:3, 3] = [20 * np.sin(0.01 * number), 0, 20 * np.cos(0.01 * number)]
        depth = 3 + np.sin(u / 30 + 0.3 * number) + np.cos(v / 20) + generator.uniform(0, 0.2, u.shape)
        points = (rays * depth[..., None]) @ camera[:3, :3].T + camera[:3, 3]
        ones = np.ones((HEIGHT, WIDTH), np.float32)
        views.append(
            View(
                np.zeros((HEIGHT, WIDTH, 3), np.uint8), points.astype(np.float32), depth.astype(np.float32), ones,
                ones > 0, camera, intrinsics, None, f"{number:06d}.png", float(number),
            )
        )  # fmt: skip
    return views


class Predictor:
    """A model's time, and the truth with noise in a world of each window's own."""

    def __init__(self, model=None):
        self.model, self.generator, self.seconds, self.calls = model, np.random.default_rng(1), 0.0, 0

    def __call__(self, frames: list[View]) -> list[View]:
        if self.model is not None:
            start = time.perf_counter()
            with torch.inference_mode():
                self.model(torch.zeros(1, len(frames), 3, HEIGHT, WIDTH))
            self.seconds += time.perf_counter() - start
        self.calls += 1
        turn = Rotation.random(random_state=self.calls).as_matrix()
        scale = float(np.exp(self.generator.normal(0, 0.5)))
        world = Similarity(scale, turn, self.generator.normal(0, 3, 3))
        views = []
        for view in frames:
            factor = (1 + NOISE * self.generator.normal(size=view.depth.shape)).astype(np.float32)
            centre = view.camera_to_world[:3, 3].astype(np.float32)
            points = centre + (view.points - centre) * factor[..., None]
            views.append(replace(view, depth=view.depth * factor, points=points).moved(world))
        return views


def drift(found: list[View], true: list[View]) -> float:
    """How much the scale of the last views differs from that of the first."""
    ratios = [float(np.median(one.depth / other.depth)) for one, other in zip(found, true)]
    return abs(float(np.log(np.median(ratios[-4:]) / np.median(ratios[:4]))))


def published(predict, frames: list[View]) -> list[View]:
    """As Pi3XVO joins its chunks: one-sided least squares over all common points."""
    found, placement, before = [], Similarity.identity(), []
    for window in windows(frames, SIZE, OVERLAP):
        views = predict(window)
        if before:
            x, y = (np.concatenate([v.points.reshape(-1, 3) for v in part]) for part in (views[: len(before)], before))
            placement = placement @ umeyama(x, y)
        found += [view.moved(placement) for view in views[len(before) :]]
        before = views[-OVERLAP:]
    return found


def run() -> list[dict]:
    from dsr_toolkit.loading import load
    from dsr_toolkit.tiny import hub_folder

    true = truth(SIZE + (WINDOWS - 1) * (SIZE - OVERLAP))
    model, _ = load(str(hub_folder("pi3")), "pi3", device="cpu")
    predict, joining = Predictor(model), 0.0

    import dsr_toolkit.reconstruction.windows as module

    def timed(views, to):
        nonlocal joining
        start = time.perf_counter()
        join = join_views(views, to)
        joining += time.perf_counter() - start
        return join

    module.join_views = timed
    try:
        ours = drift(list(reconstruct_windows(predict, iter(true), SIZE, OVERLAP)), true)
    finally:
        module.join_views = join_views
    theirs = drift(published(Predictor(), true), true)
    share = joining / predict.seconds
    print(f"scale drift: published {theirs:.2%}, ours {ours:.3%} (at most {LARGEST_DRIFT:.0%})")
    print(
        f"joins: {joining:.2f} s, {share:.2%} of {predict.seconds:.1f} s of predictions (at most {LARGEST_SHARE:.0%})"
    )
    return [
        row(NAME, "scale drift against 1 %", LARGEST_DRIFT, ours, 1.0),
        row(NAME, "scale drift against the published joins", theirs, ours, None),
        row(NAME, "time of joins against 5 % of the predictions", LARGEST_SHARE * predict.seconds, joining, 1.0),
    ]
