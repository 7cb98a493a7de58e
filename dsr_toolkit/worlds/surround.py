"""The surround world: a street through the six cameras of a car, with exact calibration, boxes, map lines and
questions.

    sample = SurroundWorld(seed=3)[0]
    sample.images["CAM_FRONT"], sample.cameras["CAM_FRONT"].intrinsics, sample.boxes, sample.elements(20),
    sample.questions

Everything is in metres; boxes are in the vehicle frame (x forward, y left, z up), map lines in the LiDAR frame (x
right, y forward), whose origin lies under the same point.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from .surround_questions import Question, ask
from .surround_render import render
from .surround_scene import (
    BOUNDARY,
    COLOURS,
    CROSSING,
    DIVIDER,
    POINT_RANGE,
    Camera,
    Surroundings,
    Thing,
    draw_cameras,
    draw_surroundings,
)
from .world import World

LAYOUT = (("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"), ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"))
LINE_COLOURS = {DIVIDER: (230, 120, 20), CROSSING: (40, 110, 230), BOUNDARY: (30, 140, 60)}


@dataclass(frozen=True)
class SurroundSample:
    """
    Args:
        seed, index: of the sample in its world.
        images: `[H, W, 3]` uint8 by camera name, in nuScenes' order.
        cameras: calibration by camera name.
        depth: `[N, H, W]` float32 metres along each optical axis, infinite in the sky.
        instance: `[N, H, W]` int16 number of the box that a pixel shows, -1 for none.
        surroundings: what stands where. questions: with their answers, in random order.
    """

    seed: int
    index: int
    images: dict[str, np.ndarray]
    cameras: dict[str, Camera]
    depth: np.ndarray = field(repr=False)
    instance: np.ndarray = field(repr=False)
    surroundings: Surroundings
    questions: tuple[Question, ...]

    @property
    def boxes(self) -> tuple[Thing, ...]:
        """In the vehicle frame; `instance` counts them."""
        return self.surroundings.boxes

    def elements(self, num_points: int = 20) -> list[dict]:
        """Map elements `{"label", "points" [num_points, 2]}` in metres of the LiDAR frame; see `Road.elements`."""
        return self.surroundings.road.elements(num_points)

    @property
    def cam_intrinsics(self) -> dict[str, np.ndarray]:
        """By camera name, as `SceneQFormerProcessor` takes them."""
        return {name: camera.intrinsics for name, camera in self.cameras.items()}

    @property
    def cam_extrinsics(self) -> dict[str, np.ndarray]:
        """Likewise."""
        return {name: camera.extrinsics for name, camera in self.cameras.items()}


class SurroundWorld(World):
    """
    Args:
        seed: see [`World`]. height, width: pixels of each image.
        types: of the questions of each sample, see `surround_questions.ask`; default one of each.
    """

    def __init__(self, seed: int, height: int = 64, width: int = 112, types=None):
        super().__init__(seed)
        if min(height, width) < 16:
            raise ValueError(f"`height` and `width` must be at least 16 pixels, got {height} and {width}.")
        self.height, self.width, self.types = height, width, types

    def scene(self, index: int) -> tuple[Surroundings, tuple[Question, ...]]:
        """What stands where in sample `index`, and its questions: all but the pictures, a hundred times as fast."""
        surroundings = draw_surroundings(self.generator(index, "surroundings"))
        return surroundings, ask(surroundings, self.generator(index, "questions"), self.types)

    def sample(self, index: int) -> SurroundSample:
        surroundings, questions = self.scene(index)
        cameras = draw_cameras(self.generator(index, "cameras"), self.height, self.width)
        images, depth, instance = render(
            surroundings, cameras, self.height, self.width, self.generator(index, "surfaces")
        )
        return SurroundSample(
            seed=self.seed,
            index=index,
            images=dict(zip(cameras, images)),
            cameras=cameras,
            depth=depth,
            instance=instance,
            surroundings=surroundings,
            questions=questions,
        )


def project(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `[..., 2]` and depths `[...]` of points `[..., 3]` in the vehicle frame; meaningless where depth ≤ 0."""
    seen = (points - camera.extrinsics[:3, 3]) @ camera.extrinsics[:3, :3]
    pixels = seen @ camera.intrinsics.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return pixels[..., :2] / seen[..., 2:], seen[..., 2]


