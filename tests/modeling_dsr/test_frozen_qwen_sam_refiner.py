"""Prompts, interpolation and batched decoding of the SAM refiner, against plain step-by-step ones."""

import pytest
import torch
from torch.nn.functional import interpolate, pad

from modeling_dsr.frozen_qwen_sam_mask_head import MaskHead
from modeling_dsr.frozen_qwen_sam_refiner import (
    PhraseSamModel,
    binary_masks,
    interpolation_matrix,
    mask_boxes,
    mask_prompts,
    masks_at_original_size,
    overlap,
)

from ..model_checks import randomize
from .frozen_qwen_sam_samples import tiny_config


def bilinear(x, size):
    return interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("before, after", [(5, 5), (5, 13), (64, 9), (1, 7), (7, 1), (256, 1024), (49, 63)])
def test_interpolation_matrices_are_torchs_interpolation(before, after):
    line = torch.randn(before)
    matrix = interpolation_matrix(torch.tensor([before]), torch.tensor([after]), before + 2, after + 3)[0]
    expected = interpolate(line[None, None, None], size=(1, after), mode="bilinear", align_corners=False).flatten()
    torch.testing.assert_close(matrix[:after, :before] @ line, expected, atol=1e-6, rtol=1e-5)
    assert not matrix[after:].any() and not matrix[:, before:].any()


def test_mask_prompts_equal_resize_pad_resize():
    sizes, images = [(9, 13), (16, 5)], [(40, 64), (64, 20)]
    coarse = torch.zeros(2, 16, 13)
    padding = torch.tensor([-3.0, -1.0])
    expected = []
    for i, ((h, w), image) in enumerate(zip(sizes, images)):
        coarse[i, :h, :w] = torch.randn(h, w)
        inside = bilinear(coarse[i : i + 1, :h, :w], image)
        square = pad(inside, (0, 64 - image[1], 0, 64 - image[0]), value=padding[i].item())
        expected.append(bilinear(square, (16, 16)))
    found = mask_prompts(coarse, torch.tensor(sizes), torch.tensor(images), padding, 64, 16)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_masks_come_back_to_the_original_size_as_in_three_steps():
    masks = torch.randn(3, 16, 16)
    expected = bilinear(bilinear(masks, (64, 64))[:, :40, :64], (31, 50))
    torch.testing.assert_close(masks_at_original_size(masks, (40, 64), (31, 50), 64), expected, atol=1e-5, rtol=1e-5)


def test_coarse_masks_become_binary_by_resizing_probabilities():
    coarse = 3 * torch.randn(2, 7, 9)
    assert torch.equal(binary_masks(coarse, (30, 41)), bilinear(coarse.sigmoid(), (30, 41)) > 0.5)


def test_boxes_hold_their_masks_and_empty_ones_the_image():
    masks = torch.zeros(3, 10, 20, dtype=torch.bool)
    masks[0, 2:5, 3:11] = True
    masks[1, 9, 19] = True
    assert mask_boxes(masks).tolist() == [[3, 2, 11, 5], [19, 9, 20, 10], [0, 0, 20, 10]]


def test_overlap():
    a, b = torch.zeros(2, 4, 4, dtype=torch.bool), torch.zeros(2, 4, 4, dtype=torch.bool)
    a[0, :2], b[0, 1:3] = True, True
    assert overlap(a, b).tolist() == pytest.approx([4 / 12, 0.0])


def test_phrases_of_different_lengths_decode_together_as_alone():
    torch.manual_seed(0)
    sam = PhraseSamModel(tiny_config().sam_config).eval()
    randomize(sam)
    images, lengths = torch.tensor([0, 1, 1]), [5, 1, 3]
    embeddings, boxes = torch.randn(2, 16, 4, 4), torch.rand(3, 4) * 60
    masks, text = torch.randn(3, 1, 16, 16), torch.randn(3, 5, 16)
    text_mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        together = sam.decode_phrases(embeddings, images, boxes, masks, text, text_mask)
        for i, length in enumerate(lengths):
            one = slice(i, i + 1)
            alone = sam.decode_phrases(embeddings, images[one], boxes[one], masks[one], text[one, :length], None)
            for found, expected in zip(together, alone):
                torch.testing.assert_close(found[one], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "grid, expected",
    [((5, 7), (45, 64)), ((7, 49), (9, 63)), ((64, 20), (64, 20)), ((100, 30), (100, 30)), ((1, 1), (64, 64))],
)
def test_coarse_masks_have_the_published_size(grid, expected):
    head = MaskHead(4, channels=4)
    with torch.no_grad():
        assert tuple(head(torch.rand(1, 4, *grid)).shape) == (1, *expected)


def test_the_mask_head_ignores_the_scale_of_each_attention_map():
    head = MaskHead(4, channels=4, size=16)
    maps = torch.rand(2, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(head(maps), head(maps * torch.rand(2, 4, 1, 1)), atol=1e-4, rtol=1e-4)
