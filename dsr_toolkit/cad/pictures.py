"""Pictures of parts and of metrics: `processing_dsr.render_mesh`, a z-buffer in numpy, and Pillow. No display is
needed."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from modeling_dsr.cad_solids import TriangleMesh
from modeling_dsr.cad_views import render_mesh

PAPER, INK, FAINT, BAR = (255, 255, 255), (25, 25, 30), (110, 110, 118), (72, 105, 160)
INPUT_COLOR, RESULT_COLOR = (170, 190, 215), (240, 205, 120)
DIRECTIONS = ((1, 1, 1), (-1, 1, 1))
VIEW = 300


def part_sheet(target, result: TriangleMesh | None, title: str, lines: tuple[str, ...] = ()) -> Image.Image:
    """
    The input on the left, the solid on the right, from two directions.

    Args:
        target: `TriangleMesh` or cloud `[P, 3]` in the unit cube, a picture, or None.
        result: in the unit cube, or None if there is no solid.
    """
    left, right = _column(target, INPUT_COLOR), _column(result, RESULT_COLOR)
    height = 78 + 18 * len(lines)
    sheet = Image.new("RGB", (2 * VIEW + 60, 2 * VIEW + 40 + height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((20, 14), title, INK, ImageFont.load_default(22))
    for number, line in enumerate(lines):
        draw.text((20, 46 + 18 * number), line[:100], FAINT, ImageFont.load_default(13))
    top = height - 22
    for column, (label, views) in enumerate((("input", left), ("solid", right))):
        x = 20 + column * (VIEW + 20)
        draw.text((x, top), label if views else f"{label}: none", INK, ImageFont.load_default(14))
        for row, view in enumerate(views):
            sheet.paste(view, (x, top + 22 + row * (VIEW + 10)))
    return sheet


def _column(shown, color) -> list[Image.Image]:
    if shown is None:
        return []
    if isinstance(shown, Image.Image):
        return [shown.convert("RGB").resize((VIEW, VIEW))]
    if isinstance(shown, TriangleMesh):
        return [
            Image.fromarray(render_mesh(shown, direction, VIEW, color, smooth=False, oversampling=2))
            for direction in DIRECTIONS
        ]
    return [_draw_cloud(shown, direction, color) for direction in DIRECTIONS]


def _draw_cloud(points: np.ndarray, direction, color) -> Image.Image:
    """Points as small octahedra, through the same renderer."""
    corners = 0.006 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    faces = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    shown = points[np.linspace(0, len(points) - 1, min(len(points), 2000)).astype(int), :3]
    vertices = (shown[:, None] + corners).reshape(-1, 3)
    mesh = TriangleMesh(vertices, (6 * np.arange(len(shown))[:, None, None] + faces).reshape(-1, 3))
    return Image.fromarray(render_mesh(mesh, direction, VIEW, color, smooth=False, oversampling=2))


def histograms(panels: list[tuple[str, list[float]]], title: str, bins: int = 40) -> Image.Image:
    """One histogram per (caption, values); values that are not there are counted in the caption."""
    width, height = 420, 260
    sheet = Image.new("RGB", (width * len(panels) + 20, height + 60), PAPER)
    draw, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(12)
    draw.text((20, 12), title, INK, ImageFont.load_default(20))
    for panel, (caption, values) in enumerate(panels):
        left, right, top, bottom = 20 + panel * width, (panel + 1) * width - 20, 76, height + 14
        draw.text((left, 46), f"{caption} (n = {len(values)})", INK, font)
        draw.line([(left, bottom), (right, bottom)], FAINT)
        if not values:
            draw.text((left, 100), "no values", FAINT, font)
            continue
        counts, edges = np.histogram(values, bins=bins)
        bar = (right - left) / bins
        for i, count in enumerate(counts):
            if count:
                tall = max(1, (bottom - top) * count / counts.max())
                draw.rectangle([left + i * bar, bottom - tall, left + (i + 1) * bar - 1, bottom], BAR)
        draw.text((left, bottom + 4), f"{edges[0]:.3g}", FAINT, small)
        draw.text((right, bottom + 4), f"{edges[-1]:.3g}", FAINT, small, "ra")
        draw.text((right, top - 14), f"up to {counts.max()}", FAINT, small, "ra")
    return sheet
