"""bfloat16 on this machine's processor: every model's time and error against float32, by weights and by autocast.

Models and inputs are tiny: the trained models that are carried where there is one, random weights otherwise; two
samples in a batch. Errors are shares of the largest value. Of a model with bfloat16 weights, modules that stay float32
(heads, point encoders, SAM) are timed within the call: they may take a tenth of it.
"""

from __future__ import annotations

import time

import torch
from torch import nn
from transformers import AutoProcessor

from benchmarks.harness import alternate, row
from dsr_toolkit.tiny import hub_folder, shipped
from dsr_toolkit.training.run import auto_class, make_model

NAME = "bf16.weights"
OUTPUTS = {
    "dsr": ("geometry_tokens", "logits"),
    "pi3": ("local_points", "camera_poses", "conf"),
    "page4d": ("pose_enc", "depth", "world_points"),
    "frozen_qwen_sam": ("text_embeds",),
    "cadrille": ("logits",),
    "cad_recode": ("logits",),
    "scene_qformer": ("scene_tokens", "logits"),
}
SHARE = 0.1
ROUNDS = 5


def folder_of(kind: str) -> str:
    return str(shipped.FOLDER / kind if kind in shipped.shipped() else hub_folder(kind))


def outputs_of(kind: str, model, batch) -> dict[str, torch.Tensor]:
    found = model(**batch)
    if kind == "frozen_qwen_sam":
        return {"text_embeds": torch.cat([phrase for image in found.text_embeds for phrase in image])}
    return {name: found[name] for name in OUTPUTS[kind] if found.get(name) is not None}


def error(found: dict, expected: dict) -> float:
    """The largest difference over all outputs, each as a share of its largest value."""
    return max(
        float((found[name].float() - value.float()).abs().max() / value.float().abs().max().clamp_min(1e-6))
        for name, value in expected.items()
    )


class FloatModules:
    """Times the outermost modules whose parameters are all float32 and that hold some."""

    def __init__(self, model: nn.Module):
        self.seconds, self.hooks = 0.0, []
        inside: set[str] = set()
        for name, module in model.named_modules():
            dtypes = {parameter.dtype for parameter in module.parameters()}
            if dtypes == {torch.float32} and not any(name.startswith(f"{outer}.") for outer in inside):
                inside.add(name)
                self.hooks += [module.register_forward_pre_hook(self.begin), module.register_forward_hook(self.end)]

    def begin(self, *_) -> None:
        self.start = time.perf_counter()

    def end(self, *_) -> None:
        self.seconds += time.perf_counter() - self.start

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def share_of_float(model: nn.Module, call) -> tuple[float, float]:
    """Seconds of a call, and of modules that stay float32 within it."""
    timer = FloatModules(model)
    call()
    timer.seconds, start = 0.0, time.perf_counter()
    for _ in range(3):
        call()
    whole = time.perf_counter() - start
    timer.remove()
    return whole, timer.seconds


@torch.no_grad()
def of_kind(kind: str) -> list[dict]:
    from tests.modeling_dsr.test_training_collators import rows_of

    folder = folder_of(kind)
    whole, _ = make_model({"path": folder, "dtype": "float32"}, {})
    half = auto_class(whole.config).from_pretrained(folder, dtype=torch.bfloat16).eval()
    rows = [{**one, "seed": 0} for one in rows_of(kind)]
    batch = AutoProcessor.from_pretrained(folder).training_collator()(rows)
    whole.eval()
    plain = lambda: outputs_of(kind, whole, batch)  # noqa: E731
    halved = lambda: outputs_of(kind, half, batch)  # noqa: E731

    def cast():
        with torch.autocast("cpu", torch.bfloat16):
            return outputs_of(kind, whole, batch)

    expected = plain()
    weights, autocast = error(halved(), expected), error(cast(), expected)
    found = [
        row(NAME, f"time, {kind}, bf16 weights", *alternate(plain, halved, ROUNDS), None),
        row(NAME, f"time, {kind}, autocast", *alternate(plain, cast, ROUNDS), None),
        row(NAME, f"error, {kind}, autocast and bf16 weights", autocast, weights or 1e-9, None),
    ]
    call, kept = share_of_float(half, halved)
    if kept:
        found.append(row(NAME, f"time, {kind}, a tenth and what stays float", SHARE * call, kept, 1))
    return found


def run() -> list[dict]:
    return [line for kind in OUTPUTS for line in of_kind(kind)]
