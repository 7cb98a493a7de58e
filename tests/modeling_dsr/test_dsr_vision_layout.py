"""Frames and windows of DSR's vision tower: what they are, and that the tower sees what transformers' own sees."""

import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from modeling_dsr.dsr_vision_layout import segments, vision_layout
from tests.modeling_dsr import test_dsr_behaviour

CPU = torch.device("cpu")


def test_parts_of_one_length_stand_together():
    found = segments(torch.tensor([0, 4, 6, 10, 12]), CPU)
    assert found.groups == ((2, 2), (2, 4))
    assert found.order.tolist() == [4, 5, 10, 11, 0, 1, 2, 3, 6, 7, 8, 9]
    assert found.order[found.back].tolist() == list(range(12))


@pytest.mark.parametrize("ends", [[0, 4, 8], [0, 2, 4, 8]])
def test_parts_that_stand_together_stay_where_they_are(ends):
    assert segments(torch.tensor(ends), CPU).order is None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_the_tower_sees_what_transformers_own_sees(attention):
    """Four videos: one whose windows are whole, two with smaller ones at their ends, and one smaller than a window."""
    model = test_dsr_behaviour.build().model
    grid = torch.tensor([[2, 8, 16], [1, 10, 12], [3, 6, 4], [1, 2, 2]])
    patches = torch.randn(int(grid.prod(1).sum()), 1176, generator=torch.Generator().manual_seed(0))
    plain = Qwen2_5_VisionTransformerPretrainedModel(model.config.vision_config).eval()
    plain.load_state_dict(model.visual.state_dict())
    for tower in (plain, model.visual):
        tower.set_attn_implementation(attention)
    expected = plain(patches, grid_thw=grid).pooler_output
    given = vision_layout(grid, model.config.vision_config, CPU).given
    if not given:
        pytest.skip("this transformers' tower takes nothing precomputed")
    assert len(given["segments"][0].groups) > 2
    assert torch.allclose(model.visual(patches, grid_thw=grid, **given).pooler_output, expected, rtol=0, atol=1e-6)
    assert torch.equal(model.visual(patches, grid_thw=grid).pooler_output, expected)
