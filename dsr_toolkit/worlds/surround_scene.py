"""What stands around the car in the surround world: a road, things beside it, buildings, six cameras.

Vehicle frame as in nuScenes: origin on the ground under the car, x forward, y left, z up, metres. Azimuths are degrees
from forward, counter-clockwise. Lanes, bend, crossing, the number of each kind, colours, azimuths and distances are
drawn independently of each other and uniformly over what questions ask, so that nothing follows from the wording of a
question.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# nuScenes' order of cameras; degrees to the left of forward. Neighbouring views overlap by about ten degrees.
CAMERA_YAWS = {
    "CAM_FRONT": 0.0,
    "CAM_FRONT_RIGHT": -60.0,
    "CAM_FRONT_LEFT": 60.0,
    "CAM_BACK": 180.0,
    "CAM_BACK_LEFT": 120.0,
    "CAM_BACK_RIGHT": -120.0,
}
FIELD_OF_VIEW = 70.0
# Camera axes (right, down, forward) in vehicle axes, of a camera that looks ahead.
AHEAD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])

COLOURS = {
    "red": (205, 35, 35),
    "green": (40, 165, 60),
    "blue": (40, 75, 215),
    "yellow": (235, 205, 40),
    "white": (240, 240, 240),
    "purple": (145, 50, 175),
}
# Length, width, height in metres.
SIZES = {
    "car": (4.0, 1.8, 1.5),
    "truck": (4.4, 2.2, 2.8),
    "pedestrian": (0.6, 0.7, 1.8),
    "cone": (0.7, 0.7, 1.1),
}
KINDS = tuple(SIZES)
MOST = 2  # of each kind, and of buildings
# Metres between car and thing, to the middle of the thing; what lies between the ranges is left free.
DISTANCES = {
    "under 10 metres": (7.5, 9.5),
    "10 to 15 metres": (11.0, 14.0),
    "over 15 metres": (16.0, 20.0),
}
# Degrees between neighbours: twice what half the diagonal of a truck covers at the least distance, so that things never
# touch and hardly hide each other, whatever is drawn.
SEPARATION = 40.0
LANES = (2, 3, 4)
PLACES = ("left", "middle", "right")
BENDS = ("left", "straight", "right")
CROSSINGS = ("ahead", "behind", "none")
ROAD_END = 45.0  # metres along the road
CROSSING_LENGTH = 3.0
DIVIDER, CROSSING, BOUNDARY = range(3)
# Metres to the right and forward of the LiDAR: (x min, y min, x max, y max).
POINT_RANGE = (-15.0, -30.0, 15.0, 30.0)


@dataclass(frozen=True)
class Camera:
    """`intrinsics` `[3, 3]` in pixels, `extrinsics` `[4, 4]` camera → vehicle in metres."""

    intrinsics: np.ndarray
    extrinsics: np.ndarray


@dataclass(frozen=True)
class Thing:
    """
    A box that stands on the ground.

    Args:
        kind: one of `KINDS`, or "building". colour: one of `COLOURS`, None for cones and buildings.
        centre: (x, y, z) metres. size: (length, width, height) metres. yaw: radians from x, counter-clockwise.
    """

    kind: str
    colour: str | None
    centre: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw: float

    @property
    def azimuth(self) -> float:
        return float(np.degrees(np.arctan2(self.centre[1], self.centre[0])))

    @property
    def distance(self) -> float:
        return float(np.hypot(*self.centre[:2]))

    def corners(self) -> np.ndarray:
        """`[8, 3]`."""
        signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), -1).reshape(8, 3)
        return signs * np.array(self.size) / 2 @ self.turn().T + self.centre

    def turn(self) -> np.ndarray:
        """`[3, 3]`, the thing's axes (length, width, height) to the vehicle's."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


