"""Loading π³ at its published size: `from_pretrained` of the converted folder, against the published way.

Baseline: the published class is constructed, module by module with random numbers, then takes its safetensors file by
`load_state_dict` (`benchmarks/pi3_plain.py`, or the published class itself with `--original CLONE_OF_Pi3`). Files lie
in the page cache on both sides. `time with reading` goes on to read every weight once, as a first call would.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.full_models import fill, import_original
from benchmarks.full_pi3 import SMALL
from benchmarks.harness import alternate, assert_agreement, peak_memory, row
from benchmarks.pi3_plain import PlainPi3, published_weights
from convert_weights import convert
from modeling_dsr.configuration_pi3 import Pi3Config
from modeling_dsr.modeling_pi3 import Pi3Model

NAME = "full.load"
TARGETS = {"time": 3.0, "memory": 1.8}
SIZES = {
    "small": dict(
        config=SMALL, overrides={"encoder_config": {"num_attention_heads": 2}, "head_num_attention_heads": 2}
    ),
    "cpu": dict(config={}, overrides={}),
}


def construct(size: str, original: str | None) -> nn.Module:
    if original is not None:
        return import_original(original, "pi3.models.pi3", "Pi3")()
    return PlainPi3(Pi3Config(**SIZES[size]["config"]))


def make_files(folder: Path, size: str) -> None:
    """The published file with random weights, and the folder that our converter makes of it."""
    with torch.device("meta"):
        plain = PlainPi3(Pi3Config(**SIZES[size]["config"]))
    constants = dict(PlainPi3(Pi3Config(**SMALL)).named_buffers())  # mean and deviation of the colours, at any size
    plain = plain.to_empty(device="cpu")
    fill(plain)
    save_file({**plain.state_dict(), **constants}, folder / "model.safetensors")
    del plain
    overrides = SIZES[size]["overrides"]
    convert(
        "pi3", {"pi3": folder / "model.safetensors"}, folder / "converted", config_overrides=overrides, progress=False
    )


def load(side: str, folder: Path, size: str, original: str | None = None) -> nn.Module:
    if side == "ours":
        return Pi3Model.from_pretrained(folder / "converted")
    model = construct(size, original).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def read(model: nn.Module) -> float:
    """Touch every weight."""
    return sum(float(parameter.detach().sum()) for parameter in model.parameters())


def prepare(side: str, folder: str, size: str, original: str | None = None):
    """Loading and reading, in a process of its own; what they import is there before."""
    small = Pi3Config(**SMALL)
    PlainPi3(small), Pi3Model(small)
    if original is not None:
        import_original(original, "pi3.models.pi3", "Pi3")
    kept = []

    def call():
        kept.append(load(side, Path(folder), size, original))
        read(kept[0])

    return call


def run(size: str = "cpu", original: str | None = None) -> list[dict]:
    if original and size == "small":
        raise ValueError("the published class has one size; `--small` cannot be held against `--original`.")
    with tempfile.TemporaryDirectory(prefix="full-load-", dir=os.environ.get("TMPDIR")) as work:
        folder = Path(work)
        make_files(folder, size)
        expected, found = load("baseline", folder, size, original).state_dict(), load("ours", folder, size)
        found = published_weights(found)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert_agreement(found[name], tensor, 0.0)
        del expected, found
        sides = [lambda side=side: load(side, folder, size, original) for side in ("baseline", "ours")]
        times = alternate(*sides, warmup=0)
        reading = alternate(*(lambda side=side: read(side()) for side in sides), warmup=0)
        memory = [peak_memory(f"{__name__}:prepare", side, work, size, original) for side in ("baseline", "ours")]
    return [
        row(NAME, "time", *times, TARGETS["time"]),
        row(NAME, "time with reading", *reading, None),
        row(NAME, "memory", *memory, TARGETS["memory"]),
    ]
