"""The Fourier point encoder and the one indexed write."""

import math

import pytest
import torch

from modeling_dsr.cad_point_encoder import FourierEmbedder, find_point_tokens, write_points
from modeling_dsr.modeling_cadrille import CadrilleForConditionalGeneration

from .cad_samples import cadrille_config, cadrille_inputs


@pytest.mark.parametrize("logspace", [True, False])
@pytest.mark.parametrize("include_input", [True, False])
@pytest.mark.parametrize("include_pi", [True, False])
def test_every_feature_follows_its_definition(logspace, include_input, include_pi):
    point = [0.3, -0.7, 0.05]
    frequencies = [1, 2, 4, 8] if logspace else [1, 1 + 7 / 3, 1 + 14 / 3, 8]
    angles = [c * f * (math.pi if include_pi else 1) for c in point for f in frequencies]
    expected = point * include_input + [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    embedder = FourierEmbedder(4, logspace, include_input, include_pi)
    found = embedder(torch.tensor([point], dtype=torch.float64).float())
    assert found.shape[-1] == embedder.out_features() == len(expected)
    torch.testing.assert_close(found[0], torch.tensor(expected), atol=3e-6, rtol=0)


def test_configuration_fields_reach_the_encoder():
    model = CadrilleForConditionalGeneration(
        cadrille_config(num_freqs=3, include_input=False, include_pi=True, logspace=False)
    )
    embedder = model.model.point_encoder.fourier_embedder
    assert (embedder.num_freqs, embedder.include_input, embedder.include_pi, embedder.logspace) == (
        3,
        False,
        True,
        False,
    )
    assert model.model.point_encoder.projection.in_features == 18


def test_encoder_stays_in_float32_under_bfloat16_and_autocast(tmp_path):
    CadrilleForConditionalGeneration(cadrille_config()).save_pretrained(tmp_path)
    model = CadrilleForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    encoder = model.model.point_encoder
    assert encoder.projection.weight.dtype == torch.float32
    assert model.model.language_model.embed_tokens.weight.dtype == torch.bfloat16
    cloud = cadrille_inputs("p")["point_clouds"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(
            encoder(cloud), CadrilleForConditionalGeneration.from_pretrained(tmp_path).get_point_features(cloud)
        )


def test_write_equals_a_loop_over_the_batch():
    generator = torch.Generator().manual_seed(0)
    embeds, points = torch.randn(4, 12, 6, generator=generator), torch.randn(4, 3, 6, generator=generator)
    mask = torch.zeros(4, 12, dtype=torch.bool)
    for row, places in enumerate([(0, 1, 2), (4, 5, 6), (2, 7, 11), (9, 10, 11)]):
        mask[row, list(places)] = True
    has_points = torch.tensor([True, True, True, False])
    expected = embeds.clone()
    for row in range(3):
        expected[row, mask[row].nonzero().squeeze(1)] = points[row]
    assert torch.equal(write_points(embeds, points, mask, has_points), expected)


def test_write_carries_gradients_to_points_and_text():
    embeds, points = torch.randn(1, 4, 2, requires_grad=True), torch.randn(1, 2, 2, requires_grad=True)
    mask = torch.tensor([[False, True, True, False]])
    write_points(embeds, points, mask, torch.tensor([True])).sum().backward()
    assert torch.equal(points.grad, torch.ones(1, 2, 2))
    assert torch.equal(embeds.grad[0, :, 0], torch.tensor([1.0, 0, 0, 1]))


def test_a_leaf_that_requires_gradients_is_not_written_in_place():
    """Frozen embeddings under PEFT: their output is a leaf that requires gradients."""
    model = CadrilleForConditionalGeneration(cadrille_config())
    model.requires_grad_(False)
    model.enable_input_require_grads()
    model.lm_head.weight.requires_grad_(True)
    inputs = cadrille_inputs("p", answer=2)
    model(**inputs).loss.backward()
    assert model.lm_head.weight.grad.isfinite().all() and model.lm_head.weight.grad.any()


def test_placeholders_are_the_first_unmasked_run():
    ids = torch.tensor([[9, 9, 9, 9, 1, 2, 9], [1, 9, 9, 2, 9, 9, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
    expected = torch.tensor([[0, 0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0]]).bool()
    assert torch.equal(find_point_tokens(ids, mask, 9), expected)
    assert torch.equal(find_point_tokens(ids[1:], None, 9), expected[1:])
    assert torch.equal(find_point_tokens(ids, -mask, 9), mask.bool())