@dataclass(frozen=True)
class Road:
    """
    Parallel lines along an arc under the car.

    Args:
        lanes, lane_width: their number and width. left_edge: metres from the car to the left boundary, along the road's
        normal. curvature: 1 / radius, positive to the left. heading: radians of the road's direction at the car.
        crossing: metres along the road to the middle of the crossing, None for none.
    """

    lanes: int
    lane_width: float
    left_edge: float
    curvature: float
    heading: float
    crossing: float | None

    def along(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Metres along the road and to the left of the car's line, of points of the ground."""
        cos, sin, k = np.cos(self.heading), np.sin(self.heading), self.curvature
        x, y = x * cos + y * sin, y * cos - x * sin
        left = (2 * y - k * (x * x + y * y)) / (1 + np.hypot(k * x, k * y - 1))
        return np.arctan2(k * x, 1 - k * y) / k, left

    def point(self, along, left) -> np.ndarray:
        """`[..., 2]` x and y; the inverse of `along`."""
        angle = self.curvature * np.asarray(along, float)
        radius = 1 / self.curvature - np.asarray(left, float)
        x, y = radius * np.sin(angle), 1 / self.curvature - radius * np.cos(angle)
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        return np.stack([x * cos - y * sin, x * sin + y * cos], -1)

    def line_offsets(self) -> np.ndarray:
        """`[lanes + 1]` metres to the left of the car's line, from left to right; the first and the last are
        boundaries."""
        return self.left_edge - self.lane_width * np.arange(self.lanes + 1)

    def elements(self, num_points: int) -> list[dict]:
        """
        What the map head finds: `{"label", "points" [num_points, 2]}`, metres in the LiDAR frame (x right, y forward),
        at equal distances along the part within `POINT_RANGE`; a crossing's run around it.
        """
        found = []
        steps = np.linspace(-ROAD_END, ROAD_END, 361)
        for number, left in enumerate(self.line_offsets()):
            points = _to_lidar(self.point(steps, left))
            low, high = np.array(POINT_RANGE[:2]), np.array(POINT_RANGE[2:])
            inside = ((points >= low) & (points <= high)).all(-1)
            # The run of points around the car: the arc may come back into the range farther on.
            middle = len(steps) // 2
            outside = np.flatnonzero(~inside)
            start = outside[outside < middle].max(initial=-1) + 1
            end = outside[outside > middle].min(initial=len(steps))
            label = BOUNDARY if number in (0, self.lanes) else DIVIDER
            found.append({"label": label, "points": _evenly(points[start:end], num_points)})
        if self.crossing is not None:
            ends = self.crossing + np.array([-0.5, 0.5]) * CROSSING_LENGTH
            edges = self.line_offsets()[[0, -1]]
            near, far = np.linspace(*ends, 9), np.linspace(*ends[::-1], 9)
            ring = [self.point(near, edges[0]), self.point(far, edges[1]), self.point(near[:1], edges[0])]
            ring = _to_lidar(np.concatenate(ring))
            found.append({"label": CROSSING, "points": _evenly(ring, num_points + 1)[:-1]})
        return found


@dataclass(frozen=True)
class Surroundings:
    """Everything that is drawn, and that questions are about."""

    road: Road
    place: str
    bend: str
    things: tuple[Thing, ...]
    buildings: tuple[Thing, ...]

    @property
    def boxes(self) -> tuple[Thing, ...]:
        return self.things + self.buildings


def _to_lidar(points: np.ndarray) -> np.ndarray:
    return np.stack([-points[..., 1], points[..., 0]], -1)


def _evenly(points: np.ndarray, count: int) -> np.ndarray:
    """`[count, 2]` at equal distances along a polyline `[n, 2]`."""
    reached = np.concatenate([[0], np.linalg.norm(np.diff(points, axis=0), axis=-1).cumsum()])
    wanted = np.linspace(0, reached[-1], count)
    return np.stack([np.interp(wanted, reached, points[:, axis]) for axis in (0, 1)], -1)


# ---- drawing lots ------------------------------------------------------------------------


def draw_cameras(rng: np.random.Generator, height: int, width: int) -> dict[str, Camera]:
    """A rig: the nominal one, each camera a little off in place, direction and focal length."""
    cameras = {}
    for name, yaw in CAMERA_YAWS.items():
        yaw, pitch, roll = np.radians([yaw, 0, 0] + rng.uniform(-1, 1, 3) * (3, 1, 1))
        tilt = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
        bank = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        extrinsics = np.eye(4)
        extrinsics[:3, :3] = turn @ AHEAD @ tilt @ bank
        extrinsics[:3, 3] = (1.2 * np.cos(yaw), 0.7 * np.sin(yaw), 1.6) + rng.uniform(-0.05, 0.05, 3)
        focal = width / 2 / np.tan(np.radians(FIELD_OF_VIEW / 2)) * rng.uniform(0.95, 1.05)
        centre = (width, height) * (np.array([0.5, 0.42]) + rng.uniform(-0.02, 0.02, 2))
        cameras[name] = Camera(np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]]), extrinsics)
    return cameras


