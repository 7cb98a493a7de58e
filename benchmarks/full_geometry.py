"""
What `full.pi3` and `full.page4d` have in common: both sides are equal, then timed in turn, then each one's memory is
measured.

A benchmark's module has `build(size, original)`: our call, the baseline's on the same weights, and images.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch

from benchmarks.full_models import autocast, relative
from benchmarks.harness import alternate, assert_agreement, device, peak_memory, row


def images(sizes: dict) -> torch.Tensor:
    shape = (1, sizes["frames"], 3, sizes["height"], sizes["width"])
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(device())


def prepare(module: str, side: str, size: str, original: str | None = None):
    """The call to measure, in a process of its own."""
    ours, baseline, pixels = importlib.import_module(module).build(size, original)
    chosen = ours if side == "ours" else baseline
    del ours, baseline

    @torch.no_grad()
    def call(pixels=pixels):
        with autocast(size):
            return chosen(pixels)

    call(pixels[:, :1, :, :28, :28])  # libraries make their threads and work spaces in the first call
    return call


def timing(module: str, tolerance: float, outputs: Sequence[str], size: str, original: str | None) -> tuple:
    ours, baseline, pixels = importlib.import_module(module).build(size, original)
    with torch.no_grad(), autocast(size):
        expected, found = baseline(pixels), ours(pixels)
        for output in outputs:
            assert_agreement(found[output], expected[output], relative(expected[output], tolerance))
        del expected, found
        return alternate(lambda: baseline(pixels), lambda: ours(pixels), warmup=0)


def run(
    module: str, name: str, targets: dict, tolerance: float, outputs: Sequence[str], size: str, original: str | None
) -> list[dict]:
    """
    The rows of a benchmark.

    Args:
        module, name, targets: of the benchmark. outputs: names of what must agree, to `tolerance` of the largest value.
        size, original: see `python -m benchmarks --help`.
    """
    if original and size == "small":
        raise ValueError("the published class has one size; `--small` cannot be held against `--original`.")
    times = timing(module, tolerance, outputs, size, original)
    memory = [peak_memory(f"{__name__}:prepare", module, side, size, original) for side in ("baseline", "ours")]
    return [row(name, "time", *times, targets["time"]), row(name, "memory", *memory, targets["memory"])]
