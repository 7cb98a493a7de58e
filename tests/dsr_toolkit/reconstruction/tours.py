"""A camera that goes round, and a model that knows the truth but for noise, outliers and a world of its own per
window."""

import numpy as np
from scipy.spatial.transform import Rotation

from dsr_toolkit.reconstruction import View
from dsr_toolkit.reconstruction.similarity import Similarity

HEIGHT, WIDTH, FOCAL = 48, 64, 60.0
INTRINSICS = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]])
V, U = np.mgrid[:HEIGHT, :WIDTH]
RAYS = np.stack([(U - INTRINSICS[0, 2]) / FOCAL, (V - INTRINSICS[1, 2]) / FOCAL, np.ones_like(U)], -1)


def world_of(seed: int) -> Similarity:
    """Some world and unit."""
    generator = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    return Similarity(float(np.exp(generator.normal(0, 0.5))), rotation, generator.normal(0, 3, 3))


def tour(count: int, turns: float = 1.0) -> list[View]:
    """`count` views on a circle of radius 10, that looks outwards; one turn ends where it started. Descriptors tell the
    place."""
    generator, views = np.random.default_rng(0), []
    for number in range(count):
        angle = 2 * np.pi * turns * number / max(count - 1, 1)
        camera = np.eye(4)
        camera[:3, :3] = Rotation.from_euler("y", -angle).as_matrix()
        camera[:3, 3] = [10 * np.cos(angle) - 10, 0, 10 * np.sin(angle)]
        depth = generator.uniform(1, 6, (HEIGHT, WIDTH))
        points = (RAYS * depth[..., None]) @ camera[:3, :3].T + camera[:3, 3]
        waves = angle * np.arange(1, 5)
        views.append(
            View(
                generator.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8), points.astype(np.float32),
                depth.astype(np.float32),
                np.ones((HEIGHT, WIDTH), np.float32), np.ones((HEIGHT, WIDTH), bool), camera, INTRINSICS, None,
                f"{number:04d}.png", float(number), np.concatenate([np.cos(waves), np.sin(waves)]).astype(np.float32),
            )
        )  # fmt: skip
    return views


def model_of(truth: list[View], noise: float, outliers: float = 0.0, seed: int = 0):
    """`predict` of windows: each pixel's depth is `noise` wrong (relative), some are gross; each call in a world of its
    own."""
    generator, known, calls = np.random.default_rng(seed), {view.name: view for view in truth}, 0

    def predict(frames: list) -> list[View]:
        nonlocal calls
        calls += 1
        views = []
        for frame in frames:
            true = known[frame.name]
            depth = np.maximum(true.depth * (1 + noise * generator.normal(size=true.depth.shape)), 0.05)
            wrong = generator.random(depth.shape) < outliers
            depth = np.where(wrong, generator.uniform(0.5, 20, depth.shape), depth)
            camera = true.camera_to_world
            points = (RAYS * depth[..., None]) @ camera[:3, :3].T + camera[:3, 3]
            maps = {"points": points.astype(np.float32), "depth": depth.astype(np.float32)}
            views.append(View(**{**vars(true), **maps}).moved(world_of(1000 * seed + calls)))
        return views

    return predict


def scale_drift(found: list[View], truth: list[View]) -> float:
    """Scale of the last view in that of the first."""
    first, last = (float(np.median(found[i].depth / truth[i].depth)) for i in (0, -1))
    return last / first


def gap(found: list[View], truth: list[View]) -> float:
    """How far the end lies from where the truth says that it lies as seen from the start, in parts of the whole way."""
    centres, true = (np.stack([view.camera_to_world for view in views]) for views in (found, truth))
    length = np.linalg.norm(np.diff(centres[:, :3, 3], axis=0), axis=1).sum()
    true_length = np.linalg.norm(np.diff(true[:, :3, 3], axis=0), axis=1).sum()
    local, true_local = (np.linalg.inv(poses[0]) @ poses[-1] for poses in (centres, true))
    return float(np.linalg.norm(local[:3, 3] / length - true_local[:3, 3] / true_length))


def winding(count: int, seed: int = 0, height: int = 6, width: int = 8) -> list[View]:
    """A camera on a winding way, and what lies before it."""
    generator = np.random.default_rng(seed)
    intrinsics = np.array([[7.0, 0, width / 2], [0, 6.5, height / 2], [0, 0, 1]])
    v, u = np.mgrid[:height, :width]
    rays = np.stack([(u - intrinsics[0, 2]) / 7.0, (v - intrinsics[1, 2]) / 6.5, np.ones_like(u)], -1)
    views = []
    for number in range(count):
        camera = np.eye(4)
        camera[:3, :3] = Rotation.from_euler("yxz", [0.05 * number, 0.2 * np.sin(number / 9), 0.1]).as_matrix()
        camera[:3, 3] = [np.sin(number / 15) * 6, 0.3 * np.cos(number / 5), number * 0.25]
        depth = generator.uniform(1, 6, (height, width))
        points = (rays * depth[..., None]) @ camera[:3, :3].T + camera[:3, 3]
        views.append(
            View(
                generator.integers(0, 255, (height, width, 3), np.uint8),
                points.astype(np.float32),
                depth.astype(np.float32),
                generator.uniform(0.3, 1, (height, width)).astype(np.float32),
                generator.random((height, width)) > 0.2,
                camera,
                intrinsics,
                (generator.random((height, width)) > 0.7).astype(np.float32),
                f"frame {number}.jpg",
                number / 10,
            )
        )
    return views


def views_of_truth(sequence) -> list[View]:
    """What a model would say that knows the truth of a sequence with cameras and depth."""
    from PIL import Image

    from dsr_toolkit.evaluation.geometry import true_points

    views = []
    for number, path in enumerate(sequence.images):
        points, known = true_points(sequence, number)
        image = np.asarray(Image.open(path).convert("RGB"))
        depth = sequence.depth(number)
        views.append(
            View(
                image, points.astype(np.float32), depth, known.astype(np.float32), known, sequence.poses[number],
                sequence.intrinsics[number], None, path.name, float(number),
            )
        )  # fmt: skip
    return views
