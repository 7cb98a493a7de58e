"""Random scenes of the space world: what stands in a room, how it moves, and how cameras move around it.

World axes: x and y on the floor, z up; metres and seconds. Cameras are OpenCV's: x right, y down, z forward.

Everything is drawn around the middle of the clip, and what happens before and after it is independent of how things look
there: with τ = -1 … 1 over the clip, a path is its middle plus a signed motion. So a scene played backwards is as likely as
the scene, and the middle frame tells nothing about what moves where.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
TRIES = 24  # places, or motions, that are tried for a thing before the scene is given up
GAP = 0.12  # metres between things
IN_SIGHT = 0.94  # centres stay within this share of half the picture
ROOM_HEIGHT = 3.4


@dataclass(frozen=True)
class SceneSettings:
    """
    What a scene may be like.

    Args:
        things: least and largest number of things.
        moving, turning, hovering: shares of the things that move along the floor, turn, and float (those may rise, sink and
            tumble).
        speed: metres a second, in the middle of the clip.
        arcs: share of the movers whose path bends.
        orbit: degrees that a camera goes around the middle of the room during the clip; either way.
        approach: metres that it comes nearer or goes away. rise: metres up or down. pan: metres that its aim shifts.
        still_camera: share of the clips whose camera does not move.
        view_spacing: degrees between neighbouring cameras of several views.
    """

    things: tuple[int, int] = (2, 4)
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


# "easy" is for learning in minutes: fewer things, all on the floor, on straight paths.
DIFFICULTIES = {
    "easy": SceneSettings(things=(2, 3), hovering=0.0, arcs=0.0, orbit=(10.0, 40.0), approach=0.5, rise=0.15, pan=0.3),
    "normal": SceneSettings(),
    "hard": SceneSettings(
        things=(3, 6), moving=0.75, hovering=0.3, arcs=0.5, orbit=(20.0, 80.0), approach=1.0, pan=0.8
    ),
}


@dataclass
class Motion:
    """
    Where something is at each τ.

    Args:
        middle: position `[3]` at τ = 0. heading: angle on the floor in which it moves at τ = 0. bend: its change per unit τ.
        speed: metres per unit τ at τ = 0. gain: relative change of the speed per unit τ, in -1 … 1. climb: metres up per
            unit τ.
        facing: `[3, 3]`, thing-to-world rotation at τ = 0; its first column is the front. axis: `[3]`, of its turning.
        turn: radians per unit τ.
    """

    middle: np.ndarray
    heading: float
    bend: float
    speed: float
    gain: float
    climb: float
    facing: np.ndarray
    axis: np.ndarray
    turn: float


@dataclass
class Thing:
    """
    A coloured solid.

    Args:
        shape: of `SHAPES`. colour: of `COLOURS`. radius: half its width; half_height: half its height; metres. Cones stand
            on their base, with the middle of their height as their centre.
        motion: see [`Motion`]. moves, turns: whether it does.
    """

    shape: str
    colour: str
    radius: float
    half_height: float
    motion: Motion
    moves: bool
    turns: bool

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
    """Around the room's middle: azimuth (radians), distance, height and aim `[3]` at τ = 0, and each one's change per unit τ."""

    azimuth: float
    distance: float
    height: float
    aim: np.ndarray
    orbit: float
    approach: float
    rise: float
    pan: np.ndarray
    roll: float
    field_of_view: float

    def poses(self, tau: np.ndarray) -> np.ndarray:
        """Camera-to-world `[T, 4, 4]`."""
        azimuth = self.azimuth + self.orbit * tau
        distance, height = self.distance + self.approach * tau, self.height + self.rise * tau
        position = np.stack([distance * np.cos(azimuth), distance * np.sin(azimuth), height], -1)
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
    """Camera-to-world `[T, 4, 4]` of cameras at `position` `[T, 3]` that look at `aim`, turned by `roll` about their axis."""
    front = aim - position
    front = front / np.linalg.norm(front, axis=-1, keepdims=True)
    right = np.cross(front, [0.0, 0.0, 1.0])
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    down = np.cross(front, right)
    cosine, sine = np.cos(roll)[:, None], np.sin(roll)[:, None]
    poses = np.tile(np.eye(4), (len(position), 1, 1))
    poses[:, :3, 0], poses[:, :3, 1] = cosine * right + sine * down, cosine * down - sine * right
    poses[:, :3, 2], poses[:, :3, 3] = front, position
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
    return motion.middle + np.stack([x, y, motion.climb * tau], -1)


def rotations(motion: Motion, tau: np.ndarray) -> np.ndarray:
    """Thing-to-world rotations `[T, 3, 3]`."""
    return rotate_about(motion.axis, motion.turn * tau) @ motion.facing


def rotate_about(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotations `[T, 3, 3]` by angles `[T]` about a unit axis (Rodrigues' formula)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.asarray(angle)[:, None, None]
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def draw_scene(generator: np.random.Generator, settings: SceneSettings, seconds: float = 2.0, views: int = 1) -> Scene:
    """A possible scene: things do not touch, and their centres stay in sight of every camera."""
    while True:
        cameras = _cameras(generator, settings, views)
        things = _things(generator, settings, cameras, seconds / 2)
        if things is not None:
            room = generator.uniform(5.6, 6.6, 2)
            return Scene(things, cameras, room, *_surfaces(generator), seconds)


def _cameras(generator, settings: SceneSettings, views: int) -> list[CameraPath]:
    azimuth, field_of_view = generator.uniform(0, 2 * np.pi), np.radians(generator.uniform(58, 68))
    spacing = np.radians(generator.uniform(*settings.view_spacing))
    paths = []
    for view in range(views):
        still = generator.random() < settings.still_camera
        orbit = np.radians(generator.uniform(*settings.orbit)) / 2 * generator.choice([-1, 1])
        aim = np.append(generator.uniform(-0.3, 0.3, 2), generator.uniform(0.3, 0.6))
        motion = generator.uniform(-0.5, 0.5, 6) * [settings.approach, settings.rise, *[settings.pan] * 2, 0.2, 0.1]
        path = CameraPath(
            azimuth=azimuth + view * spacing,
            distance=generator.uniform(3.4, 4.4),
            height=generator.uniform(1.6, 2.7),
            aim=aim,
            orbit=orbit,
            approach=motion[0],
            rise=motion[1],
            pan=motion[2:5],
            roll=motion[5],
            field_of_view=field_of_view,
        )
        if still:
            path.orbit, path.approach, path.rise, path.pan, path.roll = 0.0, 0.0, 0.0, np.zeros(3), 0.0
        paths.append(path)
    return paths


def _things(generator, settings: SceneSettings, cameras: list[CameraPath], half: float) -> list[Thing] | None:
    """Things at their middle places, then a motion for each; None where one finds no room. `half`: seconds of half a clip."""
    count = int(generator.integers(settings.things[0], settings.things[1] + 1))
    looks = generator.choice(len(SHAPES) * len(COLOURS), count, replace=False)
    things = []
    for look in looks:
        shape, colour = SHAPES[look % len(SHAPES)], list(COLOURS)[look // len(SHAPES)]
        radius = generator.uniform(0.3, 0.5) * (0.85 if shape == "box" else 1.0)
        half_height = radius * (generator.uniform(0.9, 1.5) if shape in ("cylinder", "cone") else 1.0)
        motion = _still(generator, half_height)
        if generator.random() < settings.hovering:
            motion.middle[2] += generator.uniform(0.3, 0.9)
        thing = Thing(shape, colour, radius, half_height, motion, False, False)
        for _ in range(TRIES):
            motion.middle[:2] = generator.uniform(-1.7, 1.7, 2)
            if _possible(thing, things, cameras, MIDDLE):
                break
        else:
            return None
        things.append(thing)
    for number, thing in enumerate(things):
        thing.moves, thing.turns = generator.random(2) < [settings.moving, settings.turning]
        for _ in range(TRIES):
            _set_in_motion(generator, settings, thing, half)
            if _possible(thing, things[:number], cameras, CHECKED):
                break
        else:
            return None
    return things


def _still(generator, half_height: float) -> Motion:
    upright = rotate_about(np.array([0.0, 0.0, 1.0]), generator.uniform(0, 2 * np.pi, 1))[0]
    return Motion(np.array([0.0, 0.0, half_height]), 0.0, 0.0, 0.0, 0.0, 0.0, upright, np.array([0.0, 0.0, 1.0]), 0.0)


def _set_in_motion(generator, settings: SceneSettings, thing: Thing, half: float) -> None:
    """Draw how `thing` moves and turns, if it does. What floats may also rise, sink, and turn about any axis."""
    motion, floats = thing.motion, thing.motion.middle[2] > thing.half_height + 1e-6
    heading, speed, bend = (
        generator.uniform(0, 2 * np.pi),
        generator.uniform(*settings.speed),
        generator.uniform(0.5, 1.0),
    )
    gain, way, arc = generator.choice([-0.8, 0.0, 0.8]), generator.choice([-1, 1], 2), generator.random()
    turn, climb = generator.uniform(0.7, 1.6), generator.uniform(0.1, 0.3) * generator.choice([-1, 0, 1])
    axis = generator.normal(size=3)
    if thing.moves:
        motion.heading, motion.speed, motion.gain = heading, speed * half, float(gain)
        motion.bend = bend * way[0] if arc < settings.arcs else 0.0
        motion.climb = climb * half if floats else 0.0
    if thing.turns:
        motion.turn = turn * half * way[1]
        motion.axis = axis / np.linalg.norm(axis) if floats else np.array([0.0, 0.0, 1.0])


def _possible(thing: Thing, others: list[Thing], cameras: list[CameraPath], tau: np.ndarray) -> bool:
    """Whether `thing` stays in sight, above the floor and apart from `others` at the moments `tau`."""
    path = positions(thing.motion, tau)
    lowest = thing.half_height if thing.motion.middle[2] <= thing.half_height + 1e-6 else thing.bound
    if path[:, 2].min() < lowest - 1e-6:
        return False
    for other in others:
        apart = np.linalg.norm(path - positions(other.motion, tau), axis=-1).min()
        if apart < thing.bound + other.bound + GAP:
            return False
    for camera in cameras:
        poses = camera.poses(tau)
        seen = np.einsum("tji,tj->ti", poses[:, :3, :3], path - poses[:, :3, 3])
        if seen[:, 2].min() < 1.6:
            return False
        if (np.abs(seen[:, :2]).max(-1) / seen[:, 2]).max() > IN_SIGHT * np.tan(camera.field_of_view / 2):
            return False
    return True


def _surfaces(generator) -> tuple[list[Surface], np.ndarray]:
    """Textures of the six sides of the room and the direction of the light."""
    surfaces = []
    hue = generator.uniform(0, 1)
    for side in range(6):
        # Muted colours, so that the things stand out; every wall its own.
        tint = _tint(hue + 0.25 * side, 0.16 if side < 4 else 0.08)
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
