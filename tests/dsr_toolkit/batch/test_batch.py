"""`dsr batch` from its input to its output, in processes of this machine."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as parquet
import pytest

from dsr_toolkit.batch import local
from dsr_toolkit.batch.run import Batch, run_batch
from dsr_toolkit.batch.store import Store
from dsr_toolkit.cli import main
from tests.hub import samples

ROOT = Path(__file__).parents[3]
QUICK = {"max_new_tokens": 4, "num_frames": 2}


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "a.mp4").write_bytes(samples.video())
    (folder / "cut.mp4").write_bytes(samples.video()[:2000])
    for seed in range(4):
        (folder / f"{seed}.png").write_bytes(samples.picture(seed))
    return folder


def mixed(count: int) -> list[dict]:
    """Videos with lists of questions, images, and a poisoned item in ten."""
    rows = []
    for number in range(count):
        row = {"id": f"item {number}", "question": f"What is at place {number}?"}
        if number % 10 == 3:
            row |= [{"video": "cut.mp4"}, {"image": "none.png"}, {"image": "1.png", "question": " "}][number // 10 % 3]
        elif number % 5 == 0:
            row |= {"video": "a.mp4", "questions": [f"Where is {number}?", "Which way?"]}
            del row["question"]
        else:
            row |= {"image": f"{number % 4}.png"}
        rows.append(row)
    return rows


def write(media: Path, rows: list[dict], name: str = "rows.jsonl") -> str:
    (media / name).write_text("\n".join(map(json.dumps, rows)))
    return str(media / name)


def rows_of(folder) -> list[dict]:
    """Rows without what differs from run to run."""
    return parquet.read_table(Path(folder) / "results.parquet").drop_columns(["seconds"]).to_pylist()


def check(folder, rows: list[dict]) -> None:
    """Every item once, in its order; the poisoned ones with an error, the others with an answer."""
    found = rows_of(folder)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    for number, row in enumerate(found):
        assert (row["error_code"] is None) == (number % 10 != 3), row
        assert row["error_code"] or all(row["answers"])
    assert not (Path(folder) / "parts").exists()


def test_the_command_answers_a_manifest_and_says_how_it_went(media, repository, tmp_path, capsys):
    rows = mixed(14)
    command = ["batch", "ask", write(media, rows, "first.jsonl"), "-o", str(tmp_path / "out"), "--chunk", "5"]
    options = ["--model", str(repository), "--device", "cpu", "--set", "max_new_tokens=4", "--set", "num_frames=2"]
    assert main([*command, *options]) == 0
    said = capsys.readouterr()
    assert "14 items, 2 with an error" in said.out and "14 of 14 items, 2 errors" in said.err
    check(tmp_path / "out", rows)
    assert main([*command, *options]) == 2 and "--resume" in capsys.readouterr().err
    assert main([*command, *options, "--resume"]) == 0 and "All 14 items are answered" in capsys.readouterr().err
    assert main([*command, *options, "--resume", "--set", "seed=1"]) == 2
    assert "has parameters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ask", "nowhere.jsonl", "-o", "out"], "no file or folder"),
        (["ask", "rows.jsonl", "-o", "out", "--workers", "0"], "`workers`"),
        (["ask", "rows.jsonl", "-o", "out", "--set", "seed"], "NAME=VALUE"),
        (["ask", "rows.jsonl", "-o", "out", "--phrase", "a wall"], "means nothing to ask"),
        (["ask", "rows.jsonl", "--resume"], "-o"),
        (["ask", "rows.jsonl", "-o", "out", "--address", "auto"], "engine ray"),
        (["ask", "rows.jsonl", "-o", "out", "--gpus-per-worker", "1.5"], "whole number or a part"),
        (["ask", "empty.jsonl", "-o", "out"], "no item"),
        (["ask", "twice.jsonl", "-o", "out"], "two items have the id"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_done(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("{}")
    Path("empty.jsonl").write_text("\n")
    Path("twice.jsonl").write_text('{"id": 1}\n{"id": "1"}')
    assert main(["batch", *arguments]) == 2
    assert says in capsys.readouterr().err and not Path("out").exists()


def test_gpus_and_cores_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    cards = lambda workers, gpus: [  # noqa: E731
        local.environment_of(number, workers, gpus)["CUDA_VISIBLE_DEVICES"] for number in range(workers)
    ]
    assert cards(3, 1) == ["4", "5", "6"] and cards(4, 0.5) == ["4", "4", "5", "5"] and cards(1, 2) == ["4,5"]
    assert local.environment_of(0, 4, 0) == {"OMP_NUM_THREADS": "2"} and local.environment_of(0, 1, 0) == {}


@pytest.mark.slow
def test_settings_that_no_item_can_be_answered_with_leave_nothing(media, repository, tmp_path, capsys):
    command = ["batch", "ask", write(media, mixed(3)), "-o", str(tmp_path / "out"), "--model", str(repository)]
    assert main([*command, "--set", "atoms=3"]) == 2
    assert "unknown fields" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_items_are_tried_again(media, repository, tmp_path):
    rows = mixed(60)
    batch = batch_of(write(media, rows), repository, tmp_path / "out", chunk_size=4, workers=2)
    killed, me, commit = [], psutil.Process(), Store.commit

    def killing(store, finished):
        commit(store, finished)
        if len(killed) < 2:  # as often as an item is tried
            workers = [one for one in me.children() if one.status() != psutil.STATUS_ZOMBIE and is_worker(one)]
            killed.append(random.Random(len(killed)).choice(workers).pid)
            os.kill(killed[-1], signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "commit", killing)
        report = run_batch(batch)
    assert len(killed) == 2 and report["done"] == 60
    check(tmp_path / "out", rows)


def is_worker(process) -> bool:
    return "dsr_toolkit.batch.local" in " ".join(process.cmdline())


POISON = """
import os
from dsr_toolkit.batch import worker
read = worker.content
worker.content = lambda name, value: os._exit(9) if str(value).endswith("2.png") else read(name, value)
"""


@pytest.mark.slow
def test_an_item_that_ends_its_worker_each_time_is_an_error(media, repository, tmp_path, monkeypatch):
    """As a decoder does that a damaged file makes crash."""
    monkeypatch.setattr(local, "CODE", POISON + local.CODE)
    rows = [{"id": str(number), "image": f"{number}.png", "question": "What?"} for number in range(4)]
    run_batch(batch_of(write(media, rows), repository, tmp_path / "out"))
    found = rows_of(tmp_path / "out")
    assert [row["error_code"] for row in found] == [None, None, "crashed", None]


def batch_of(source: str, repository, output, **options) -> Batch:
    options = {"parameters": QUICK, "device": "cpu", **options}
    return Batch("ask", source, output, model=str(repository), **options)


class Driver:
    """`dsr batch` in a process of its own."""

    def __init__(self, source: str, repository, output, *options: str):
        command = [
            sys.executable, "-m", "dsr_toolkit.cli", "batch", "ask", source, "-o", str(output), "--model",
            str(repository), "--device", "cpu", "--set", "max_new_tokens=4", "--set", "num_frames=2", "--resume",
            *options,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def ends(self) -> str:
        _, said = self.process.communicate(timeout=800)
        return said


@pytest.mark.parametrize(
    ("count", "most"), [pytest.param(60, 3, marks=pytest.mark.slow), pytest.param(200, 10, marks=pytest.mark.long)]
)
def test_a_driver_that_is_killed_at_random_moments_loses_nothing_and_repeats_nothing(
    media, repository, tmp_path, count, most
):
    rows, output = mixed(count), tmp_path / "out"
    source, generator, kills = write(media, rows), random.Random(28), 0
    while kills < most:
        before, start = len(list(output.glob("parts/[0-9]*"))), time.monotonic()
        driver = Driver(source, repository, output, "--chunk", "2")
        # At the beginning, while the model loads, and soon after one of the next chunks was kept.
        wanted = before + generator.choice((0, 1, 2, 3))
        while len(list(output.glob("parts/[0-9]*"))) < wanted and driver.process.poll() is None:
            assert time.monotonic() - start < 600
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.3))
        if driver.process.poll() is not None:
            break
        driver.process.kill()
        driver.process.communicate()
        kills += 1
        done = {path.name: path.stat().st_mtime_ns for path in output.glob("parts/[0-9]*/rows.parquet")}
        assert kills < most // 3 + 1 or done
    assert kills == most
    said = Driver(source, repository, output, "--chunk", "2").ends()
    assert "items are answered already" in said
    check(output, rows)


@pytest.mark.slow
def test_ctrl_c_leaves_a_valid_table(media, repository, tmp_path):
    rows, output = mixed(200), tmp_path / "out"
    driver = Driver(write(media, rows), repository, output, "--chunk", "4")
    while not list(output.glob("parts/[0-9]*")):
        assert driver.process.poll() is None
        time.sleep(0.05)
    driver.process.send_signal(signal.SIGINT)
    said = driver.ends()
    assert driver.process.returncode == 130 and "--resume goes on" in said
    found = rows_of(output)
    assert 0 < len(found) < 200 and {row["id"] for row in found} <= {row["id"] for row in rows}


PEAK = """
import sys
from dsr_toolkit.cli import main
status = main(sys.argv[1:])
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
sys.exit(status)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell the peak of memory")
@pytest.mark.parametrize(
    "most", [pytest.param(200, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.long)]
)
def test_the_memory_of_the_driver_does_not_grow_with_the_items(media, repository, tmp_path, most):
    peaks = {}
    for count in (10, most):
        rows = [{"id": str(i), "image": f"{i % 4}.png", "question": f"What is {i}?"} for i in range(count)]
        command = [
            "batch", "ask", write(media, rows), "-o", str(tmp_path / str(count)), "--model", str(repository),
            "--device", "cpu", "--set", "max_new_tokens=1",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *command], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        assert f"{count} items, 0 with an error" in done.stdout
        peaks[count] = int(done.stdout.split()[-1]) / 1024
    print(f"peak of the driver: {peaks[10]:.1f} MiB for 10 items, {peaks[most]:.1f} MiB for {most:,}")
    assert peaks[most] <= 1.05 * peaks[10] + 2
