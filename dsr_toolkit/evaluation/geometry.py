"""Cameras, depth and points against truth, by the published protocols (MonST3R's, which π³ and PAGE-4D use)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from modeling_dsr.frames import resize_image

from ..datasets.geometry import Sequence
from ..reconstruction.similarity import Similarity, umeyama
from ..reconstruction.views import View, run_model
from .geometry_metrics import average_depth_metrics, depth_metrics, evaluation_frames, fit_depth, trajectory_metrics

PI3_WIDTH, PI3_POINTS_WIDTH = 512, 518  # of the published evaluations: all but points, points
# Of depths to the truth, as each original does it: π³ one scale of least absolute error, PAGE-4D the same for a video
# and the ratio of medians for an image by itself.
ALIGNMENT = {
    ("pi3", "video-depth"): "scale",
    ("pi3", "mono-depth"): "scale",
    ("page4d", "video-depth"): "scale",
    ("page4d", "mono-depth"): "median",
}
DEPTH_LIMIT = 70.0  # metres; deeper truth does not count on Sintel, Bonn and TUM
TINY = 1e-5  # predicted depths below it count as unknown and are set to 0 before scoring
ICP_POINTS, NORMAL_POINTS = 50_000, 100_000  # that decide the alignment; whose normals are compared
NEIGHBOURS = 30  # that make a normal
ICP_THRESHOLD, ICP_ROUNDS = 0.1, 30

Predict = Callable[[list], list[View]]


def published_frames(images: list[Image.Image], processor, kind: str, width: int = PI3_WIDTH) -> torch.Tensor:
    """
    `[1, N, 3, h, w]` in [0, 1] as the published evaluations feed their models, which is not what their demos do.

    Args:
        width: π³: of the first resize, `PI3_POINTS_WIDTH` where points are scored.
    """
    if kind == "page4d":
        return evaluation_frames(processor(images)["pixel_values"])
    frames, size = [], None
    for image in images:
        size = size or (width, round(image.height * width / image.width / 14) * 14)
        frame = np.asarray(resize_image(image.convert("RGB"), size, Image.Resampling.LANCZOS))
        frames.append(torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 255)
    whole = max(size[1] // 14, 1) * 14, size[0] // 14 * 14
    frames = torch.nn.functional.interpolate(
        torch.stack(frames), size=whole, mode="bilinear", align_corners=False, antialias=True
    )
    return frames.clamp(0, 1).unsqueeze(0)


def published_predict(model, processor, kind: str, point_source: str = "depth", width: int = PI3_WIDTH) -> Predict:
    """Frames → views at the size of [`published_frames`], with nothing masked out."""

    def predict(frames: list) -> list[View]:
        images = [frame.image for frame in frames]
        pixel_values = published_frames(images, processor, kind, width)
        return run_model(
            model, processor, images, [frame.name for frame in frames], [frame.time for frame in frames], pixel_values,
            {"confidence_threshold": 0.0, "edge_tolerance": None, "point_source": point_source},
        )  # fmt: skip

    return predict


def resized(values: np.ndarray, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Maps `[h, w]` or `[h, w, C]` at another size (height, width), float32."""
    maps = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    maps = maps.unsqueeze(-1) if maps.ndim == 2 else maps
    maps = torch.nn.functional.interpolate(maps.permute(2, 0, 1)[None], size=size, mode=mode, align_corners=False)[0]
    return maps[0] if len(maps) == 1 else maps.permute(1, 2, 0)


def score_poses(sequence: Sequence, views: list[View]) -> dict[str, float]:
    """See [`trajectory_metrics`]."""
    estimate = np.stack([view.camera_to_world for view in views])
    same = len(estimate) == len(sequence.poses)
    times = sequence.pose_times if same else sequence.times
    return trajectory_metrics(estimate, sequence.poses, times, sequence.pose_times) | {"frames": len(views)}


