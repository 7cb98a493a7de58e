"""Guessed tokens, by prompt lookup or by another model, change the time of a program and not a token of it."""

import pytest
import torch
from transformers import set_seed

from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM
from modeling_dsr.modeling_cadrille import CadrilleForConditionalGeneration
from tests.model_checks import randomize
from tests.modeling_dsr.cad_samples import cad_recode_config, cad_recode_inputs, cadrille_config, cadrille_inputs

TOKENS = 24
LOOKUP = {"prompt_lookup_num_tokens": 4}


def build(model_class, config):
    set_seed(0)
    model = model_class(config).eval()
    randomize(model)
    return model


@pytest.fixture(scope="module")
def cad_recode():
    return build(CADRecodeForCausalLM, cad_recode_config())


@pytest.fixture(scope="module")
def cadrille():
    return build(CadrilleForConditionalGeneration, cadrille_config())


def generate(model, inputs, **settings) -> tuple[torch.Tensor, int]:
    """Tokens, and how often the model was called for them."""
    calls = []
    hook = model.register_forward_hook(lambda *args: calls.append(1))
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **settings}
    ids = model.generate(**inputs, **settings)
    hook.remove()
    return ids, len(calls)


@pytest.mark.parametrize("kind", ["points of CAD-Recode", "p", "v", "t"])
def test_prompt_lookup_writes_the_same_program(kind, cad_recode, cadrille):
    """Of points, of views and of text; a random model repeats itself, so that guesses are right now and then."""
    recode = len(kind) > 1
    model, inputs = (cad_recode, cad_recode_inputs(1)) if recode else (cadrille, cadrille_inputs(kind))
    plain, steps = generate(model, inputs)
    looked_up, fewer = generate(model, inputs, **LOOKUP)
    assert torch.equal(looked_up, plain)
    assert steps == TOKENS and fewer < steps


def test_rows_together_go_on_without_lookup(cad_recode, cadrille):
    for model, inputs in ((cad_recode, cad_recode_inputs(2)), (cadrille, cadrille_inputs("pv"))):
        assert torch.equal(generate(model, inputs, **LOOKUP)[0], generate(model, inputs)[0])
    settings = {"do_sample": True, "top_k": 1, "num_return_sequences": 2}
    assert generate(cad_recode, cad_recode_inputs(1), **settings, **LOOKUP)[0].shape[0] == 2


def test_another_model_may_guess(cad_recode, cadrille):
    """Speculative decoding: here the model guesses for itself, so that every guess is right."""
    for model, inputs in ((cad_recode, cad_recode_inputs(1)), (cadrille, cadrille_inputs("p"))):
        assert torch.equal(generate(model, inputs, assistant_model=model)[0], generate(model, inputs)[0])
