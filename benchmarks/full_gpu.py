"""What the benchmarks of published sizes need on a GPU, computed from their sizes without one.

Weights are counted on the meta device. What a call adds is an upper estimate of the baseline, which keeps most.
"""

from __future__ import annotations

import torch

from benchmarks import full_cad, full_dsr_prefill, full_page4d, full_pi3
from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration
from modeling_dsr.modeling_page4d import Page4DModel
from modeling_dsr.modeling_pi3 import Pi3Model

FLOAT, HALF = 4, 2  # bytes
MAPS = 40  # float32 numbers for a pixel: values, activations and joined copies in the dense heads' last steps


def weights(model_class, config, width: int) -> int:
    """Bytes of a model of `width` bytes per number."""
    with torch.device("meta"):
        return width * sum(parameter.numel() for parameter in model_class(config).parameters())


def _tokens(size: dict, special: int) -> tuple[int, int]:
    """Tokens and pixels of all frames."""
    height, width = size["height"], size["width"]
    return size["frames"] * (special + height * width // 14**2), size["frames"] * height * width


def pi3() -> int:
    size = full_pi3.SIZES["gpu"]
    config = full_pi3.Pi3Config(**size["config"])
    tokens, pixels = _tokens(size, config.num_register_tokens)
    kept = tokens * config.hidden_size * (12 * FLOAT + 8 * HALF)  # residuals, norms, projections and their inner width
    return 2 * weights(Pi3Model, config, FLOAT) + kept + pixels * MAPS * FLOAT


def page4d() -> int:
    size = full_page4d.SIZES["gpu"]
    config = full_page4d.Page4DConfig(**size["config"])
    tokens, _ = _tokens(size, 5)
    layers = tokens * 2 * config.embed_dim * config.depth * 2 * FLOAT  # kept, and once more as float32 for the heads
    frame = size["height"] * size["width"]
    # Eight frames pass the dense heads at a time: maps of `features` channels at a quarter of the pixels and up.
    dense = 8 * frame * (4 * config.dpt_features + MAPS) * FLOAT
    return 2 * weights(Page4DModel, config, FLOAT) + layers + dense + size["frames"] * frame * MAPS * FLOAT


def dsr_prefill() -> int:
    size = full_dsr_prefill.SIZES["gpu"]
    config = size["config"]()
    t, h, w = size["grid"]
    tokens = t * h * w // 4 + config.num_geometry_tokens + 100
    text = config.text_config
    logits = tokens * text.vocab_size * 2 * FLOAT
    inner = tokens * text.intermediate_size * 4 * HALF
    frames = 2 * t * h * w * config.geometry_config.hidden_size * 24 * HALF
    scores = text.num_attention_heads * 32 * (t * h * w // 4) * 3 * FLOAT  # of the Q-Formers
    cache = 2 * text.num_hidden_layers * tokens * text.num_key_value_heads * 128 * HALF
    return weights(DSRForConditionalGeneration, config, HALF) + logits + inner + frames + scores + cache


def cad() -> int:
    size = full_cad.SIZES["gpu"]
    config = full_cad.CADRecodeConfig(**size["config"])
    rows = max(size["batches"]) * (config.num_points + 1)
    logits = rows * config.vocab_size * (HALF + FLOAT)
    length = config.num_points + 1 + size["new_tokens"]
    heads = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * max(size["batches"]) * length * heads * HALF * 2
    inner = rows * config.intermediate_size * 4 * HALF
    return weights(CADRecodeForCausalLM, config, HALF) + logits + cache + inner


NEEDED = {"full.pi3": pi3, "full.page4d": page4d, "full.dsr_prefill": dsr_prefill, "full.cad": cad}