def score_depth(sequence: Sequence, views: list[View], align: str, together: bool) -> tuple[dict[str, float], list]:
    """
    Depth errors of a sequence.

    Args:
        align: see [`fit_depth`]. together: one alignment for all images (video depth), or one each (monocular depth).

    Returns:
        The metrics, and per image (truth, aligned prediction), for pictures.
    """
    truths, predictions = [], []
    for number, view in enumerate(views):
        truth = torch.from_numpy(sequence.depth(number))
        prediction = resized(view.depth, tuple(truth.shape), "bicubic")
        truths.append(truth)
        predictions.append(torch.where(prediction < TINY, 0.0, prediction))
    if not together and len(truths) > 1:
        scored = [
            score_depth(
                Sequence(sequence.name, sequence.layout, [], [], depth=lambda _, n=n: sequence.depth(n)),
                [view],
                align,
                True,
            )
            for n, view in enumerate(views)
        ]
        return average_depth_metrics([metrics for metrics, _ in scored]) | {"frames": len(views)}, [
            pair for _, (pair,) in scored
        ]
    max_depth = None if sequence.layout == "kitti" else DEPTH_LIMIT
    clip_max = DEPTH_LIMIT if sequence.layout == "sintel" else None
    flat, true = (torch.cat([values.flatten() for values in maps]) for maps in (predictions, truths))
    valid = (true > 0) & (true < (np.inf if max_depth is None else max_depth))
    if not valid.any():
        raise ValueError(f"{sequence.name} has no true depth between 0 and {max_depth}.")
    scale, shift = fit_depth(flat[valid], true[valid], align)
    metrics = depth_metrics(flat, true, (scale, shift), max_depth, clip_max)
    pairs = [(truth.numpy(), (scale * prediction + shift).numpy()) for truth, prediction in zip(truths, predictions)]
    return metrics | {"frames": len(views)}, pairs


def true_points(sequence: Sequence, number: int) -> tuple[np.ndarray, np.ndarray]:
    """World points `[h, w, 3]` of an image, and where there are some."""
    depth, (fx, fy), (cx, cy) = (
        sequence.depth(number),
        np.diag(sequence.intrinsics[number])[:2],
        sequence.intrinsics[number][:2, 2],
    )
    v, u = np.mgrid[: depth.shape[0], : depth.shape[1]]
    local = np.stack([(u - cx) / fx * depth, (v - cy) / fy * depth, depth], -1)
    pose = sequence.poses[number]
    return local @ pose[:3, :3].T + pose[:3, 3], depth > 0


