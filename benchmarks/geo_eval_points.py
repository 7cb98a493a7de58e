"""`dsr eval points` on two clouds of 600,000 points against the published way, at equal numbers.

The published way (CUT3R's script, which π³ uses): ICP over all points, a normal for every point of both clouds, and
both nearest-neighbour queries; Open3D does the first two there, plain scipy and numpy here.
"""

import time

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from benchmarks.harness import row
from dsr_toolkit.evaluation.geometry import ICP_ROUNDS, ICP_THRESHOLD, NEIGHBOURS, compare_clouds, icp
from dsr_toolkit.reconstruction.similarity import Similarity, umeyama

NAME = "geo.eval_points"
POINTS, TOLERANCE = 600_000, 1e-3


def clouds(count: int) -> tuple[np.ndarray, np.ndarray]:
    """
    A room of metres as images show it, surface by surface, and a prediction of it: noise, and a little out of place.
    """
    generator = np.random.default_rng(0)
    flat = generator.uniform(0, 1, (count, 2))
    side = np.arange(count) * 6 // count
    true = np.empty((count, 3))
    for axis in range(3):
        for end in range(2):
            chosen = side == 2 * axis + end
            others = [i for i in range(3) if i != axis]
            true[np.ix_(chosen, others)] = flat[chosen] * 4
            true[chosen, axis] = 4.0 * end + 0.05 * np.sin(6 * flat[chosen, 0]) * np.cos(5 * flat[chosen, 1])
    found = true + generator.normal(0, 0.01, true.shape)
    turn = Rotation.from_euler("xyz", [0.004, -0.003, 0.005]).as_matrix()
    return Similarity(1.0, turn, np.array([0.01, -0.008, 0.012])).apply(found), true


def published_icp(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    tree, moved, previous = cKDTree(target), source, np.inf
    for _ in range(ICP_ROUNDS):
        distance, nearest = tree.query(moved, distance_upper_bound=ICP_THRESHOLD, workers=-1)
        near = np.isfinite(distance)
        moved = umeyama(moved[near], target[nearest[near]], scale=1.0).apply(moved)
        error = float(np.sqrt(np.square(distance[near]).mean()))
        if abs(previous - error) < 1e-6 * error:
            break
        previous = error
    return moved


def published_normals(cloud: np.ndarray) -> np.ndarray:
    tree, normals = cKDTree(cloud), np.empty_like(cloud)
    for start in range(0, len(cloud), 20_000):
        part = slice(start, start + 20_000)
        near = cloud[tree.query(cloud[part], k=NEIGHBOURS, workers=-1)[1]]
        near = near - near.mean(1, keepdims=True)
        normals[part] = np.linalg.eigh(np.swapaxes(near, 1, 2) @ near)[1][..., 0]
    return normals


def published(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    found = published_icp(found, true)
    normals, metrics, consistency = (published_normals(found), published_normals(true)), {}, []
    for name, own, other, source, target in (("accuracy", 0, 1, found, true), ("completeness", 1, 0, true, found)):
        distance, nearest = cKDTree(target).query(source, workers=-1)
        metrics |= {name: distance.mean(), f"{name}_median": np.median(distance)}
        consistency.append(np.abs((normals[own] * normals[other][nearest]).sum(-1)))
    metrics["normal_consistency"] = np.mean([values.mean() for values in consistency])
    metrics["normal_consistency_median"] = np.mean([np.median(values) for values in consistency])
    return metrics


def ours(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    return compare_clouds(icp(found, true).apply(found), true)


def run() -> list[dict]:
    found, true = clouds(POINTS)
    results, seconds = [], []
    for way in (published, ours):
        # Of the processor: each side runs once, and neither shall pay for what else the machine does.
        start = time.process_time()
        results.append(way(found, true))
        seconds.append(time.process_time() - start)
    for name, value in results[0].items():
        print(f"{name}: published {value:.6f}, ours {results[1][name]:.6f}")
        assert abs(results[1][name] - value) <= TOLERANCE, f"{name} differs by {abs(results[1][name] - value):.2e}"
    return [row(NAME, "CPU time", *seconds, 3.0)]
