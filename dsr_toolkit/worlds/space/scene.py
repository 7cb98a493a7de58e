"""Random scenes of the space world: what stands in a room, how it moves, and how cameras move around it.

World axes: x and y on the floor, z up; metres and seconds. Cameras are OpenCV's: x right, y down, z forward.

Everything is drawn around the middle of the clip, and what happens before and after it is independent of how things
look there: with τ = -1 … 1 over the clip, a path is its middle plus a signed motion. So a scene played backwards is as
likely as the scene, and the middle frame tells nothing about what moves where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .margins import CLEAR, Margins

SHAPES = ("ball", "box", "cylinder", "cone")
COLOURS = {
    "red": (214, 48, 44),
    "green": (52, 160, 64),
    "blue": (44, 92, 214),
    "yellow": (240, 200, 48),
    "purple": (150, 66, 178),
    "cyan": (56, 196, 204),
}
# Moments at which a scene is checked, whatever number of frames is asked for.
CHECKED = np.linspace(-1, 1, 9)
MIDDLE = np.zeros(1)
TRIES = 12  # places, or ways, that are tried for a thing
NEAREST = 1.6  # metres from a camera to the centre of a thing
UP = np.array([0.0, 0.0, 1.0])
GAP = 0.12  # metres between things
IN_SIGHT = 0.94  # centres stay within this share of half the picture
ROOM_HEIGHT = 3.4


@dataclass(frozen=True)
class SceneSettings:
    """
    What a scene may be like.

    Args:
        things: least and largest number of things.
        radius: half a thing's width, metres.
        moving, turning, hovering: shares of the things that move along the floor, turn, and float (those may rise, sink
            and tumble).
        speed: metres a second, in the middle of the clip.
        arcs: share of the movers whose path bends.
        orbit: degrees that a camera goes around the middle of the room during the clip; either way.
        approach: metres that it comes nearer or goes away. rise: metres up or down. pan: metres that its aim shifts.
        still_camera: share of the clips whose camera does not move.
        view_spacing: degrees between neighbouring cameras of several views.
        compass: the four walls have one colour each in all rooms, so that a single frame tells where the camera looks.
            Otherwise their colours are any.
        tries: motions that are drawn for a scene before another is drawn instead. Scenes in which an answer is hard to
            come by would be rarer with that answer; so it should be many where things are in each other's way.
        front_in_sight: largest angle, in degrees, between a thing's front and the way to the first camera in the middle
            of the clip; 180: any.
        margins: how clear answers are. most_options: of a question, one of them true; None: all that there are.
    """

    things: tuple[int, int] = (2, 4)
    radius: tuple[float, float] = (0.3, 0.5)
    moving: float = 0.6
    turning: float = 0.5
    hovering: float = 0.2
    speed: tuple[float, float] = (0.35, 1.2)
    arcs: float = 0.25
    orbit: tuple[float, float] = (12.0, 55.0)
    approach: float = 0.7
    rise: float = 0.3
    pan: float = 0.5
    still_camera: float = 0.1
    view_spacing: tuple[float, float] = (25.0, 45.0)
    compass: bool = False
    tries: int = 200
    front_in_sight: float = 180.0
    margins: Margins = Margins()
    most_options: int | None = None


# "easy" is for learning in minutes: fewer and larger things, all on the floor, on straight paths, with their white mark
# towards the camera, walls that are a compass, clear answers, and two of them to choose from.
DIFFICULTIES = {
    "easy": SceneSettings(
        things=(2, 3),
        radius=(0.42, 0.64),
        hovering=0.0,
        arcs=0.0,
        approach=0.5,
        rise=0.15,
        pan=0.4,
        compass=True,
        front_in_sight=60.0,
        margins=CLEAR,
        most_options=2,
    ),
    "normal": SceneSettings(),
    "hard": SceneSettings(
        things=(3, 5), moving=0.75, hovering=0.3, arcs=0.5, orbit=(20.0, 80.0), approach=1.0, pan=0.8, tries=1000
    ),
}


@dataclass
class Motion:
    """
    Where something is at each τ.

    Args:
        middle: position `[3]` at τ = 0. heading: angle on the floor in which it moves at τ = 0. bend: its change per
        unit τ.
        speed: metres per unit τ at τ = 0. gain: relative change of the speed per unit τ, in -1 … 1. climb: metres up
            per unit τ.
        facing: `[3, 3]`, thing-to-world rotation at τ = 0; its first column is the front. axis: `[3]`, of its turning.
        turn: radians per unit τ.
    """

    middle: np.ndarray
    facing: np.ndarray
    heading: float = 0.0
    bend: float = 0.0
    speed: float = 0.0
    gain: float = 0.0
    climb: float = 0.0
    axis: np.ndarray = field(default_factory=UP.copy)
    turn: float = 0.0


@dataclass
class Thing:
    """
    A coloured solid.

    Args:
        shape: of `SHAPES`. colour: of `COLOURS`. radius: half its width; half_height: half its height; metres. Cones
            stand on their base, with the middle of their height as their centre.
        motion: see [`Motion`]. moves, turns, floats: whether it does.
    """

    shape: str
    colour: str
    radius: float
    half_height: float
    motion: Motion
    moves: bool = False
    turns: bool = False
    floats: bool = False

    @property
    def name(self) -> str:
        """Unique in its scene, as in "red ball"."""
        return f"{self.colour} {self.shape}"

    @property
    def dynamic(self) -> bool:
        """Whether its surface moves in the world."""
        return self.moves or self.turns

    @property
    def bound(self) -> float:
        """Radius of a sphere around it."""
        if self.shape == "ball":
            return self.radius
        if self.shape == "box":
            return self.radius * np.sqrt(3)
        return float(np.hypot(self.radius, self.half_height))


@dataclass
class CameraPath:
    """Around the room's middle: azimuth (radians), distance, height and aim `[3]` at τ = 0, and each one's change per
    unit τ."""

    azimuth: float
    distance: float
    height: float
    aim: np.ndarray
    field_of_view: float
    orbit: float = 0.0
    approach: float = 0.0
    rise: float = 0.0
    pan: np.ndarray = field(default_factory=lambda: np.zeros(3))
    roll: float = 0.0

    def poses(self, tau: np.ndarray) -> np.ndarray:
        """Camera-to-world `[T, 4, 4]`."""
        azimuth = self.azimuth + self.orbit * tau
        distance, height = self.distance + self.approach * tau, self.height + self.rise * tau
        position = np.empty((len(tau), 3))
        position[:, 0], position[:, 1], position[:, 2] = distance * np.cos(azimuth), distance * np.sin(azimuth), height
        return look_at(position, self.aim + self.pan * tau[:, None], self.roll * tau)


@dataclass
class Surface:
    """Texture of a wall, floor or ceiling: two colours `[3]` and three waves, see `render.pattern`."""

    base: np.ndarray
    other: np.ndarray
    waves: np.ndarray  # [3, 2], radians a metre
    phases: np.ndarray  # [3]
    mix: np.ndarray  # [2], of the product of the first two waves and of the third
    sharpness: float


@dataclass
class Scene:
    """
    Args:
        things: as in [`Thing`]. cameras: a path per view. room: half its width along x and y; its floor is z = 0.
        surfaces: walls at -x, +x, -y, +y, floor, ceiling. light: unit direction towards the lamp.
        seconds: length of the clip.
    """

    things: list[Thing]
    cameras: list[CameraPath]
    room: np.ndarray
    surfaces: list[Surface]
    light: np.ndarray
    seconds: float = 2.0

    def positions(self, tau: np.ndarray) -> np.ndarray:
        """Centres `[K, T, 3]` of the things."""
        return np.stack([positions(thing.motion, tau) for thing in self.things])

    def rotations(self, tau: np.ndarray) -> np.ndarray:
        """Thing-to-world rotations `[K, T, 3, 3]`; first columns are the fronts."""
        return np.stack([rotations(thing.motion, tau) for thing in self.things])

    def poses(self, tau: np.ndarray) -> np.ndarray:
        """Camera-to-world `[T, V, 4, 4]`."""
        return np.stack([camera.poses(tau) for camera in self.cameras], 1)


def look_at(position: np.ndarray, aim: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Camera-to-world `[T, 4, 4]` of cameras at `position` `[T, 3]` that look at `aim`, turned by `roll` about their
    axis."""
    front = aim - position
    front = front / np.sqrt((front * front).sum(-1, keepdims=True))
    x, y, z = front.T
    flat = np.hypot(x, y)
    right, down = np.zeros_like(front), np.empty_like(front)
    right[:, 0], right[:, 1] = y / flat, -x / flat  # horizontal
    down[:, 0], down[:, 1], down[:, 2] = z * x / flat, z * y / flat, -flat  # front × right
    cosine, sine = np.cos(roll)[:, None], np.sin(roll)[:, None]
    poses = np.zeros((len(position), 4, 4))
    poses[:, :3, 0], poses[:, :3, 1] = cosine * right + sine * down, cosine * down - sine * right
    poses[:, :3, 2], poses[:, :3, 3] = front, position
    poses[:, 3, 3] = 1
    return poses


