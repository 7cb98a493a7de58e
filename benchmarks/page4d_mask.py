"""Attention under PAGE-4D's mask against the same attention without a mask, at the tokens of four frames of 518×518."""

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig

from benchmarks.harness import alternate, assert_agreement, row
from modeling_dsr.page4d_heads import SpecialQueryAttention

NAME = "page4d.mask"
TARGET = 1 / 1.1
FRAMES, TOKENS, SPECIAL, HEADS, HEAD_DIM = 4, 1374, 5, 16, 64


def run() -> list[dict]:
    torch.manual_seed(0)
    config = PreTrainedConfig()
    config._attn_implementation = "sdpa"
    attention = SpecialQueryAttention(config, HEADS * HEAD_DIM, HEADS, SPECIAL)
    query, key, value = torch.randn(3, 1, HEADS, FRAMES * TOKENS, HEAD_DIM).unbind(0)
    bias = F.pad(8 * torch.randn(1, FRAMES, TOKENS - SPECIAL), (SPECIAL, 0))
    with torch.no_grad():
        found = attention.attend_biased(query, key, value, bias)
        special = (torch.arange(FRAMES * TOKENS) % TOKENS < SPECIAL).float()
        dense = special[:, None] * bias.view(1, -1)
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=dense[None, None]).transpose(1, 2)
        assert_agreement(found, expected, atol=1e-4)
        plain = lambda: attention.attend(query, key, value)  # noqa: E731
        masked = lambda: attention.attend_biased(query, key, value, bias)  # noqa: E731
        return [row(NAME, "time", *alternate(plain, masked), TARGET)]
