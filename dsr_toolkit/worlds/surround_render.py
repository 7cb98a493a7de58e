"""The surround world through its cameras: colours, and the depth and the thing behind every pixel, exactly.

A pixel shows what the ray through its centre meets first: the ground, or the parts of a thing, which are boxes. Lines
on the ground are narrower than far pixels and colour them by the share they cover.
"""

from __future__ import annotations

import numpy as np

from .surround_scene import COLOURS, CROSSING_LENGTH, ROAD_END, Camera, Road, Surroundings, Thing

NEAR = 0.05
DARK, GLASS, SKIN, ORANGE = (45, 45, 48), (70, 85, 100), (225, 180, 150), (245, 120, 20)
PALE, STONE = (205, 205, 205), (175, 150, 120)
ASPHALT, GROUND, PAINT, KERB = (78, 78, 84), (150, 146, 136), (235, 235, 235), (232, 214, 150)
KERB_WIDTH, DIVIDER_WIDTH = 0.4, 0.24  # metres
SUN = np.array([0.5, 0.4, 0.77])
# Parts of things as shares of their length, width and height: centre, size, colour (None: the thing's).
PARTS = {
    "car": (
        ((0, 0, 0.1), (0.9, 0.95, 0.2), DARK),
        ((0, 0, 0.38), (1, 1, 0.4), None),
        ((-0.08, 0, 0.72), (0.55, 0.9, 0.3), GLASS),
        ((-0.08, 0, 0.93), (0.55, 0.9, 0.14), None),
    ),
    "truck": (
        ((0, 0, 0.09), (0.95, 0.9, 0.18), DARK),
        ((-0.15, 0, 0.59), (0.7, 1, 0.82), None),
        ((0.36, 0, 0.42), (0.28, 0.9, 0.5), PALE),
        ((0.365, 0, 0.55), (0.27, 0.92, 0.18), GLASS),
    ),
    "pedestrian": (
        ((0, 0, 0.42), (0.7, 0.9, 0.84), None),
        ((0, 0, 0.92), (0.5, 0.4, 0.16), SKIN),
    ),
    "cone": (
        ((0, 0, 0.05), (1, 1, 0.1), ORANGE),
        ((0, 0, 0.3), (0.66, 0.66, 0.4), ORANGE),
        ((0, 0, 0.6), (0.48, 0.48, 0.2), PAINT),
        ((0, 0, 0.85), (0.3, 0.3, 0.3), ORANGE),
    ),
    "building": (((0, 0, 0.5), (1, 1, 1), STONE),),
}


