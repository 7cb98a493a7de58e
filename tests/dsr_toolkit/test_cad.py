"""Metrics, `dsr cad` and `dsr eval cad` on parts that are built here: a box with holes, a turned part, a bracket."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

cq = pytest.importorskip("cadquery")

from dsr_toolkit.cad import Sandbox  # noqa: E402
from dsr_toolkit.cad.candidates import best_candidate, judge_programs  # noqa: E402
from dsr_toolkit.cad.metrics import (  # noqa: E402
    chamfer_distance,
    intersection_over_union,
    mesh_chamfer_distance,
    normalize_prediction,
    published_iou,
    solid_body,
)
from dsr_toolkit.cli import main  # noqa: E402
from modeling_dsr.cad_files import load_mesh  # noqa: E402
from modeling_dsr.cad_solids import TriangleMesh  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# The programs here are harmless: they may run on a machine that lacks a confinement.
WAIVED = ("--allow-missing", "all")
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
    with Sandbox(workers=2, allow_missing="all") as sandbox:
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
    assert solid_body(mesh, solids).volume() == pytest.approx(volume)
    assert solid_body(mesh).volume() == pytest.approx(volume)


def test_iou_of_boxes_is_exact_and_never_above_one(sandbox):
    meshes = {name: mesh_of(sandbox, program) for name, program in SOLIDS.items()}
    for first, first_solids in meshes.values():
        for second, second_solids in meshes.values():
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


# --------------------------------------------------------------------------------------
# dsr cad
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_given_programs_make_a_part_in_the_inputs_place(parts, part, tmp_path, capsys):
    (tmp_path / "others.json").write_text(json.dumps([PLAIN_BOX, "import os", PARTS["turned"]]))
    (tmp_path / "right.py").write_text(PARTS[part])
    output = tmp_path / "out" / "part.step"
    programs = [str(tmp_path / "others.json"), str(tmp_path / "right.py")]
    assert main(["cad", str(parts / f"{part}.stl"), "--programs", *programs, "-o", str(output), *WAIVED]) == 0
    said = capsys.readouterr().out
    report = json.loads(output.with_suffix(".json").read_text())
    assert [entry["code"] for entry in report["candidates"]] == ["ok", "policy", "ok", "ok"]
    wanted = load_mesh(parts / f"{part}.stl")
    for suffix in (".step", ".stl"):
        found = load_mesh(output.with_suffix(suffix))
        np.testing.assert_allclose(found.bounds, wanted.bounds, atol=0.05)
        assert mesh_chamfer_distance(normalize_prediction(found), normalize_prediction(wanted)) < 1e-3
    label = "not generated"
    assert label in said and label in report["note"] and report["generated"] is False
    assert label in output.with_suffix(".py").read_text() and label.encode() in output.read_bytes()
    assert label.encode() in output.with_suffix(".stl").read_bytes()[:80]
    picture = np.asarray(Image.open(output.with_suffix(".png")).convert("RGB"))
    left, right = np.array_split(picture[150:], 2, axis=1)
    for half in (left, right):
        assert (half < 200).any(-1).mean() > 0.05  # a part is seen on either side


def test_a_cloud_is_an_input(parts, tmp_path):
    from modeling_dsr.cad_solids import sample_surface

    points, _ = sample_surface(load_mesh(parts / "bracket.stl"), 3000, np.random.default_rng(0))
    np.save(tmp_path / "cloud.npy", points)
    (tmp_path / "p.json").write_text(json.dumps([PARTS["box"], PARTS["bracket"]]))
    assert (
        main(
            [
                "cad",
                str(tmp_path / "cloud.npy"),
                "--programs",
                str(tmp_path / "p.json"),
                "-o",
                str(tmp_path / "p.step"),
                *WAIVED,
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "p.json").read_text())["best"] == 1


def test_no_solid_is_reported_and_drawn(parts, tmp_path, capsys):
    (tmp_path / "p.py").write_text("r = 1")
    assert (
        main(
            [
                "cad",
                str(parts / "box.stl"),
                "--programs",
                str(tmp_path / "p.py"),
                "-o",
                str(tmp_path / "out.step"),
                *WAIVED,
            ]
        )
        == 1
    )
    assert "no_result" in capsys.readouterr().out
    assert (tmp_path / "out.png").exists() and not (tmp_path / "out.step").exists()


def test_a_tiny_random_model_runs_through_and_says_so(parts, tmp_path, monkeypatch, capsys):
    import dsr_toolkit.tiny as tiny

    monkeypatch.setattr(tiny.constants, "HF_HOME", str(tmp_path / "home"))
    arguments = [
        "cad",
        str(parts / "box.stl"),
        "--candidates",
        "3",
        "--max-new-tokens",
        "8",
        "-o",
        str(tmp_path / "part.step"),
    ]
    assert main([*arguments, *WAIVED, "--batch-size", "1"]) in (0, 1)
    said = capsys.readouterr()
    assert "RANDOM WEIGHTS" in said.err and "random weights" in said.out
    assert len(json.loads((tmp_path / "part.json").read_text())["candidates"]) == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none.stl"], "no file"),
        (["part.txt.bin"], "no file"),
        ([], "either INPUT files or --text"),
        (["box.stl", "-o", "part.stl"], "STEP file"),
        (["box.stl", "--candidates", "0"], "at least 1"),
        (["box.stl", "--batch-size", "many"], "--batch-size"),
        (["box.stl", "--programs", "none.py"], "no file"),
        (["box.stl", "turned.stl"], "one mesh or cloud at a time"),
        (["nan.npy"], "NaN"),
        (["flat.npy"], "must hold points"),
        (["broken.step"], "cannot be read as STEP|empty mesh"),
    ],
)
def test_bad_input_is_explained(parts, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(parts)
    np.save("nan.npy", np.full((5, 3), np.nan))
    np.save("flat.npy", np.zeros((5, 2)))
    Path("broken.step").write_text("ISO-10303-21;\n")
    assert main(["cad", *arguments, *WAIVED]) == 2
    import re

    assert re.search(message, capsys.readouterr().err)


def test_rendering_needs_no_display(parts, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from modeling_dsr.cad_files import load_mesh; from "
        "dsr_toolkit.cad.metrics import normalize_prediction; from dsr_toolkit.cad.pictures import part_sheet; mesh = "
        "normalize_prediction(load_mesh(sys.argv[1])); part_sheet(mesh, mesh, 'part').save(sys.argv[2]); assert 'vtk' "
        "not in sys.modules and 'vtkmodules' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-c", code, str(parts / "box.stl"), str(tmp_path / "part.png")]
    subprocess.run(command, env=environment, check=True)
    assert Image.open(tmp_path / "part.png").size[0] > 600
