"""What the benchmarks of `torch.compile` share: a path as people run it, as it is and compiled by inductor.

Rows: `time`, a call against the compiled one once it is compiled; `compile time`, the first compiled call against a
minute; `graphs`, pieces that the path falls into, one more than there are breaks, against what is allowed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from transformers import Cache

from benchmarks.full_models import relative
from benchmarks.harness import alternate, assert_agreement, row

MINUTE = 60.0


def rows(
    name: str, function: Callable, arguments: dict, output: Callable[[object], torch.Tensor], breaks: int, mode=None
) -> list[dict]:
    """
    Args:
        function, arguments: the path. output: what of its result must agree. breaks: how many are allowed.
        mode: of `torch.compile`.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(function, mode=mode)
    caches = [value for value in arguments.values() if isinstance(value, Cache)]

    def call(one):
        found = one(**arguments)
        for cache in caches:
            cache.crop(-1)  # the next call writes the same token again
        return found

    with torch.no_grad():
        expected = output(call(function)).clone()
        start = time.perf_counter()
        found = output(call(compiled)).clone()
        first = time.perf_counter() - start
        assert_agreement(found, expected, relative(expected, 1e-4))
        graphs = sum(torch._dynamo.utils.counters["graph_break"].values()) + 1
        call(compiled)  # a second graph, where the first call's sizes were taken for constants
        times = alternate(lambda: call(function), lambda: call(compiled))
    torch._dynamo.reset()
    return [
        row(name, "time", *times, None),
        row(name, "compile time", MINUTE, first, None),
        row(name, "graphs", breaks + 1, graphs, 1),
    ]


def decoding(model, inputs: dict) -> dict:
    """Arguments of `model.forward` for the second token behind a prompt, with a static cache."""
    from tests.modeling_dsr.graph_breaks import decoding_step

    arguments = decoding_step(model, inputs, cache_implementation="static")
    for value in arguments.values():
        if isinstance(value, Cache):
            value.crop(-1)  # the step was taken when it was looked at
    return arguments