def render(
    surroundings: Surroundings, cameras: dict[str, Camera], height: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Args:
        cameras: with intrinsics for images of `height` and `width`. rng: of the grain of surfaces and the daylight.

    Returns:
        Images `[N, H, W, 3]` uint8; depth along the optical axis `[N, H, W]` float32 metres, infinite in the sky;
        number of the box in `surroundings.boxes` `[N, H, W]` int16, -1 where there is none.
    """
    rays, origins = _rays(cameras, height, width)
    colour = np.empty((*rays.shape[:3], 3), np.float32)
    depth = np.full(rays.shape[:3], np.inf, np.float32)
    instance = np.full(rays.shape[:3], -1, np.int16)
    _paint_sky(colour, rays)
    _paint_ground(colour, depth, rays, origins, surroundings.road, cameras)
    _paint_boxes(colour, depth, instance, rays, origins, cameras, surroundings.boxes)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * 4
    daylight = np.float32(rng.uniform(0.85, 1.08))
    return np.clip(colour * daylight + grain, 0, 255).astype(np.uint8), depth, instance


def _rays(cameras: dict[str, Camera], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions `[N, H, W, 3]` in vehicle axes, of depth 1 along the optical axis, and the cameras' places `[N,
    3]`."""
    v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    pixels = np.stack([u, v, np.ones_like(u)], -1)
    rays = [pixels @ (c.extrinsics[:3, :3] @ np.linalg.inv(c.intrinsics)).T for c in cameras.values()]
    places = [camera.extrinsics[:3, 3] for camera in cameras.values()]
    return np.stack(rays).astype(np.float32), np.stack(places).astype(np.float32)


def _paint_sky(colour: np.ndarray, rays: np.ndarray) -> None:
    high = np.clip(rays[..., 2:] * 2, 0, 1)
    colour[:] = np.float32([200, 214, 228]) + high * np.float32([-70, -44, 6])


def _paint_ground(colour, depth, rays, origins, road: Road, cameras) -> None:
    down = rays[..., 2]
    # Rows of sky in every camera need no thought.
    first = int(np.argmax((down < -1e-3).any((0, 2))))
    down, rays = down[:, first:], rays[:, first:]
    hit = down < -1e-3
    reach = -origins[:, None, None, 2] / np.where(hit, down, -1e-3)
    x = origins[:, None, None, 0] + reach * rays[..., 0]
    y = origins[:, None, None, 1] + reach * rays[..., 1]
    along, left = road.along(x, y)
    pixel = np.abs(np.diff(left, axis=1, append=left[:, -1:])) + np.abs(np.diff(left, axis=2, append=left[..., -1:]))
    pixel = np.maximum(pixel, 0.02)  # metres across the road that one pixel covers

    offsets = road.line_offsets()
    number = np.clip(np.rint((road.left_edge - left) / road.lane_width), 0, road.lanes)
    aside = np.abs(road.left_edge - number * road.lane_width - left)
    is_edge = (number == 0) | (number == road.lanes)
    half = np.where(is_edge, np.float32(KERB_WIDTH / 2), np.float32(DIVIDER_WIDTH / 2))
    line = np.clip((half + pixel / 2 - aside) / pixel, 0, np.minimum(2 * half / pixel, 1))
    line = np.where(is_edge | (along % 6 < 4), line, 0)
    is_road = (left < offsets[0]) & (left > offsets[-1])
    if road.crossing is not None:
        bar = np.abs((offsets[0] - left) % 1.2 - 0.6)
        bar = np.clip(0.5 + (0.3 - bar) / np.maximum(pixel, 0.05), 0, 1)
        bar = np.where(pixel > 0.8, np.float32(0.5), bar)
        between = (left < offsets[0] - KERB_WIDTH) & (left > offsets[-1] + KERB_WIDTH)
        within = between & (np.abs(along - road.crossing) < CROSSING_LENGTH / 2)
        line = np.where(within, bar, line)
        is_edge = is_edge & ~within
    exists = np.abs(along) < ROAD_END
    surface = np.where((is_road & exists)[..., None], np.float32(ASPHALT), np.float32(GROUND))
    painted = np.where(is_edge[..., None], np.float32(KERB), np.float32(PAINT))
    surface += (line * exists)[..., None] * (painted - surface)
    # Haze towards the horizon.
    share = np.clip(reach / 120, 0, 1)[..., None]
    surface += share * (np.float32([200, 214, 228]) - surface)
    colour[:, first:][hit] = surface[hit]
    depth[:, first:][hit] = reach[hit]


def _part_boxes(thing: Thing):
    """Centre `[3]`, half size `[3]` and colour of each part, in the vehicle frame."""
    size, base = np.array(thing.size), np.array([*thing.centre[:2], 0.0])
    for centre, share, colour in PARTS[thing.kind]:
        yield (
            base + thing.turn() @ (centre * size),
            share * size / 2,
            COLOURS[thing.colour] if colour is None else colour,
        )


def _paint_boxes(colour, depth, instance, rays, origins, cameras, boxes) -> None:
    parts = [(number, thing, *part) for number, thing in enumerate(boxes) for part in _part_boxes(thing)]
    if not parts:
        return
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), -1).reshape(8, 3)
    turns = [thing.turn().T for _, thing, *_ in parts]
    corners = np.stack([signs * half @ turn + centre for turn, (_, _, centre, half, _) in zip(turns, parts)])
    for view, camera in enumerate(cameras.values()):
        seen = (corners - camera.extrinsics[:3, 3]) @ camera.extrinsics[:3, :3]
        seen = np.where(seen[..., 2:] > NEAR, seen, np.nan) @ camera.intrinsics.T
        with np.errstate(invalid="ignore"):
            pixels = seen[..., :2] / seen[..., 2:]
        for part in np.flatnonzero(np.isfinite(pixels).any((1, 2))):
            window = _window(pixels[part], depth.shape[1:])
            if window is not None:
                number, thing, centre, half, paint = parts[part]
                _paint_box(
                    *(image[view][window] for image in (colour, depth, instance, rays)),
                    (origins[view] - centre) @ turns[part].T,
                    half,
                    turns[part],
                    np.float32(paint),
                    number,
                    thing.kind == "building",
                )


def _window(pixels: np.ndarray, shape: tuple[int, int]):
    """Rows and columns that a box with these corners can cover; all of them where a corner is behind the camera."""
    if not np.isfinite(pixels).all():
        return slice(None), slice(None)
    low = np.maximum(np.floor(pixels.min(0) - 0.5), 0).astype(int)
    high = np.minimum(np.ceil(pixels.max(0) + 0.5), shape[::-1]).astype(int)
    return None if (high <= low).any() else (slice(low[1], high[1]), slice(low[0], high[0]))


def _paint_box(colour, depth, instance, rays, origin, half, turn, paint, number, windows) -> None:
    """One box into one window of one camera, where it is the nearest so far; `turn` leads from vehicle to box axes."""
    local = rays @ turn.T.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = -origin.astype(np.float32) / local
        reach = half.astype(np.float32) / np.abs(local)
    enter = middle - reach
    near, far = enter.max(-1), (middle + reach).min(-1)
    hit = (near < far) & (near > NEAR) & (near < depth)
    if not hit.any():
        return
    near = near[hit]
    axis = enter[hit].argmax(-1)
    # The face that a ray enters by looks against it.
    side = (np.take_along_axis(local[hit], axis[:, None], -1)[:, 0] < 0).astype(int)
    normals = np.stack([-turn, turn])  # [side, axis, 3] in vehicle axes
    light = (0.75 + 0.3 * np.clip(normals @ SUN, 0, None)).astype(np.float32)
    shade = light[side, axis][:, None] * paint
    if windows:
        place = origin.astype(np.float32) + near[:, None] * local[hit]
        beside = np.where(axis == 0, place[:, 1], place[:, 0])
        glazed = (beside % 2.5 < 1.3) & ((place[:, 2] + half[2]) % 3 > 1.4) & (axis != 2)
        shade = np.where(glazed[:, None], np.float32(GLASS), shade)
    colour[hit], depth[hit], instance[hit] = shade, near, number
