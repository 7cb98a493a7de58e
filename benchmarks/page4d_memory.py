"""Peak memory of PAGE-4D's forward over 32 frames, against the plain way of `page4d_plain`."""

import torch

from benchmarks import page4d_plain
from benchmarks.harness import assert_agreement, peak_memory, row

NAME = "page4d.memory"
TARGET = 3.0  # a third of the baseline
MASK = 1.0


def run() -> list[dict]:
    model, images = page4d_plain.measured_model(frames=10)
    with torch.no_grad():
        expected, found = page4d_plain.forward(model, images, MASK), model(images, mask_alpha=MASK)
    for name, values in expected.items():
        assert_agreement(found[name], values, atol=2e-3 * float(values.abs().max().clamp_min(1)))
    del model, images, expected, found
    baseline, ours = (peak_memory("benchmarks.page4d_memory:prepare", side) for side in ("baseline", "ours"))
    return [row(NAME, "memory", baseline, ours, TARGET)]


def prepare(side: str):
    """The call to measure, in a process of its own."""
    model, images = page4d_plain.measured_model()
    call = (
        (lambda: page4d_plain.forward(model, images, MASK))
        if side == "baseline"
        else (lambda: model(images, mask_alpha=MASK))
    )

    def measured():
        with torch.no_grad():
            return call()

    return measured