def positions(motion: Motion, tau: np.ndarray) -> np.ndarray:
    """Positions `[T, 3]` along a straight line or an arc."""
    way = motion.speed * (tau + motion.gain * tau**2 / 2)
    if motion.bend:
        # The heading grows with the way, so that the path is a piece of a circle at any speed.
        turned = motion.bend * way / motion.speed
        radius = motion.speed / motion.bend
        x = radius * (np.sin(motion.heading + turned) - np.sin(motion.heading))
        y = radius * (np.cos(motion.heading) - np.cos(motion.heading + turned))
    else:
        x, y = way * np.cos(motion.heading), way * np.sin(motion.heading)
    path = np.empty((len(tau), 3))
    path[:, 0], path[:, 1], path[:, 2] = x, y, motion.climb * tau
    return path + motion.middle


def rotations(motion: Motion, tau: np.ndarray) -> np.ndarray:
    """Thing-to-world rotations `[T, 3, 3]`."""
    return rotate_about(motion.axis, motion.turn * tau) @ motion.facing


def rotate_about(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotations `[T, 3, 3]` by angles `[T]` about a unit axis (Rodrigues' formula)."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = np.asarray(angle)[:, None, None]
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def draw_scene(
    generator: np.random.Generator,
    settings: SceneSettings,
    seconds: float = 2.0,
    views: int = 1,
    wishes: Callable[[Scene], Callable[[Scene], bool] | None] | None = None,
) -> Scene:
    """
    A possible scene: things do not touch, and stay in sight of every camera.

    The middle of the clip is drawn first, then motions, anew until they are possible and wanted. So the middle frame
    says nothing about the wish that the motions fulfil.

    Args:
        wishes: from the scene in which nothing moves yet to whether motions are as wanted, or None where that scene
            cannot do.
    """
    while True:
        scene = _still_scene(generator, settings, seconds, views)
        if scene is None:
            continue
        wanted = wishes(scene) if wishes else lambda scene: True
        if wanted is None:
            continue
        for _ in range(settings.tries):
            if _set_in_motion(generator, settings, scene) and wanted(scene):
                return scene


def _still_scene(generator, settings: SceneSettings, seconds: float, views: int) -> Scene | None:
    cameras = _still_cameras(generator, settings, views)
    count = int(generator.integers(settings.things[0], settings.things[1] + 1))
    looks = generator.choice(len(SHAPES) * len(COLOURS), count, replace=False)
    poses = [camera.poses(MIDDLE) for camera in cameras]
    things, paths = [], []
    for look in looks:
        shape, colour = SHAPES[look % len(SHAPES)], list(COLOURS)[look // len(SHAPES)]
        radius = generator.uniform(*settings.radius) * (0.85 if shape == "box" else 1.0)
        half_height = radius * (generator.uniform(0.9, 1.5) if shape in ("cylinder", "cone") else 1.0)
        turned = generator.uniform(-np.pi, np.pi)
        thing = Thing(
            shape, colour, radius, half_height, Motion(middle=np.array([0.0, 0.0, half_height]), facing=np.eye(3))
        )
        if generator.random() < settings.hovering:
            thing.floats, thing.motion.middle[2] = True, thing.bound + generator.uniform(0.2, 0.7)
        for _ in range(TRIES):
            thing.motion.middle[:2] = generator.uniform(-1.7, 1.7, 2)
            path = thing.motion.middle[None]
            if _possible(thing, path, things, paths, cameras, poses):
                break
        else:
            return None
        _face(thing, poses[0][0, :3, 3], turned * settings.front_in_sight / 180)
        things.append(thing)
        paths.append(path.copy())
    room = generator.uniform(5.6, 6.6, 2)
    return Scene(things, cameras, room, *_surfaces(generator, settings.compass), seconds)


def _still_cameras(generator, settings: SceneSettings, views: int) -> list[CameraPath]:
    azimuth, field_of_view = generator.uniform(0, 2 * np.pi), np.radians(generator.uniform(58, 68))
    spacing = np.radians(generator.uniform(*settings.view_spacing))
    return [
        CameraPath(
            azimuth=azimuth + view * spacing,
            distance=generator.uniform(3.4, 4.4),
            height=generator.uniform(1.6, 2.7),
            aim=np.append(generator.uniform(-0.3, 0.3, 2), generator.uniform(0.3, 0.6)),
            field_of_view=field_of_view,
        )
        for view in range(views)
    ]


def _face(thing: Thing, eye: np.ndarray, turned: float) -> None:
    """Stand upright with the front `turned` radians from the way to `eye` `[3]`."""
    way = eye - thing.motion.middle
    thing.motion.facing = rotate_about(UP, np.array([np.arctan2(way[1], way[0]) + turned]))[0]


def _set_in_motion(generator, settings: SceneSettings, scene: Scene) -> bool:
    """Draw how cameras and things move; False where a thing finds no way."""
    for camera in scene.cameras:
        _move_camera(generator, settings, camera)
    poses, paths = [camera.poses(CHECKED) for camera in scene.cameras], []
    for thing in scene.things:
        thing.moves, thing.turns = (bool(x) for x in generator.random(2) < [settings.moving, settings.turning])
        for _ in range(TRIES if thing.moves else 1):
            _move_thing(generator, settings, thing, scene.seconds / 2)
            path = positions(thing.motion, CHECKED)
            if _possible(thing, path, scene.things, paths, scene.cameras, poses):
                break
        else:
            return False
        paths.append(path)
    return True


def _move_camera(generator, settings: SceneSettings, camera: CameraPath) -> None:
    orbit = np.radians(generator.uniform(*settings.orbit)) / 2 * (-1, 1)[generator.integers(2)]
    approach, rise, x, y, z, roll = generator.uniform(-0.5, 0.5, 6)
    moves = generator.random() >= settings.still_camera
    camera.orbit, camera.approach, camera.rise = (
        orbit * moves,
        settings.approach * approach * moves,
        settings.rise * rise * moves,
    )
    camera.pan, camera.roll = np.array([settings.pan * x, settings.pan * y, 0.2 * z]) * moves, 0.1 * roll * moves


def _move_thing(generator, settings: SceneSettings, thing: Thing, half: float) -> None:
    """Draw how `thing` moves and turns, if it does. What floats may also rise, sink, and turn about any axis."""
    motion = thing.motion
    # `choice`, and `uniform` for single numbers, would give the same and take most of the time of a scene.
    heading, speed, bend = (
        2 * np.pi * generator.random(),
        _between(generator, *settings.speed),
        _between(generator, 0.5, 1.0),
    )
    gain, sides = (-0.8, 0.0, 0.8)[generator.integers(3)], [(-1, 1)[generator.integers(2)] for _ in range(2)]
    arc = generator.random()
    turn, climb = _between(generator, 0.7, 1.6), _between(generator, 0.1, 0.3) * (-1, 0, 1)[generator.integers(3)]
    axis = generator.normal(size=3)
    motion.heading, motion.speed, motion.gain = heading, speed * half * thing.moves, gain
    motion.bend = bend * sides[0] * (arc < settings.arcs) * thing.moves
    motion.climb = climb * half * (thing.floats and thing.moves)
    motion.turn = turn * half * sides[1] * thing.turns
    motion.axis = axis / np.linalg.norm(axis) if thing.floats else UP


def _between(generator, low: float, high: float) -> float:
    return low + (high - low) * generator.random()


def _possible(thing: Thing, path: np.ndarray, others: list[Thing], paths, cameras: list[CameraPath], poses) -> bool:
    """
    Whether `thing` on its `path` `[T, 3]` stays in sight of `cameras` at `poses`, above the floor and apart from the
    first `others`, as many as have `paths`.
    """
    if thing.floats and path[:, 2].min() < thing.bound:
        return False
    for camera, pose in zip(cameras, poses):
        seen = _local(pose, path)
        if seen[:, 2].min() < NEAREST:
            return False
        if (np.abs(seen[:, :2]).max(-1) / seen[:, 2]).max() > IN_SIGHT * np.tan(camera.field_of_view / 2):
            return False
    for other, way in zip(others, paths):
        apart = path - way
        if (apart * apart).sum(-1).min() < (thing.bound + other.bound + GAP) ** 2:
            return False
        if any(_hides(_local(pose, path), _local(pose, way), thing, other) for pose in poses):
            return False
    return True


def _local(poses: np.ndarray, path: np.ndarray) -> np.ndarray:
    """World points `[T, 3]` in the axes of cameras `[T, 4, 4]`."""
    return ((path - poses[:, :3, 3])[:, None] @ poses[:, :3, :3])[:, 0]


def _hides(first: np.ndarray, second: np.ndarray, thing: Thing, other: Thing) -> bool:
    """Whether the nearer of two things covers the centre of the other at the first, middle or last moment."""
    step = max(len(first) // 2, 1)
    first, second = first[::step], second[::step]
    distances = np.sqrt((first * first).sum(-1)), np.sqrt((second * second).sum(-1))
    cosine = (first * second).sum(-1) / (distances[0] * distances[1])
    nearer = np.where(distances[0] < distances[1], thing.radius / distances[0], other.radius / distances[1])
    return bool((cosine > np.cos(nearer)).any())


def _surfaces(generator, compass: bool) -> tuple[list[Surface], np.ndarray]:
    """Textures of the six sides of the room and the direction of the light."""
    surfaces = []
    hue = generator.uniform(-0.04, 0.04) if compass else generator.uniform(0, 1)
    for side in range(6):
        # Muted colours, so that the things stand out; every wall its own.
        tint = _tint(hue + 0.25 * side, (0.26 if compass else 0.16) if side < 4 else 0.08)
        base = tint * generator.uniform(150, 215)
        other = base * generator.uniform(0.5, 0.75)
        kind, turn = generator.integers(3), generator.uniform(0, np.pi / 2)
        period = generator.uniform(0.8, 1.6)
        along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
        waves = np.stack([along, across, along + across * generator.uniform(-1, 1)]) * np.pi / period
        # Chequers, stripes, or soft clouds of crossing waves.
        mix = np.array([[1.0, 0.0], [0.0, 1.0], [0.7, 0.5]][kind])
        sharpness = (8.0, 8.0, 1.0)[kind]
        surfaces.append(Surface(base, other, waves, generator.uniform(0, 2 * np.pi, 3), mix, sharpness))
    azimuth = generator.uniform(0, 2 * np.pi)
    return surfaces, np.array([0.5 * np.cos(azimuth), 0.5 * np.sin(azimuth), np.sqrt(0.75)])


def _tint(hue: float, strength: float) -> np.ndarray:
    """A colour `[3]` near white."""
    angles = 2 * np.pi * (hue + np.array([0, 1 / 3, 2 / 3]))
    return 1 - strength * (1 + np.cos(angles)) / 2 * 2
