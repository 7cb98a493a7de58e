"""What benchmarks of written CAD programs share: trained tiny models with parts to read, a wide one that is told."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

from dsr_toolkit.evaluation.world_cad import model_inputs
from dsr_toolkit.loading import load
from dsr_toolkit.tiny import shipped
from dsr_toolkit.worlds import make_world
from modeling_dsr.configuration_cad_recode import CADRecodeConfig
from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM

SEED = 20261201  # of parts that no tiny model was trained on
LONGEST = 192
KINDS = ("cad_recode", "cadrille")


def parts(count: int) -> list:
    world = make_world("parts", seed=SEED)
    return [world[number] for number in range(count)]


def tiny(kind: str, count: int, together: bool = False):
    """A trained tiny model, its processor, and its inputs of the first `count` parts: one by one, or as a batch."""
    model, processor = load(str(shipped.FOLDER / kind), kind)
    groups = [parts(count)] if together else [[part] for part in parts(count)]
    return model, processor, [dict(model_inputs(processor, group, "points")) for group in groups]


def write(model, inputs: dict, **settings) -> torch.Tensor:
    """The tokens `[B, n]` that a greedy `generate` adds to a prompt."""
    settings = {"max_new_tokens": LONGEST, "do_sample": False, **settings}
    return model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]


class Told(LogitsProcessor):
    """
    Makes a model of random weights write a given program: its cost is the model's, its text a program's.

    No token is forbidden (prompt lookup would see that and guess nothing else); the wanted one only wins.
    """

    def __init__(self, prompt: int, tokens: list[int]):
        self.prompt, self.tokens = prompt, tokens

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        wanted = self.tokens[min(input_ids.shape[1] - self.prompt, len(self.tokens) - 1)]
        scores = scores.clone()
        scores[:, wanted] += 1e4
        return scores


def wide_model() -> CADRecodeForCausalLM:
    """Random weights of a width at which a step costs what its weights cost to read: 130 million parameters."""
    config = CADRecodeConfig(
        vocab_size=768, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=2, num_points=128, point_token_id=395,
    )  # fmt: skip
    torch.manual_seed(0)
    return CADRecodeForCausalLM(config).eval()
