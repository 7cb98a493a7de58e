"""Pictures, exact depth and masks of a scene, by casting a ray through the centre of every pixel (numpy, float32).

The centre of the first pixel is (0, 0), as in OpenCV; depth is z in the camera's frame, in metres.
"""

from __future__ import annotations

import numpy as np

from .scene import COLOURS, ROOM_HEIGHT, Scene, Thing

AMBIENT, DIFFUSE = 0.66, 0.42
MARK = (245, 245, 240)  # colour of the front mark
NONE = np.float32(1e9)  # depth of rays that hit nothing


def intrinsics(field_of_view: float, height: int, width: int) -> np.ndarray:
    """Pinhole camera `[3, 3]` in pixels; the field of view is that of the shorter side."""
    focal = min(height, width) / (2 * np.tan(field_of_view / 2))
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def render(scene: Scene, tau: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    """
    What every camera of `scene` sees at the moments `tau` `[T]` (-1 … 1 over the clip).

    Returns:
        `images` uint8 `[T, V, H, W, 3]`, `depth` float32 `[T, V, H, W]`, `instances` uint8 `[T, V, H, W]` (0: the room,
        k + 1: thing k), `intrinsics` `[T, V, 3, 3]`, `poses` `[T, V, 4, 4]` camera-to-world.
    """
    moments, views = len(tau), len(scene.cameras)
    poses = scene.poses(tau)
    cameras = np.stack([intrinsics(camera.field_of_view, height, width) for camera in scene.cameras])
    cameras = np.tile(cameras, (moments, 1, 1, 1))
    flat_poses, flat_cameras = poses.reshape(-1, 4, 4), cameras.reshape(-1, 3, 3)
    positions = np.repeat(scene.positions(tau), views, axis=1)  # [K, T·V, 3]
    rotations = np.repeat(scene.rotations(tau), views, axis=1)

    rays = _rays(flat_poses, flat_cameras, height, width)
    origins = flat_poses[:, :3, 3].astype(np.float32)
    depth, colours = _room(scene, origins, rays, positions)
    instances = np.zeros(depth.shape, np.uint8)
    light = scene.light.astype(np.float32)
    for number, thing in enumerate(scene.things):
        where = _near(flat_poses, flat_cameras, positions[number], thing.bound, height, width)
        if where.size:
            frame = where // (height * width)
            hit = _thing(thing, rotations[number], positions[number], origins, rays.reshape(-1, 3)[where], frame, light)
            closer = hit[0] < depth.reshape(-1)[where]
            where = where[closer]
            depth.reshape(-1)[where], colours.reshape(-1, 3)[where] = hit[0][closer], hit[1][closer]
            instances.reshape(-1)[where] = number + 1
    images = np.clip(colours + 0.5, 0, 255).astype(np.uint8)
    shape = (moments, views, height, width)
    return {
        "images": images.reshape(*shape, 3),
        "depth": depth.reshape(shape),
        "instances": instances.reshape(shape),
        "intrinsics": cameras,
        "poses": poses,
    }


def _rays(poses, cameras, height: int, width: int) -> np.ndarray:
    """Directions `[N, H, W, 3]` in world axes whose length is one unit of depth."""
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    rays = np.empty((len(poses), height, width, 3), np.float32)
    for number, (pose, camera) in enumerate(zip(poses, cameras)):
        right, down, front = pose[:3, :3].T.astype(np.float32)
        across = ((x - camera[0, 2]) / camera[0, 0]).astype(np.float32)[:, None] * right
        along = ((y - camera[1, 2]) / camera[1, 1]).astype(np.float32)[:, None] * down + front
        rays[number] = along[:, None] + across
    return rays


def _room(scene: Scene, origins: np.ndarray, rays: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth `[N, H, W]` and colours `[N, H, W, 3]` of walls, floor and ceiling."""
    low = np.array([-scene.room[0], -scene.room[1], 0], np.float32)
    high = np.array([scene.room[0], scene.room[1], ROOM_HEIGHT], np.float32)
    sides, depths = [], []
    for axis, (minus, plus) in enumerate(((0, 1), (2, 3), (4, 5))):
        ray, origin = rays[..., axis], origins[:, None, None, axis]
        up = ray > 0
        with np.errstate(divide="ignore"):
            depths.append((np.where(up, high[axis], low[axis]) - origin) / np.where(ray == 0, np.float32(1e-12), ray))
        sides.append(np.where(up, np.uint8(plus), np.uint8(minus)))
    x, y, z = depths
    depth = np.minimum(np.minimum(x, y), z)
    side = np.where(z <= depth, sides[2], np.where(x <= depth, sides[0], sides[1]))
    points = [origins[:, None, None, axis] + depth * rays[..., axis] for axis in range(3)]
    level = side >= 4
    u = np.where(level | (side >= 2), points[0], points[1])
    v = np.where(level, points[1], points[2])
    colours = pattern(scene.surfaces, side, u, v, depth)
    colours *= _shade(scene, side, points, positions)[..., None]
    return depth, colours


def pattern(surfaces, side: np.ndarray, u: np.ndarray, v: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """
    Colours `[…, 3]` at (u, v) metres on the surfaces `side`: `a·sin·sin + b·sin` of three waves, sharpened into
    chequers or stripes as far as the distance allows without aliasing.
    """
    table = lambda values: np.stack(values).astype(np.float32)[side]  # noqa: E731
    waves, phases = table([s.waves.reshape(-1) for s in surfaces]), table([s.phases for s in surfaces])
    first, second, third = (
        np.sin(waves[..., 2 * i] * u + waves[..., 2 * i + 1] * v + phases[..., i]) for i in range(3)
    )
    mix = table([s.mix for s in surfaces])
    value = mix[..., 0] * first * second + mix[..., 1] * third
    sharpness = np.minimum(table([s.sharpness for s in surfaces]), 24 / depth)
    share = (np.clip(value * sharpness, -1, 1) + 1) / 2
    base, other = table([s.base for s in surfaces]), table([s.other for s in surfaces])
    return base + share[..., None] * (other - base)


def _shade(scene: Scene, side: np.ndarray, points, positions: np.ndarray) -> np.ndarray:
    """Brightness of the room's surfaces: light by side, darker corners, and soft shadows below the things."""
    fixed = np.array([0.82, 0.9, 0.86, 0.94, 1.0, 0.96], np.float32)[side]
    # Walls darken towards the floor and the ceiling, which tells where they end.
    height = np.clip(points[2] / ROOM_HEIGHT, 0, 1)
    fixed *= np.where(side < 4, 0.8 + 0.2 * np.minimum(1, 4 * height * (1.25 - height)), np.float32(1))
    floor = side == 4
    for thing, path in zip(scene.things, positions.astype(np.float32)):
        x, y = points[0] - path[:, None, None, 0], points[1] - path[:, None, None, 1]
        gap = np.maximum(path[:, 2] - thing.half_height, 0)[:, None, None]
        reach = (thing.radius * 1.25 + 0.4 * gap) ** 2
        near = np.clip(1 - (x * x + y * y) / (1.6 * reach), 0, 1)
        fixed *= np.where(floor, 1 - 0.6 / (1 + 2 * gap) * near, np.float32(1))
    return fixed


def _near(poses, cameras, path: np.ndarray, bound: float, height: int, width: int) -> np.ndarray:
    """Indices into the flattened `[N, H, W]` of pixels that may see a sphere of radius `bound` around `path` `[N,
    3]`."""
    local = np.einsum("nji,nj->ni", poses[:, :3, :3], path - poses[:, :3, 3])
    found = []
    for number, (centre, camera) in enumerate(zip(local, cameras)):
        if centre[2] < -bound:
            continue
        closest = max(centre[2] - bound, 0.05)
        left, right, top, bottom = 0, width, 0, height
        if centre[2] > 1.5 * bound:
            focal = camera[0, 0]
            x = [(centre[0] + side * bound) / z for side in (-1, 1) for z in (closest, centre[2] + bound)]
            y = [(centre[1] + side * bound) / z for side in (-1, 1) for z in (closest, centre[2] + bound)]
            left, right = (int(np.clip(e * focal + camera[0, 2] + o, 0, width)) for e, o in ((min(x), 0), (max(x), 2)))
            top, bottom = (int(np.clip(e * focal + camera[1, 2] + o, 0, height)) for e, o in ((min(y), 0), (max(y), 2)))
        rows, columns = np.arange(top, bottom)[:, None], np.arange(left, right)
        found.append((number * height * width + rows * width + columns).reshape(-1))
    return np.concatenate(found) if found else np.empty(0, int)


def _thing(thing: Thing, rotations, path, origins, rays, frame, light) -> tuple[np.ndarray, np.ndarray]:
    """Depth and colours where `rays` `[R, 3]` of the frames `frame` `[R]` hit a thing; `NONE` where they miss it."""
    turned = rotations.astype(np.float32)
    start = np.einsum("nji,nj->ni", turned, origins - path.astype(np.float32))[frame]  # in the thing's own axes
    way = np.einsum("rji,rj->ri", turned[frame], rays)
    depth, normal = SHAPE_HITS[thing.shape](start, way, np.float32(thing.radius), np.float32(thing.half_height))
    point = start + depth[:, None] * way
    lamp = (light @ turned)[frame]
    lit = AMBIENT + DIFFUSE * np.maximum((normal * lamp).sum(-1), 0)
    colour = np.array(COLOURS[thing.colour], np.float32)
    shade = _coat(thing, point)
    colours = (colour * shade[:, None]) * lit[:, None]
    marked = _marked(thing, point)
    colours[marked] = np.array(MARK, np.float32) * lit[marked, None]
    return depth, np.minimum(colours, 255)


def _coat(thing: Thing, point: np.ndarray) -> np.ndarray:
    """Faint bands around a thing that show how it turns."""
    angle = np.arctan2(point[:, 1], point[:, 0])
    return 1 - 0.13 * (np.sin(4 * angle) > 0)


def _marked(thing: Thing, point: np.ndarray) -> np.ndarray:
    """Whether points lie on the white mark at the front (+x) of a thing."""
    x, y, z = point.T
    half_width = 0.45 * thing.radius
    if thing.shape == "cone":  # follows the slope
        half_width = half_width * np.clip((thing.half_height - z) / thing.half_height, 0, 1)
    return (x > 0) & (np.abs(y) < half_width) & (np.abs(z) < 0.45 * thing.half_height)


def _first(depth, valid):
    return np.where(valid & (depth > 1e-3), depth, NONE)


def _ball(start, way, radius, half_height):
    a, b = (way * way).sum(-1), (start * way).sum(-1)
    root = b * b - a * ((start * start).sum(-1) - radius * radius)
    depth = _first((-b - np.sqrt(np.maximum(root, 0))) / a, root > 0)
    return depth, (start + depth[:, None] * way) / radius


def _box(start, way, radius, half_height):
    way = np.where(way == 0, np.float32(1e-12), way)
    near = (-np.sign(way) * radius - start) / way
    far = (np.sign(way) * radius - start) / way
    axis = near.argmax(-1)
    depth = near.max(-1)
    depth = _first(depth, depth < far.min(-1))
    normal = np.zeros_like(start)
    row = np.arange(len(start))
    normal[row, axis] = -np.sign(way[row, axis])
    return depth, normal


def _cylinder(start, way, radius, half_height):
    (x, y, z), (dx, dy, dz) = start.T, way.T
    a, b = dx * dx + dy * dy, x * dx + y * dy
    root = b * b - a * (x * x + y * y - radius * radius)
    side = (-b - np.sqrt(np.maximum(root, 0))) / np.maximum(a, 1e-12)
    side = _first(side, (root > 0) & (np.abs(z + side * dz) < half_height))
    cap = _cap(start, way, radius, np.where(dz > 0, -half_height, half_height))
    depth = np.minimum(side, cap)
    normal = np.stack([(x + depth * dx) / radius, (y + depth * dy) / radius, np.zeros_like(z)], -1)
    on_cap = cap < side
    normal[on_cap] = np.stack([np.zeros_like(z), np.zeros_like(z), -np.sign(dz)], -1)[on_cap]
    return depth, normal


def _cone(start, way, radius, half_height):
    """Apex at +half_height, base at -half_height."""
    (x, y, z), (dx, dy, dz) = start.T, way.T
    slope = radius / (2 * half_height)
    w, dw = slope * (half_height - z), -slope * dz  # radius of the cone at the start, and its change on the way
    a, b = dx * dx + dy * dy - dw * dw, x * dx + y * dy - w * dw
    c = x * x + y * y - w * w
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    safe = np.where(np.abs(a) < 1e-9, np.float32(1e-9), a)
    roots = np.stack([(-b - root) / safe, (-b + root) / safe])
    inside = np.abs(z + roots * dz) < half_height
    side = _first(roots, inside & (b * b - a * c > 0)).min(0)
    cap = _cap(start, way, radius, np.full_like(z, -half_height))
    cap = np.where(dz > 0, cap, NONE)
    depth = np.minimum(side, cap)
    hit_x, hit_y = x + depth * dx, y + depth * dy
    long = np.sqrt(np.maximum(hit_x**2 + hit_y**2, 1e-12))
    tilt = np.float32(np.hypot(1, slope))
    normal = np.stack([hit_x / long / tilt, hit_y / long / tilt, np.full_like(z, slope / tilt)], -1)
    normal[cap < side] = (0, 0, -1)
    return depth, normal


def _cap(start, way, radius, level):
    """Depth of the disc of `radius` at z = `level`."""
    dz = np.where(way[:, 2] == 0, np.float32(1e-12), way[:, 2])
    depth = (level - start[:, 2]) / dz
    x, y = start[:, 0] + depth * way[:, 0], start[:, 1] + depth * way[:, 1]
    return _first(depth, x * x + y * y < radius * radius)


SHAPE_HITS = {"ball": _ball, "box": _box, "cylinder": _cylinder, "cone": _cone}
