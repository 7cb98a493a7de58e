"""A small SAM and the trained parts of F-LMM, in the layouts of the published files."""

from pathlib import Path

import torch

from .weights import random_tensor

WIDTH, PROMPT_WIDTH, MLP, DECODER_MLP = 16, 32, 64, 64
BLOCKS, HEAD_DIM, GLOBAL_BLOCK, WINDOW, GRID = 2, 8, 1, 14, 64
HEAD_CHANNELS = 8


def write_sam(path: str | Path, seed: int = 0) -> Path:
    """A state dict as segment_anything releases them: true geometry (1024 pixels), small widths."""
    return _write(path, {**_encoder(), **_prompt_encoder(), **_decoder()}, seed)


def write_flmm(path: str | Path, hidden_size: int, layers: int, heads: int, seed: int = 1) -> Path:
    """The trained parts for a language model of these sizes."""
    shapes = {f"sam.model.{name}": shape for name, shape in {**_prompt_encoder(), **_decoder()}.items()}
    shapes |= {f"mask_head.{name}": shape for name, shape in _mask_head(layers * heads).items()}
    shapes |= {
        "text_proj.weight": (PROMPT_WIDTH, hidden_size),
        "text_proj.bias": (PROMPT_WIDTH,),
        "text_layer_weights": (layers,),
    }
    return _write(path, shapes, seed)


def _write(path, shapes, seed) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: random_tensor(name, shape, seed) for name, shape in shapes.items()}, path)
    return path


def _linear(name: str, width_in: int, width_out: int) -> dict:
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


def _norm(name: str, width: int) -> dict:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _convolution(name: str, channels_in: int, channels_out: int, size: int) -> dict:
    return {f"{name}.weight": (channels_out, channels_in, size, size), f"{name}.bias": (channels_out,)}


def _encoder() -> dict:
    shapes = {"pos_embed": (1, GRID, GRID, WIDTH), **_convolution("patch_embed.proj", 3, WIDTH, 16)}
    for number in range(BLOCKS):
        block, side = f"blocks.{number}", GRID if number == GLOBAL_BLOCK else WINDOW
        shapes |= {
            **_norm(f"{block}.norm1", WIDTH),
            f"{block}.attn.rel_pos_h": (2 * side - 1, HEAD_DIM),
            f"{block}.attn.rel_pos_w": (2 * side - 1, HEAD_DIM),
            **_linear(f"{block}.attn.qkv", WIDTH, 3 * WIDTH),
            **_linear(f"{block}.attn.proj", WIDTH, WIDTH),
            **_norm(f"{block}.norm2", WIDTH),
            **_linear(f"{block}.mlp.lin1", WIDTH, MLP),
            **_linear(f"{block}.mlp.lin2", MLP, WIDTH),
        }
    shapes |= {
        "neck.0.weight": (PROMPT_WIDTH, WIDTH, 1, 1),
        **_norm("neck.1", PROMPT_WIDTH),
        "neck.2.weight": (PROMPT_WIDTH, PROMPT_WIDTH, 3, 3),
        **_norm("neck.3", PROMPT_WIDTH),
    }
    return {f"image_encoder.{name}": shape for name, shape in shapes.items()}


def _prompt_encoder() -> dict:
    shapes = {"pe_layer.positional_encoding_gaussian_matrix": (2, PROMPT_WIDTH // 2)}
    for name in ("point_embeddings.0", "point_embeddings.1", "point_embeddings.2", "point_embeddings.3"):
        shapes[f"{name}.weight"] = (1, PROMPT_WIDTH)
    shapes |= {"not_a_point_embed.weight": (1, PROMPT_WIDTH), "no_mask_embed.weight": (1, PROMPT_WIDTH)}
    shapes |= {
        **_convolution("mask_downscaling.0", 1, 4, 2),
        **_norm("mask_downscaling.1", 4),
        **_convolution("mask_downscaling.3", 4, 16, 2),
        **_norm("mask_downscaling.4", 16),
        **_convolution("mask_downscaling.6", 16, PROMPT_WIDTH, 1),
    }
    return {f"prompt_encoder.{name}": shape for name, shape in shapes.items()}


def _decoder() -> dict:
    def attention(name: str, inner: int) -> dict:
        shapes = {}
        for projection in "qkv":
            shapes |= _linear(f"{name}.{projection}_proj", PROMPT_WIDTH, inner)
        return shapes | _linear(f"{name}.out_proj", inner, PROMPT_WIDTH)

    half, shapes = PROMPT_WIDTH // 2, {"iou_token.weight": (1, PROMPT_WIDTH), "mask_tokens.weight": (4, PROMPT_WIDTH)}
    for number in range(2):
        layer = f"transformer.layers.{number}"
        shapes |= attention(f"{layer}.self_attn", PROMPT_WIDTH)
        shapes |= attention(f"{layer}.cross_attn_token_to_image", half) | attention(
            f"{layer}.cross_attn_image_to_token", half
        )
        shapes |= _linear(f"{layer}.mlp.lin1", PROMPT_WIDTH, DECODER_MLP) | _linear(
            f"{layer}.mlp.lin2", DECODER_MLP, PROMPT_WIDTH
        )
        for norm in range(1, 5):
            shapes |= _norm(f"{layer}.norm{norm}", PROMPT_WIDTH)
    shapes |= attention("transformer.final_attn_token_to_image", half) | _norm(
        "transformer.norm_final_attn", PROMPT_WIDTH
    )
    shapes |= {  # transposed convolutions: channels in, channels out
        "output_upscaling.0.weight": (PROMPT_WIDTH, PROMPT_WIDTH // 4, 2, 2),
        "output_upscaling.0.bias": (PROMPT_WIDTH // 4,),
        **_norm("output_upscaling.1", PROMPT_WIDTH // 4),
        "output_upscaling.3.weight": (PROMPT_WIDTH // 4, PROMPT_WIDTH // 8, 2, 2),
        "output_upscaling.3.bias": (PROMPT_WIDTH // 8,),
    }
    heads = {f"output_hypernetworks_mlps.{i}": PROMPT_WIDTH // 8 for i in range(4)} | {"iou_prediction_head": 4}
    for name, width_out in heads.items():
        for number, out in enumerate((PROMPT_WIDTH, PROMPT_WIDTH, width_out)):
            shapes |= _linear(f"{name}.layers.{number}", PROMPT_WIDTH, out)
    return {f"mask_decoder.{name}": shape for name, shape in shapes.items()}


def _mask_head(in_channels: int) -> dict:
    def convolution(name: str, channels_in: int, channels_out: int, size: int) -> dict:
        return {f"{name}.conv.weight": (channels_out, channels_in, size, size), **_norm(f"{name}.gn", channels_out)}

    widths, shapes = [HEAD_CHANNELS * 2**i for i in range(4)], {}
    for stage, (before, width) in enumerate(zip([in_channels, *widths], widths)):
        name = f"encoder.{stage}.{min(stage, 1)}.convs"  # from the second stage on a pooling layer comes first
        shapes |= convolution(f"{name}.0", before, width, 3) | convolution(f"{name}.1", width, width, 3)
    for stage, width in enumerate(widths[:-1]):
        shapes |= convolution(f"decoder.{stage}.upsample.interp_upsample.1", 2 * width, width, 1)
        name = f"decoder.{stage}.conv_block.convs"
        shapes |= convolution(f"{name}.0", 2 * width, width, 3) | convolution(f"{name}.1", width, width, 3)
    return shapes | _convolution("conv_seg", HEAD_CHANNELS, 1, 1)
