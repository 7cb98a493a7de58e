"""What a reconstruction looks like at a glance: some views with their maps, and the scene from above."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..pictures import FAINT, INK, PAPER, heat_colours
from .views import View
from .writers import PointSample, cloud

SHOWN, CELL, PLAN, MARGIN, TITLE = 6, 220, 480, 16, 20


class Overview:
    """Takes views one by one and keeps a few of them, small, and a sample of points; the number of views need not be known."""

    def __init__(self):
        self.count, self.step, self.kept, self.cameras, self.sample = 0, 1, [], [], PointSample(60_000)

    def add(self, view: View) -> None:
        if self.count % self.step == 0:
            self.kept.append((self.count, view.name, _maps(view)))
            if len(self.kept) == 2 * SHOWN:  # every other one goes: the rest stays evenly spread
                self.kept, self.step = self.kept[::2], 2 * self.step
        self.count += 1
        self.cameras.append(view.camera_to_world)
        self.sample.add(*cloud(view))

    def picture(self) -> Image.Image:
        """Columns of views, rows of maps; below them the plan."""
        chosen = np.unique(np.linspace(0, len(self.kept) - 1, min(SHOWN, len(self.kept))).round().astype(int))
        columns = [self.kept[index] for index in chosen]
        rows = list(columns[0][2])
        height = max(image.height for _, _, maps in columns for image in maps.values())
        width = 2 * MARGIN + max(len(columns) * (CELL + 8), PLAN)
        sheet = Image.new("RGB", (width, 2 * MARGIN + len(rows) * (height + TITLE) + PLAN + 2 * TITLE), PAPER)
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
        for row, name in enumerate(rows):
            top = MARGIN + row * (height + TITLE)
            for column, (number, file, maps) in enumerate(columns):
                left = MARGIN + column * (CELL + 8)
                draw.text((left, top), f"{number}  {file}"[:30] if row == 0 else name, INK, font)
                sheet.paste(maps[name], (left, top + TITLE))
        top = MARGIN + len(rows) * (height + TITLE) + 8
        draw.text((MARGIN, top), "from above: points, and the cameras from dark (first) to light (last)", FAINT, font)
        sheet.paste(self._plan(), (MARGIN, top + TITLE))
        return sheet

    def _plan(self) -> Image.Image:
        """Points and cameras on the plane of x (right) and z (up in the picture) of the first camera."""
        to_first = np.linalg.inv(self.cameras[0])
        points, colours, _ = self.sample.points()
        points = points @ to_first[:3, :3].T + to_first[:3, 3]
        cameras = to_first @ np.stack(self.cameras)
        centres, forward = cameras[:, [0, 2], 3], cameras[:, [0, 2], 2]
        flat = np.concatenate([points[:, [0, 2]], centres])
        low, high = np.percentile(flat, [2, 98], axis=0)
        low, high = np.minimum(low, centres.min(0)), np.maximum(high, centres.max(0))
        scale = (PLAN - 40) / max(float((high - low).max()), 1e-9)
        to_pixel = lambda xz: (xz - (low + high) / 2) * scale * [1, -1] + PLAN / 2  # noqa: E731
        canvas = np.full((PLAN, PLAN, 3), 246, np.uint8)
        x, y = np.round(to_pixel(points[:, [0, 2]])).astype(int).T
        inside = (x >= 0) & (x < PLAN) & (y >= 0) & (y < PLAN)
        canvas[y[inside], x[inside]] = colours[inside]
        picture = Image.fromarray(canvas)
        draw = ImageDraw.Draw(picture)
        levels = heat_colours(np.linspace(0, 1, len(centres))).astype(int)
        ends = to_pixel(centres + forward * (18 / scale))
        for start, end, colour in zip(to_pixel(centres).tolist(), ends.tolist(), levels.tolist()):
            draw.line([*start, *end], tuple(colour), 2)
            draw.ellipse([start[0] - 4, start[1] - 4, start[0] + 4, start[1] + 4], tuple(colour), INK)
        return picture


def _maps(view: View) -> dict[str, Image.Image]:
    """The image and its maps as small pictures; untrusted pixels of the depth are grey."""
    size = (CELL, max(1, round(CELL * view.depth.shape[0] / view.depth.shape[1])))
    nearness = np.where(view.depth > 0, 1 / np.maximum(view.depth, 1e-6), 0)
    low, high = np.percentile(nearness[view.mask] if view.mask.any() else nearness, [2, 98])
    depth = heat_colours(np.clip((nearness - low) / max(high - low, 1e-12), 0, 1))
    depth = np.where(view.mask[..., None], depth, 200)
    maps = {"image": view.image, "depth (near is light, left out is grey)": depth, "confidence": heat_colours(view.confidence)}
    if view.dynamic is not None:
        maps["dynamic"] = heat_colours(view.dynamic)
    return {name: Image.fromarray(values.astype(np.uint8)).resize(size) for name, values in maps.items()}
