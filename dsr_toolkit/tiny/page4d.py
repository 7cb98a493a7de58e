"""A small PAGE-4D checkpoint in the layout of the published file: a pickle whose entry "model" holds the weights."""

from pathlib import Path

import torch

from .weights import random_tensor

PATCH = 14
WIDTH, GRID, REGISTERS = 64, 6, 4  # published: 1024, 37, 4
ENCODER_LAYERS, ENCODER_HEADS = 2, 2  # published: 24, 16
LAYERS, HEAD_DIM = 4, 16  # published: 24, 64
CAMERA_LAYERS, CAMERA_HEADS = 1, 4  # published: 4, 16
FEATURES, LEVELS = 16, (8, 16, 16, 16)  # published: 256, (256, 512, 1024, 1024)
HIDDEN = 8  # published: 32
MASK_HIDDEN = 16  # published: 256

# What the weights do not tell. Goes to the converter's `config_overrides`.
OVERRIDES = {
    "encoder_config": {"num_attention_heads": ENCODER_HEADS},
    "camera_num_heads": CAMERA_HEADS,
    "mask_layer": 1,
    "masked_layers": [2],
    "dpt_layers": [0, 1, 2, 3],
    "mask_alpha": 1.0,
}


# Two streams in the middle layers, biased by the mask.
MULTIVIEW = {
    "enable_dual_stream": True,
    "enable_dynamic_mask": True,
    "dual_stream_layers": [1, 2],
    "lambda_pose": 1.0,
    "lambda_geo": 1.0,
    "lambda_pose_t": 1.0,
    "lambda_geo_t": 1.0,
}


def write_page4d(path: str | Path, seed: int = 0, mask_head: bool = True) -> Path:
    """Write the small network to the pickle `path`; without its mask head it has the layout of VGGT-1B."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: random_tensor(name, shape, seed) for name, shape in page4d_shapes(mask_head).items()}
    # Fields of view near a right angle: random ones would be rectified to 0 half of the time.
    weights["camera_head.pose_branch.fc2.weight"][7:] *= 0.1
    weights["camera_head.pose_branch.fc2.bias"][7:] = 1.0
    torch.save({"model": weights}, path)
    return path


def page4d_shapes(mask_head: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every parameter, without a track head."""
    trunk, encoder = "aggregator.", "aggregator.patch_embed."
    shapes = {
        f"{trunk}camera_token": (1, 2, 1, WIDTH),
        f"{trunk}register_token": (1, 2, REGISTERS, WIDTH),
        f"{encoder}cls_token": (1, 1, WIDTH),
        f"{encoder}pos_embed": (1, 1 + GRID**2, WIDTH),
        f"{encoder}register_tokens": (1, REGISTERS, WIDTH),
        f"{encoder}mask_token": (1, WIDTH),
        **_layer(f"{encoder}patch_embed.proj", (WIDTH, 3, PATCH, PATCH)),
        **_layer(f"{encoder}norm", (WIDTH,)),
    }
    for layer in range(ENCODER_LAYERS):
        shapes |= _block(f"{encoder}blocks.{layer}", WIDTH)
    for kind in ("frame", "global"):
        for layer in range(LAYERS):
            shapes |= _block(f"{trunk}{kind}_blocks.{layer}", WIDTH, HEAD_DIM)
    if mask_head:
        head = f"{trunk}spatial_mask_head.head0"
        shapes |= _layer(f"{head}.0", (WIDTH, 1, 3, 3)) | _layer(f"{head}.2", (MASK_HIDDEN, WIDTH, 1, 1))
        shapes |= _layer(f"{head}.4", (1, MASK_HIDDEN, 1, 1))
    return shapes | _camera_head("camera_head", 2 * WIDTH) | _dpt("depth_head", 2) | _dpt("point_head", 4)


def _layer(prefix: str, weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": weight, f"{prefix}.bias": weight[:1]}


def _block(prefix: str, width: int, head_dim: int = 0) -> dict[str, tuple[int, ...]]:
    """Pre-norm transformer block with LayerScale and, with `head_dim`, norms of queries and keys."""
    shapes = {f"{prefix}.{scale}.gamma": (width,) for scale in ("ls1", "ls2")}
    for name, size in (("norm1", (width,)), ("norm2", (width,)), ("attn.qkv", (3 * width, width)),
                       ("attn.proj", (width, width)), ("mlp.fc1", (4 * width, width)),
                       ("mlp.fc2", (width, 4 * width))):  # fmt: skip
        shapes |= _layer(f"{prefix}.{name}", size)
    for name in ("q_norm", "k_norm") if head_dim else ():
        shapes |= _layer(f"{prefix}.attn.{name}", (head_dim,))
    return shapes


def _camera_head(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{prefix}.empty_pose_tokens": (1, 1, 9)}
    for name, size in (("token_norm", (width,)), ("trunk_norm", (width,)), ("embed_pose", (width, 9)),
                       ("poseLN_modulation.1", (3 * width, width)), ("pose_branch.fc1", (width // 2, width)),
                       ("pose_branch.fc2", (9, width // 2))):  # fmt: skip
        shapes |= _layer(f"{prefix}.{name}", size)
    for layer in range(CAMERA_LAYERS):
        shapes |= _block(f"{prefix}.trunk.{layer}", width)
    return shapes


def _dpt(prefix: str, outputs: int) -> dict[str, tuple[int, ...]]:
    scratch, shapes = f"{prefix}.scratch", _layer(f"{prefix}.norm", (2 * WIDTH,))
    for level, width in enumerate(LEVELS):
        shapes |= _layer(f"{prefix}.projects.{level}", (width, 2 * WIDTH, 1, 1))
        shapes[f"{scratch}.layer{level + 1}_rn.weight"] = (FEATURES, width, 3, 3)
        fusion = f"{scratch}.refinenet{level + 1}"
        shapes |= _layer(f"{fusion}.out_conv", (FEATURES, FEATURES, 1, 1))
        for unit in (1, 2) if level < 3 else (2,):  # the coarsest level joins nothing
            for conv in (1, 2):
                shapes |= _layer(f"{fusion}.resConfUnit{unit}.conv{conv}", (FEATURES, FEATURES, 3, 3))
    for level, kernel in ((0, 4), (1, 2), (3, 3)):
        shapes |= _layer(f"{prefix}.resize_layers.{level}", (LEVELS[level], LEVELS[level], kernel, kernel))
    shapes |= _layer(f"{scratch}.output_conv1", (FEATURES // 2, FEATURES, 3, 3))
    shapes |= _layer(f"{scratch}.output_conv2.0", (HIDDEN, FEATURES // 2, 3, 3))
    return shapes | _layer(f"{scratch}.output_conv2.2", (outputs, HIDDEN, 1, 1))
