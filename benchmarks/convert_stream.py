"""Converting a checkpoint larger than memory: peak of anonymous memory, and speed against a plain copy."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.harness import alternate, assert_agreement, peak_memory, row
from convert_weights import convert
from tests.convert_weights.upstream_layouts import QWEN_7B, Layout, dsr_layout, write_sparse_shards

NAME = "convert.stream"
SHARD = 5 * 10**9  # bytes
# The published layout with 32 instead of 28 layers: 20.2 GB of bfloat16.
BIG = {**QWEN_7B, "num_hidden_layers": 32}
# Three layers and fewer words: 4.8 GB, for the rounds of the timing.
TIMED = {**QWEN_7B, "num_hidden_layers": 3, "vocab_size": 160_000}
ALLOWED = 10**9  # bytes above the largest tensor
SPEED = 0.7  # of a plain copy


def run() -> list[dict]:
    with tempfile.TemporaryDirectory(prefix="convert-stream-") as folder:
        return [memory_row(Path(folder)), time_row(Path(folder))]


def memory_row(folder: Path) -> dict:
    """A sparse checkpoint of 20 GB; the result is not sparse."""
    layout = dsr_layout(BIG)
    size = write_sparse_shards(folder / "big", layout, SHARD)
    if shutil.disk_usage(folder).free < size + 10**9:
        raise OSError(f"{NAME} needs {size / 1e9:.0f} GB on the disk of {folder}; set TMPDIR to a larger one.")
    (folder / "big" / "config.json").write_text(json.dumps(BIG))
    peak = peak_memory("benchmarks.convert_stream:prepare", str(folder / "big"), str(folder / "converted"))
    shutil.rmtree(folder / "converted")
    largest = 2 * max(math.prod(shape) for shape in layout.values())
    return row(NAME, "memory", ALLOWED + largest, peak, 1.0)


def prepare(source: str, output: str):
    """For `peak_memory`: what a conversion imports is there before the measurement."""
    import modeling_dsr.modeling_dsr  # noqa: F401

    return functools.partial(convert, "dsr", {"dsr": source}, output, progress=False)


def time_row(folder: Path) -> dict:
    layout = dsr_layout(TIMED)
    write_random_shards(folder / "source", layout)
    (folder / "source" / "config.json").write_text(json.dumps(TIMED))

    def ours():
        shutil.rmtree(folder / "ours", ignore_errors=True)
        convert("dsr", {"dsr": folder / "source"}, folder / "ours", max_shard_size=SHARD, progress=False)

    def baseline():
        shutil.rmtree(folder / "copied", ignore_errors=True)
        copy_and_hash(folder / "source", folder / "copied")

    ours()
    baseline()
    for name, key in (
        ("model.language_model.layers.2.mlp.down_proj.weight", "model.layers.2.mlp.down_proj.weight"),
        ("model.geometry_selection.q_former_2.mlp.up_proj.weight", "visual.q_former_2.mlp.up_proj.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ):
        assert_agreement(read(folder / "ours", name)[:4096], read(folder / "copied", key)[:4096], 0.0)
    copied, converted = alternate(baseline, ours, rounds=3, warmup=0)
    return row(NAME, "time", copied, converted, SPEED)


def copy_and_hash(source: Path, target: Path) -> dict[str, str]:
    """The least that a careful download or move does: copy, bring to disk, sha256 of what was written."""
    target.mkdir()
    hashes = {}
    for path in sorted(source.iterdir()):
        shutil.copyfile(path, target / path.name)
        with open(target / path.name, "rb") as file:
            os.fsync(file.fileno())
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def write_random_shards(folder: Path, layout: Layout) -> None:
    """bfloat16 shards with an index. One block of random numbers is repeated: making 5 GB of them takes too long."""
    folder.mkdir()
    block = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    shards: list[Layout] = [{}]
    for key, shape in layout.items():
        if 2 * sum(map(math.prod, (*shards[-1].values(), shape))) > SHARD:
            shards.append({})
        shards[-1][key] = shape
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for key, shape in shard.items():
            count = math.prod(shape)
            tensors[key] = block.repeat(count // len(block) + 1)[:count].view(shape).clone()
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def read(folder: Path, key: str) -> torch.Tensor:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(folder / index[key], "pt") as file:
        return file.get_tensor(key)