def draw_surroundings(rng: np.random.Generator) -> Surroundings:
    """Everything independent and uniform over what is asked about it."""
    place = PLACES[rng.integers(3)]
    # Two lanes have no middle; these weights make all three numbers of lanes equally frequent all the same.
    lanes = int(rng.choice(LANES, p=(0, 0.5, 0.5) if place == "middle" else (0.5, 0.25, 0.25)))
    lane = {"left": 0, "right": lanes - 1}.get(place, 1 + int(rng.integers(max(lanes - 2, 1))))
    lane_width = rng.uniform(2.9, 3.2)
    bend = BENDS[rng.integers(3)]
    sign = {"left": 1, "right": -1}.get(bend, 0)
    curvature = sign / rng.uniform(30, 50) if sign else rng.choice([-1, 1]) / rng.uniform(500, 2000)
    where = CROSSINGS[rng.integers(3)]
    crossing = {"ahead": 1, "behind": -1, "none": None}[where]
    road = Road(
        lanes=lanes,
        lane_width=lane_width,
        left_edge=(lane + 0.5) * lane_width + rng.uniform(-0.3, 0.3),
        curvature=curvature,
        heading=np.radians(rng.uniform(-2, 2)),
        crossing=None if crossing is None else crossing * rng.uniform(6, 12),
    )
    return Surroundings(road, place, bend, _draw_things(rng, road), _draw_buildings(rng))


def _draw_things(rng: np.random.Generator, road: Road) -> tuple[Thing, ...]:
    kinds = [kind for kind in KINDS for _ in range(rng.integers(MOST + 1))]
    rng.shuffle(kinds)
    free = rng.exponential(size=max(len(kinds), 1))
    gaps = SEPARATION + free / free.sum() * (360 - SEPARATION * len(kinds))
    azimuths = np.radians(rng.uniform(0, 360) + gaps.cumsum())
    ranges = list(DISTANCES.values())
    things = []
    for kind, azimuth in zip(kinds, azimuths):
        distance = rng.uniform(*ranges[rng.integers(len(ranges))])
        x, y = distance * np.cos(azimuth), distance * np.sin(azimuth)
        colour = None if kind == "cone" else list(COLOURS)[rng.integers(len(COLOURS))]
        yaw = rng.uniform(-np.pi, np.pi)
        if kind in ("car", "truck"):  # along the road, either way
            yaw = road.heading + road.curvature * road.along(x, y)[0] + np.pi * rng.integers(2) + yaw / 20
        length, width, height = SIZES[kind]
        things.append(Thing(kind, colour, (x, y, height / 2), (length, width, height), yaw))
    return tuple(things)


def _draw_buildings(rng: np.random.Generator) -> tuple[Thing, ...]:
    """Beside the road, behind all things: at most one in each quarter."""
    quarters = rng.permutation(4)[: rng.integers(MOST + 1)]
    buildings = []
    for quarter in quarters:
        side, ahead = (1, -1)[quarter % 2], quarter < 2
        azimuth = np.radians(side * (rng.uniform(55, 80) if ahead else rng.uniform(100, 125)))
        distance, (length, width) = rng.uniform(30, 38), rng.uniform(8, 12, 2)
        height = rng.uniform(7, 12)
        centre = (distance * np.cos(azimuth), distance * np.sin(azimuth), height / 2)
        buildings.append(Thing("building", None, centre, (length, width, height), rng.uniform(-0.2, 0.2)))
    return tuple(buildings)
