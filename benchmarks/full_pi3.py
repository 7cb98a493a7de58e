"""π³ at its published size (958,697,762 parameters, random weights) on three frames: time and peak memory of a call.

Baseline: `benchmarks/pi3_plain.py` on the same weights, or the published class with `--original CLONE_OF_Pi3`.
Never slower than it by more than 2 %, in half of its memory above the weights.
"""

from __future__ import annotations

import torch
from transformers.initialization import no_init_weights

from benchmarks.full_models import autocast, import_original, make_model, relative
from benchmarks.harness import alternate, assert_agreement, device, peak_memory, row
from benchmarks.pi3_plain import plain_model, published_weights
from modeling_dsr.configuration_pi3 import Pi3Config
from modeling_dsr.modeling_pi3 import Pi3Model

NAME = "full.pi3"
TARGETS = {"time": 0.98, "memory": 2.0}
SMALL = dict(
    encoder_config=dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=84),
    num_decoder_layers=4,
    num_attention_heads=2,
    head_hidden_size=64,
    head_num_attention_heads=2,
    head_num_layers=1,
    point_dim=64,
    camera_dim=32,
)
SIZES = {
    "small": dict(config=SMALL, frames=9, height=112, width=112),
    "cpu": dict(config={}, frames=3, height=224, width=224),
    "gpu": dict(config={}, frames=48, height=392, width=518),
}
AGREEMENT = {"small": 1e-4, "cpu": 1e-3, "gpu": 5e-2}  # of the largest value; bfloat16 on a GPU


def build(size: str, original: str | None = None):
    """Our model, the baseline on the same weights, and images."""
    model = make_model(Pi3Model, Pi3Config(**SIZES[size]["config"]))
    if original is None:
        return model, plain_model(model), images(size)
    with no_init_weights():
        baseline = import_original(original, "pi3.models.pi3", "Pi3")()
    baseline.load_state_dict(published_weights(model), assign=True)
    return model, baseline.to(device()).eval(), images(size)


def images(size: str) -> torch.Tensor:
    shape = (1, SIZES[size]["frames"], 3, SIZES[size]["height"], SIZES[size]["width"])
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(device())


def prepare(side: str, size: str, original: str | None = None):
    """The call to measure, in a process of its own."""
    model, baseline, pixels = build(size, original)
    chosen = model if side == "ours" else baseline
    del model, baseline

    @torch.no_grad()
    def call(pixels=pixels):
        with autocast(size):
            return chosen(pixels)

    call(pixels[:, :1, :, :28, :28])  # libraries make their threads and work spaces in the first call
    return call


def timing(size: str, original: str | None) -> tuple:
    model, baseline, pixels = build(size, original)
    with torch.no_grad(), autocast(size):
        expected, found = baseline(pixels), model(pixels)
        for name, values in expected.items():
            assert_agreement(found[name], values, relative(values, AGREEMENT[size]))
        del expected, found
        return alternate(lambda: baseline(pixels), lambda: model(pixels), warmup=0)


def run(size: str = "cpu", original: str | None = None) -> list[dict]:
    if original and size == "small":
        raise ValueError("the published class has one size; `--small` cannot be held against `--original`.")
    times = timing(size, original)
    memory = [peak_memory(f"{__name__}:prepare", side, size, original) for side in ("baseline", "ours")]
    return [row(NAME, "time", *times, TARGETS["time"]), row(NAME, "memory", *memory, TARGETS["memory"])]
