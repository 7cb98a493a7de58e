"""Two numbers that decide a question, each 0 … 99: what somebody would measure before answering.

Distances are in tenths of a metre, speeds in tenths of a metre a second, places in hundredths of the picture's width
from its left side, ways and gaps around 50 (right, away and anticlockwise are more), angles to a viewer in two degrees.
"""

from __future__ import annotations

import numpy as np

from .facts import BEFORE_END, CAMERA, END, NEXT, START, Facts
from .scene import Scene

MOST = 99


def readings(facts: Facts, name: str, things: tuple[int, ...]) -> tuple[int, int]:
    """The two numbers of a question of the kind `name` ("rel_dis/camera") about `things`."""
    first, second = _whole(READINGS[name](facts, *things))
    return first, second


def track(scene: Scene, thing: int, tau: np.ndarray) -> list[int]:
    """Of a thing at moments `tau` `[T]`: places across the picture, then distances, then the angle between its front
    and the way to the camera, in five degrees around 50, anticlockwise from above."""
    camera, path = scene.cameras[0], scene.positions(tau)[thing]
    poses, front = camera.poses(tau), scene.rotations(tau)[thing][:, :2, 0]
    to = poses[:, :3, 3] - path
    seen = np.einsum("tji,tj->ti", poses[:, :3, :3], -to)
    angle = np.arctan2(front[:, 1], front[:, 0]) - np.arctan2(to[:, 1], to[:, 0])
    across = 50 + 50 * seen[:, 0] / seen[:, 2] / np.tan(camera.field_of_view / 2)
    return _whole([*across, *(10 * np.linalg.norm(to, axis=-1)), *(50 + np.degrees(_wrapped(angle)) / 5)])


def headings(scene: Scene, tau: np.ndarray) -> list[int]:
    """Which way the camera looks at moments `tau`, seen from above: hundredths of a turn around 50, anticlockwise."""
    poses = scene.cameras[0].poses(tau)
    return _whole(50 * (1 + np.arctan2(poses[:, 1, 2], poses[:, 0, 2]) / np.pi))


def camera_way(scene: Scene, tau: np.ndarray) -> list[int]:
    """Of the camera from the first to the last of the moments `tau`: to the right and forward, in twentieths of a metre
    around 50."""
    start, end = scene.cameras[0].poses(tau[[0, -1]])
    return _whole(_way(end[:3, 3] - start[:3, 3], start, 20))


def _wrapped(angle):
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _whole(values) -> list[int]:
    return [int(np.clip(round(float(value)), 0, MOST)) for value in values]


def _distances(first, second, moments=(START, END)):
    """Of two paths, or of a path and a place."""
    return [10 * np.linalg.norm(way) for way in (first - second)[list(moments)]]


def _column(facts: Facts, who: int, moments=(START, END)):
    seen = facts.seen(who)
    half = np.tan(facts.scene.cameras[0].field_of_view / 2)
    return [50 + 50 * seen[i, 0] / seen[i, 2] / half for i in moments]


def _gap(facts: Facts, first: int, second: int):
    pairs = zip(_column(facts, first), _column(facts, second))
    return [50 + (one - other) / 2 for one, other in pairs]


def _way(way: np.ndarray, pose: np.ndarray, unit: float):
    """A way on the floor in the axes of a camera: to the right, and away."""
    axes = [axis / np.linalg.norm(axis) for axis in (pose[:2, 0], pose[:2, 2])]
    return [50 + unit * way[:2] @ axis for axis in axes]


def _end_way(facts: Facts, thing: int):
    path = facts.path(thing)
    way = path[END] - path[BEFORE_END]
    return _way(way / np.linalg.norm(way), facts.poses[END], 40)


def _turn(facts: Facts, thing: int) -> float:
    return 50 + np.degrees(2 * facts.scene.things[thing].motion.turn) / 5


def _facing(facts: Facts, thing: int, viewer: int):
    return np.degrees(facts.front_angles(thing, viewer))[[START, END]] / 2


def _speeds(facts: Facts, path: np.ndarray):
    return [10 * speed for speed in facts.speeds(path)]


def _means(facts: Facts, *paths: np.ndarray):
    return [10 * facts.way_length(path) for path in paths]


READINGS = {
    "rel_dis/camera": lambda f, a: _distances(f.path(a), f.path(CAMERA)),
    "rel_dis/object": lambda f, a, b: _distances(f.path(a), f.path(b)),
    "abs_dis/camera": lambda f, a: _distances(f.path(a), f.path(CAMERA)[START]),
    "abs_dis/object": lambda f, a, b: _distances(f.path(a), f.path(b)[START]),
    "rel_dir/camera": _column,
    "rel_dir/object": _gap,
    "abs_dir/camera": lambda f, a: _way(f.path(a)[END] - f.path(a)[START], f.poses[START], 15),
    "abs_dir/object": lambda f, a, b: _distances(f.path(a), f.path(b)[START]),
    "abs_ori/camera": lambda f, a: (50, _turn(f, a)),
    "abs_ori/object": lambda f, a, b: (_turn(f, a), _turn(f, b)),
    "rel_ori/camera": lambda f, a: _facing(f, a, CAMERA),
    "rel_ori/object": _facing,
    "abs_spd/camera": lambda f, a: _speeds(f, f.path(a)),
    "rel_spd/camera": lambda f, a: _speeds(f, f.seen(a)),
    "rel_spd/object": lambda f, a, b: _speeds(f, f.path(a) - f.path(b)),
    "abs_spd_comp/camera": lambda f, a, b: _means(f, f.path(a), f.path(b)),
    "rel_spd_comp/camera": lambda f, a, b: _means(f, f.seen(a), f.seen(b)),
    "rel_spd_comp/object": lambda f, a, b, c: _means(f, f.path(a) - f.path(c), f.path(b) - f.path(c)),
    "abs_dir_pred/camera": _end_way,
    "abs_dir_pred/object": lambda f, a, b: _distances(f.path(a), f.path(b)[END], (END, NEXT)),
    "rel_dir_pred/camera": lambda f, a: _column(f, a, (END, NEXT)),
    "rel_dir_pred/object": lambda f, a, b: _distances(f.path(a), f.path(b), (END, NEXT)),
}
