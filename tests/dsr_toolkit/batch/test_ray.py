"""`dsr batch --engine ray`: the same answers from actors, which may be killed. Ray is started once, on two CPUs."""

import importlib
import json
import os
import signal
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from dsr_toolkit.batch.run import Batch, run_batch
from dsr_toolkit.batch.store import Store
from tests import ray_cluster
from tests.dsr_toolkit.batch.test_batch import QUICK, check, mixed, rows_of
from tests.hub import samples

pytestmark = pytest.mark.slow
for library in ("ray", "psutil"):
    pytest.importorskip(library, reason="needs the extras [scale] and [test]")
psutil = importlib.import_module("psutil")


@pytest.fixture(scope="module")
def ray():
    ray = ray_cluster.start()
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "a.mp4").write_bytes(samples.video())
    (folder / "cut.mp4").write_bytes(samples.video()[:2000])
    for seed in range(4):
        (folder / f"{seed}.png").write_bytes(samples.picture(seed))
    return folder


def batch_of(media: Path, rows: list[dict], repository, output, **options) -> Batch:
    source = media / f"{Path(output).name}.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    return Batch("ask", str(source), output, model=str(repository), parameters=QUICK, device="cpu", **options)


def actors() -> list:
    """Processes of workers, of this Ray alone."""
    found = []
    for one in psutil.Process().children(recursive=True):
        try:
            if any("MapWorker" in part for part in one.cmdline()):
                found.append(one)
        except psutil.Error:
            continue
    return found


def test_two_actors_answer_mixed_items_as_one_process_does(ray, media, repository, tmp_path):
    rows = mixed(60)
    run_batch(batch_of(media, rows, repository, tmp_path / "local"))
    run_batch(batch_of(media, rows, repository, tmp_path / "ray", engine="ray", workers=2))
    check(tmp_path / "ray", rows)
    assert rows_of(tmp_path / "ray") == rows_of(tmp_path / "local"), "ids, answers, errors"


def test_a_killed_actor_is_started_again_and_its_items_are_tried_again(ray, media, repository, tmp_path, monkeypatch):
    rows, killed, commit = mixed(60), [], Store.commit

    def killing(store, finished):
        commit(store, finished)
        if len(killed) < 2 and (there := actors()):
            killed.append(there[0].pid)
            os.kill(killed[-1], signal.SIGKILL)

    monkeypatch.setattr(Store, "commit", killing)
    report = run_batch(batch_of(media, rows, repository, tmp_path / "out", chunk_size=4, engine="ray", workers=2))
    assert len(killed) == 2 and report["done"] == 60
    check(tmp_path / "out", rows)


def test_files_come_back_from_actors(ray, media, repository, tmp_path):
    source = media / "masks.jsonl"
    source.write_text(json.dumps({"id": "1", "image": "1.png", "phrases": ["a wall", "a door"]}))
    run_batch(Batch("segment", str(source), tmp_path / "out", model=str(repository), device="cpu", engine="ray"))
    (row,) = parquet.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert [(tmp_path / "out" / row["folder"] / name).read_bytes()[1:4] for name in row["files"]] == [b"PNG"] * 2


def test_wrong_settings_and_a_cluster_that_is_too_small_are_told(ray, media, repository, tmp_path):
    batch = batch_of(media, mixed(40), repository, tmp_path / "out", engine="ray", workers=3)
    with pytest.raises(ValueError, match="3 workers want 3 CPUs"):
        run_batch(batch)
    assert not (tmp_path / "out").exists()
    batch.workers, batch.parameters = 1, {"atoms": 3}
    with pytest.raises(ValueError, match="unknown fields"):
        run_batch(batch)
    assert not (tmp_path / "out").exists()
