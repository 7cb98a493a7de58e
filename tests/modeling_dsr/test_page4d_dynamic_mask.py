"""The dynamic mask head against stored results, and its errors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_dsr.page4d_dynamic_mask import DynamicMaskHead, pool_mask, standardise

FOLDER = Path(__file__).resolve().parents[3] / "shared/reference/page4d_mv/tiny"
stored = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the stored results beside the repository")
PREFIX = "aggregator.dynamic_mask_head."


def run(use_gating, standardize, external):
    case = load_file(FOLDER / "case_dynamic_mask_head.safetensors")
    weights = torch.load(FOLDER / "checkpoint.pt", weights_only=True)["model_state_dict"]
    weights = {**weights, **load_file(FOLDER / "extra_params.safetensors")}
    head = DynamicMaskHead(case["input.feat"].shape[-1], use_gating, standardize)
    head.load_state_dict({name: weights[PREFIX + name] for name in head.state_dict()})
    if external is not None:
        external = pool_mask(case[f"input.{external}"], (1, 2, 2), (4, 4), 14)
    with torch.no_grad():
        return case, head(case["input.feat"][..., 5:, :], (4, 4), external)[0], external


@stored
@pytest.mark.parametrize(
    "use_gating, standardize, external, name",
    [
        (False, False, None, "formula_scalar_seed_noext"),
        (False, False, "ext", "formula_scalar_seed_ext"),
        (False, False, "ext_pixels", "formula_scalar_seed_ext_pixels"),
        (False, True, "ext", "formula_scalar_std_ext"),
        (True, False, "ext", "formula_gated_seed_ext"),
        (True, True, "ext", "upstream_gated_ext"),
    ],
)
def test_each_fusion_gives_the_stored_mask(use_gating, standardize, external, name):
    case, mask, _ = run(use_gating, standardize, external)
    torch.testing.assert_close(mask, case[f"output.{name}"], atol=2e-5, rtol=0)


@stored
def test_pixels_are_averaged_over_patches():
    case, _, pooled = run(False, False, "ext_pixels")
    torch.testing.assert_close(pooled, case["intermediate.ext_from_pixels"], atol=2e-5, rtol=0)


def test_every_parameter_receives_a_gradient():
    for gating in (False, True):
        head = DynamicMaskHead(16, gating)
        head(torch.randn(1, 2, 2, 4, 16), (2, 2), torch.rand(1, 2, 2, 4, 1))[0].log().sum().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())


def test_a_mask_of_another_size_is_an_error():
    with pytest.raises(ValueError, match="`ext_mask` must be pixels"):
        pool_mask(torch.zeros(1, 2, 2, 30, 28), (1, 2, 2), (2, 2), 14)


def test_one_patch_cannot_be_standardised():
    with pytest.raises(ValueError, match="at least two patches"):
        standardise(torch.zeros(1, 1, 1, 1, 1))
