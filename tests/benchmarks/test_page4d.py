"""The baseline of PAGE-4D's benchmarks is the same network, written without any of the library's short cuts."""

import pytest
import torch

from benchmarks import page4d_plain
from tests.modeling_dsr.test_modeling_page4d import frames, random_model


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_model_equals_the_plain_way(alpha):
    model = random_model()
    pixels = frames(2, 9, 2, 3)  # more frames than the plain heads take at once
    with torch.no_grad():
        found, expected = model(pixels, mask_alpha=alpha), page4d_plain.forward(model, pixels, alpha)
    for name, values in expected.items():
        assert torch.allclose(found[name], values, atol=1e-4, rtol=1e-4), name
