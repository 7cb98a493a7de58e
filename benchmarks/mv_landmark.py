"""Landmark attention over eight images of 518×518, 64 landmarks each, against dense attention. The limit is 10.7."""

import torch
from transformers import PreTrainedConfig

from benchmarks.harness import alternate, assert_agreement, device, row
from modeling_dsr.page4d_multiview_attention import hub_attention, landmarks
from modeling_dsr.vision_blocks import VisionAttention

NAME = "mv.landmark"
TARGET = 7
IMAGES, TOKENS, LANDMARKS, HEADS, HEAD_DIM = 8, 1374, 64, 16, 64


@torch.no_grad()
def run() -> list[dict]:
    torch.manual_seed(0)
    config = PreTrainedConfig()
    config._attn_implementation = "sdpa"
    attention = VisionAttention(config, HEADS * HEAD_DIM, HEADS)
    heads = torch.randn(3, 1, IMAGES * TOKENS, HEADS, HEAD_DIM).transpose(2, 3).to(device()).unbind(0)
    tokens = torch.randn(1, IMAGES, TOKENS, HEADS * HEAD_DIM, device=device())

    def sparse(k: int):
        # Choosing them is part of it.
        return hub_attention(attention, *heads, landmarks(tokens.norm(dim=-1), k))

    few = [x[:, :, : 2 * TOKENS] for x in heads]
    every = landmarks(tokens[:, :2].norm(dim=-1), TOKENS)
    assert_agreement(hub_attention(attention, *few, every), attention.attend(*few), atol=1e-4)
    return [row(NAME, "time", *alternate(lambda: attention.attend(*heads), lambda: sparse(LANDMARKS), 3), TARGET)]