def score_points(
    sequence: Sequence, views: list[View], seed: int = 0
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """
    Accuracy, completeness and normal consistency of a point cloud.

    Predicted point maps, bilinear at the size of the truth, are brought to it by a similarity over all pixels (Umeyama)
    and then by rigid ICP. Every point is compared with the whole of the other cloud: where either is thinned out,
    distances grow with what is missing. Only the alignment and the means of normals are taken from a sample, which
    changes them by less than a thousandth.

    Returns:
        `accuracy` (prediction → truth), `completeness` (truth → prediction), `normal_consistency` (of both directions),
        each as mean and as `…_median`, in the unit of the truth; the aligned cloud; the true one.
    """
    found, true = [], []
    for number, view in enumerate(views):
        points, valid = true_points(sequence, number)
        prediction = resized(view.points, points.shape[:2], "bilinear").numpy()
        valid &= np.isfinite(prediction).all(-1)
        found.append(prediction[valid])
        true.append(points[valid])
    found, true = np.concatenate(found).astype(float), np.concatenate(true)
    if len(true) < 3:
        raise ValueError(f"{sequence.name} has {len(true)} pixels with true and predicted points; three are needed.")
    found = umeyama(found, true).apply(found)
    found = icp(found, true, seed=seed).apply(found)
    return compare_clouds(found, true, seed) | {"frames": len(views), "points": len(found)}, found, true


def sampled(count: int, most: int, seed: int) -> np.ndarray:
    """At most `most` of the numbers below `count`, one at random from each of as many equal stretches."""
    if count <= most:
        return np.arange(count)
    return ((np.arange(most) + np.random.default_rng(seed).random(most)) * count / most).astype(int)


def icp(
    source: np.ndarray,
    target: np.ndarray,
    threshold: float = ICP_THRESHOLD,
    rounds: int = ICP_ROUNDS,
    seed: int = 0,
) -> Similarity:
    """
    Rigid point-to-point iterative closest points from `source` (a sample of it) to `target` (all of it); pairs further
    apart than `threshold` do not count.

    P. J. Besl and N. D. McKay, "A method for registration of 3-D shapes", PAMI 1992.
    """
    source = source[sampled(len(source), ICP_POINTS, seed)]
    source = source[tree_of(source).indices]
    tree, total, previous = tree_of(target), Similarity.identity(), np.inf
    for _ in range(rounds):
        moved = total.apply(source)
        distance, nearest = tree.query(moved, distance_upper_bound=threshold, workers=-1)
        near = np.isfinite(distance)
        if near.sum() < 3:
            break
        total = umeyama(moved[near], target[nearest[near]], scale=1.0) @ total
        error = float(np.sqrt(np.square(distance[near]).mean()))
        if abs(previous - error) < 1e-6 * max(error, 1e-12):
            break
        previous = error
    return total


def compare_clouds(found: np.ndarray, true: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Metrics of [`score_points`] of two clouds `[n, 3]`, `[m, 3]` as they lie."""
    clouds, trees = (found, true), (tree_of(found), tree_of(true))
    metrics, consistency = {}, []
    for name, source, target in (("accuracy", 0, 1), ("completeness", 1, 0)):
        order = trees[source].indices
        distance, nearest = np.empty(len(order)), np.empty(len(order), int)
        distance[order], nearest[order] = trees[target].query(clouds[source][order], workers=-1)
        metrics |= {name: float(distance.mean()), f"{name}_median": float(np.median(distance))}
        chosen = sampled(len(clouds[source]), NORMAL_POINTS, seed + source)
        # A true point is often the nearest of several found ones: its normal is worked out once.
        others, place = np.unique(nearest[chosen], return_inverse=True)
        own, theirs = normals_of(trees[source], chosen), normals_of(trees[target], others)[place]
        consistency.append(np.abs((own * theirs).sum(-1)))
    metrics["normal_consistency"] = float(np.mean([values.mean() for values in consistency]))
    metrics["normal_consistency_median"] = float(np.mean([np.median(values) for values in consistency]))
    return metrics


def normals_of(tree, chosen: np.ndarray) -> np.ndarray:
    """
    Unit normals `[n, 3]`, of either sign, of the `chosen` points of a `cKDTree`: the direction in which the nearest
    neighbours spread least.
    """
    cloud, normals = tree.data, np.empty((len(chosen), 3))
    count, rank = min(NEIGHBOURS, len(cloud)), np.empty(len(cloud), int)
    rank[tree.indices] = np.arange(len(cloud))
    order = np.argsort(rank[chosen])
    for start in range(0, len(chosen), 20_000):
        part = order[start : start + 20_000]
        near = cloud[tree.query(cloud[chosen[part]], k=count, workers=-1)[1].reshape(-1, count)]
        near = near - near.mean(1, keepdims=True)
        normals[part] = np.linalg.eigh(np.swapaxes(near, 1, 2) @ near)[1][..., 0]
    return normals


def tree_of(cloud: np.ndarray):
    """
    A `cKDTree`. Points that are asked about in the order of its `indices` lie beside one another, so that one question
    finds in the cache what the last has read: half the time of any other order.
    """
    from scipy.spatial import cKDTree

    return cKDTree(cloud, leafsize=32, balanced_tree=False)
