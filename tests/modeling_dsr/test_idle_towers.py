"""Batches that have nothing for a tower: its gradients are zeros, and nothing else changes."""

import pytest
import torch

from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM
from modeling_dsr.modeling_cadrille import CadrilleForConditionalGeneration
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration
from tests.model_checks import randomize
from tests.modeling_dsr import cad_samples, dsr_samples


def dsr(**media):
    return dsr_samples.collate([dsr_samples.sample(0, answer=3, **media)], "right", with_labels=True)


def without_points(inputs: dict) -> dict:
    return {name: value for name, value in inputs.items() if name != "point_cloud"}


CASES = {
    "Cadrille, points": (CadrilleForConditionalGeneration, cad_samples.cadrille_config, {"visual"},
                         lambda: cad_samples.cadrille_inputs("p", "right", 3)),
    "Cadrille, views": (CadrilleForConditionalGeneration, cad_samples.cadrille_config, {"point_encoder"},
                        lambda: cad_samples.cadrille_inputs("v", "right", 3)),
    "Cadrille, text": (CadrilleForConditionalGeneration, cad_samples.cadrille_config, {"visual", "point_encoder"},
                       lambda: cad_samples.cadrille_inputs("t", "right", 3)),
    "CAD-Recode, text": (CADRecodeForCausalLM, cad_samples.cad_recode_config, {"point_encoder"},
                         lambda: without_points(cad_samples.cad_recode_inputs(1, "right", 3))),
    "DSR, text": (DSRForConditionalGeneration, dsr_samples.tiny_config,
                  {"visual", "geometry_encoder", "geometry_selection"}, dsr),
    "DSR, image": (DSRForConditionalGeneration, dsr_samples.tiny_config, {"geometry_encoder", "geometry_selection"},
                   lambda: dsr(images=((1, 4, 4),))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_batch_has_nothing_for_gets_zeros(name):
    model_class, config, idle, inputs = CASES[name]
    model = model_class(config()).train()
    randomize(model)
    inputs = inputs()
    model(**inputs).loss.backward()
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, key
        if idle & set(key.split(".")):
            assert not parameter.grad.any(), key
    del inputs["labels"]
    known = model.eval().model(**inputs).last_hidden_state
    assert torch.equal(model.train().model(**inputs).last_hidden_state, known)


def test_a_frozen_tower_costs_nothing():
    model = CadrilleForConditionalGeneration(cad_samples.cadrille_config()).freeze("language").train()
    ran = []
    model.model.visual.register_forward_hook(lambda *_: ran.append("the vision tower"))
    model(**cad_samples.cadrille_inputs("p", "right", 3)).loss.backward()
    assert ran == []
