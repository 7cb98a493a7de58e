"""What is true of the motions in a scene: answers from geometry, each with a margin, or None where it is not clear.

Every question is about the whole clip, between its first and its last moment. "rel" follows a viewer that moves, "abs"
uses one place, that of the viewer at one moment.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from .margins import Margins
from .scene import Scene

CAMERA = -1  # in place of a thing's number
MOMENTS = np.linspace(-1, 1, 9)  # τ at which scenes are looked at
START, END, AFTER_START, BEFORE_END, NEXT = 0, 8, 9, 10, 11  # places in a path: ends, beside them, and after the clip
STEP = 0.02  # τ, for speeds
AHEAD = 0.5  # τ that predictions look beyond the end of the clip


class Facts:
    """
    Paths of a scene's things and of its first camera at `MOMENTS`, beside both ends and after the clip, for the answers
    below.

    Args:
        margins: how clear an answer must be; default: those of the normal world.
    """

    def __init__(self, scene: Scene, margins: Margins = Margins()):
        self.scene, self.seconds, self.margins = scene, scene.seconds, margins
        moments = np.concatenate([MOMENTS, [-1 + STEP, 1 - STEP, 1 + AHEAD]])
        self.paths = scene.positions(moments)  # [K, 12, 3]
        self.poses = scene.cameras[0].poses(moments)  # [12, 4, 4]
        self.eye = self.poses[:, :3, 3]
        # After the clip things keep the velocity of its end.
        end = self.paths[:, END]
        self.paths[:, NEXT] = end + (end - self.paths[:, BEFORE_END]) / STEP * AHEAD

    @cached_property
    def fronts(self) -> np.ndarray:
        """Directions `[K, 9, 3]` of the things' fronts, which few answers need."""
        return self.scene.rotations(MOMENTS)[..., 0]

    def path(self, who: int) -> np.ndarray:
        """World path of thing `who`, or of `CAMERA`."""
        return self.eye if who == CAMERA else self.paths[who]

    def seen(self, who: int) -> np.ndarray:
        """Path of thing `who` in the axes of the camera of the same moment."""
        return np.einsum("tji,tj->ti", self.poses[:, :3, :3], self.paths[who] - self.eye)

    def speeds(self, path: np.ndarray) -> tuple[float, float]:
        """Metres a second at the start and at the end of a path."""
        unit = STEP * self.seconds / 2
        start, end = path[AFTER_START] - path[START], path[END] - path[BEFORE_END]
        return np.linalg.norm(start) / unit, np.linalg.norm(end) / unit

    def way_length(self, path: np.ndarray) -> float:
        """Mean speed along a path, metres a second."""
        return float(np.linalg.norm(np.diff(path[:9], axis=0), axis=-1).sum() / self.seconds)

    def front_angles(self, thing: int, viewer: int) -> np.ndarray:
        """At `MOMENTS`, radians between the front of a thing and the way to a viewer, camera or thing."""
        to = (self.path(viewer) - self.path(thing))[:9, :2]
        front = self.fronts[thing][:, :2]
        cosine = (to * front).sum(-1) / np.linalg.norm(to, axis=-1) / np.linalg.norm(front, axis=-1)
        return np.arccos(np.clip(cosine, -1, 1))

    def moving(self, who: int) -> bool:
        """Whether thing `who` moves in the room."""
        return self.way_length(self.path(who)) > self.margins.least_speed


def compare(first: float, last: float, margin: tuple[float, float]) -> str | None:
    """ "more", "less" or "same", from `first` to `last`."""
    ratio = last / max(first, 1e-9)
    if ratio > margin[0]:
        return "more"
    if ratio < 1 / margin[0]:
        return "less"
    return "same" if 1 / margin[1] < ratio < margin[1] else None


def distance_change(distances: np.ndarray, margin: tuple[float, float]) -> str | None:
    """Of `[9]` distances; "same" only where it holds all the time."""
    found = compare(distances[0], distances[-1], margin)
    if found == "same" and distances.max() / distances.min() > margin[1]:
        return None
    return found


def direction(way: np.ndarray, pose: np.ndarray, margins: Margins) -> str | None:
    """ "left", "right", "away" or "towards" of a horizontal way `[3]`, seen with the camera at `pose`."""
    length = np.linalg.norm(way[:2])
    if length < margins.least_way:
        return None
    right, front = pose[:2, 0], pose[:2, 2]
    across = way[:2] @ right / np.linalg.norm(right) / length
    along = way[:2] @ front / np.linalg.norm(front) / length
    for name, value in (("right", across), ("left", -across), ("away", along), ("towards", -along)):
        if value > np.cos(margins.axis):
            return name
    return None


# --------------------------------------------------------------------------------------
# Answers. Each takes the facts and the things asked about.
# --------------------------------------------------------------------------------------


def distance_to_moving(facts: Facts, thing: int, viewer: int) -> str | None:
    distances = np.linalg.norm(facts.path(thing) - facts.path(viewer), axis=-1)
    return distance_change(distances[:9], facts.margins.distance)


def distance_to_place(facts: Facts, thing: int, viewer: int) -> str | None:
    """To where the viewer is at the start."""
    distances = np.linalg.norm(facts.path(thing) - facts.path(viewer)[START], axis=-1)
    return distance_change(distances[:9], facts.margins.distance)


def shift_in_view(facts: Facts, thing: int) -> str | None:
    """ "left" or "right": the change of its bearing in the view of the moving camera."""
    seen = facts.seen(thing)
    bearing = np.arctan2(seen[:9, 0], seen[:9, 2])
    return _side(bearing[-1] - bearing[0], facts.margins.bearing)


