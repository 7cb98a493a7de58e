"""Pictures of parts and of metrics: `processing_dsr.render_mesh`, a z-buffer in numpy, and Pillow. No display is
needed."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from modeling_dsr.cad_solids import TriangleMesh
from modeling_dsr.cad_views import project_points, render_mesh

PAPER, INK, FAINT, BAR = (255, 255, 255), (25, 25, 30), (110, 110, 118), (72, 105, 160)
INPUT_COLOR, RESULT_COLOR = (170, 190, 215), (240, 205, 120)
AXIS_COLORS = ((200, 50, 50), (40, 140, 60), (50, 80, 200))  # x, y, z, as CAD programs have them
# In which the camera looks, z up: at the front right corner from above, and from below.
DIRECTIONS = {"from above": (-1.0, 1.0, -1.0), "from below": (-1.0, 1.0, 1.0)}
VIEW = 300


def part_sheet(
    target, result: TriangleMesh | None, title: str, lines: tuple[str, ...] = (), sizes=None, result_sizes=None
) -> Image.Image:
    """
    The input on the left, the solid on the right; one row looks from above, one from below, with axes and dimensions.

    Args:
        target: `TriangleMesh` or cloud `[P, 3]` in the unit cube, a picture, or None.
        result: in the unit cube, or None if there is no solid.
        sizes, result_sizes: lengths along x, y and z that are written at the edges; those in the unit cube by default.
    """
    left, right = _column(target, INPUT_COLOR, sizes), _column(result, RESULT_COLOR, result_sizes)
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


def _column(shown, color, sizes) -> list[Image.Image]:
    if shown is None:
        return []
    if isinstance(shown, Image.Image):
        return [shown.convert("RGB").resize((VIEW, VIEW))]
    mesh = shown if isinstance(shown, TriangleMesh) else _octahedra(shown)
    points = shown.vertices if isinstance(shown, TriangleMesh) else shown[:, :3]
    low, high = points.min(0), points.max(0)
    turned = TriangleMesh(upright(mesh.vertices), mesh.faces)
    views = []
    for name, direction in DIRECTIONS.items():
        camera = (direction[0], -direction[2], direction[1])
        view = Image.fromarray(render_mesh(turned, camera, VIEW, color, smooth=False, oversampling=2))
        _draw_dimensions(view, low, high, camera, high - low if sizes is None else sizes, name == "from above")
        ImageDraw.Draw(view).text((6, VIEW - 20), name, FAINT, ImageFont.load_default(13))
        views.append(view)
    return views


def upright(points: np.ndarray) -> np.ndarray:
    """The frame of the published cameras has +y down: z up becomes y down."""
    return np.stack([points[:, 0], 1 - points[:, 2], points[:, 1]], axis=1)


def _draw_dimensions(view: Image.Image, low, high, camera, sizes, above: bool) -> None:
    """Lengths at three edges of the bounding box that lie outside the part's outline, in the colours of the axes."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    near = z0 if above else z1  # of the two horizontal edges that are in front
    edges = (((x0, y0, near), (x1, y0, near)), ((x1, y0, near), (x1, y1, near)), ((x0, y0, z0), (x0, y0, z1)))
    draw, middle = ImageDraw.Draw(view), (VIEW - 1) / 2
    for name, edge, size, color in zip("xyz", edges, sizes, AXIS_COLORS):
        (ax, ay), (bx, by) = project_points(upright(np.array(edge, float)), camera, VIEW)[1]
        away = np.array([(ax + bx) / 2 - middle, (ay + by) / 2 - middle])
        away *= 10 / max(float(np.linalg.norm(away)), 1e-9)
        line = [(ax + away[0], ay + away[1]), (bx + away[0], by + away[1])]
        draw.line(line, color, 1)
        for x, y in line:
            draw.line([(x - away[0] / 2, y - away[1] / 2), (x + away[0] / 4, y + away[1] / 4)], color, 1)
        where = ((ax + bx) / 2 + 2.6 * away[0], (ay + by) / 2 + 2.2 * away[1])
        draw.text(where, f"{name} {size:.4g}", color, ImageFont.load_default(13), "mm")


def _octahedra(points: np.ndarray) -> TriangleMesh:
    """Points as small octahedra, for the same renderer."""
    corners = 0.006 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    faces = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    shown = points[np.linspace(0, len(points) - 1, min(len(points), 2000)).astype(int), :3]
    vertices = (shown[:, None] + corners).reshape(-1, 3)
    return TriangleMesh(vertices, (6 * np.arange(len(shown))[:, None, None] + faces).reshape(-1, 3))


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
