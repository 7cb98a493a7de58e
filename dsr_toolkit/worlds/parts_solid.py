"""
Solids of extruded sketches along one axis, in numpy alone: membership, surface points, closed triangle meshes.

Outlines never cross or touch unless they are equal, which the world's generator sees to. A solid is then a stack of
layers between the levels at which extrusions begin and end, the section of a layer is constant, and an outline bounds
it exactly where the two sides of the outline's first edge differ. No boolean operation is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .parts_triangles import triangulate

CIRCLE_SEGMENTS = 48  # of a mesh
PROBE = 1e-3  # how far beside an outline its two sides are asked, in program units
# Columns of a plane's axes u, v, w in x, y, z: CadQuery's own, all of them right-handed.
PLANES = {"XY": (0, 1, 2), "YZ": (1, 2, 0), "ZX": (2, 0, 1)}


@dataclass(frozen=True)
class Circle:
    center: tuple[int, int]
    radius: int

    def contains(self, points: np.ndarray) -> np.ndarray:
        """`[P]` bool of points `[P, 2]`."""
        return np.square(points - self.center).sum(-1) < self.radius**2

    def outline(self, segments: int = CIRCLE_SEGMENTS) -> np.ndarray:
        """Corners `[n, 2]`, counter-clockwise."""
        angle = np.arange(segments) * (2 * np.pi / segments)
        return self.center + self.radius * np.stack([np.cos(angle), np.sin(angle)], 1)

    def edge_points(self, fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points of the outline at fractions `[P]` of its length, and the directions away from it, `[P, 2]` each."""
        outward = np.stack([np.cos(2 * np.pi * fraction), np.sin(2 * np.pi * fraction)], 1)
        return self.center + self.radius * outward, outward

    @property
    def length(self) -> float:
        return 2 * np.pi * self.radius

    @property
    def area(self) -> float:
        return np.pi * self.radius**2

    @property
    def bounds(self) -> np.ndarray:
        return np.stack([np.asarray(self.center) - self.radius, np.asarray(self.center) + self.radius])


