"""Streams: every row once, whatever the number of processes and workers; and a stage that trains on one."""

import pytest
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from dsr_toolkit.datasets.streaming import stream
from dsr_toolkit.training import Recipe, Stage, train

ROWS = [{"number": number, "seed": 1} for number in range(37)]


def take(rows: list[dict]) -> list[int]:
    return [row["number"] for row in rows]


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_share_the_rows_out(workers):
    """As Trainer prepares a data loader in two processes."""
    seen = []
    for process in range(2):
        loader = DataLoader(stream(ROWS, shards=8), batch_size=4, collate_fn=take, num_workers=workers)
        loader = prepare_data_loader(
            loader, num_processes=2, process_index=process, put_on_device=False, dispatch_batches=False
        )
        seen.append([number for batch in loader for number in batch])
    assert sorted(seen[0] + seen[1]) == list(range(37))
    assert abs(len(seen[0]) - len(seen[1])) <= 5


def test_a_stream_is_shuffled_anew_each_epoch_and_has_no_seed():
    rows = stream(ROWS, shards=4).shuffle(seed=0, buffer_size=10)
    first = list(rows)
    rows.set_epoch(1)
    second = list(rows)
    assert take(first) != take(second) and sorted(take(first)) == sorted(take(second)) == list(range(37))
    assert all(set(row) == {"number"} for row in first)


def test_streams_of_nothing_are_refused():
    with pytest.raises(ValueError, match="holds no row"):
        stream([])


def test_a_stage_trains_on_a_stream(tmp_path):
    toys = "tests.dsr_toolkit.training.toys"
    stage = Stage(
        model={"build": f"{toys}:build"},
        data={"rows": f"{toys}:rows", "seed": 1, "count": 6, "stream": True},
        collator=f"{toys}:seedless_collator",
        arguments={"max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1, "use_cpu": True},
    )
    done = train(Recipe("toys/stream", "Planes, one after another.", [stage]), tmp_path / "out")
    assert (done.model / "model.safetensors").is_file()
    assert len((tmp_path / "out" / "train" / "log.jsonl").read_text().splitlines()) >= 3
    with pytest.raises(ValueError, match="are a stream, so `max_steps`"):
        train(Recipe("toys/stream", "", [stage]).changed({"max_steps": "-1"}), tmp_path / "again")
