"""A small π³ checkpoint in the layout of the published file: one flat safetensors file without a config."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from .weights import random_tensor

PATCH = 14
ENCODER_WIDTH, ENCODER_LAYERS, ENCODER_HEADS, ENCODER_GRID = 128, 3, 2, 6  # published: 1024, 24, 16, 37
DECODER_LAYERS, DECODER_HEADS = 4, 2  # published: 36, 16; alternately inside a frame and over all frames
HEAD_WIDTH, HEAD_LAYERS, HEAD_HEADS = 32, 2, 2  # published: 1024, 5, 16
CAMERA_WIDTH = 24  # published: 512
ENCODER_REGISTERS, DECODER_REGISTERS = 4, 5

# What a π³ file does not tell: numbers of heads. Goes to the converter's `config_overrides`.
DSR_OVERRIDES = {"geometry_config": {"num_attention_heads": ENCODER_HEADS}}
PI3_OVERRIDES = {"encoder_config": {"num_attention_heads": ENCODER_HEADS}, "head_num_attention_heads": HEAD_HEADS}


def write_pi3(path: str | Path, seed: int = 0) -> Path:
    """Write the whole small network, encoder to camera head, into the safetensors file `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: random_tensor(name, shape, seed) for name, shape in pi3_shapes().items()}
    # ImageNet's constants are buffers that the published file carries.
    weights["image_mean"] = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    weights["image_std"] = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    save_file(weights, path, metadata={"format": "pt"})
    return path


def pi3_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of every parameter."""
    width, head_dim = ENCODER_WIDTH, ENCODER_WIDTH // DECODER_HEADS
    shapes = {
        "register_token": (1, 1, DECODER_REGISTERS, width),
        "encoder.cls_token": (1, 1, width),
        "encoder.pos_embed": (1, 1 + ENCODER_GRID**2, width),
        "encoder.register_tokens": (1, ENCODER_REGISTERS, width),
        "encoder.patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "encoder.patch_embed.proj.bias": (width,),
        "encoder.norm.weight": (width,),
        "encoder.norm.bias": (width,),
    }
    for layer in range(ENCODER_LAYERS):
        shapes |= _block(f"encoder.blocks.{layer}", width) | _layer_scale(f"encoder.blocks.{layer}", width)
    for layer in range(DECODER_LAYERS):
        prefix = f"decoder.{layer}"
        shapes |= _block(prefix, width) | _layer_scale(prefix, width)
        for norm in ("q_norm", "k_norm"):
            shapes |= {f"{prefix}.attn.{norm}.weight": (head_dim,), f"{prefix}.attn.{norm}.bias": (head_dim,)}
    for name, out_width in (("point", HEAD_WIDTH), ("conf", HEAD_WIDTH), ("camera", CAMERA_WIDTH)):
        shapes |= _linear(f"{name}_decoder.projects", 2 * width, HEAD_WIDTH)
        for layer in range(HEAD_LAYERS):
            shapes |= _block(f"{name}_decoder.blocks.{layer}", HEAD_WIDTH)
        shapes |= _linear(f"{name}_decoder.linear_out", HEAD_WIDTH, out_width)
    shapes |= _linear("point_head.proj", HEAD_WIDTH, 3 * PATCH**2) | _linear("conf_head.proj", HEAD_WIDTH, PATCH**2)
    for block in range(2):
        for layer in (1, 2, 3):
            shapes |= _linear(f"camera_head.res_conv.{block}.res_conv{layer}", CAMERA_WIDTH, CAMERA_WIDTH)
    for index in (0, 2):
        shapes |= _linear(f"camera_head.more_mlps.{index}", CAMERA_WIDTH, CAMERA_WIDTH)
    return shapes | _linear("camera_head.fc_t", CAMERA_WIDTH, 3) | _linear("camera_head.fc_rot", CAMERA_WIDTH, 9)


def _linear(prefix: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": (outputs, inputs), f"{prefix}.bias": (outputs,)}


def _block(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    """Pre-norm transformer block with fused query, key and value."""
    norms = {f"{prefix}.norm{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")}
    return (
        norms
        | _linear(f"{prefix}.attn.qkv", width, 3 * width)
        | _linear(f"{prefix}.attn.proj", width, width)
        | _linear(f"{prefix}.mlp.fc1", width, 4 * width)
        | _linear(f"{prefix}.mlp.fc2", 4 * width, width)
    )


def _layer_scale(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.ls1.gamma": (width,), f"{prefix}.ls2.gamma": (width,)}
