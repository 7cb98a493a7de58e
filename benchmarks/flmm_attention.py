"""Phrase attention and hidden states of 1500 tokens, against eager attention with whole matrices."""

import torch

from benchmarks.flmm_models import HEADS, IMAGE_TOKEN, PHRASES, build, caption_inputs
from benchmarks.harness import alternate, assert_agreement, device, peak_memory, row

NAME = "flmm.attention"
LAYERS = 8
SLOPE_LAYERS = 4  # memory per layer: between this and LAYERS
SLOPE_LIMIT = 5e6


def prepare(layers: int, implementation: str):
    model = build(layers).to(device())
    inputs = {name: value.to(device()) for name, value in caption_inputs().items()}
    if implementation == "eager":  # the text stack alone: the vision tower is the same on both sides
        model.vlm.model.language_model.set_attn_implementation("eager")
    return model, inputs


@torch.no_grad()
def whole_matrices(model, inputs):
    """As published: everything is returned, then sliced: attention `[n, L·H, h·w]` and states of the phrases'
    tokens."""
    ids = inputs["input_ids"]
    output = model.vlm(
        input_ids=ids,
        pixel_values=inputs["pixel_values"],
        image_grid_thw=inputs["image_grid_thw"],
        mm_token_type_ids=(ids == IMAGE_TOKEN).int(),
        output_attentions=True,
        output_hidden_states=True,
    )
    is_image = ids[0] == IMAGE_TOKEN
    attentions = [layer[0, ..., is_image] for layer in output.attentions]
    states = torch.stack([state[0] for state in output.hidden_states[1:]])
    hidden = (states * model.text_layer_weights.softmax(0)[:, None, None]).sum(0)
    maps, embeds = [], []
    for phrase in range(len(PHRASES)):
        matched = inputs["mask_ids"][0] == phrase
        maps.append(torch.cat([layer[:, matched].mean(1) for layer in attentions]))
        embeds.append(hidden[matched])
    return torch.stack(maps), torch.cat(embeds)


@torch.no_grad()
def phrase_rows(model, inputs):
    """The library's way: prefix into a cache, then the captions."""
    layout = model.layout(
        inputs["input_ids"], inputs["mask_ids"], inputs["image_grid_thw"], caption_ids=inputs["caption_ids"]
    )
    features = model._read_prefix(layout, inputs["input_ids"], inputs["pixel_values"], inputs["image_grid_thw"])
    states = model.read_captions(layout, inputs["input_ids"], features, "mean")
    return states.attentions, model.weigh_layers(states.hidden_states)


SIDES = {"eager": whole_matrices, "sdpa": phrase_rows}


def setup(layers: int, implementation: str):
    model, inputs = prepare(layers, implementation)
    return lambda: SIDES[implementation](model, inputs)


def run() -> list[dict]:
    calls = {implementation: setup(LAYERS, implementation) for implementation in SIDES}
    for found, expected in zip(calls["sdpa"](), calls["eager"]()):
        assert_agreement(found, expected, 1e-4)
    assert calls["sdpa"]()[0].shape[1] == LAYERS * HEADS
    rows = [row(NAME, "time", *alternate(calls["eager"], calls["sdpa"], rounds=3), 1.8)]
    del calls
    peaks = {
        (layers, side): peak_memory("benchmarks.flmm_attention:setup", layers, side)
        for layers in (SLOPE_LAYERS, LAYERS)
        for side in SIDES
    }
    rows.append(row(NAME, "memory", peaks[LAYERS, "eager"], peaks[LAYERS, "sdpa"], 10))
    slopes = [(peaks[LAYERS, side] - peaks[SLOPE_LAYERS, side]) / (LAYERS - SLOPE_LAYERS) for side in SIDES]
    rows.append(row(NAME, "memory_per_layer", *(max(slope, 1.0) for slope in slopes), slopes[0] / SLOPE_LIMIT))
    return rows
