"""`dsr cad`: what it refuses, what it writes and when, how it ends; the pictures and the page of a part."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cadquery")

from dsr_toolkit.cad.metrics import mesh_chamfer_distance, normalize_prediction  # noqa: E402
from dsr_toolkit.cad.pictures import AXIS_COLORS, part_sheet  # noqa: E402
from dsr_toolkit.cad.viewer import viewer_page  # noqa: E402
from dsr_toolkit.cli import main  # noqa: E402
from dsr_toolkit.loading import resolve  # noqa: E402
from modeling_dsr.cad_files import load_mesh  # noqa: E402
from modeling_dsr.cad_solids import TriangleMesh, sample_surface  # noqa: E402
from tests.dsr_toolkit.test_cad import CUBE, HEAD, PARTS, PLAIN_BOX, WAIVED, block, parts  # noqa: E402, F401

pytestmark = pytest.mark.usefixtures("warm_sandboxes")
ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (".step", ".stl", ".py", ".png", ".html", ".json")


def cad(*arguments) -> int:
    return main(["cad", *map(str, arguments), *WAIVED])


@pytest.mark.parametrize("part", PARTS)
def test_given_programs_make_a_part_in_the_inputs_place(parts, part, tmp_path, capsys):  # noqa: F811
    (tmp_path / "others.json").write_text(json.dumps([PLAIN_BOX, "import os", PARTS["turned"]]))
    (tmp_path / "right.py").write_text(PARTS[part])
    output = tmp_path / "out" / "part.step"
    programs = [tmp_path / "others.json", tmp_path / "right.py"]
    assert cad(parts / f"{part}.stl", "--programs", *programs, "-o", output) == 0
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
    assert "three" in output.with_suffix(".html").read_text().lower()


def test_a_cloud_is_an_input(parts, tmp_path):  # noqa: F811
    points, _ = sample_surface(load_mesh(parts / "bracket.stl"), 3000, np.random.default_rng(0))
    np.save(tmp_path / "cloud.npy", points)
    (tmp_path / "p.json").write_text(json.dumps([PARTS["box"], PARTS["bracket"]]))
    assert cad(tmp_path / "cloud.npy", "--programs", tmp_path / "p.json", "-o", tmp_path / "q.step") == 0
    assert json.loads((tmp_path / "q.json").read_text())["best"] == 1


def test_no_solid_is_reported_and_drawn(parts, tmp_path, capsys):  # noqa: F811
    (tmp_path / "p.py").write_text("r = 1")
    assert cad(parts / "box.stl", "--programs", tmp_path / "p.py", "-o", tmp_path / "out.step") == 1
    assert "no_result" in capsys.readouterr().out
    assert (tmp_path / "out.png").exists() and not (tmp_path / "out.step").exists()


def test_the_tiny_model_runs_through_and_says_what_it_is(parts, tmp_path, monkeypatch, capsys):  # noqa: F811
    import dsr_toolkit.tiny as tiny

    monkeypatch.setattr(tiny.constants, "HF_HOME", str(tmp_path / "home"))
    arguments = ["--candidates", 2, "--max-new-tokens", 8, "-o", tmp_path / "part.step", "--repair", 1]
    assert cad(parts / "box.stl", *arguments, "--batch-size", 1) in (0, 1)
    said = capsys.readouterr()
    stand_in = resolve(None, "cadrille")[1]
    assert stand_in.notice in said.err and stand_in.remark in said.out
    candidates = json.loads((tmp_path / "part.json").read_text())["candidates"]
    failed = [number for number, one in enumerate(candidates[:2]) if one["code"] != "ok"]
    assert [one["repairs"] for one in candidates[2:]] == failed  # each failed one got one more try


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none.stl"], "no file"),
        (["part.txt.bin"], "no file"),
        (["notes.md"], "expected one of"),
        ([], "either INPUT files or --text"),
        (["box.stl", "-o", "part.stl"], "STEP file"),
        (["box.stl", "--candidates", "0"], "at least 1"),
        (["box.stl", "--repair", "-1"], "at least 0"),
        (["box.stl", "--batch-size", "many"], "--batch-size"),
        (["box.stl", "--programs", "none.py"], "no file"),
        (["box.stl", "--programs", "broken.json"], "is no JSON"),
        (["box.stl", "--programs", "p.py", "--repair", "1"], "takes its place"),
        (["box.stl", "turned.stl"], "one mesh or cloud at a time"),
        (["empty.stl"], "is empty"),
        (["wrong.step"], "is named like a STEP file and is none"),
        (["wrong.png"], "is named like a PNG file and is none"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_imported(parts, arguments, message, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir(parts)
    for name, content in {
        "notes.md": "x", "empty.stl": "", "wrong.step": "solid", "wrong.png": "GIF89a", "broken.json": "[",
        "p.py": "r = 1",
    }.items():  # fmt: skip
        Path(name).write_text(content)
    assert main(["cad", *arguments, *WAIVED]) == 2
    said = capsys.readouterr().err
    assert message in said and "Loading libraries" not in said


def test_arguments_are_looked_at_without_torch():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from dsr_toolkit.cli import main; main(['cad', 'none.stl']); "
        "print([name for name in ('torch', 'cadquery', 'trimesh') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]" and "no file" in done.stderr


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("nan.npy", np.full((5, 3), np.nan), "NaN"),
        ("flat.npy", np.zeros((5, 2)), "must hold points"),
        ("broken.step", b"ISO-10303-21;\n", "cannot be read as STEP|empty mesh"),
    ],
)
def test_bad_content_is_explained(tmp_path, name, content, message, capsys):
    import re

    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    (tmp_path / "p.py").write_text("r = 1")
    assert cad(path, "--programs", tmp_path / "p.py", "-o", tmp_path / "o.step") == 2
    assert re.search(message, capsys.readouterr().err)


# --------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------


def test_an_input_is_never_overwritten(parts, tmp_path, capsys):  # noqa: F811
    part, program = tmp_path / "part.stl", tmp_path / "solid.py"
    part.write_bytes((parts / "box.stl").read_bytes())
    program.write_text(PLAIN_BOX)
    before = part.read_bytes()
    for more in ([], ["--overwrite"]):
        assert cad(part, "--programs", program, "-o", tmp_path / "part.step", *more) == 2
        assert cad(part, "--programs", program, "-o", tmp_path / "solid.step", *more) == 2
    assert "is an input" in capsys.readouterr().err
    assert part.read_bytes() == before and program.read_text() == PLAIN_BOX and len(list(tmp_path.iterdir())) == 2


def test_without_a_name_free_names_are_taken(parts, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    Path("p.py").write_text(PLAIN_BOX)
    for stem in ("solid", "solid-2"):
        assert cad(parts / "box.stl", "--programs", "p.py") == 0
        assert all(Path(f"{stem}{suffix}").exists() for suffix in SUFFIXES)


def test_an_earlier_run_is_replaced_when_asked_for(parts, tmp_path, capsys):  # noqa: F811
    (tmp_path / "p.py").write_text(PLAIN_BOX)
    (tmp_path / "notes.txt").write_text("mine")
    command = (parts / "box.stl", "--programs", tmp_path / "p.py", "-o", tmp_path / "a.step")
    assert cad(*command) == 0 and cad(*command) == 2 and cad(*command, "--overwrite") == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "a.py").write_text("changed by hand")
    assert cad(*command, "--overwrite") == 2 and "was changed" in capsys.readouterr().err


def test_a_step_file_that_cannot_be_made_costs_nothing_else(parts, tmp_path, monkeypatch, capsys):  # noqa: F811
    """The checker refuses to make it; the solid keeps its program, mesh and pictures."""
    (tmp_path / "p.py").write_text(PLAIN_BOX)
    monkeypatch.setattr("dsr_toolkit.cad.sandbox.MAX_STEP", 5000)
    assert cad(parts / "box.stl", "--programs", tmp_path / "p.py", "-o", tmp_path / "a.step") == 0
    assert "its STEP file is larger than 5000 bytes" in capsys.readouterr().err
    assert not (tmp_path / "a.step").exists()
    assert all((tmp_path / f"a{suffix}").exists() for suffix in SUFFIXES[1:])


SLOW = HEAD + "for i in range(10 ** 8): pass\nfor i in range(10 ** 8): pass"


@pytest.mark.slow
def test_what_is_known_is_on_disk_when_the_work_is_interrupted(parts, tmp_path):  # noqa: F811
    """And it is interrupted within two seconds, though a program of a minute is running."""
    (tmp_path / "p.json").write_text(json.dumps([PLAIN_BOX, SLOW, SLOW, SLOW]))
    command = [sys.executable, "-m", "dsr_toolkit.cli", "cad", str(parts / "box.stl"), *WAIVED]
    command += ["--programs", str(tmp_path / "p.json"), "-o", str(tmp_path / "a.step")]
    started = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    report = tmp_path / "a.json"
    while not report.exists() or json.loads(report.read_text())["candidates"][0]["code"] is None:
        assert started.poll() is None, started.stderr.read()
        time.sleep(0.05)
    interrupted = time.monotonic()
    os.kill(started.pid, signal.SIGINT)
    assert started.wait(20) == 130 and time.monotonic() - interrupted < 2
    candidates = json.loads(report.read_text())["candidates"]
    assert [one["code"] for one in candidates] == ["ok", None, None, None]
    assert [one["program"] for one in candidates] == [PLAIN_BOX, SLOW, SLOW, SLOW]


# --------------------------------------------------------------------------------------
# Words
# --------------------------------------------------------------------------------------


def test_text_of_a_program_is_only_text(parts, tmp_path, capsys):  # noqa: F811
    text = "\x1b]0;owned\x07\n* 7: ok  chamfer x1000 0.0000 <script>alert(1)</script>"
    program = HEAD + f"r = cq.Workplane().workplaneFromTagged({text!r})"
    (tmp_path / "p.py").write_text(program)
    assert cad(parts / "box.stl", "--programs", tmp_path / "p.py", "-o", tmp_path / "a.step") == 1
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "\n* 7" not in said.out
    assert r"\x1b]0;owned\x07\n* 7" in said.out
    written = b"".join((tmp_path / f"a{suffix}").read_bytes() for suffix in (".json", ".html"))
    assert b"\x1b" not in written and b"<script>alert" not in (tmp_path / "a.html").read_bytes()


def test_a_report_holds_texts_exactly_and_steers_no_terminal():
    from dsr_toolkit.outputs import readable_json

    content = {"program": "é \x1b[2J \x9b2J \u202e \U000e0001 \ud800", "words": "деталь 部品"}
    text = readable_json(content)
    assert json.loads(text) == content and "деталь 部品" in text and "é" in text
    assert all(mark.isprintable() or mark == "\n" for mark in text)


def test_notes_of_a_solid_are_told(parts, tmp_path, capsys):  # noqa: F811
    (tmp_path / "p.py").write_text(
        HEAD + "r = cq.Workplane().pushPoints([(0, 0), (50, 0)]).box(60, 40, 20, combine=False)"
    )
    assert cad(parts / "box.stl", "--programs", tmp_path / "p.py", "-o", tmp_path / "a.step") == 0
    assert "2 objects that are not combined; the first one counts" in capsys.readouterr().out
    assert "not combined" in json.loads((tmp_path / "a.json").read_text())["candidates"][0]["notes"][0]


def test_unusual_sizes_are_told_in_millimetres():
    from modeling_dsr.cad_solids import fit_placement

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_placement(np.zeros(3), np.array([0.006, 0.004, 0.002]))
    assert "measures 0.006 × 0.004 × 0.002 millimetres" in str(caught[0].message) and "small" in str(caught[0].message)


def test_unusual_sizes_are_told_without_a_line_of_source(tmp_path, monkeypatch, capsys):
    import dsr_toolkit.tiny as tiny
    from dsr_toolkit.cad.part_files import stl_bytes

    monkeypatch.setattr(tiny.constants, "HF_HOME", str(tmp_path / "home"))
    (tmp_path / "tiny.stl").write_bytes(stl_bytes(block((0, 0, 0), (0.006, 0.004, 0.002)), None))
    cad(tmp_path / "tiny.stl", "--candidates", 1, "--max-new-tokens", 2, "-o", tmp_path / "o.step")
    said = capsys.readouterr().err
    assert "Note: The part measures 0.006 × 0.004 × 0.002 millimetres" in said and "UserWarning" not in said


# --------------------------------------------------------------------------------------
# Pictures and page
# --------------------------------------------------------------------------------------


def test_a_part_is_seen_from_above_and_from_below():
    """Axes have their colours, and the edge that is in front is below from above and above from below."""
    sheet = np.asarray(part_sheet(None, TriangleMesh(CUBE.vertices, CUBE.faces), "cube", (), None, (60, 40, 20)))
    top, bottom = sheet[78:378, 340:640], sheet[388:688, 340:640]
    for view in (top, bottom):
        for color in AXIS_COLORS:
            assert (view == color).all(-1).sum() > 20
    red, where = np.array(AXIS_COLORS[0]), lambda view: np.nonzero((view == red).all(-1))[0].mean()
    assert where(top) > 150 > where(bottom)  # the x edge in front is the lower one from above, the upper one from below


def test_the_page_holds_both_bodies_and_escapes_words(page, tmp_path):
    points = sample_surface(CUBE, 500, np.random.default_rng(0))[0]
    (tmp_path / "part.html").write_text(viewer_page(points, CUBE, "a <b> part", ("<script>alert(1)</script>",)))
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"file://{tmp_path}/part.html")
    page.wait_for_selector("canvas")
    page.wait_for_timeout(1500)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    seen = np.asarray(picture)[120:]
    yellow = seen[..., 0] > 1.4 * seen[..., 2].astype(int)
    assert not problems and yellow.mean() > 0.01  # the solid is drawn …
    assert not yellow[:, :5].any() and not yellow[:, -5:].any() and not yellow[-5:].any()  # … as a whole …
    assert len(np.unique(seen[yellow] // 8, axis=0)) >= 3  # … from a corner: three sides that are lit differently …
    assert seen[yellow].max() > 200  # … and not in the dark
    assert "a <b> part" in page.inner_text("body") and "<script>alert(1)</script>" in page.inner_text("body")


def test_rendering_needs_no_display(parts, tmp_path):  # noqa: F811
    """Nor VTK, which CadQuery would bring. The models, which are slow to read, are left out of the package."""
    code = (
        f"import sys, types; sys.path.insert(0, {str(ROOT)!r}); sys.modules['modeling_dsr'] = bare = "
        f"types.ModuleType('modeling_dsr'); bare.__path__ = [{str(ROOT / 'modeling_dsr')!r}]; "
        "from modeling_dsr.cad_files import load_mesh; from "
        "dsr_toolkit.cad.metrics import normalize_prediction; from dsr_toolkit.cad.pictures import part_sheet; mesh = "
        "normalize_prediction(load_mesh(sys.argv[1])); part_sheet(mesh, mesh, 'part').save(sys.argv[2]); assert 'vtk' "
        "not in sys.modules and 'vtkmodules' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-c", code, str(parts / "box.stl"), str(tmp_path / "part.png")]
    subprocess.run(command, env=environment, check=True)
    assert Image.open(tmp_path / "part.png").size[0] > 600
