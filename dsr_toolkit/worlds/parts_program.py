"""A solid of the parts world as a CadQuery program in the published style, and as a line of text."""

from __future__ import annotations

from .parts_solid import PLANES, Circle, Extrusion, Polygon, Rectangle, RegularPolygon, Solid

NORMALS = {"XY": "Z", "YZ": "X", "ZX": "Y"}


def write_program(solid: Solid) -> str:
    """
    `import cadquery as cq`, one line per work plane (`w0`, `w1`, …), and the solid in `r`.

    The style of CAD-Recode v1.5 and Cadrille: whole numbers, sketches extruded on planes with an origin, joined by
    `union` and `cut`.
    """
    planes, result = [], ""
    for extrusion in solid.extrusions:
        # CadQuery's box and cylinder are centred on their plane, sketches rise from it.
        level = extrusion.level + (extrusion.height // 2 if extrusion.form in ("box", "cylinder") else 0)
        if level not in planes:
            planes.append(level)
        body = f"w{planes.index(level)}{_body(extrusion)}"
        result += body if not result else f".{'cut' if extrusion.cut else 'union'}({body})"
    lines = ["import cadquery as cq"]
    for number, level in enumerate(planes):
        origin = [0, 0, 0]
        origin[PLANES[solid.plane][2]] = level
        lines.append(f"w{number}=cq.Workplane('{solid.plane}',origin=({','.join(map(str, origin))}))")
    return "\n".join([*lines, f"r={result}"]) + "\n"


def _body(extrusion: Extrusion) -> str:
    first, height = extrusion.outer[0], extrusion.height
    if extrusion.form == "box":
        return f".box({first.width},{first.height},{height})"
    if extrusion.form == "cylinder":
        return f".cylinder({height},{first.radius})"
    if extrusion.form == "lines":
        start, *others = [f"({u:.0f},{v:.0f})" for u, v in first.corners]
        return f".moveTo{start}" + "".join(f".lineTo{corner}" for corner in others) + f".close().extrude({height})"
    sketch, pushed = ".sketch()", False
    for shapes, mode in ((extrusion.outer, ""), (extrusion.inner, ",mode='s'")):
        for call, centers in _grouped(shapes):
            if pushed or centers != [(0, 0)]:
                sketch += f".push([{','.join(f'({u},{v})' for u, v in centers)}])"
                pushed = True  # places stay chosen until others are
            sketch += f".{call}{mode})"
    return f"{sketch}.finalize().extrude({height})"


def _grouped(shapes: tuple[Circle | Polygon, ...]) -> list[tuple[str, list[tuple[int, int]]]]:
    """Calls without their closing bracket, each with the centres of the equal shapes that it draws."""
    groups: dict[str, list] = {}
    for shape in shapes:
        if isinstance(shape, Circle):
            call = f"circle({shape.radius}"
        elif isinstance(shape, Rectangle):
            call = f"rect({shape.width},{shape.height}"
        elif isinstance(shape, RegularPolygon):
            call = f"regularPolygon({shape.radius},{len(shape.corners)}"
        else:
            raise ValueError(f"A sketch has circles, rectangles and regular polygons, got {type(shape).__name__}.")
        groups.setdefault(call, []).append(shape.center)
    return list(groups.items())


def places(centers) -> str:
    """ "(-60,0) and (60,0)"."""
    *others, last = [f"({u},{v})" for u, v in centers]
    return f"{' '.join(others)} and {last}" if others else last
