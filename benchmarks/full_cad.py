"""CAD-Recode at its published size (1.54 billion parameters, random weights, bfloat16): decoding, batch 1 and 16.

Baseline: the published class as its notebook runs it, written here: a Qwen2 whose forward places the points by a
boolean assignment, makes logits of every position and widens them to float32, under transformers' `generate`. (Its
trick with -1 in the attention mask does not survive transformers 5, so the slots travel beside the mask.) Times are of
whole calls: prefill and `NEW_TOKENS` tokens.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import Qwen2ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from benchmarks.full_models import make_model
from benchmarks.harness import alternate, device, peak_memory, row
from modeling_dsr.configuration_cad_recode import CADRecodeConfig
from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM

NAME = "full.cad"
TARGETS = {"time": 0.98, "memory": 2.0}
IM_START = 151644
SMALL = dict(
    vocab_size=2000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, num_points=64, point_token_id=7, bos_token_id=3, eos_token_id=4,
)  # fmt: skip
SIZES = {
    "small": dict(config=SMALL, dtype="float32", new_tokens=16, batches=(1, 4)),
    "cpu": dict(config={}, dtype="bfloat16", new_tokens=24, batches=(1, 16)),
    "gpu": dict(config={}, dtype="bfloat16", new_tokens=128, batches=(1, 16, 64)),
}


class PlainCADRecode(Qwen2ForCausalLM):
    """The published class."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("frequencies", 2.0 ** torch.arange(config.num_freqs).float(), persistent=False)
        self.projection = nn.Linear(3 * (2 * config.num_freqs + 1), config.hidden_size)

    def forward(self, input_ids=None, attention_mask=None, point_cloud=None, slots=None, logits_to_keep=None, **kwargs):
        inputs_embeds = None
        if input_ids.shape == slots.shape:  # nothing is cached yet
            inputs_embeds = self.model.embed_tokens(input_ids)
            angles = (point_cloud.unsqueeze(-1) * self.frequencies).flatten(-2)
            features = torch.cat([point_cloud, angles.sin(), angles.cos()], -1)
            points = self.projection(features).to(inputs_embeds.dtype)
            inputs_embeds[slots] = points.reshape(-1, points.shape[2])
            input_ids = None
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs)
        return CausalLMOutputWithPast(logits=self.lm_head(outputs[0]).float(), past_key_values=outputs.past_key_values)

    def prepare_inputs_for_generation(self, *args, **kwargs):
        model_inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return model_inputs | {"point_cloud": kwargs["point_cloud"], "slots": kwargs["slots"]}


def build(size: str):
    """Our model and the published one on the same weights."""
    config = CADRecodeConfig(**SIZES[size]["config"])
    model = make_model(CADRecodeForCausalLM, config, getattr(torch, SIZES[size]["dtype"]))
    model.model.point_encoder.float()
    with torch.device("meta"):
        plain = PlainCADRecode(config)
    own = "model.point_encoder."
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(own)}
    weights |= {name: model.get_parameter(own + name) for name in ("projection.weight", "projection.bias")}
    plain.load_state_dict(weights, assign=True)
    plain.frequencies = (2.0 ** torch.arange(config.num_freqs).float()).to(device())
    plain.model.rotary_emb = model.model.rotary_emb
    return model, plain.eval()


def sides(size: str, batch: int) -> tuple:
    """The calls of both sides, which return the tokens that they wrote `[batch, new_tokens]`."""
    model, plain = build(size)
    points, start = model.config.num_points, min(IM_START, model.config.vocab_size - 1)
    cloud = torch.rand(batch, points, 3, generator=torch.Generator().manual_seed(1)).to(device()) * 2 - 1
    ids = torch.full((batch, points + 1), model.config.point_token_id, device=device())
    ids[:, -1] = start
    common = dict(
        input_ids=ids, attention_mask=torch.ones_like(ids), point_cloud=cloud, do_sample=False, eos_token_id=None,
        max_new_tokens=SIZES[size]["new_tokens"], pad_token_id=model.config.point_token_id,
    )  # fmt: skip
    slots = torch.ones_like(ids, dtype=torch.bool)
    slots[:, -1] = False

    @torch.no_grad()
    def published():
        return plain.generate(**common, slots=slots)[:, points + 1 :]

    return published, lambda: model.generate(**common)[:, points + 1 :]


def prepare(side: str, size: str, batch: int):
    """The call to measure, in a process of its own."""
    return sides(size, batch)[side == "ours"]


def run(size: str = "cpu") -> list[dict]:
    rows = []
    for batch in SIZES[size]["batches"]:
        baseline, ours = sides(size, batch)
        # Random weights in bfloat16 have near ties, which a batch's rounding may turn: the first tokens must agree.
        agreed = (baseline() == ours()).float().mean().item()
        assert agreed == 1 if size == "small" else agreed > 0.5, f"only {agreed:.0%} of the tokens agree"
        times = alternate(baseline, ours, warmup=0)
        tokens = batch * SIZES[size]["new_tokens"]
        print(f"batch {batch}: {tokens / times[0]:.2f} and {tokens / times[1]:.2f} tokens per second", flush=True)
        rows.append(row(NAME, f"time, batch {batch}", *times, TARGETS["time"]))
        del baseline, ours
    memory = [peak_memory(f"{__name__}:prepare", side, size, batch) for side in ("baseline", "ours")]
    return [*rows, row(NAME, f"memory, batch {batch}", *memory, TARGETS["memory"])]
