"""Memory of a training step: loss on supervised positions in chunks, against float32 logits of all positions."""

import torch
from torch import nn

from benchmarks.harness import assert_agreement, device, peak_memory, row
from modeling_dsr.configuration_cad_recode import CADRecodeConfig
from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM

NAME = "cad.train_logits"
TARGET = 4.0
BATCH, LENGTH, POINTS, VOCABULARY, HIDDEN = 2, 1100, 256, 151936, 256


def build(vocabulary: int = VOCABULARY):
    """A trunk of one layer with the published vocabulary, and a batch of points and programs."""
    config = CADRecodeConfig(
        vocab_size=vocabulary, hidden_size=HIDDEN, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_points=POINTS, point_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CADRecodeForCausalLM(config).to(device()).train()
    ids = torch.randint(1, vocabulary, (BATCH, LENGTH))
    ids[:, :POINTS] = 0
    labels = ids.clone()
    labels[:, : POINTS + 1] = -100
    inputs = {"input_ids": ids, "labels": labels, "point_cloud": torch.rand(BATCH, POINTS, 3)}
    return model, {name: tensor.to(device()) for name, tensor in inputs.items()}


def full(model, inputs):
    """The published way: logits of every position, upcast, shifted, and the mean cross-entropy."""
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    logits = model(**inputs).logits.float()
    shifted = logits[:, :-1].contiguous()
    return nn.functional.cross_entropy(
        shifted.view(-1, shifted.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100
    )


def chunked(model, inputs):
    return model(**inputs).loss


def prepare(side: str):
    """The step to measure; gradients are there already, as they are from the second step on."""
    model, inputs = build()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss = full if side == "baseline" else chunked
    return lambda: loss(model, inputs).backward()


def run() -> list[dict]:
    model, inputs = build(vocabulary=2000)
    gradients = []
    for loss in (full, chunked):
        model.zero_grad()
        value = loss(model, inputs)
        value.backward()
        gradients.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
    for found, expected in zip(gradients[1], gradients[0]):
        assert_agreement(found, expected, atol=1e-5)
    baseline, ours = (peak_memory("benchmarks.cad_train_logits:prepare", side) for side in ("baseline", "ours"))
    return [row(NAME, "memory", baseline, ours, TARGET)]
