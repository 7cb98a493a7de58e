"""Attention with a bias per key against the same attention without one, at the tokens of four images of 518×518.

`time_vs_materialised` has for its baseline what a bias usually becomes: a mask for every pair of tokens, which is built and
added.
"""

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig

from benchmarks.harness import alternate, assert_agreement, device, peak_memory, row
from modeling_dsr.multiview_attention import key_biased_attention
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

    return {
        "plain": lambda: attention.attend(*heads),
        "ours": lambda: key_biased_attention(attention, *heads, bias),
        "materialised": materialised,
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
    assert_agreement(calls["ours"](), calls["materialised"](), atol=1e-4)
    times = alternate(calls["plain"], calls["ours"])
    materialised = alternate(calls["materialised"], calls["ours"])
    del calls
    memory = [peak_memory(f"{__name__}:prepare", side) for side in ("plain", "ours")]
    return [
        row(NAME, "time", *times, 1 / 1.15),
        row(NAME, "memory", *memory, 1 / 1.1),
        row(NAME, "time_vs_materialised", *materialised, 2),
    ]
