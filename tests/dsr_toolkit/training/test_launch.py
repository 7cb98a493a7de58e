"""Files for accelerate and torchrun: they are read as meant, and `dsr train` runs in two processes as in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from dsr_toolkit.training import launch_file, train
from tests.dsr_toolkit.training.test_recipes import losses, recipe

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name, kind", [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("zero3", "DEEPSPEED")])
def test_accelerate_reads_the_files(name, kind):
    config = load_config_from_file(str(launch_file(name)))
    assert config.distributed_type == kind
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
    if name == "zero3":
        assert config.deepspeed_config["zero_stage"] == 3


def test_units_of_sharding_are_classes_of_the_model():
    """FSDP2 wraps by `_no_split_modules`: each name must be a class that the model really has, or wrapping fails."""
    from tests.dsr_toolkit.training.models import CASES, build

    for name in CASES:
        model = build(name)
        classes = {type(module).__name__ for module in model.modules()}
        assert set(model._no_split_modules) & classes, name


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    small = recipe().changed({"max_steps": "3", "per_device_train_batch_size": "1", "gradient_accumulation_steps": "1"})
    alone = recipe().changed({"max_steps": "3", "per_device_train_batch_size": "2", "gradient_accumulation_steps": "1"})
    file = tmp_path / "toy.json"
    file.write_text(small.to_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "dsr_toolkit.cli", "train", "--recipe", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, "--output", str(tmp_path / "two")], check=True, cwd=ROOT, env=environment)
    train(alone, tmp_path / "one")
    for (_, found), (_, expected) in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    metrics = [json.loads((tmp_path / name / "train" / "metrics.json").read_text()) for name in ("two", "one")]
    assert metrics[0]["right"] == pytest.approx(metrics[1]["right"])
    assert (tmp_path / "two" / "model" / "README.md").is_file()
