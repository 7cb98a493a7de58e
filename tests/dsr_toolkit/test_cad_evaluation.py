"""`dsr eval cad`: scores against true shapes, published rules under their names, counts beside every mean."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cadquery")

from dsr_toolkit.cad import Sandbox  # noqa: E402
from dsr_toolkit.cad.metrics import normalize_prediction  # noqa: E402
from dsr_toolkit.cad.part_files import stl_bytes  # noqa: E402
from dsr_toolkit.cli import main  # noqa: E402
from dsr_toolkit.evaluation.cad import Sample, declared_frame, load_truth, pair_files, summarize  # noqa: E402
from modeling_dsr.cad_solids import TriangleMesh  # noqa: E402
from tests.dsr_toolkit.test_cad import CUBE, LIMITS, PARTS, PLAIN_BOX, WAIVED, block  # noqa: E402

pytestmark = pytest.mark.usefixtures("warm_sandboxes")
ROOT = Path(__file__).resolve().parents[2]
HEAD = "import cadquery as cq\n"
CUBE_PROGRAM = HEAD + "r = cq.Workplane().box(3, 3, 3)"
OPEN_PROGRAM = (
    HEAD + "r = cq.Workplane().newObject([cq.Shell.makeShell(cq.Workplane().box(1, 1, 1).faces().vals()[:3])])"
)


def write_mesh(path: Path, mesh: TriangleMesh) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stl_bytes(mesh, None))


def run(folder: Path, *more: str, output: str = "out") -> dict:
    arguments = ["eval", "cad", str(folder / "programs"), str(folder / "truth"), "-o", str(folder / output)]
    assert main([*arguments, "--workers", "2", *WAIVED, *more]) == 0
    return json.loads((folder / output / "metrics.json").read_text())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """DeepCAD-style nested truth in the unit cube; two samples of the box, a wrong bracket, an invalid part."""
    folder = tmp_path_factory.mktemp("eval")
    (folder / "programs").mkdir()
    with Sandbox(workers=2, limits=LIMITS, allow_missing="all") as sandbox:
        for number, (name, program) in enumerate(PARTS.items()):
            found = sandbox.run(program)
            mesh = normalize_prediction(TriangleMesh(found.vertices, found.faces))
            write_mesh(folder / "truth" / f"{number:04d}" / f"{name}.stl", mesh)
    (folder / "programs" / "box+0.py").write_text(PLAIN_BOX)
    (folder / "programs" / "box+1.py").write_text(PARTS["box"])
    (folder / "programs" / "turned+0.py").write_text("import os")
    (folder / "programs" / "bracket+0.py").write_text(PARTS["bracket"])
    run(folder)
    return folder / "out"


def test_evaluation_aggregates_as_published(evaluated):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert (metrics["shapes"], metrics["programs"]) == (3, 4)
    assert metrics["invalidity_ratio"] == pytest.approx(100 / 3)
    assert metrics["mean_iou"] == pytest.approx(1, abs=1e-3)  # the better of the box's samples; the failed one left out
    assert metrics["mean_iou_shapes"] == 2
    assert metrics["mean_iou_of_all"] == pytest.approx(2 / 3, abs=1e-3) and metrics["mean_iou_of_all_shapes"] == 3
    assert metrics["mean_chamfer"] < 1 and len(metrics["best_chamfer"]) == 2
    assert metrics["codes"] == {"ok": 3, "policy": 1}
    assert metrics["skipped"][1]["invalidity_ratio"] == pytest.approx(200 / 3)


def test_evaluation_writes_samples_table_and_plots(evaluated):
    with open(evaluated / "samples.csv", newline="") as file:
        rows = {row["sample"]: row for row in csv.DictReader(file)}
    assert rows["turned+0"]["code"] == "policy" and rows["turned+0"]["chamfer"] == ""
    assert float(rows["box+0"]["iou"]) < float(rows["box+1"]["iou"])
    report = (evaluated / "report.md").read_text()
    assert "| policy | 1 | 25.00 |" in report and "invalidity ratio" in report
    assert "units of their own" in report
    assert Image.open(evaluated / "histograms.png").size[0] > 600
    assert not (evaluated / "samples.jsonl").exists()


def test_an_open_prediction_counts_as_nothing_beside_a_perfect_one(tmp_path):
    """The published script gives 0.5; so does the mean over all."""
    for name, program in (("a", CUBE_PROGRAM), ("b", OPEN_PROGRAM)):
        write_mesh(tmp_path / "truth" / f"{name}.stl", CUBE)
        (tmp_path / "programs").mkdir(exist_ok=True)
        (tmp_path / "programs" / f"{name}.py").write_text(program)
    metrics = run(tmp_path)
    assert metrics["codes"] == {"ok": 2} and metrics["open_predictions"] == 1
    assert metrics["mean_iou"] == pytest.approx(0.5) and metrics["mean_iou_shapes"] == 2
    assert metrics["mean_iou_of_all"] == pytest.approx(0.5) and metrics["mean_iou_of_all_shapes"] == 2


def test_an_open_truth_is_told_apart(tmp_path):
    write_mesh(tmp_path / "truth" / "a.stl", CUBE)
    write_mesh(tmp_path / "truth" / "b.stl", TriangleMesh(CUBE.vertices, CUBE.faces[:6]))
    (tmp_path / "programs").mkdir()
    for name in "ab":
        (tmp_path / "programs" / f"{name}.py").write_text(CUBE_PROGRAM)
    metrics = run(tmp_path)
    assert metrics["mean_iou"] == pytest.approx(0.5) and metrics["mean_iou_shapes"] == 2  # as published
    assert metrics["mean_iou_of_all"] == pytest.approx(1) and metrics["mean_iou_of_all_shapes"] == 1
    assert metrics["shapes_without_true_volume"] == 1


def test_a_failed_program_never_raises_the_mean_over_all():
    good, poor = Sample("a", "a", "ok", chamfer=0.0, iou=1.0, published_iou=1.0), Sample("b", "b", "ok", iou=0.4)
    failed = Sample("b", "b", "runtime", iou=0.0)
    assert summarize([good, failed])["mean_iou_of_all"] == 0.5 < summarize([good, poor])["mean_iou_of_all"]
    assert summarize([good], ["b"])["mean_iou_of_all"] == 0.5


def test_shapes_without_any_program_count_as_invalid():
    samples = [
        Sample("a", "a+0", "ok", chamfer=1e-3, iou=0.5, published_iou=0.5),
        Sample("a", "a+1", "ok", chamfer=2e-3, iou=0.9, published_iou=0.9),
        Sample("b", "b", "ok", chamfer=3e-3),
    ]
    summary = summarize(samples, ["c"])
    assert summary["shapes"] == 3 and summary["invalidity_ratio"] == pytest.approx(100 / 3)
    assert summary["mean_chamfer"] == pytest.approx(2.0) and summary["chamfer_shapes"] == 2
    assert summary["mean_iou"] == 0.9 and summary["mean_iou_shapes"] == 1
    assert summary["mean_iou_of_all"] == pytest.approx(0.45) and summary["mean_iou_of_all_shapes"] == 2
    assert summary["shapes_without_true_volume"] == 1


# --------------------------------------------------------------------------------------
# Frames of true shapes
# --------------------------------------------------------------------------------------


def test_a_truth_in_its_own_units_may_lie_in_the_unit_cube(tmp_path):
    write_mesh(tmp_path / "truth" / "a.stl", block((0, 0, 0), (0.7, 0.2, 0.1)))
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "a.py").write_text(HEAD + "r = cq.Workplane().box(70, 20, 10)")
    metrics = run(tmp_path)
    assert metrics["mean_iou"] == pytest.approx(1) and metrics["ground_truth_frame"] == "own"
    metrics = run(tmp_path, "--frame", "unit_cube", output="published")
    assert metrics["mean_iou"] < 0.5 and metrics["ground_truth_frame"] == "unit_cube"


def test_published_sets_declare_their_frame_by_name(tmp_path):
    assert declared_frame(tmp_path / "deepcad_test_mesh") == declared_frame(Path("fusion360_test_mesh")) == "unit_cube"
    assert declared_frame(tmp_path) == "own"


def test_a_shape_out_of_its_declared_frame_is_named(tmp_path):
    write_mesh(tmp_path / "big.stl", block((0, 0, 0), (70, 20, 10)))
    with pytest.raises(ValueError, match="'big.stl' reaches from 0 to 70, out of the unit cube"):
        load_truth(tmp_path / "big.stl", "unit_cube")
    assert load_truth(tmp_path / "big.stl", "own").bounds.max() == 1


# --------------------------------------------------------------------------------------
# Wrong files, interruptions
# --------------------------------------------------------------------------------------


def test_a_degenerate_truth_costs_one_sample_and_is_named(tmp_path):
    flat = TriangleMesh(np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]), np.array([[0, 1, 2], [2, 1, 0]]))
    write_mesh(tmp_path / "truth" / "flat.stl", flat)
    write_mesh(tmp_path / "truth" / "cube.stl", CUBE)
    (tmp_path / "programs").mkdir()
    for name in ("flat", "cube"):
        (tmp_path / "programs" / f"{name}.py").write_text(CUBE_PROGRAM)
    metrics = run(tmp_path)
    assert metrics["codes"] == {"ok": 1, "ground_truth": 1} and metrics["mean_iou"] == pytest.approx(1)
    with open(tmp_path / "out" / "samples.csv", newline="") as file:
        message = {row["sample"]: row["message"] for row in csv.DictReader(file)}["flat"]
    assert "flat.stl" in message


def test_texts_of_others_are_only_text(tmp_path):
    write_mesh(tmp_path / "truth" / "a.stl", CUBE)
    (tmp_path / "programs").mkdir()
    text = HEAD + "r = cq.Workplane().workplaneFromTagged('\\x1b]0;owned\\x07\\n=1+1')"
    (tmp_path / "programs" / "a.py").write_text(text)
    run(tmp_path)
    assert all(
        b"\x1b" not in path.read_bytes() and b"\x07" not in path.read_bytes()
        for path in (tmp_path / "out").glob("*.*[!g]")
    )
    assert "\\x1b]0;owned\\x07\\n=1+1" in (tmp_path / "out" / "samples.csv").read_text()


def test_cells_are_no_formulas():
    from dsr_toolkit.commands.eval_cad import _cell

    assert [_cell(value) for value in ("=1+1", "-2", 3.0, "a\nb")] == ["'=1+1", "'-2", 3.0, "a\\nb"]


@pytest.mark.slow
def test_an_interrupted_evaluation_is_resumed(tmp_path):
    for number in range(4):
        write_mesh(tmp_path / "truth" / f"s{number}.stl", CUBE)
        (tmp_path / "programs").mkdir(exist_ok=True)
        slow = number >= 2
        program = "import cadquery as cq\n" + ("for i in range(10 ** 8): pass\n" if slow else "") + CUBE_PROGRAM
        (tmp_path / "programs" / f"s{number}.py").write_text(program)
    arguments = ["eval", "cad", str(tmp_path / "programs"), str(tmp_path / "truth"), "-o", str(tmp_path / "out")]
    arguments += ["--workers", "1", *WAIVED]
    started = subprocess.Popen([sys.executable, "-m", "dsr_toolkit.cli", *arguments], cwd=ROOT, stderr=subprocess.PIPE)
    journal = tmp_path / "out" / "samples.jsonl"
    while not journal.exists() or journal.read_text().count("\n") < 3:
        assert started.poll() is None, started.stderr.read().decode()
        time.sleep(0.05)
    interrupted = time.monotonic()
    os.kill(started.pid, signal.SIGINT)
    assert started.wait(20) == 130 and time.monotonic() - interrupted < 2
    for number in (2, 3):
        (tmp_path / "programs" / f"s{number}.py").write_text(CUBE_PROGRAM)
    assert main(arguments) == 2  # nothing is lost by starting it again
    first = journal.read_text().split("\n")[1]
    assert main([*arguments, "--resume", "--seed", "3"]) == 2  # other numbers are not mixed with these
    assert main([*arguments, "--resume"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["programs"] == 4 and metrics["mean_iou"] == pytest.approx(1) and not journal.exists()
    with open(tmp_path / "out" / "samples.csv", newline="") as file:
        kept = next(csv.DictReader(file))
    assert float(kept["seconds"]) == json.loads(first)["seconds"]  # measured before the interruption


def test_results_of_an_earlier_evaluation_are_not_overwritten(evaluated, capsys):
    folder = evaluated.parent
    arguments = ["eval", "cad", str(folder / "programs"), str(folder / "truth"), "-o", str(evaluated), *WAIVED]
    before = (evaluated / "samples.csv").read_bytes()
    assert main(arguments) == 2 and "--overwrite" in capsys.readouterr().err
    assert (evaluated / "samples.csv").read_bytes() == before


def test_programs_without_truth_are_refused(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "t").mkdir()
    with pytest.raises(ValueError, match="0 meshes"):
        pair_files(tmp_path / "p", tmp_path / "t")
    (tmp_path / "p" / "x+0.py").write_text("")
    (tmp_path / "t" / "y.stl").write_text("")
    with pytest.raises(ValueError, match="no ground truth"):
        pair_files(tmp_path / "p", tmp_path / "t")


def test_folders_named_as_files_are_neither_shapes_nor_programs(tmp_path):
    for folder in ("p/x.py", "t/x.stl"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "p" / "x.py" / "x+0.py").write_text("")
    (tmp_path / "t" / "x.stl" / "x.stl").write_text("")
    pairs, missing = pair_files(tmp_path / "p", tmp_path / "t")
    assert pairs == [("x", tmp_path / "p" / "x.py" / "x+0.py", tmp_path / "t" / "x.stl" / "x.stl")] and not missing
