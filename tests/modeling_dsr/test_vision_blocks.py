"""The blocks that π³ and PAGE-4D share."""

import pytest
import torch
from transformers import PreTrainedConfig

from modeling_dsr.vision_blocks import VisionBlock, in_chunks
from modeling_dsr.vision_rope import apply_axial_rope, axial_rope_tables, patch_positions


def test_positions_count_rows_then_columns_from_one():
    assert patch_positions(2, 3, 1).tolist() == [[0, 0], [1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]


def test_special_tokens_are_not_turned():
    x = torch.randn(2, 4, 8, 16)
    turned = apply_axial_rope(x, axial_rope_tables(patch_positions(2, 3, 2), 16, 100.0))
    assert torch.equal(turned[:, :, :2], x[:, :, :2])
    assert (turned[:, :, 2:] - x[:, :, 2:]).abs().amax() > 0.1


def test_scores_depend_on_the_distance_of_positions_alone():
    query, key = torch.randn(1, 16, dtype=torch.float64), torch.randn(1, 16, dtype=torch.float64)

    def score(at, other):
        tables = [axial_rope_tables(torch.tensor([place]), 16, 100.0) for place in (at, other)]
        return (apply_axial_rope(query, tables[0]) * apply_axial_rope(key, tables[1])).sum()

    torch.testing.assert_close(score((3, 5), (1, 9)), score((13, 2), (11, 6)), rtol=1e-5, atol=1e-5)
    assert (score((3, 5), (1, 9)) - score((3, 5), (9, 1))).abs() > 1e-3  # y and x are not the same


def test_channels_turn_in_pairs_by_their_own_frequency():
    """The formula, channel by channel: y turns the first half, x the second, j pairs with j + 2 of four."""
    x = torch.randn(1, 8)
    turned = apply_axial_rope(x, axial_rope_tables(torch.tensor([[2, 3]]), 8, 100.0))[0]
    for half, position in ((0, 2), (4, 3)):
        for j in range(2):
            angle = torch.tensor(position * 100.0 ** (-2 * j / 4))
            a, b = x[0, half + j], x[0, half + j + 2]
            torch.testing.assert_close(turned[half + j], a * angle.cos() - b * angle.sin())
            torch.testing.assert_close(turned[half + j + 2], b * angle.cos() + a * angle.sin())


def test_several_frames_share_the_tables_of_one():
    x, tables = torch.randn(2, 3 * 7, 8), axial_rope_tables(patch_positions(2, 3, 1), 8, 100.0)
    together = apply_axial_rope(x, tables)
    apart = torch.cat([apply_axial_rope(frame, tables) for frame in x.split(7, dim=1)], 1)
    assert torch.equal(together, apart)


def test_head_widths_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of 4.*got 6"):
        axial_rope_tables(patch_positions(1, 1, 0), 6, 100.0)


@pytest.mark.parametrize("chunk_size", [0, 1, 3, 7, 100])
def test_chunks_give_the_whole(chunk_size):
    x, y = torch.randn(7, 3), torch.randn(7, 2)
    with torch.no_grad():
        assert torch.equal(in_chunks(lambda x: 2 * x, x, chunk_size=chunk_size), 2 * x)
        first, second = in_chunks(lambda x, y: (x + y[:, :1], y.sum(1)), x, y, chunk_size=chunk_size)
    assert torch.equal(first, x + y[:, :1]) and torch.equal(second, y.sum(1))


def test_chunks_are_left_alone_when_gradients_are_needed():
    calls = []
    in_chunks(lambda x: calls.append(len(x)) or x, torch.randn(7, 3), chunk_size=2)
    assert calls == [7]


@pytest.mark.parametrize(
    "settings", [{}, {"qk_norm_eps": 1e-5}, {"layer_scale": 0.5}, {"qk_norm_eps": 1e-5, "layer_scale": 0.5}]
)
def test_block_equals_its_formula(settings):
    torch.manual_seed(0)
    config = PreTrainedConfig()
    config._attn_implementation = "eager"
    block = VisionBlock(config, 8, 2, norm_eps=1e-6, **settings).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    y = block.norm1(x)
    heads = [block.attn.qkv(y)[..., 8 * i : 8 * (i + 1)].view(2, 5, 2, 4) for i in range(3)]
    query, key = block.attn.q_norm(heads[0]), block.attn.k_norm(heads[1])
    weights = (torch.einsum("bqhd,bkhd->bhqk", query, key) / 2).softmax(-1)
    attended = block.attn.proj(torch.einsum("bhqk,bkhd->bqhd", weights, heads[2]).reshape(2, 5, 8))
    expected = x + settings.get("layer_scale", 1.0) * attended
    inner = torch.nn.functional.gelu(block.mlp.fc1(block.norm2(expected)))
    expected = expected + settings.get("layer_scale", 1.0) * block.mlp.fc2(inner)
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)  # the softmax is taken in float32
