"""The parts world: programs whose solids CadQuery confirms, points on them, closed meshes, files as published."""

import pickle
from collections import Counter

import numpy as np
import pytest

from dsr_toolkit.worlds import contact_sheet, make_world
from dsr_toolkit.worlds.parts_export import write_cad_recode, write_text2cad
from dsr_toolkit.worlds.parts_families import FAMILIES, GRID
from dsr_toolkit.worlds.parts_program import write_program
from dsr_toolkit.worlds.parts_solid import Circle, Extrusion, Rectangle, Solid
from dsr_toolkit.worlds.parts_triangles import triangulate

SEED = 11


@pytest.fixture(scope="module")
def samples():
    """Samples with at least five of every family."""
    world = make_world("parts", SEED)
    chosen, counts = [], Counter()
    for sample in world:
        if counts[sample.family] < 5:
            chosen.append(sample)
            counts[sample.family] += 1
        if sum(counts.values()) == 5 * len(FAMILIES):
            return chosen


@pytest.fixture(scope="module")
def executed(samples):
    """CadQuery's own solids of the programs."""
    pytest.importorskip("cadquery")
    shapes = []
    for sample in samples:
        names = {}
        exec(sample.program, names)
        shapes.append(names["r"].val())
    return shapes


def mesh_volume(vertices, faces):
    a, b, c = vertices[faces].swapaxes(0, 1)
    return float((a * np.cross(b, c)).sum() / 6)


def test_a_sample_depends_on_seed_and_index_alone():
    world, again = make_world("parts", SEED), make_world("parts", SEED)
    later = again[7]  # read before the others
    for index in (0, 3, 7):
        first, second = world[index], later if index == 7 else again[index]
        assert (first.program, first.text, first.name) == (second.program, second.text, second.name)
        assert (first.points == second.points).all() and (first.normals == second.normals).all()
    assert [world[i].program for i in range(8)] != [make_world("parts", SEED + 1)[i].program for i in range(8)]


def test_cadquery_builds_the_same_solid(samples, executed):
    for sample, shape in zip(samples, executed):
        box, bounds = shape.BoundingBox(), sample.solid.bounds()
        assert shape.isValid() and shape.ShapeType() in ("Solid", "Compound")
        assert shape.Volume() == pytest.approx(sample.solid.volume(), rel=1e-9), sample.program
        assert [box.xmin, box.ymin, box.zmin, box.xmax, box.ymax, box.zmax] == pytest.approx(bounds.ravel(), abs=1e-4)


def test_points_lie_on_the_solid_and_normals_point_out_of_it(samples, executed):
    cq = pytest.importorskip("cadquery")
    for sample, shape in list(zip(samples, executed))[::4]:
        shell = cq.Compound.makeCompound(shape.Faces())
        for point in sample.points[:20]:
            assert shell.distance(cq.Vertex.makeVertex(*map(float, point))) < 1e-4
        assert sample.solid.contains(sample.points - 1e-2 * sample.normals).all()
        assert not sample.solid.contains(sample.points + 1e-2 * sample.normals).any()


def test_points_are_spread_evenly(samples, executed):
    """Chamfer distance to samples of CadQuery's mesh is what two samples of one surface have, and no face is left
    out."""
    pytest.importorskip("scipy")
    from dsr_toolkit.cad.metrics import chamfer_distance
    from modeling_dsr.cad_solids import TriangleMesh, sample_surface

    for sample, shape in list(zip(samples, executed))[::5]:
        vertices, faces = shape.tessellate(0.01, 0.05)
        mesh = TriangleMesh(np.array([v.toTuple() for v in vertices]), np.array(faces))
        first, second = (sample_surface(mesh, len(sample.points), np.random.default_rng(i))[0] for i in (0, 1))
        assert chamfer_distance(sample.points, first) < 1.15 * chamfer_distance(second, first)


def test_programs_stay_in_the_published_range_and_style(samples):
    for sample in samples:
        corners = np.abs(sample.solid.bounds())
        assert corners.max() <= 100 and np.ptp(sample.solid.bounds(), axis=0).max() == pytest.approx(200)
        assert np.allclose(sample.solid.bounds().sum(0), 0)
        assert sample.program.startswith("import cadquery as cq\nw0=cq.Workplane('")
        assert sample.program.splitlines()[-1].startswith("r=w0.") and "." not in sample.text
        numbers = [
            int(n) for n in "".join(c if c in "-0123456789" else " " for c in sample.program).split() if n != "-"
        ]
        assert all(n % GRID == 0 for n in numbers if abs(n) > 6)  # the others: names of planes, sides of a hexagon


def test_the_golden_plate_is_written_as_published():
    holes = (Circle((-40, 0), 14), Circle((45, 10), 14))
    solid = Solid("XY", (Extrusion(-20, 35, (Rectangle.around((0, 0), 150, 90),), holes),))
    assert write_program(solid) == (
        "import cadquery as cq\nw0=cq.Workplane('XY',origin=(0,0,-20))\n"
        "r=w0.sketch().rect(150,90).push([(-40,0),(45,10)]).circle(14,mode='s').finalize().extrude(35)\n"
    )
    assert solid.volume() == pytest.approx(429397.34879274806)


def test_meshes_are_closed_and_have_the_volume(samples):
    for sample in samples:
        vertices, faces = sample.mesh()
        _, merged = np.unique(vertices, axis=0, return_inverse=True)
        edges = merged.reshape(-1)[faces][:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
        assert len(np.unique(edges, axis=0)) == len(edges)  # each edge once in either direction
        assert set(map(tuple, edges.tolist())) == set(map(tuple, edges[:, ::-1].tolist()))
        assert mesh_volume(vertices, faces) == pytest.approx(sample.solid.volume(), rel=0.02)


def test_triangles_of_a_square_with_four_holes_cover_what_is_left():
    square = np.array([[-5.0, -5], [5, -5], [5, 5], [-5, 5]])
    holes = [np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]) + at for at in ([-3, 3], [3, 3], [-3, -3], [3, -3])]
    points, triangles = triangulate(square, holes)
    (a, b, c) = points[triangles].swapaxes(0, 1)
    areas = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    assert (areas > -1e-9).all() and areas.sum() == pytest.approx(84)


def test_views_are_the_processors(samples):
    from modeling_dsr.cad_solids import TriangleMesh
    from processing_dsr import CadrilleProcessor

    sample = next(s for s in samples if s.family == "pocket")
    rendered = CadrilleProcessor.__new__(CadrilleProcessor)
    rendered.num_views = 4
    picture = rendered.render_views(TriangleMesh(*sample.mesh()), "fit")
    assert picture.size == (268, 268) and picture.tobytes() == sample.views().tobytes()


def test_what_a_pixel_sees_lies_on_the_part_and_in_its_direction(samples):
    from modeling_dsr.cad_views import VIEW_BORDER, VIEW_DIRECTIONS, VIEW_PIXELS, project_points

    side = VIEW_PIXELS + 2 * VIEW_BORDER
    for sample in samples[::4]:
        seen = sample.seen(2)
        picture = np.asarray(sample.views(2))
        assert seen.shape == (side, 2 * side, 3)
        shown = np.isfinite(seen).all(-1)
        assert (picture[shown] < 255).any(-1).all() and shown.any()
        for view, direction in enumerate(VIEW_DIRECTIONS[:2]):
            rows, columns = np.nonzero(shown[:, view * side : (view + 1) * side])
            points = seen[rows, columns + view * side]
            pixels = project_points(points / 200 + 0.5, direction, VIEW_PIXELS)[1]
            assert np.abs(pixels + VIEW_BORDER - np.stack([columns, rows], 1)).max() < 1e-3
            # A step towards the camera leaves the part, a step away from it does not (but where it grazes an edge).
            ahead = np.asarray(direction) / np.sqrt(3)
            assert not sample.solid.contains(points - 2 * ahead).mean() > 0.02
            assert sample.solid.contains(points + 2 * ahead).mean() > 0.9


def test_coarser_circles_leave_mesh_closed_and_its_box_the_true_one(samples):
    for sample in samples:
        (coarse, faces), fine = sample.mesh(segments=12), sample.mesh()[0]
        directed = Counter(
            (tuple(coarse[a]), tuple(coarse[b])) for face in faces for a, b in zip(face, np.roll(face, -1))
        )
        assert all(directed[b, a] == count for (a, b), count in directed.items())
        assert np.allclose([coarse.min(0), coarse.max(0)], [fine.min(0), fine.max(0)])


def test_the_text_tells_parts_apart():
    """Two parts of one text are one part: what the program says can be read from the text."""
    world, programs = make_world("parts", SEED, num_points=0), {}
    for index in range(1000):
        sample = world[index]
        assert programs.setdefault(sample.text, sample.program) == sample.program


def test_export_in_the_published_layouts(tmp_path):
    from modeling_dsr.cad_files import load_mesh

    pytest.importorskip("trimesh")
    world = make_world("parts", SEED)
    folder = write_cad_recode(world, tmp_path / "recode", {"train": 3, "val": 2})
    rows = pickle.loads((folder / "val.pkl").read_bytes())
    assert len(rows) == 2 and len(pickle.loads((folder / "train.pkl").read_bytes())) == 3
    assert (folder / rows[0]["py_path"]).read_text() == world[3].program
    assert load_mesh(folder / rows[0]["mesh_path"]).bounds == pytest.approx(world[3].solid.bounds(), abs=1e-4)

    folder = write_text2cad(world, tmp_path / "text", {"train": 2})
    (first, _) = pickle.loads((folder / "train.pkl").read_bytes())
    assert first == {"uid": world[0].name, "description": world[0].text}
    assert (folder / "cadquery" / f"{first['uid']}.py").read_text() == world[0].program
    with pytest.raises(ValueError, match="not an empty folder"):
        write_text2cad(world, folder, {"train": 1})


def test_a_sample_can_be_looked_at(samples):
    sheet = contact_sheet("parts", samples[0])
    assert sheet.width > 900 and len(sheet.getcolors(1 << 20)) > 20
