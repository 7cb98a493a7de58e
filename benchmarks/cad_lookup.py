"""CAD programs by transformers' prompt lookup, against one token after the other: greedy, one part at a time.

Both sides write the same tokens. The trained tiny models write their own programs; a wide model of random weights,
whose steps cost what weights cost to read, is told those of the world.
"""

import torch

from benchmarks.cad_models import KINDS, Told, tiny, wide_model, write
from benchmarks.harness import alternate, row

NAME = "cad.lookup"
TARGET = 1.2  # from which on it would be used without being asked for
LOOKUP = {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 2}
PARTS, SECONDS = 4, 25


def sides(model, prompts: list[dict], told: list[list] | None = None):
    """Both ways to write all programs, which are shown to be equal."""
    told = told or [[] for _ in prompts]

    def write_all(**settings) -> list[torch.Tensor]:
        return [write(model, inputs, logits_processor=one, **settings) for inputs, one in zip(prompts, told)]

    for plain, looked_up in zip(write_all(), write_all(**LOOKUP)):
        assert torch.equal(plain, looked_up), "prompt lookup changed a program"
    return write_all, lambda: write_all(**LOOKUP)


def run() -> list[dict]:
    rows = []
    for kind in KINDS:
        model, _, prompts = tiny(kind, PARTS)
        times = alternate(*sides(model, prompts), seconds=SECONDS)
        rows.append(row(NAME, f"time_{kind}", *times, TARGET))
        if kind == "cad_recode":
            programs = [write(model, inputs)[0].tolist() for inputs in prompts]
            wide = wide_model()
            wide.generation_config.eos_token_id = model.generation_config.eos_token_id
            wide.generation_config.pad_token_id = model.generation_config.pad_token_id
            told = [[Told(inputs["input_ids"].shape[1], tokens)] for inputs, tokens in zip(prompts, programs)]
            rows.append(row(NAME, "time_wide", *alternate(*sides(wide, prompts, told), seconds=SECONDS), TARGET))
    return rows
