"""Attention with a bias per key against the same attention without one, at the tokens of four images of 518×518.

`time_vs_materialised` has for its baseline a mask for every head and pair of tokens, which is built and handed to the
same kernel (no target: plain attention by that kernel, without any bias, would be 1.84 times as fast, and compiled
flex attention is three times slower on a CPU); `time_vs_eager` the formula as it is written: logits, plus that mask,
softmax, times values. `time_widened` is the other way of the library, an additional channel, for kernels that take no
mask.
"""

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig

from benchmarks.harness import alternate, assert_agreement, device, peak_memory, row
from modeling_dsr.page4d_multiview_attention import key_biased_attention, widened_attention
from modeling_dsr.vision_blocks import VisionAttention

NAME = "mv.key_bias"
LENGTH, HEADS, HEAD_DIM = 5496, 16, 64
STRENGTH = 2.0


def make(implementation: str = "sdpa"):
    torch.manual_seed(0)
    config = PreTrainedConfig()
    config._attn_implementation = implementation
    attention = VisionAttention(config, HEADS * HEAD_DIM, HEADS)
    heads = torch.randn(3, 1, LENGTH, HEADS, HEAD_DIM).transpose(2, 3).to(device()).unbind(0)
    return attention, heads, STRENGTH * torch.rand(1, LENGTH).to(device())


def sides() -> dict:
    attention, heads, bias = make()

    def materialised():
        mask = bias[:, None, None, :].expand(1, HEADS, LENGTH, LENGTH).contiguous()
        return F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2)

    def eager():
        query, key, value = heads
        mask = bias[:, None, None, :].expand(1, HEADS, LENGTH, LENGTH).contiguous()
        logits = query @ key.transpose(-1, -2) * attention.scaling + mask
        return (logits.softmax(-1) @ value).transpose(1, 2)

    ones = bias.new_ones(1, 1, 1, 1)
    return {
        "plain": lambda: attention.attend(*heads),
        "ours": lambda: key_biased_attention(attention, *heads, bias),
        "widened": lambda: widened_attention(attention, *heads, ones, bias[:, None, :, None]),
        "materialised": materialised,
        "eager": eager,
    }


@torch.no_grad()
def prepare(side: str):
    attention, heads, bias = make()
    key_biased_attention(attention, *(x[:, :, :64] for x in heads), bias[:, :64])  # libraries make their threads
    calls = {
        "plain": lambda: attention.attend(*heads),
        "ours": lambda: key_biased_attention(attention, *heads, bias),
    }
    return torch.no_grad()(calls[side])


@torch.no_grad()
def run() -> list[dict]:
    calls = sides()
    for other in ("widened", "materialised", "eager"):
        assert_agreement(calls["ours"](), calls[other](), atol=1e-4)
    times = alternate(calls["plain"], calls["ours"])
    widened = alternate(calls["plain"], calls["widened"])
    materialised, eager = (alternate(calls[other], calls["ours"]) for other in ("materialised", "eager"))
    del calls
    memory = [peak_memory(f"{__name__}:prepare", side) for side in ("plain", "ours")]
    return [
        row(NAME, "time", *times, 1 / 1.15),
        row(NAME, "memory", *memory, 1 / 1.1),
        row(NAME, "time_vs_materialised", *materialised, None),
        row(NAME, "time_vs_eager", *eager, None),
        row(NAME, "time_widened", *widened, None),
    ]
