"""How the cost of memory-bank attention grows with the number of images: the exponent of a power law, 1 for linear.

The ratio is the largest exponent that still counts as linear, over the one measured.
"""

import math

import torch
from transformers import PreTrainedConfig

from benchmarks.harness import device, row, timed
from modeling_dsr.page4d_multiview_attention import hub_attention
from modeling_dsr.vision_blocks import VisionAttention

NAME = "mv.memory_bank"
LIMIT = 1.1
IMAGES, TOKENS, MEMORY, HEADS, HEAD_DIM = (8, 16, 32, 64), 1374, 32, 16, 64


def exponent(counts, seconds) -> float:
    """Slope of the least-squares line through the logarithms."""
    x, y = ([math.log(value) for value in values] for values in (counts, seconds))
    centre, level = sum(x) / len(x), sum(y) / len(y)
    return sum((a - centre) * (b - level) for a, b in zip(x, y)) / sum((a - centre) ** 2 for a in x)


@torch.no_grad()
def run() -> list[dict]:
    torch.manual_seed(0)
    config = PreTrainedConfig()
    config._attn_implementation = "sdpa"
    attention = VisionAttention(config, HEADS * HEAD_DIM, HEADS)
    hubs = torch.arange(MEMORY, device=device()).unsqueeze(0)
    calls = []
    for images in IMAGES:
        length = MEMORY + images * TOKENS
        heads = torch.randn(3, 1, length, HEADS, HEAD_DIM).transpose(2, 3).to(device()).unbind(0)
        calls.append(lambda heads=heads: hub_attention(attention, *heads, hubs))
    for call in calls:
        call()
    rounds = [[timed(call) for call in calls] for _ in range(7)]  # in turn, so that a busy machine hits all alike
    seconds = [min(times) for times in zip(*rounds)]
    return [row(NAME, "exponent", LIMIT, exponent(IMAGES, seconds), 1.0)]
