"""
Four batches of one are one batch of four, and two processes are one: same logged loss, same step, for every model.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.dsr_toolkit.training.models import CASES
from tests.dsr_toolkit.training.step import step

ROOT = Path(__file__).parents[3]


def assert_same_step(found: dict, expected: dict) -> None:
    """Equal to 1e-4 of the largest step."""
    scale = max(value.abs().max().item() for value in expected.values())
    assert scale > 0
    worst = max((found[name] - value).abs().max().item() for name, value in expected.items())
    assert worst < 1e-4 * scale


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """{name: loss and step of the four samples in one batch}"""
    made = {}

    def of(name):
        if name not in made:
            made[name] = step(name, tmp_path_factory.mktemp("one"), batch=4)
        return made[name]

    return of


@pytest.mark.parametrize("name", CASES)
def test_accumulation_equals_batch(name, together, tmp_path):
    loss, moved = together(name)
    found, accumulated = step(name, tmp_path, batch=1, accumulation=4)
    assert found == pytest.approx(loss, rel=1e-4)
    assert_same_step(accumulated, moved)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory) -> Path:
    """Losses and steps of two processes, without and with gradient checkpointing: folders `plain`, `checkpointing`."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.dsr_toolkit.training.step", str(folder), *CASES]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", ["plain", "checkpointing"])
def test_two_processes_equal_one(way, by_two, together):
    """Also with gradient checkpointing, under which DDP averages nothing that comes after a parameter that no loss
    reaches: one process has points, the other views; one has videos, the other text."""
    losses = json.loads((by_two / way / "losses.json").read_text())
    wrong = {}
    for name in CASES:
        loss, moved = together(name)
        assert losses[name] == pytest.approx(loss, rel=1e-4), name
        found = torch.load(by_two / way / f"{name}.pt")
        scale = max(value.abs().max().item() for value in moved.values())
        off = {key: (found[key] - value).abs().max().item() for key, value in moved.items()}
        off = {key: value for key, value in off.items() if value > 1e-4 * scale}
        if off:
            wrong[name] = (len(off), len(moved), max(off, key=off.get), max(off.values()), scale)
    assert wrong == {}


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_autocast_stays_near_float32(name, together, tmp_path):
    loss, _ = together(name)
    found, moved = step(name, tmp_path, batch=4, bf16=True)
    assert found == pytest.approx(loss, rel=0.05)
    assert all(value.isfinite().all() for value in moved.values())
