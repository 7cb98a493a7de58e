"""The loss on supervised positions, in chunks, against the plain one on all logits."""

import copy

import pytest
import torch

from modeling_dsr.chunked_loss import chunked_next_token_loss, next_token_loss
from modeling_dsr.modeling_cadrille import CadrilleForConditionalGeneration
from tests.model_checks import assert_same, randomize
from tests.modeling_dsr.cad_samples import cadrille_config, cadrille_inputs


def problem():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 9, 8, generator=generator).requires_grad_()
    head = torch.nn.Linear(8, 30, bias=False)
    labels = torch.randint(0, 30, (2, 9), generator=generator)
    labels[0, :5] = -100
    return states, head, labels


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("items", [None, 7, torch.tensor(7)])
def test_value_and_gradients_equal_the_plain_loss(chunk, items):
    states, head, labels = problem()
    found = chunked_next_token_loss(states, head, labels, chunk, items)
    gradients = torch.autograd.grad(found, [states, head.weight])
    expected = next_token_loss(head(states), labels, items)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients, torch.autograd.grad(expected, [states, head.weight])):
        torch.testing.assert_close(one, other)


def test_a_second_backward_pass_is_refused():
    """The gradients are made once, in the forward pass, and scaled in place."""
    states, head, labels = problem()
    loss = chunked_next_token_loss(states, head, labels, 3)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_nothing_supervised_gives_zero_with_gradients():
    states, head, labels = problem()
    labels[:] = -100
    for loss in (chunked_next_token_loss(states, head, labels, 4), next_token_loss(head(states), labels)):
        assert loss.item() == 0
        assert torch.equal(torch.autograd.grad(loss, states)[0], torch.zeros_like(states))


def test_training_and_evaluation_agree():
    model = CadrilleForConditionalGeneration(cadrille_config(loss_chunk_size=2))
    randomize(model)
    inputs = cadrille_inputs("pvt", "right", answer=4)
    trained, evaluated = copy.deepcopy(model).train(), model.eval()
    found, expected = trained(**inputs), evaluated(**inputs)
    assert found.logits is None and expected.logits is not None
    found.loss.backward(), expected.loss.backward()
    torch.testing.assert_close(found.loss, expected.loss)
    gradients = [{n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in (trained, evaluated)]
    assert_same(*gradients, 1e-5)


def test_a_chunk_size_of_zero_returns_logits_in_training():
    model = CadrilleForConditionalGeneration(cadrille_config(loss_chunk_size=0)).train()
    assert model(**cadrille_inputs("p", answer=2)).logits is not None
