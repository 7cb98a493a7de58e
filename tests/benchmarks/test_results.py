"""RESULTS.md's table and SCALING.md are made of what was measured, one benchmark or curve at a time."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.harness import Seconds, row
from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import page
from benchmarks.scaling.curves import CURVES


def test_the_table_stands_between_its_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "PAGE", tmp_path / "RESULTS.md")
    results.PAGE.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    held = row("a.b", "time", Seconds([3.0] * 5), Seconds([1.0] * 5), 2.0)
    missed = row("c.d", "memory", 2**20, 2**20, 2.0)
    state = {
        "c.d": {"rows": [missed], "machine": "CPU", "load": 4.0, "seconds": 10},
        "a.b": {"rows": [held], "machine": "CPU", "load": 0.1, "seconds": 200},
        "e.f": {"failed": ["ValueError"], "machine": None, "load": 0.1, "seconds": 1},
    }
    results.write_table(state)
    text = results.PAGE.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| a.b | time | 3.000 s | 1.000 s | 3.00 | 3.00 … 3.00 (5 rounds) | 2 |  |" in text
    assert "| c.d | memory | 1.0 MiB | 1.0 MiB | 1.00 |  | 2 | **missed** |" in text
    assert "preliminary: c.d." in text and "three minutes: a.b 200 s." in text and "e.f" not in text


def test_the_page_has_its_marks():
    text = results.PAGE.read_text()
    assert text.count(results.BEGIN) == text.count(results.END) == 1


@pytest.mark.slow
def test_a_benchmark_that_has_rows_is_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "STATE", tmp_path / "results.json")
    monkeypatch.setattr(results, "PAGE", tmp_path / "RESULTS.md")
    results.PAGE.write_text(f"{results.BEGIN}\n{results.END}\n")
    assert results.main(["cad.fps", "--seconds", "0.1"]) == 0
    first = results.STATE.read_text()
    assert json.loads(first)["cad.fps"]["rows"][0]["name"] == "cad.fps" and "cad.fps" in results.PAGE.read_text()
    assert results.main(["cad.fps", "--seconds", "0.1"]) == 0
    assert results.STATE.read_text() == first


def test_the_most_telling_benchmarks_come_first():
    assert results.in_order(["cad.fps", "compile.pi3", "full.page4d", "batch.local", "full.pi3", "dsr.decode"]) == [
        "full.pi3", "full.page4d", "dsr.decode", "batch.local", "cad.fps", "compile.pi3",
    ]  # fmt: skip


def test_time_for_all_together(tmp_path, monkeypatch, capsys):
    """What takes longer than what is left does not begin; what is under way at the end is stopped, and has no rows."""
    monkeypatch.setattr(results, "STATE", tmp_path / "results.json")
    monkeypatch.setattr(results, "PAGE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(results, "busy_cores", lambda: 0.0)
    results.PAGE.write_text(f"{results.BEGIN}\n{results.END}\n")
    results.STATE.write_text(json.dumps({"cad.fps": {"failed": ["x"], "machine": None, "load": 0, "seconds": 3600}}))
    assert results.main(["cad.fps", "cad.scatter", "--minutes", "0.02"]) == 1
    assert "no time was left for cad.fps, cad.scatter" in capsys.readouterr().out
    assert list(json.loads(results.STATE.read_text())) == ["cad.fps"]


def test_all_that_a_benchmark_started_ends_with_it(tmp_path):
    code = (
        "import pathlib, subprocess, sys; child = subprocess.Popen(['sleep', '600'], start_new_session=False); "
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid)); child.wait()"
    )
    assert results.call([sys.executable, "-S", "-c", code], dict(os.environ), 5.0) is None
    pid = (tmp_path / "pid").read_text()
    deadline = time.monotonic() + 60
    while is_alive(pid) and time.monotonic() < deadline:  # it closes its files a moment before it has ended
        time.sleep(0.01)
    assert not is_alive(pid)


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_exponents_are_those_of_the_points(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    monkeypatch.setattr(page, "PAGE", tmp_path / "SCALING.md")
    counts = [2, 4, 8, 16]
    found = {"seconds": [0.1 * n + 0.01 * n**2 for n in counts], "memory": [2**20 * n for n in counts]}
    page.write_page({"pi3.frames": {"counts": counts, **found, "machine": "CPU", "load": 0.0}})
    text = page.PAGE.read_text()
    assert "| pi3.frames | 2 … 16 frames | 1.37 | 1.45 | 2 | 1.00 | 1.00 | 1 |" in text
    assert all(name in text for name in CURVES) and (tmp_path / "pi3_frames.png").stat().st_size < 60_000


def test_every_curve_has_a_limit_of_its_own():
    for curve in CURVES.values():
        assert curve.limit() and list(curve.counts) == sorted(curve.counts)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CURVES))
def test_a_curve_runs_at_its_smallest_count(name):
    call = CURVES[name].build(CURVES[name].counts[0])
    assert callable(call)
    call()


def test_a_curve_that_there_is_not_is_refused(capsys):
    with pytest.raises(SystemExit):
        scaling.main(["pi4.frames"])
    assert "no curve 'pi4.frames'" in capsys.readouterr().err
