"""The clip of `dsr demo`: three coloured things on a tiled floor, two of them moving, seen by a moving camera.

Rendered by this file (`python -m dsr_toolkit.demo.clip`) and carried as `assets/demo.mp4`, so that the demo has a video
whose motion is known: the red ball rolls towards the camera, the blue box slides away from it, the green ball rests.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLIP = Path(__file__).parents[1] / "assets" / "demo.mp4"
WIDTH, HEIGHT, FRAMES, FPS = 448, 252, 48, 12
FOCAL = 0.9 * WIDTH  # pixels
LIGHT = np.array([0.45, -0.8, -0.4]) / np.linalg.norm([0.45, -0.8, -0.4])  # direction to the light; y points down
RED, GREEN, BLUE = np.array([[0.9, 0.15, 0.1], [0.15, 0.7, 0.25], [0.15, 0.35, 0.95]])
BACKGROUND = np.array([0.75, 0.85, 0.95])


def render(frames: int = FRAMES) -> np.ndarray:
    """The clip as uint8 RGB `[frames, HEIGHT, WIDTH, 3]`, spread over the same motion whatever their number."""
    return np.stack([_render_frame(time) for time in np.linspace(0, 1, frames)])


def write_clip(path: Path = CLIP) -> Path:
    """Render and encode as H.264, which every decoder reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "23", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in render():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def _render_frame(time: float) -> np.ndarray:
    """One ray per pixel at `time` in [0, 1]; OpenCV axes (x right, y down, z forward), metres, floor at y = 0."""
    camera = np.array([-0.8 + 1.6 * time, -1.5, -5.0])
    turn, tilt = np.radians(6 - 12 * time), np.radians(10)
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5 - WIDTH / 2, np.arange(HEIGHT) + 0.5 - HEIGHT / 2)
    rays = np.stack([x, y, np.full_like(x, FOCAL)], axis=-1)  # [H, W, 3]
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    tilting = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    turning = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    rays = rays @ (turning @ tilting).T

    things = [  # intersection function, colour
        (lambda o, r: _sphere(o, r, np.array([-1.6 + 1.1 * time, -0.5, 3.0 - 4.5 * time]), 0.5), RED),
        (lambda o, r: _sphere(o, r, np.array([1.9, -0.35, 2.2]), 0.35), GREEN),
        (lambda o, r: _box(o, r, np.array([0.3, -0.45, 0.8 + 4.2 * time]), np.array([0.45, 0.45, 0.45])), BLUE),
    ]
    depth, normal = _floor(camera, rays)
    point = camera + np.where(np.isfinite(depth), depth, 0)[..., None] * rays
    tiles = (np.floor(point[..., 0]) + np.floor(point[..., 2])) % 2
    colour = np.where(tiles[..., None] == 0, [0.82, 0.8, 0.76], [0.5, 0.48, 0.46])
    for intersect, paint in things:
        distance, direction = intersect(camera, rays)
        nearer = distance < depth
        depth = np.where(nearer, distance, depth)
        normal = np.where(nearer[..., None], direction, normal)
        colour = np.where(nearer[..., None], paint, colour)

    seen = np.isfinite(depth)
    point = camera + np.where(seen, depth, 0)[..., None] * rays + 1e-3 * normal
    to_light = np.broadcast_to(LIGHT, point.shape)
    shadow = np.zeros_like(seen)
    for intersect, _ in things:
        shadow |= np.isfinite(intersect(point, to_light)[0])
    brightness = 0.35 + 0.65 * np.clip((normal * LIGHT).sum(-1), 0, 1) * ~shadow
    haze = np.exp(-np.where(seen, depth, np.inf) / 25)[..., None]
    image = haze * colour * brightness[..., None] + (1 - haze) * BACKGROUND
    return (255 * np.clip(image, 0, 1)).astype(np.uint8)


def _floor(origin, rays):
    """Distance along each ray (inf where it misses) and normal; so do the next two."""
    with np.errstate(divide="ignore"):
        distance = -origin[..., 1] / rays[..., 1]
    distance = np.where(distance > 1e-4, distance, np.inf)
    return distance, np.broadcast_to(np.array([0.0, -1.0, 0.0]), rays.shape)


def _sphere(origin, rays, centre, radius):
    offset = origin - centre
    b = (offset * rays).sum(-1)
    discriminant = b**2 - (offset**2).sum(-1) + radius**2
    distance = -b - np.sqrt(np.maximum(discriminant, 0))
    distance = np.where((discriminant > 0) & (distance > 1e-4), distance, np.inf)
    point = origin + np.where(np.isfinite(distance), distance, 0)[..., None] * rays
    return distance, (point - centre) / radius


def _box(origin, rays, centre, half):
    with np.errstate(divide="ignore"):
        near_far = (centre - origin + np.stack([-half, half])[:, None, None] - 0 * rays) / rays  # [2, H, W, 3]
    near, far = near_far.min(0), near_far.max(0)
    distance, axis = near.max(-1), near.argmax(-1)
    distance = np.where((distance < far.min(-1)) & (distance > 1e-4), distance, np.inf)
    normal = -np.sign(rays) * (axis[..., None] == np.arange(3))
    return distance, normal


if __name__ == "__main__":
    print(write_clip())
