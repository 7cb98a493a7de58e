"""A small scene Q-Former with the depth code, in the file of the published trainer, and a small LLaMA beside it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from .tokenizer import write_tokenizer
from .weights import random_tensor

DIMS, QUERIES, CONSTRAINED, CAMERAS, LAYERS, FFN, HEADS = 32, 96, 60, 6, 2, 64, 4
DEPTHS, FEATURES, PER_DEPTH, AGGREGATION = 4, 16, 8, (48, 32)
STEM, PLANES, BLOCKS = 8, (4, 8, 16, 32), (1, 1, 1, 2)
HIDDEN, TEXT_LAYERS, TEXT_HEADS = 64, 2, 4
SCENE_QFORMER_OVERRIDES = {"num_heads": HEADS}


def qformer_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes as the published `build_qformer` makes them."""
    shapes = {"img_backbone.0.weight": (STEM, 3, 7, 7)}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})

    def linear(name: str, narrow: int, wide: int) -> None:
        shapes.update({f"{name}.weight": (narrow, wide), f"{name}.bias": (narrow,)})

    def layer_norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    norm("img_backbone.1", STEM)
    width = STEM
    for stage, (planes, blocks) in enumerate(zip(PLANES, BLOCKS)):
        for block in range(blocks):
            name = f"img_backbone.{stage + 4}.{block}"
            kernels = ((planes, width, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1))
            for number, shape in enumerate(kernels, 1):
                shapes[f"{name}.conv{number}.weight"] = shape
                norm(f"{name}.bn{number}", shape[0])
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * planes, width, 1, 1)
                norm(f"{name}.downsample.1", 4 * planes)
            width = 4 * planes
    shapes |= {"img_neck.0.weight": (DIMS, width, 1, 1), "img_neck.0.bias": (DIMS,)}
    norm("img_neck.1", DIMS)
    shapes["camera_embed.weight"] = (CAMERAS, DIMS)
    shapes["query_content.weight"] = (QUERIES, DIMS)
    shapes["spatial_query_embed.weight"] = (CONSTRAINED // CAMERAS, DIMS)
    code = "position_encoding_3d."
    linear(code + "per_depth_mlp.0", PER_DEPTH, 3 * FEATURES)
    layer_norm(code + "per_depth_mlp.1", PER_DEPTH)
    for index, wide, narrow in (
        (0, PER_DEPTH * DEPTHS, AGGREGATION[0]),
        (3, *AGGREGATION),
        (6, AGGREGATION[1], DIMS),
    ):
        linear(f"{code}aggregation_mlp.{index}", narrow, wide)
        layer_norm(f"{code}aggregation_mlp.{index + 1}", narrow)
    for layer in range(LAYERS):
        name = f"decoder.layers.{layer}."
        for attention in ("self_attn", "multihead_attn"):
            shapes[f"{name}{attention}.in_proj_weight"] = (3 * DIMS, DIMS)
            shapes[f"{name}{attention}.in_proj_bias"] = (3 * DIMS,)
            linear(f"{name}{attention}.out_proj", DIMS, DIMS)
        linear(name + "linear1", FFN, DIMS)
        linear(name + "linear2", DIMS, FFN)
        for number in (1, 2, 3):
            layer_norm(f"{name}norm{number}", DIMS)
    linear("projector.0", 2 * DIMS, DIMS)
    linear("projector.2", HIDDEN, 2 * DIMS)
    return shapes


def write_scene_qformer(path: Path) -> Path:
    """The trainer's checkpoint: `model_state_dict` with prefix `qformer.`, beside what the trainer keeps for itself."""
    state = {}
    for name, shape in qformer_shapes().items():
        tensor = random_tensor(name, shape)
        if name.endswith("running_var"):
            tensor = tensor.abs() + 0.5
        elif name.endswith("running_mean"):
            tensor = 0.1 * (tensor - 1)
        elif name.endswith("multihead_attn.in_proj_weight"):
            tensor[: 2 * DIMS] *= 2  # attention with preferences, or the picture would be grey
        state[f"qformer.{name}"] = tensor
    fraction = torch.arange(DEPTHS) / (DEPTHS - 1)
    state |= {
        "qformer.position_encoding_3d.pc_range": torch.tensor([-15.0, -30, -2, 15, 30, 2]),
        "qformer.position_encoding_3d.depth_bins": 1 + 59 * fraction**2,
        "qformer.camera_assignment": torch.arange(CAMERAS).repeat_interleave(CONSTRAINED // CAMERAS),
        "qformer.spatial_idx": torch.arange(CONSTRAINED // CAMERAS).repeat(CAMERAS),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 1, "model_state_dict": state, "args": {"qformer_version": "v1"}}, path)
    return path


def write_llama(folder: Path) -> Path:
    """A LLaMA folder as Vicuna's is laid out, with a byte-level tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(folder)
    tokens = max(ids.values()) + 1
    shapes = {
        "model.embed_tokens.weight": (tokens, HIDDEN),
        "lm_head.weight": (tokens, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(TEXT_LAYERS):
        name = f"model.layers.{layer}."
        shapes |= {f"{name}self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
        shapes |= {f"{name}mlp.{part}_proj.weight": (2 * HIDDEN, HIDDEN) for part in ("gate", "up")}
        shapes[f"{name}mlp.down_proj.weight"] = (HIDDEN, 2 * HIDDEN)
        shapes |= {f"{name}{part}.weight": (HIDDEN,) for part in ("input_layernorm", "post_attention_layernorm")}
    weights = {name: random_tensor(name, shape) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokens,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": TEXT_HEADS,
        "num_key_value_heads": TEXT_HEADS,
        "rms_norm_eps": 1e-5,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|endoftext|>"],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder
