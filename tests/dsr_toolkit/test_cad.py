"""Metrics, `dsr cad` and `dsr eval cad` on parts that are built here: a box with holes, a turned part, a bracket."""

from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest

cq = pytest.importorskip("cadquery")

from dsr_toolkit.cad import Sandbox, SandboxLimits  # noqa: E402
from dsr_toolkit.cad.candidates import best_candidate, judge_programs  # noqa: E402
from dsr_toolkit.cad.metrics import (  # noqa: E402
    chamfer_distance,
    intersection_over_union,
    normalize_prediction,
    published_iou,
    solid_body,
)
from modeling_dsr.cad_files import load_mesh  # noqa: E402
from modeling_dsr.cad_solids import TriangleMesh  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# The programs here are harmless: they may run on a machine that lacks a confinement, and take the time that a busy one
# needs.
WAIVED = ("--timeout", "60", "--allow-missing", "all")
LIMITS = SandboxLimits(seconds=60)
pytestmark = pytest.mark.usefixtures("warm_sandboxes")
HEAD = "import cadquery as cq\n"
PARTS = {
    "box": HEAD + "r = cq.Workplane().box(60, 40, 20).faces('>Z').workplane().rect(40, 20, forConstruction=True)"
    ".vertices().hole(8)",
    "turned": HEAD + "r = cq.Workplane('XZ').polyline([(0, 0), (20, 0), (20, 10), (12, 15), (12, 40), (0, 40)]).close()"
    ".revolve(360, (0, 0, 0), (0, 1, 0))",
    "bracket": HEAD
    + "r = cq.Workplane('YZ').polyline([(0, 0), (40, 0), (40, 8), (8, 8), (8, 40), (0, 40)]).close().extrude(30)",
}
HALF_SIZE_BOX = (
    HEAD
    + "r = cq.Workplane().box(30, 20, 10).faces('>Z').workplane().rect(20, 10, forConstruction=True).vertices().hole(4)"
)
PLAIN_BOX = HEAD + "r = cq.Workplane().box(60, 40, 20)"


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """STL files of the parts, far from the origin."""
    folder = tmp_path_factory.mktemp("parts")
    for name, program in PARTS.items():
        names = {}
        exec(program, names)
        cq.exporters.export(names["r"].translate((100, 50, -20)), str(folder / f"{name}.stl"))
    return folder


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, limits=LIMITS, allow_missing="all") as sandbox:
        yield sandbox


def mesh_of(sandbox, program: str) -> tuple[TriangleMesh, np.ndarray]:
    found = sandbox.run(HEAD + program)
    assert found.ok, found.message
    return TriangleMesh(found.vertices, found.faces), found.solids


# --------------------------------------------------------------------------------------
# Metrics
# --------------------------------------------------------------------------------------


def test_chamfer_distance_follows_its_definition():
    a, b = np.random.default_rng(0).random((40, 3)), np.random.default_rng(1).random((30, 3))
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    assert chamfer_distance(a, b) == pytest.approx(squared.min(1).mean() + squared.min(0).mean())


SOLIDS = {
    "box": "r = cq.Workplane().box(1, 2, 3)",
    "hollow": "r = cq.Workplane().box(1, 1, 1).cut(cq.Workplane().box(0.6, 0.6, 0.6))",
    "ball in a hollow box": "r = cq.Workplane().box(1, 1, 1).cut(cq.Workplane().box(0.6, 0.6, 0.6))"
    ".add(cq.Workplane().sphere(0.2)).combine()",
    "overlapping solids": "one, other = cq.Solid.makeBox(1, 1, 1), cq.Solid.makeBox(1, 1, 1, cq.Vector(0.5, 0, 0))\n"
    "r = cq.Compound.makeCompound([one, other])",
    "two bodies": "r = cq.Workplane().pushPoints([(0, 0), (5, 0)]).box(1, 1, 1)",
    "sphere": "r = cq.Workplane().sphere(1)",
    "torus": "r = cq.Workplane('XZ').center(3, 0).circle(1).revolve(360, (-3, 0, 0), (-3, 1, 0))",
}


@pytest.mark.parametrize("name", SOLIDS)
def test_a_solid_against_itself_has_iou_one(sandbox, name):
    mesh, solids = mesh_of(sandbox, SOLIDS[name])
    for known in (solids, None):
        assert intersection_over_union(mesh, mesh, known, known) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name, volume", [("hollow", 1 - 0.216), ("overlapping solids", 1.5), ("two bodies", 2)])
def test_volume_counts_cavities_and_overlaps_once(sandbox, name, volume):
    mesh, solids = mesh_of(sandbox, SOLIDS[name])
    assert sandbox.run(HEAD + SOLIDS[name]).volume == pytest.approx(volume)
    assert solid_body(mesh, solids).volume() == pytest.approx(volume)
    assert solid_body(mesh).volume() == pytest.approx(volume)


def test_iou_of_boxes_is_exact_and_never_above_one(sandbox):
    meshes = {name: mesh_of(sandbox, program) for name, program in SOLIDS.items()}
    for (first, first_solids), (second, second_solids) in combinations_with_replacement(meshes.values(), 2):
        assert 0 <= intersection_over_union(first, second, first_solids, second_solids) <= 1
    one, _ = mesh_of(sandbox, "r = cq.Workplane().box(1, 1, 1)")
    other = one.moved(1.0, (0.5, 0, 0))
    assert intersection_over_union(one, other) == pytest.approx(1 / 3)
    assert intersection_over_union(one, one.moved(1.0, (3, 0, 0))) == 0


def joined(*meshes: TriangleMesh) -> TriangleMesh:
    counts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = [mesh.faces + count for mesh, count in zip(meshes, counts)]
    return TriangleMesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces))


def block(low, high) -> TriangleMesh:
    low, high = np.array(low, float), np.array(high, float)
    corners = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))]
    return TriangleMesh(low + corners * (high - low), np.array(faces))


CUBE = block((0, 0, 0), (1, 1, 1))
BODIES = {  # a cube joined with another body into one mesh, and the volume of both together
    "overlapping, a corner in common": (block((0.5, 0.5, 0.5), (1, 1, 1.5)), 1.125),
    "inside, a corner in common": (block((0, 0, 0), (0.5, 0.5, 0.5)), 1),
    "overlapping, edges in common": (block((0, 0, 0), (2, 0.5, 1)), 1.5),
    "inside, an edge in common": (block((0, 0, 0), (0.5, 0.5, 1)), 1),
    "the same body again": (CUBE, 1),
    "side by side, a face in common": (block((1, 0, 0), (2, 1, 1)), 2),
    "side by side, an edge in common": (block((1, 1, 0), (2, 2, 1)), 2),
    "side by side, a corner in common": (block((1, 1, 1), (2, 2, 2)), 2),
    "far inside": (block((0.2, 0.2, 0.2), (0.5, 0.5, 0.5)), 1),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_touch_or_overlap_count_once(name):
    other, volume = BODIES[name]
    both = joined(CUBE, other)
    assert solid_body(both).volume() == pytest.approx(volume)
    assert intersection_over_union(CUBE, both) == pytest.approx(1 / volume)
    assert intersection_over_union(both, both) == pytest.approx(1)


def test_degenerate_triangles_are_no_body():
    flat = TriangleMesh(np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]), np.array([[0, 1, 2], [2, 1, 0]]))
    with pytest.raises(ValueError):
        intersection_over_union(flat, flat)


def test_published_rule_counts_what_is_open_as_nothing():
    open_cube = TriangleMesh(CUBE.vertices, CUBE.faces[:6])
    assert published_iou(CUBE, CUBE) == pytest.approx(1)
    assert published_iou(CUBE, open_cube) == published_iou(open_cube, CUBE) == 0
    assert published_iou(open_cube, open_cube) is None


def test_an_open_mesh_has_no_iou(sandbox):
    mesh, _ = mesh_of(sandbox, SOLIDS["box"])
    with pytest.raises(ValueError, match="not closed"):
        solid_body(TriangleMesh(mesh.vertices, mesh.faces[:-1]))


def test_an_inverted_mesh_has_no_volume(sandbox):
    mesh, _ = mesh_of(sandbox, SOLIDS["box"])
    with pytest.raises(ValueError, match="inwards"):
        solid_body(TriangleMesh(mesh.vertices, mesh.faces[:, ::-1]))


def test_predictions_fill_the_unit_cube(sandbox):
    mesh, _ = mesh_of(sandbox, SOLIDS["box"])
    np.testing.assert_allclose(normalize_prediction(mesh).bounds, [[1 / 3, 1 / 6, 0], [2 / 3, 5 / 6, 1]])


# --------------------------------------------------------------------------------------
# Choosing
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("position", [0, 2, 4])
def test_a_planted_best_candidate_wins(sandbox, parts, part, position):
    others = [program for name, program in PARTS.items() if name != part] + [PLAIN_BOX, "r = 1", "this is no program"]
    programs = others[:position] + [PARTS[part]] + others[position:]
    candidates = judge_programs(programs, sandbox, load_mesh(parts / f"{part}.stl"))
    assert best_candidate(candidates) == position


def test_units_of_a_program_do_not_matter(sandbox, parts):
    candidates = judge_programs([HALF_SIZE_BOX, PARTS["box"]], sandbox, load_mesh(parts / "box.stl"))
    assert candidates[0].chamfer == pytest.approx(candidates[1].chamfer, rel=0.1)


def test_without_a_shape_the_first_solid_is_taken(sandbox):
    candidates = judge_programs(["r = 1", PLAIN_BOX, PARTS["box"]], sandbox)
    assert best_candidate(candidates) == 1
    assert best_candidate(candidates[:1]) is None
