"""
Parts: random sketch-and-extrude programs, their solids, surface points, meshes, views and a line of text.

The programs are in the published style of CAD-Recode and Cadrille. Coordinates are whole numbers within ±100 on a grid
of 5, and a part's bounding box is centred with a longest side of 200. numpy alone makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np

from .parts_families import FAMILIES, draw_part
from .parts_program import write_program
from .parts_solid import CIRCLE_SEGMENTS, Solid
from .world import World


@dataclass
class PartSample:
    """
    Args:
        name: of the sample, from seed and index.
        family: "box", "cylinder", "ring", "plate", "prism", "bracket", "stepped" or "pocket".
        solid: the exact solid; coordinates of the program, within ±100.
        program: CadQuery source that leaves the solid in `r`.
        text: one line that says all that the program says.
        points, normals: `[count, 3]` float32 of the true surface, in the program's coordinates.
    """

    name: str
    family: str
    solid: Solid
    program: str
    text: str
    points: np.ndarray
    normals: np.ndarray

    def mesh(self, segments: int = CIRCLE_SEGMENTS) -> tuple[np.ndarray, np.ndarray]:
        """Vertices `[V, 3]` and faces `[F, 3]` of a closed mesh in the program's coordinates; see `Solid.mesh`."""
        return self.solid.mesh(segments)

    def views(self, count: int = 4, oversampling: int = 4, segments: int = CIRCLE_SEGMENTS):
        """
        The published views as one PIL picture, as `CadrilleProcessor.render_views` makes it of the mesh.

        Args:
            oversampling: rays per pixel along either side; fewer than the processor's 4 are quicker and coarser, as are
                fewer `segments` of a circle.
        """
        from modeling_dsr.cad_solids import TriangleMesh
        from modeling_dsr.cad_views import VIEW_DIRECTIONS, compose_views, render_mesh

        mesh = TriangleMesh(*self.mesh(segments)).moved(1 / 200, 0.5)
        options = {"oversampling": oversampling, "closed": True}
        return compose_views([render_mesh(mesh, front, **options) for front in VIEW_DIRECTIONS[:count]])

    def seen(self, count: int = 4, segments: int = CIRCLE_SEGMENTS) -> np.ndarray:
        """
        The point of the surface that each pixel of [`views`] sees, `[H, W, 3]` in the program's coordinates, NaN where
        it sees paper or the border. `count` is 1 or 2.
        """
        from modeling_dsr.cad_solids import TriangleMesh
        from modeling_dsr.cad_views import VIEW_BORDER, VIEW_DIRECTIONS, VIEW_PIXELS, cast_rays

        mesh, pictures = TriangleMesh(*self.mesh(segments)).moved(1 / 200, 0.5), []
        for front in VIEW_DIRECTIONS[:count]:
            pixels, faces, weights = cast_rays(mesh, front, VIEW_PIXELS, closed=True)
            points = np.full((VIEW_PIXELS**2, 3), np.nan, np.float32)
            points[pixels] = np.einsum("pc,pcd->pd", weights, mesh.vertices[mesh.faces[faces]]) * 200 - 100
            frame = ((VIEW_BORDER, VIEW_BORDER), (VIEW_BORDER, VIEW_BORDER), (0, 0))
            pictures.append(np.pad(points.reshape(VIEW_PIXELS, -1, 3), frame, constant_values=np.nan))
        return np.concatenate(pictures, 1)


class PartsWorld(World):
    """
    Args:
        seed: see [`World`].
        num_points: points on the surface of a sample.
        families: of which parts are drawn, all by default; one that is named twice comes twice as often.
    """

    def __init__(self, seed: int, num_points: int = 2048, families: Sequence[str] = tuple(FAMILIES)):
        super().__init__(seed)
        unknown = sorted(set(families) - set(FAMILIES))
        if unknown or not families:
            raise ValueError(f"`families` must name {', '.join(FAMILIES)}, got {list(families)}.")
        self.families = tuple(families)
        if num_points < 0:
            raise ValueError(f"`num_points` must be at least 0, got {num_points}.")
        self.num_points = num_points

    def sample(self, index: int) -> PartSample:
        family, solid, text = draw_part(self.generator(index, "part"), self.families)
        points, normals = solid.sample_surface(self.num_points, self.generator(index, "points"))
        return PartSample(
            f"{self.seed}-{index:06d}",
            family,
            solid,
            write_program(solid),
            text,
            points.astype(np.float32),
            normals.astype(np.float32),
        )


def contact_sheet(sample: PartSample):
    """The part's text, views, points and program as one PIL picture."""
    from PIL import Image, ImageDraw, ImageFont

    from modeling_dsr.cad_solids import TriangleMesh

    from ..cad.pictures import FAINT, INK, PAPER, part_sheet

    views, unit = sample.views(), sample.points / 200 + 0.5
    solids = part_sheet(unit, TriangleMesh(*sample.mesh()).moved(1 / 200, 0.5), f"{sample.name}: {sample.family}")
    lines = wrap(sample.text, 92)
    lines += [""] + [part for line in sample.program.splitlines() for part in wrap(line, 92) or [""]]
    width = solids.width + views.width + 60
    sheet = Image.new("RGB", (width, solids.height + 30 + 20 * len(lines)), PAPER)
    sheet.paste(solids, (0, 0))
    sheet.paste(views, (solids.width + 20, 78))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    draw.text((solids.width + 20, 54), "the four published views", INK, ImageFont.load_default(14))
    for number, line in enumerate(lines):
        draw.text((20, solids.height + 10 + 20 * number), line, FAINT if number else INK, font)
    return sheet
