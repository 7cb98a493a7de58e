"""How often torch.compile leaves the graph in a call, and a decoding step to ask that of."""

from collections.abc import Callable

import torch
from torch._dynamo.utils import counters


def graph_breaks(function: Callable, *args, **kwargs) -> list[str]:
    """Why and where `torch.compile(function)` would leave the graph, also where no graph had begun."""
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        torch._dynamo.explain(function)(*args, **kwargs)
    return list(counters["graph_break"])


def decoding_step(model, inputs: dict, **settings) -> dict:
    """What `generate` gives the model for the second token behind a prompt, with a cache that has room for more."""
    seen: list[dict] = []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **settings}
    try:
        model.generate(
            **inputs,
            **settings,
            disable_compile=True,
            stopping_criteria=[lambda ids, scores, **kwargs: torch.full((len(ids),), len(seen) == 2)],
        )
    finally:
        hook.remove()
    return seen[-1]
