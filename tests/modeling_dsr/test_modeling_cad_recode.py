"""CAD-Recode: the checks common to all models, the -1 of its mask, positions, errors."""

import copy

import pytest
import torch

from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM, CADRecodeModel
from tests.model_checks import ModelChecks, assert_same, randomize
from tests.modeling_dsr.cad_samples import NUM_POINTS, cad_recode_config, cad_recode_inputs, cloud


class TestCADRecode(ModelChecks):
    model_classes = (CADRecodeModel, CADRecodeForCausalLM)
    generative = True
    padding_sides = ("left", "right")
    fsdp_layers = ("Qwen2DecoderLayer",)

    def tiny_config(self):
        return cad_recode_config()

    def inputs(self, batch, padding_side="left"):
        return cad_recode_inputs(batch, padding_side)

    def training_inputs(self, batch):
        return cad_recode_inputs(batch, "right", answer=3)

    def compile_pieces(self, model, inputs):
        return {"point encoder": (model.model.point_encoder, (torch.stack([cloud(0), cloud(1)]),), {})}


@pytest.fixture(scope="module")
def model():
    model = CADRecodeForCausalLM(cad_recode_config()).eval()
    randomize(model)
    return model


SETTINGS = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_minus_one_in_the_mask_marks_the_points(model, side):
    plain, marked = cad_recode_inputs(3, side), cad_recode_inputs(3, side, marked=True)
    valid = plain["attention_mask"].bool()
    with torch.no_grad():
        assert_same({"l": model(**marked).logits[valid]}, {"l": model(**plain).logits[valid]})


@pytest.mark.parametrize("lengths", [(2, 2, 2), (2, 4, 1)])
def test_minus_one_never_reaches_the_positions(model, lengths):
    positions = []
    hook = model.model.rotary_emb.register_forward_pre_hook(lambda m, args: positions.append(args[1].clone()))
    marked = cad_recode_inputs(3, lengths=lengths, marked=True)
    before = copy.deepcopy(marked)
    found = model.generate(**marked, **SETTINGS)
    hook.remove()
    assert_same(marked, before)
    assert torch.equal(found, model.generate(**cad_recode_inputs(3, lengths=lengths), **SETTINGS))
    start = (marked["attention_mask"] != 0).sum(1)
    for step, decoded in enumerate(positions[1:]):
        assert torch.equal(decoded[:, 0].expand(3), start + step)


def test_generation_of_padded_rows_equals_rows_alone(model):
    together = cad_recode_inputs(3)
    found = model.generate(**together, **SETTINGS)
    for i in range(3):
        mask = together["attention_mask"][i].bool()
        alone = {name: value[i : i + 1] for name, value in together.items()}
        alone["input_ids"], alone["attention_mask"] = alone["input_ids"][:, mask], alone["attention_mask"][:, mask]
        assert torch.equal(model.generate(**alone, **SETTINGS)[0, -6:], found[i, -6:])


def test_generation_without_a_mask_does_not_take_points_for_padding(model):
    inputs = cad_recode_inputs(2, lengths=(3, 3))
    expected = model.generate(**inputs, **SETTINGS)
    inputs.pop("attention_mask")
    settings = {**SETTINGS, "pad_token_id": model.config.point_token_id}
    assert torch.equal(model.generate(**inputs, **settings), expected)


def test_normals_are_features_of_the_first_version():
    model = CADRecodeForCausalLM(cad_recode_config(point_channels=6)).eval()
    assert model.model.point_encoder.projection.in_features == 54
    inputs = cad_recode_inputs(1)
    inputs["point_cloud"] = torch.cat([inputs["point_cloud"], torch.zeros(1, NUM_POINTS, 3)], -1)
    first = model(**inputs).logits
    inputs["point_cloud"][..., 3:] = 1.0
    assert not torch.equal(model(**inputs).logits, first)
    with pytest.raises(ValueError, match=r"points, 6\]"):
        model(**cad_recode_inputs(1))


@pytest.mark.parametrize(
    "cut, message", [(slice(0, 3), "fewer points than placeholders"), (slice(0, None), "too many points")]
)
def test_clouds_that_do_not_fit_are_refused(model, cut, message):
    inputs = cad_recode_inputs(2)
    inputs["point_cloud"] = torch.cat([inputs["point_cloud"]] * (1 if cut.stop else 2), 1)[:, cut]
    with pytest.raises(ValueError, match=message):
        model(**inputs)