@dataclass(frozen=True)
class Polygon:
    """Corners counter-clockwise; what its subclasses add is how a program writes them."""

    corners: tuple[tuple[float, float], ...]

    def contains(self, points: np.ndarray) -> np.ndarray:
        start = np.asarray(self.corners, float)
        end = np.roll(start, -1, axis=0)
        u, v = points[:, :1], points[:, 1:]
        crosses = (start[:, 1] > v) != (end[:, 1] > v)
        rise = np.where(end[:, 1] == start[:, 1], 1.0, end[:, 1] - start[:, 1])  # a level edge is never crossed
        at = start[:, 0] + (v - start[:, 1]) / rise * (end[:, 0] - start[:, 0])
        return (crosses & (u < at)).sum(1) % 2 == 1

    def outline(self, segments: int = 0) -> np.ndarray:
        return np.asarray(self.corners, float)

    def edge_points(self, fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start = np.asarray(self.corners, float)
        edges = np.roll(start, -1, axis=0) - start
        lengths = np.linalg.norm(edges, axis=1)
        ends = lengths.cumsum()
        edge = np.searchsorted(ends, fraction * ends[-1], side="right").clip(max=len(edges) - 1)
        along = (fraction * ends[-1] - (ends - lengths)[edge]) / lengths[edge]
        outward = np.stack([edges[:, 1], -edges[:, 0]], 1) / lengths[:, None]
        return start[edge] + along[:, None] * edges[edge], outward[edge]

    @property
    def length(self) -> float:
        outline = self.outline()
        return float(np.linalg.norm(np.roll(outline, -1, axis=0) - outline, axis=1).sum())

    @property
    def area(self) -> float:
        (u, v), (nu, nv) = self.outline().T, np.roll(self.outline(), -1, axis=0).T
        return float((u * nv - nu * v).sum() / 2)

    @property
    def bounds(self) -> np.ndarray:
        return np.stack([self.outline().min(0), self.outline().max(0)])


@dataclass(frozen=True)
class Rectangle(Polygon):
    center: tuple[int, int]
    width: int
    height: int

    @classmethod
    def around(cls, center, width: int, height: int) -> Rectangle:
        (u, v), half_u, half_v = center, width / 2, height / 2
        corners = (
            (u - half_u, v - half_v),
            (u + half_u, v - half_v),
            (u + half_u, v + half_v),
            (u - half_u, v + half_v),
        )
        return cls(corners, tuple(center), width, height)


@dataclass(frozen=True)
class RegularPolygon(Polygon):
    center: tuple[int, int]
    radius: int

    @classmethod
    def around(cls, center, radius: int, sides: int) -> RegularPolygon:
        angle = np.pi / 2 + np.arange(sides) * (2 * np.pi / sides)  # the first corner is up, as CadQuery's
        corners = np.asarray(center) + radius * np.stack([np.cos(angle), np.sin(angle)], 1)
        return cls(tuple(map(tuple, corners.tolist())), tuple(center), radius)


@dataclass(frozen=True)
class Extrusion:
    """
    A sketch pulled up from `level` by `height` along w.

    Args:
        outer: the shapes whose insides are material, disjoint. inner: taken out of them.
        cut: take the extrusion out of what was built before it instead of adding it.
        form: how a program writes it: "sketch", "lines", or the solids "box" and "cylinder".
    """

    level: int
    height: int
    outer: tuple[Circle | Polygon, ...]
    inner: tuple[Circle | Polygon, ...] = ()
    cut: bool = False
    form: str = "sketch"

    def contains(self, points: np.ndarray) -> np.ndarray:
        inside = np.logical_or.reduce([shape.contains(points) for shape in self.outer])
        for shape in self.inner:
            inside &= ~shape.contains(points)
        return inside


@dataclass(frozen=True)
class Section:
    """A region of the plane: its outlines with the side that is inside (1) or outside (-1) of each."""

    outlines: tuple[tuple[Circle | Polygon, int], ...]
    area: float


@dataclass(frozen=True)
class Solid:
    """Extrusions on one plane, each added to or taken from what came before."""

    plane: str
    extrusions: tuple[Extrusion, ...]

    @property
    def levels(self) -> list[int]:
        return sorted({w for e in self.extrusions for w in (e.level, e.level + e.height)})

    def _in_layer(self, points: np.ndarray, low: float, high: float) -> np.ndarray:
        """Membership of points `[P, 2]` in the section between two neighbouring levels."""
        inside = np.zeros(len(points), bool)
        for extrusion in self.extrusions:
            if extrusion.level <= low and high <= extrusion.level + extrusion.height:
                inside = inside & ~extrusion.contains(points) if extrusion.cut else inside | extrusion.contains(points)
        return inside

    def contains(self, points: np.ndarray) -> np.ndarray:
        """`[P]` bool of points `[P, 3]` x, y, z."""
        local = np.asarray(points)[:, PLANES[self.plane]]
        levels = self.levels
        inside = np.zeros(len(local), bool)
        for low, high in zip(levels, levels[1:]):
            within = (local[:, 2] > low) & (local[:, 2] < high)
            inside[within] = self._in_layer(local[within, :2], low, high)
        return inside

    def _section(self, contains) -> Section:
        """The region that the function `contains` of points `[P, 2]` describes, bounded by outlines of the sketches."""
        shapes = list(dict.fromkeys(shape for e in self.extrusions for shape in (*e.outer, *e.inner)))
        probes = []
        for shape in shapes:
            point, outward = shape.edge_points(np.array([0.02]))
            probes += [point - PROBE * outward, point + PROBE * outward]
        sides = contains(np.concatenate(probes)).astype(int).reshape(-1, 2)
        outlines = tuple((shape, int(a - b)) for shape, (a, b) in zip(shapes, sides) if a != b)
        return Section(outlines, sum(side * shape.area for shape, side in outlines))

    def _surfaces(self):
        """Walls (section, low, high) and caps (section, level, membership, +1 up or -1 down)."""
        levels, walls, caps = self.levels, [], []
        layers = [(-np.inf, levels[0]), *zip(levels, levels[1:]), (levels[-1], np.inf)]
        sections = [lambda points, a=a, b=b: self._in_layer(points, a, b) for a, b in layers]
        for (low, high), inside in zip(layers[1:-1], sections[1:-1]):
            walls.append((self._section(inside), low, high))
        for level, below, above in zip(levels, sections, sections[1:]):
            for first, second, up in ((below, above, 1), (above, below, -1)):

                def ends(points, first=first, second=second):
                    return first(points) & ~second(points)

                section = self._section(ends)
                if section.outlines:
                    caps.append((section, level, ends, up))
        return walls, caps

    def volume(self) -> float:
        return float(sum(section.area * (high - low) for section, low, high in self._surfaces()[0]))

    def bounds(self) -> np.ndarray:
        """`[2, 3]`: lowest and highest corner, x, y, z."""
        walls = self._surfaces()[0]
        boxes = [
            np.concatenate([shape.bounds, [[low], [high]]], 1)
            for section, low, high in walls
            for shape, _ in section.outlines
        ]
        return self._to_world(np.stack([np.min([b[0] for b in boxes], 0), np.max([b[1] for b in boxes], 0)]))

    def _to_world(self, local: np.ndarray) -> np.ndarray:
        world = np.empty(local.shape)
        world[:, PLANES[self.plane]] = local
        return world

    def sample_surface(self, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """`count` points spread evenly over the true surface, not a mesh's, `[count, 3]`, and the outward normals
        there."""
        walls, caps = self._surfaces()
        pieces = [(shape, side, low, high) for section, low, high in walls for shape, side in section.outlines]
        areas = [shape.length * (high - low) for shape, _, low, high in pieces] + [cap[0].area for cap in caps]
        counts = generator.multinomial(count, np.asarray(areas) / np.sum(areas))
        points, normals = [], []
        for (shape, side, low, high), number in zip(pieces, counts):
            uv, outward = shape.edge_points(generator.random(number))
            points.append(np.column_stack([uv, low + (high - low) * generator.random(number)]))
            normals.append(np.column_stack([side * outward, np.zeros(number)]))
        for (section, level, inside, up), number in zip(caps, counts[len(pieces) :]):
            uv = _sample_section(section, inside, number, generator)
            points.append(np.column_stack([uv, np.full(number, float(level))]))
            normals.append(np.tile([0.0, 0.0, float(up)], (number, 1)))
        order = generator.permutation(count)
        return self._to_world(np.concatenate(points)[order]), self._to_world(np.concatenate(normals)[order])

    def mesh(self, segments: int = CIRCLE_SEGMENTS) -> tuple[np.ndarray, np.ndarray]:
        """
        A closed mesh: vertices `[V, 3]` float64 and faces `[F, 3]` int64, counter-clockwise from outside. A circle has
        `segments` corners, a multiple of 4, so that the bounding box is the true one.

        As a CAD kernel's, each flat face has vertices of its own and round ones share theirs, so that vertex normals
        keep the edges sharp. Equal corners are bit-equal.
        """
        walls, caps = self._surfaces()
        vertices, faces, total = [], [], 0

        def add(points, triangles, flip):
            nonlocal total
            vertices.append(points)
            faces.append((triangles[:, ::-1] if flip else triangles) + total)
            total += len(points)

        for section, low, high in walls:
            for shape, side in section.outlines:
                outline = shape.outline(segments)
                count = len(outline)
                start = np.arange(count)
                end = (start + 1) % count
                if isinstance(shape, Circle):
                    points = np.concatenate([np.insert(outline, 2, w, axis=1) for w in (low, high)])
                    corners = np.stack([start, end, end + count, start + count], 1)
                else:
                    pairs = np.stack([outline, outline[end]], 1)  # [edges, 2, 2]
                    quads = np.concatenate([pairs, pairs[:, ::-1]], 1)
                    heights = np.broadcast_to([[[low], [low], [high], [high]]], (count, 4, 1))
                    points = np.concatenate([quads, heights], 2).reshape(-1, 3)
                    corners = np.arange(4 * count).reshape(-1, 4)
                add(points, np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]]), side < 0)
        for section, level, _, up in caps:
            for outer, holes in _nested(section):
                points, triangles = triangulate(outer.outline(segments), [hole.outline(segments) for hole in holes])
                add(np.insert(points, 2, level, axis=1), triangles, up < 0)
        return self._to_world(np.concatenate(vertices)), np.concatenate(faces)


def _sample_section(section: Section, inside, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` even points of a region, by rejection from its bounding box."""
    boxes = [shape.bounds for shape, _ in section.outlines]
    low, high = np.min([box[0] for box in boxes], 0), np.max([box[1] for box in boxes], 0)
    share = section.area / float(np.prod(high - low))
    found = np.zeros((0, 2))
    while len(found) < count:
        tried = low + (high - low) * generator.random((int((count - len(found)) / share * 1.1) + 8, 2))
        found = np.concatenate([found, tried[inside(tried)]])
    return found[:count]


def _nested(section: Section):
    """Outer outlines of a region, each with the holes directly in it."""
    outers = [shape for shape, side in section.outlines if side > 0]
    holes = {outer: [] for outer in outers}
    for shape, side in section.outlines:
        if side < 0:
            around = [outer for outer in outers if outer.contains(shape.outline()[:1])[0]]
            holes[min(around, key=lambda outer: outer.area)].append(shape)
    return holes.items()
