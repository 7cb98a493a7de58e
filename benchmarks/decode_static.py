"""Writing with a cache of fixed size against one that grows: DSR and Cadrille, token by token, nothing compiled.

A fixed cache is what compiled decoding needs (`compile.dsr_decode`); by itself it saves copies of what grows and reads
room that is not filled yet. Both sides write the same tokens.
"""

from __future__ import annotations

import statistics

import torch

from benchmarks.cad_models import tiny
from benchmarks.dsr_decode import GRID, steps_of
from benchmarks.dsr_models import prompt, small_model, video
from benchmarks.harness import alternate, row

NAME = "decode.static"
ROUNDS = 9
STATIC = {"cache_implementation": "static", "disable_compile": True}


def dsr() -> tuple:
    """A small model with random weights and a question about a video."""
    model = small_model()
    return model, {**prompt(GRID, 40, model.config.num_geometry_tokens), **video(GRID)}


def cadrille() -> tuple:
    """The trained tiny model and the points of a part."""
    model, _, (inputs,) = tiny("cadrille", 1)
    return model, inputs


def run() -> list[dict]:
    rows = []
    for name, build in (("dsr", dsr), ("cadrille", cadrille)):
        model, inputs = build()
        fixed = {**inputs, **STATIC}
        written = [model.generate(**given, max_new_tokens=16, do_sample=False) for given in (inputs, fixed)]
        assert torch.equal(*written), "the two caches give different tokens"
        calls = [lambda given=given: steps_of(model, given) for given in (inputs, fixed)]
        times = alternate(*calls, rounds=ROUNDS, measure=lambda call: statistics.median(call()))
        rows.append(row(NAME, f"time of a token, {name}", *times, None))
    return rows
