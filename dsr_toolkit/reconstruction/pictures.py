"""What a reconstruction looks like at a glance: some views with their maps, and the scene from above."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from modeling_dsr.pictures import heat_colours

from ..pictures import FAINT, INK, PAPER
from .depth_scale import DepthScale
from .views import View
from .writers.base import OWN_SCALE, PointSample, Spread, cloud

SHOWN, CELL, PLAN, MARGIN, TITLE = 6, 220, 480, 16, 20


class Overview:
    """Takes views one by one and keeps a few of them, small, and a sample of points; the number of views need not be
    known."""

    def __init__(self, unit: str = OWN_SCALE):
        self.unit, self.views, self.cameras, self.sample = unit, Spread(SHOWN), [], PointSample(60_000)

    def add(self, view: View) -> None:
        self.views.add(_Small.of(len(self.cameras), view) if self.views.wants() else None)
        self.cameras.append(view.camera_to_world)
        self.sample.add(*cloud(view))

    def picture(self) -> Image.Image:
        """Columns of views, rows of maps, all depths in one scale with its numbers; below them the plan."""
        columns = self.views.chosen()
        scale = DepthScale.of([column.depth for column in columns])
        rows = [("image", lambda one: one.image), ("depth, grey: left out", lambda one: scale.colours(one.depth))]
        rows.append(("confidence", lambda one: heat_colours(one.confidence)))
        if all(column.dynamic is not None for column in columns):
            rows.append(("dynamic", lambda one: heat_colours(one.dynamic)))
        pictures = [[Image.fromarray(shown(one).astype(np.uint8)) for one in columns] for _, shown in rows]
        height = max(picture.height for row in pictures for picture in row)
        width = 2 * MARGIN + max(len(columns) * (CELL + 8), PLAN)
        bar = TITLE + 34
        sheet = Image.new("RGB", (width, 2 * MARGIN + len(rows) * (height + TITLE) + bar + PLAN + 2 * TITLE), PAPER)
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
        for row, (name, _) in enumerate(rows):
            top = MARGIN + row * (height + TITLE)
            for column, one in enumerate(columns):
                left = MARGIN + column * (CELL + 8)
                draw.text((left, top), f"{one.number}  {_legible(one.name)}"[:30] if row == 0 else name, INK, font)
                sheet.paste(pictures[row][column], (left, top + TITLE))
        top = MARGIN + len(rows) * (height + TITLE) + 8
        self._scale(sheet, draw, font, top, scale)
        top += bar
        draw.text((MARGIN, top), "from above: points, and the cameras from dark (first) to light (last)", FAINT, font)
        sheet.paste(self._plan(), (MARGIN, top + TITLE))
        return sheet

    def _scale(self, sheet, draw, font, top: int, scale: DepthScale) -> None:
        """The colours of all depths, with numbers."""
        draw.text(
            (MARGIN, top), f"depth of all images, in {'metres' if self.unit == 'metres' else self.unit}", FAINT, font
        )
        ramp = heat_colours(np.linspace(0, 1, PLAN))[None].repeat(12, axis=0)
        sheet.paste(Image.fromarray(ramp.astype(np.uint8)), (MARGIN, top + TITLE))
        for level, label in scale.labels():
            anchor = "la" if level == 0 else "ra" if level == 1 else "ma"
            draw.text((MARGIN + level * PLAN, top + TITLE + 14), label, INK, font, anchor)

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


@dataclass(frozen=True)
class _Small:
    """A view as wide as a cell of the sheet."""

    number: int
    name: str
    image: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray
    dynamic: np.ndarray | None

    @classmethod
    def of(cls, number: int, view: View) -> _Small:
        height = max(1, round(CELL * view.depth.shape[0] / view.depth.shape[1]))
        rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip((height, CELL), view.depth.shape))
        chosen = np.ix_(rows, columns)
        image = np.asarray(Image.fromarray(view.image).resize((CELL, height)))
        depth = np.where(view.mask[chosen], view.depth[chosen], 0)
        dynamic = None if view.dynamic is None else view.dynamic[chosen]
        return cls(number, view.name, image, depth, view.confidence[chosen], dynamic)


def _legible(name: str) -> str:
    """In the letters that the font has, those of ASCII: "ü" as "u", others as "?"."""
    letters = (one for one in unicodedata.normalize("NFKD", name) if not unicodedata.combining(one))
    return "".join(one if " " <= one <= "~" else "?" for one in letters)


def trajectories(sequence, views: list[View]) -> Image.Image:
    """The true way of the camera and the estimated one, aligned by a similarity, from above and from the side."""
    from .similarity import umeyama

    estimate = np.stack([view.camera_to_world[:3, 3] for view in views])
    moments = np.asarray(sequence.pose_times)
    nearest = np.abs(moments[None] - np.asarray(sequence.times)[:, None]).argmin(1)
    truth = sequence.poses[nearest, :3, 3]
    estimate = umeyama(estimate, truth).apply(estimate)
    # Its two widest directions lie in the plane of the first picture, the narrowest one upright in the second.
    middle = truth.mean(0)
    axes = np.linalg.svd(truth - middle)[2]
    sheet = Image.new("RGB", (2 * PLAN + 3 * MARGIN, PLAN + 2 * MARGIN + 2 * TITLE), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text(
        (MARGIN, MARGIN), f"{sequence.name}: truth grey, estimate coloured from dark (first) to light (last)", INK, font
    )
    for panel, chosen in enumerate(((0, 1), (0, 2))):
        flat = [((points - middle) @ axes.T)[:, chosen] for points in (truth, estimate)]
        low, high = np.min(np.concatenate(flat), 0), np.max(np.concatenate(flat), 0)
        scale = (PLAN - 40) / max(float((high - low).max()), 1e-9)
        pixels = [(points - (low + high) / 2) * scale * [1, -1] + PLAN / 2 for points in flat]
        picture = Image.new("RGB", (PLAN, PLAN), (246, 246, 246))
        pen = ImageDraw.Draw(picture)
        pen.line([tuple(point) for point in pixels[0].tolist()], (140, 140, 140), 3)
        colours = heat_colours(np.linspace(0, 0.85, len(estimate))).astype(int).tolist()
        for start, end, colour in zip(pixels[1][:-1].tolist(), pixels[1][1:].tolist(), colours):
            pen.line([*start, *end], tuple(colour), 2)
        for (x, y), colour in zip(pixels[1].tolist(), colours):
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], tuple(colour))
        sheet.paste(picture, (MARGIN + panel * (PLAN + MARGIN), MARGIN + 2 * TITLE))
    return sheet


def depth_errors(views: list[View], pairs: list) -> Image.Image:
    """Of some images: the image, true depth, aligned prediction in the same colours, and the relative error (0 … 50
    %)."""
    chosen = np.unique(np.linspace(0, len(views) - 1, min(SHOWN, len(views))).round().astype(int))
    rows = []
    for index in chosen:
        truth, prediction = pairs[index]
        known = truth > 0
        low, high = np.percentile(truth[known], [2, 98]) if known.any() else (0, 1)
        shade = lambda depth: heat_colours(np.clip((high - depth) / max(high - low, 1e-9), 0, 1))  # noqa: E731
        error = np.abs(prediction - truth) / np.where(known, truth, 1)
        maps = {
            "image": views[index].image,
            "true depth": np.where(known[..., None], shade(truth), 200),
            "prediction, aligned": shade(prediction),
            "relative error, 0 … 50 %": np.where(known[..., None], heat_colours(np.clip(error / 0.5, 0, 1)), 200),
        }
        size = (CELL, max(1, round(CELL * truth.shape[0] / truth.shape[1])))
        rows.append(
            {
                name: Image.fromarray(np.nan_to_num(values).astype(np.uint8)).resize(size)
                for name, values in maps.items()
            }
        )
    height = max(image.height for row in rows for image in row.values())
    sheet = Image.new("RGB", (2 * MARGIN + 4 * (CELL + 8), 2 * MARGIN + TITLE + len(rows) * (height + 8)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, name in enumerate(rows[0]):
        draw.text((MARGIN + column * (CELL + 8), MARGIN), name, INK, font)
        for number, row in enumerate(rows):
            sheet.paste(row[name], (MARGIN + column * (CELL + 8), MARGIN + TITLE + number * (height + 8)))
    return sheet


def clouds(found: np.ndarray, true: np.ndarray) -> Image.Image:
    """Two clouds from three sides: truth grey, prediction in colour."""
    low, high = np.percentile(true, [1, 99], axis=0)
    scale = (PLAN - 40) / max(float((high - low).max()), 1e-9)
    sheet = Image.new("RGB", (3 * (PLAN + MARGIN) + MARGIN, PLAN + 2 * MARGIN + TITLE), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for panel, axes in enumerate(((0, 1), (0, 2), (1, 2))):
        canvas = np.full((PLAN, PLAN, 3), 246, np.uint8)
        for points, colour in ((true, (130, 130, 130)), (found, (220, 90, 40))):
            flat = (points[:, axes] - (low + high)[list(axes)] / 2) * scale * [1, -1] + PLAN / 2
            flat = flat[((flat >= 0) & (flat < PLAN - 0.5)).all(1)].round().astype(int)
            canvas[flat[:, 1], flat[:, 0]] = colour
        left = MARGIN + panel * (PLAN + MARGIN)
        draw.text(
            (left, MARGIN), f"{'xyz'[axes[0]]} right, {'xyz'[axes[1]]} up: truth grey, prediction orange", INK, font
        )
        sheet.paste(Image.fromarray(canvas), (left, MARGIN + TITLE))
    return sheet
