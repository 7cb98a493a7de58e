"""One decoding step of DSR against the plain Qwen2.5-VL of the same size, after a prompt of the same length.

Baseline: transformers' Qwen2_5_VLForConditionalGeneration; its prompt has text where DSR's has geometry tokens.
"""

import statistics
import time

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.generation import StoppingCriteria

from benchmarks.dsr_models import TOKEN_IDS, prompt, small_model, video
from benchmarks.harness import alternate, assert_agreement, row

NAME = "dsr.decode"
GRID = (4, 8, 12)
STEPS, ROUNDS = 48, 9


class Clock(StoppingCriteria):
    """Notes when each token is done."""

    def __init__(self):
        self.times = []

    def __call__(self, input_ids, scores, **kwargs):
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def steps_of(model, inputs) -> list[float]:
    """Seconds of each step after the first token."""
    clock = Clock()
    model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0, stopping_criteria=[clock]
    )
    return [after - before for before, after in zip(clock.times, clock.times[1:])]


def run() -> list[dict]:
    ours = small_model()
    config = ours.config
    ids = {name: value for name, value in TOKEN_IDS.items() if name in ("image_token_id", "video_token_id")}
    ids |= {name: TOKEN_IDS[name] for name in ("vision_start_token_id", "vision_end_token_id")}
    plain_config = Qwen2_5_VLConfig(
        text_config=config.text_config.to_dict(), vision_config=config.vision_config.to_dict(), **ids
    )
    plain = Qwen2_5_VLForConditionalGeneration(plain_config).eval()
    shared = plain.state_dict().keys()
    plain.load_state_dict({name: tensor for name, tensor in ours.state_dict().items() if name in shared})

    text = prompt((0, 0, 0), words=40, geometry_tokens=0)
    with torch.no_grad():
        assert_agreement(ours(**text).logits, plain(**text).logits, 1e-4)

    clip, words, queries = video(GRID), 40, config.num_geometry_tokens
    our_inputs = {**prompt(GRID, words, queries), **clip}
    plain_inputs = {**prompt(GRID, words + queries, 0), **clip}
    plain_inputs["mm_token_type_ids"] = (plain_inputs["input_ids"] == config.video_token_id).int() * 2
    assert plain_inputs["input_ids"].shape == our_inputs["input_ids"].shape
    sides = {plain: plain_inputs, ours: our_inputs}
    calls = [lambda model=model: steps_of(model, sides[model]) for model in (plain, ours)]
    times = alternate(*calls, rounds=ROUNDS, measure=lambda call: statistics.median(call()))
    return [row(NAME, "time", *times, target=0.97)]