def shift_beside(facts: Facts, thing: int, other: int) -> str | None:
    """The same, compared with another thing."""
    bearings = [np.arctan2(seen[:9, 0], seen[:9, 2]) for seen in (facts.seen(thing), facts.seen(other))]
    gap = bearings[0] - bearings[1]
    return _side(gap[-1] - gap[0], facts.margins.gap_shift)


def _side(change: float, margin: float) -> str | None:
    return None if abs(change) < margin else "right" if change > 0 else "left"


def way_from_start(facts: Facts, thing: int) -> str | None:
    """Where it goes, in the view of a camera that stays where it is at the start."""
    path = facts.path(thing)
    return direction(path[END] - path[START], facts.poses[START], facts.margins)


def way_to_place(facts: Facts, thing: int, other: int) -> str | None:
    """ "towards" or "away" from where another thing is at the start."""
    path, place = facts.path(thing), facts.path(other)[START]
    way, to = path[END] - path[START], place - path[START]
    length = np.linalg.norm(way)
    if length < facts.margins.least_way:
        return None
    cosine = way @ to / length / np.linalg.norm(to)
    return None if abs(cosine) < facts.margins.towards else "towards" if cosine > 0 else "away"


def turning(facts: Facts, thing: int) -> str | None:
    """ "clockwise", "anticlockwise" (from above) or "none", of what stands upright."""
    solid = facts.scene.things[thing]
    if solid.floats:
        return None
    turn = 2 * solid.motion.turn
    if abs(turn) < facts.margins.turn[1]:
        return "none"
    return None if abs(turn) < facts.margins.turn[0] else "anticlockwise" if turn > 0 else "clockwise"


def same_turning(facts: Facts, thing: int, other: int) -> str | None:
    """Whether two things turn the same way round."""
    senses = {turning(facts, thing), turning(facts, other)}
    if senses & {None, "none"}:
        return None
    return "same" if len(senses) == 1 else "opposite"


def facing(facts: Facts, thing: int, viewer: int) -> str | None:
    """ "towards" or "away": whether the front turns nearer to the viewer, camera or thing, as both move."""
    if facts.scene.things[thing].floats:
        return None
    angle = facts.front_angles(thing, viewer)
    change = angle[END] - angle[START]
    return None if abs(change) < facts.margins.facing else "towards" if change < 0 else "away"


def speed_in_room(facts: Facts, thing: int) -> str | None:
    path = facts.path(thing)
    return compare(*facts.speeds(path), facts.margins.speed) if facts.moving(thing) else None


def speed_in_view(facts: Facts, thing: int) -> str | None:
    """Of the way in the axes of the moving camera."""
    path = facts.seen(thing)
    return (
        compare(*facts.speeds(path), facts.margins.speed)
        if facts.way_length(path) > facts.margins.least_speed
        else None
    )


def speed_beside(facts: Facts, thing: int, other: int) -> str | None:
    """Of the way of one thing as another, which moves, would measure it."""
    path = facts.path(thing) - facts.path(other)
    return (
        compare(*facts.speeds(path), facts.margins.speed)
        if facts.way_length(path) > facts.margins.least_speed
        else None
    )


def faster_in_room(facts: Facts, first: int, second: int) -> str | None:
    return _faster(facts.margins, *(facts.way_length(facts.path(who)) for who in (first, second)))


def faster_in_view(facts: Facts, first: int, second: int) -> str | None:
    return _faster(facts.margins, *(facts.way_length(facts.seen(who)) for who in (first, second)))


def faster_beside(facts: Facts, first: int, second: int, viewer: int) -> str | None:
    return _faster(facts.margins, *(facts.way_length(facts.path(who) - facts.path(viewer)) for who in (first, second)))


def _faster(margins: Margins, first: float, second: float) -> str | None:
    if max(first, second) < margins.least_speed:
        return None
    ratio = (first + 1e-3) / (second + 1e-3)
    return "first" if ratio > margins.speed[0] else "second" if ratio < 1 / margins.speed[0] else None


def heading_at_end(facts: Facts, thing: int) -> str | None:
    """Where it would go after the clip, in the view of a camera that stays where it is at the end."""
    path = facts.path(thing)
    way = path[END] - path[BEFORE_END]
    if np.linalg.norm(way) / (STEP * facts.seconds / 2) < facts.margins.least_speed:
        return None
    return direction(way / np.linalg.norm(way), facts.poses[END], facts.margins)


def next_shift_in_view(facts: Facts, thing: int) -> str | None:
    """To which side of the view it goes on, if camera and things go on as they do."""
    seen = facts.seen(thing)
    bearing = np.arctan2(seen[:, 0], seen[:, 2])
    return _side(bearing[NEXT] - bearing[END], facts.margins.bearing / 4)


def next_distance(facts: Facts, thing: int, other: int) -> str | None:
    """ "more" or "less": distance of two things a moment after the clip, if both go on as they do."""
    distance = np.linalg.norm(facts.path(thing) - facts.path(other), axis=-1)
    return _next(distance[NEXT] / distance[END], facts.margins)


def next_distance_to_place(facts: Facts, thing: int, other: int) -> str | None:
    """The same to where the other is at the end."""
    distance = np.linalg.norm(facts.path(thing)[[END, NEXT]] - facts.path(other)[END], axis=-1)
    return _next(distance[1] / distance[0], facts.margins)


def _next(ratio: float, margins: Margins) -> str | None:
    return "more" if ratio > margins.predicted else "less" if ratio < 1 / margins.predicted else None
