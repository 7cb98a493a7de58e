"""Hub attention against a mask of all pairs, and the choice of landmarks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import PreTrainedConfig

from modeling_dsr.page4d_multiview_attention import hub_attention, landmarks
from modeling_dsr.vision_blocks import VisionAttention

CASE = Path(__file__).resolve().parents[3] / "shared/reference/page4d_mv/tiny/case_sparse_landmark.safetensors"


def attention():
    config = PreTrainedConfig()
    config._attn_implementation = "sdpa"
    return VisionAttention(config, dim=24, num_heads=3)


def sequence(length=12):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, length, 8, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_two_calls_equal_a_mask_of_all_pairs(mutual, biased):
    query, key, value = sequence()
    hubs = torch.tensor([[1, 5, 7], [0, 2, 11]])
    bias = torch.randn(2, 12, generator=torch.Generator().manual_seed(1)) if biased else None
    is_hub = torch.zeros(2, 12, dtype=torch.bool).scatter(1, hubs, True)
    allowed = is_hub[:, None, :] | (is_hub[:, :, None] & mutual)
    mask = torch.zeros(2, 12, 12) if bias is None else bias[:, None].expand(-1, 12, -1)
    expected = F.scaled_dot_product_attention(query, key, value, mask.masked_fill(~allowed, -torch.inf)[:, None])
    torch.testing.assert_close(
        hub_attention(attention(), query, key, value, hubs, bias, mutual).transpose(1, 2), expected
    )


def test_all_tokens_as_landmarks_is_dense_attention():
    query, key, value = sequence()
    hubs = landmarks(torch.rand(2, 3, 4), k=9)
    expected = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(hub_attention(attention(), query, key, value, hubs).transpose(1, 2), expected)


@pytest.mark.skipif(not CASE.is_file(), reason="needs the stored results beside the repository")
def test_landmarks_by_norm_are_the_stored_ones():
    case = load_file(CASE)
    scores = case["input.tokens"].norm(dim=-1).flatten(1, 2)
    found = landmarks(scores, 5).view(1, 2, 2, 5) % scores.shape[-1]
    assert torch.equal(found.sort(-1).values, case["intermediate.landmark_idx_norm_upstream"].long().sort(-1).values)