def plan(sample: SurroundSample, height: int = 420, found=()) -> Image.Image:
    """See [`street`]."""
    return street(sample.elements(), sample.boxes, found, height)


def street(elements, boxes=(), found=(), height: int = 420) -> Image.Image:
    """The street from above, forward is up: lines by class, boxes by colour, the car; thin lines are those `found`."""
    scale = height / 80
    size = (height, height)
    picture = Image.new("RGB", size, (244, 243, 240))
    pen = ImageDraw.Draw(picture)

    def place(points):  # LiDAR frame → pixels
        return [(size[0] / 2 + x * scale, size[1] / 2 - y * scale) for x, y in points]

    x_low, y_low, x_high, y_high = POINT_RANGE
    pen.rectangle(place([(x_low, y_high), (x_high, y_low)]), fill="white", outline=(200, 200, 200))
    for element in elements:
        points = np.asarray(element["points"])
        if element["label"] == CROSSING:
            points = np.concatenate([points, points[:1]])
        pen.line(place(points), fill=LINE_COLOURS.get(element["label"], (120, 120, 120)), width=2)
    for points in found:
        pen.line(place(points), fill=(200, 0, 120), width=1)
    for box in boxes:
        corners = box.corners()[[0, 2, 6, 4], :2]
        fill = COLOURS.get(box.colour, (245, 120, 20) if box.kind == "cone" else (175, 150, 120))
        pen.polygon(place(np.stack([-corners[:, 1], corners[:, 0]], -1)), fill=fill, outline="black")
    pen.polygon(place([(-0.9, -2.2), (0.9, -2.2), (0.9, 1.4), (0, 2.6), (-0.9, 1.4)]), fill=(30, 30, 30))
    return picture


def contact_sheet(sample: SurroundSample) -> Image.Image:
    """The six images with boxes, the street from above, and the questions with their answers."""
    height, width = next(iter(sample.images.values())).shape[:2]
    scale = max(1, round(280 / width))
    height, width, gap, head = height * scale, width * scale, 6, 16
    left = 3 * (width + gap) + gap
    side = 2 * (height + head + gap)
    rows = -(-len(sample.questions) // 2)
    sheet = Image.new("RGB", (left + side + gap, side + gap + 18 * rows + 10), "white")
    pen = ImageDraw.Draw(sheet)
    for i, names in enumerate(LAYOUT):
        for j, name in enumerate(names):
            x, y = gap + j * (width + gap), gap + i * (height + head + gap)
            pen.text((x, y), name, fill="black")
            picture = Image.fromarray(sample.images[name]).resize((width, height), Image.Resampling.NEAREST)
            _outline(picture, sample.boxes, sample.cameras[name], scale)
            sheet.paste(picture, (x, y + head))
    sheet.paste(plan(sample, side), (left, gap))
    for number, question in enumerate(sample.questions):
        x, y = gap + (number % 2) * (sheet.width // 2), side + 2 * gap + 18 * (number // 2)
        pen.text((x, y), f"{question.text}  {question.answer}", fill="black")
    return sheet


def _outline(picture: Image.Image, boxes, camera: Camera, scale: int) -> None:
    """The edges of every box in front of the camera."""
    pen = ImageDraw.Draw(picture)
    for box in boxes:
        pixels, depth = project(box.corners(), camera)
        for one in range(8):
            for bit in (1, 2, 4):
                other = one | bit
                if one != other and min(depth[one], depth[other]) > 0.1:
                    pen.line([tuple(pixels[one] * scale), tuple(pixels[other] * scale)], fill=(255, 80, 200))
