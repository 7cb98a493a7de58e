"""
The families of the parts world. Each draws a solid and says in a line of text all that is needed to build it.

All numbers are multiples of `GRID` (sizes of 2 · GRID), the bounding box is centred at the origin and its longest side
measures 200: what a cloud or a picture leaves open, where the part lies and how large it is, is not asked for.
"""

from __future__ import annotations

import numpy as np

from .parts_program import NORMALS, places
from .parts_solid import PLANES, Circle, Extrusion, Polygon, Rectangle, RegularPolygon, Solid

GRID = 5
SIZE = 200
MARGIN = 10  # between outlines


def _plane(draw) -> str:
    return list(PLANES)[draw.integers(3)]


def _size(draw, low: int, high: int) -> int:
    """An even multiple of the grid from low to high."""
    return 2 * GRID * int(draw.integers(-(-low // (2 * GRID)), high // (2 * GRID) + 1))


def _place(draw, low: int, high: int) -> int:
    """A multiple of the grid from low to high."""
    return GRID * int(draw.integers(-(-low // GRID), high // GRID + 1))


def _sizes(draw, *ranges) -> list[int]:
    """Sizes within their ranges, the first that may be as long as 200 set to it, in random order of the choice."""
    sizes = [_size(draw, low, high) for low, high in ranges]
    may = [number for number, (_, high) in enumerate(ranges) if high == SIZE]
    sizes[may[draw.integers(len(may))]] = SIZE
    return sizes


def box(draw):
    x, y, z = _sizes(draw, (20, 200), (20, 200), (20, 200))
    shape = Rectangle.around((0, 0), x, y)
    return Solid("XY", (Extrusion(-z // 2, z, (shape,), form="box"),)), f"A box of {x} by {y} by {z}"


def cylinder(draw):
    plane, (width, height) = _plane(draw), _sizes(draw, (20, 200), (20, 200))
    body = Extrusion(-height // 2, height, (Circle((0, 0), width // 2),), form="cylinder")
    return Solid(plane, (body,)), f"A cylinder of radius {width // 2} and height {height} along {NORMALS[plane]}"


def ring(draw):
    plane, (width, height) = _plane(draw), _sizes(draw, (60, 200), (20, 200))
    outer = Circle((0, 0), width // 2)
    inner = Circle((0, 0), _place(draw, 10, outer.radius - MARGIN))
    body = Extrusion(-height // 2, height, (outer,), (inner,))
    text = f"A ring of radius {outer.radius} with a bore of radius {inner.radius} and height {height}"
    return Solid(plane, (body,)), f"{text} along {NORMALS[plane]}"


def plate(draw):
    plane, (width, height) = _plane(draw), _sizes(draw, (80, 200), (80, 200))
    thickness = _size(draw, 10, 60)
    number = (1, 2, 4)[draw.integers(3)]
    radius = _place(draw, 10, min(30, min(width, height) // (4 if number > 1 else 2) - MARGIN))
    centers = [(0, 0)]
    if number > 1:
        a, b = (_place(draw, radius + GRID, side // 2 - radius - GRID) for side in (width, height))
        centers = [(-a, -b), (a, -b), (a, b), (-a, b)]
        if number == 2:  # along the longer side
            centers = [(-a, 0), (a, 0)] if width >= height else [(0, -b), (0, b)]
    holes = tuple(Circle(center, radius) for center in centers)
    body = Extrusion(-thickness // 2, thickness, (Rectangle.around((0, 0), width, height),), holes)
    text = f"A plate of {width} by {height} with thickness {thickness} along {NORMALS[plane]} and "
    text += "a hole" if number == 1 else f"{number} holes"
    return Solid(plane, (body,)), f"{text} of radius {radius} at {places(centers)}"


def prism(draw):
    """A hexagon, with or without a bore; two corners lie on the second axis of the plane."""
    plane, (width, height) = _plane(draw), _sizes(draw, (60, 200), (20, 200))
    outer = RegularPolygon.around((0, 0), width // 2, 6)
    text = f"A hexagon of radius {outer.radius} and height {height} along {NORMALS[plane]}"
    holes = ()
    if draw.integers(2):
        holes = (Circle((0, 0), _place(draw, 10, int(outer.radius * 0.86) - MARGIN)),)
        text += f" with a bore of radius {holes[0].radius}"
    return Solid(plane, (Extrusion(-height // 2, height, (outer,), holes),)), text


def bracket(draw):
    """An L, a T or a U, turned by quarters."""
    plane, letter = _plane(draw), "LTU"[draw.integers(3)]
    width, height, depth = _sizes(draw, (80, 200), (80, 200), (20, 200))
    a, b = width // 2, height // 2
    thick = _size(draw, 20, b)  # of the part that lies, a multiple of the grid as is b
    if letter == "L":
        wall = _size(draw, 20, a)
        corners = [(-a, -b), (a, -b), (a, -b + thick), (-a + wall, -b + thick), (-a + wall, b), (-a, b)]
    else:
        wall = _size(draw, 20, a if letter == "T" else a - MARGIN)
        if letter == "T":
            half = wall // 2
            corners = [
                (-a, -b), (a, -b), (a, -b + thick), (half, -b + thick), (half, b), (-half, b), (-half, -b + thick),
                (-a, -b + thick),
            ]  # fmt: skip
        else:
            wall = min(wall, a - MARGIN)
            corners = [
                (-a, -b), (a, -b), (a, b), (a - wall, b), (a - wall, -b + thick), (-a + wall, -b + thick),
                (-a + wall, b), (-a, b),
            ]  # fmt: skip
    for _ in range(int(draw.integers(4))):
        corners = [(-v, u) for u, v in corners]
    start = corners.index(min(corners))
    corners = corners[start:] + corners[:start]
    body = Extrusion(-depth // 2, depth, (Polygon(tuple(corners)),), form="lines")
    text = f"A bracket of depth {depth} along {NORMALS[plane]} like the letter {letter} with corners {places(corners)}"
    return Solid(plane, (body,)), text


def stepped(draw):
    """A base and a boss on it, with or without a bore through both."""
    plane = _plane(draw)
    width, height, total = _sizes(draw, (80, 200), (80, 200), (40, 200))
    low = _size(draw, 20, total - 20)
    if draw.integers(2):
        base = Circle((0, 0), width // 2)
        boss = Circle((0, 0), _place(draw, 20, base.radius - MARGIN))
        if width < SIZE and total < SIZE:  # the second side of a circle is the first
            total = SIZE
        base_text = f"a disc of radius {base.radius}"
    else:
        base = Rectangle.around((0, 0), width, height)
        boss = Circle((0, 0), _place(draw, 20, min(width, height) // 2 - MARGIN))
        room = [side // 2 - boss.radius - MARGIN for side in (width, height)]
        center = tuple(_place(draw, -r, r) if draw.integers(2) else 0 for r in room)
        boss = Circle(center, boss.radius)
        if draw.integers(2):
            sides = [_size(draw, 20, 2 * (side // 2 - abs(c) - MARGIN)) for side, c in zip((width, height), center)]
            boss = Rectangle.around(center, *sides)
        base_text = f"a plate of {width} by {height}"
    boss_text = (
        f"boss of radius {boss.radius}" if isinstance(boss, Circle) else f"boss of {boss.width} by {boss.height}"
    )
    holes, bore = (), ""
    if isinstance(boss, Circle) and boss.radius > 20 and draw.integers(2):
        holes = (Circle(boss.center, _place(draw, 10, boss.radius - MARGIN)),)
        bore = f" and a bore of radius {holes[0].radius}"
    bodies = (
        Extrusion(-total // 2, low, (base,), holes),
        Extrusion(-total // 2 + low, total - low, (boss,), holes),
    )
    text = f"On {base_text} with thickness {low} along {NORMALS[plane]} a {boss_text} and height {total - low}"
    return Solid(plane, bodies), f"{text} at {places([boss.center])}{bore}"


def pocket(draw):
    """A block with a blind round or rectangular pocket in its upper face."""
    plane = _plane(draw)
    width, height, total = _sizes(draw, (80, 200), (80, 200), (40, 200))
    depth = _size(draw, 20, total - 20)
    center = tuple(_place(draw, -15, 15) if draw.integers(2) else 0 for _ in range(2))
    room = [side // 2 - abs(c) - MARGIN for side, c in zip((width, height), center)]
    if draw.integers(2):
        hole = Circle(center, _place(draw, 15, min(room)))
        text = f"a pocket of radius {hole.radius}"
    else:
        hole = Rectangle.around(center, _size(draw, 20, 2 * room[0]), _size(draw, 20, 2 * room[1]))
        text = f"a pocket of {hole.width} by {hole.height}"
    bodies = (
        Extrusion(-total // 2, total, (Rectangle.around((0, 0), width, height),)),
        Extrusion(total // 2 - depth, depth, (hole,), cut=True),
    )
    text = f"A block of {width} by {height} with height {total} along {NORMALS[plane]} and {text}"
    return Solid(plane, bodies), f"{text} and depth {depth} at {places([center])}"


FAMILIES = {
    family.__name__: family for family in (box, cylinder, ring, plate, prism, bracket, stepped, pocket)
}  # fmt: skip


def draw_part(draw: np.random.Generator, families: tuple[str, ...] = tuple(FAMILIES)) -> tuple[str, Solid, str]:
    """Family, solid and text of a random part; every entry of `families` is as likely."""
    name = families[draw.integers(len(families))]
    return name, *FAMILIES[name](draw)
