"""Checkpoints in the layouts of their publishers, generated at any size: names and shapes, sparse or random files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

Layout = dict[str, tuple[int, ...]]

# config.json of Qwen2.5-VL-7B-Instruct, what of it the conversion reads.
QWEN_7B = {
    "model_type": "qwen2_5_vl",
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}
# The same at a size for tests. The heads of its encoder, 2, do not follow from its width.
QWEN_TINY = {
    **QWEN_7B,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "torch_dtype": "float32",
    "vision_config": {
        **QWEN_7B["vision_config"],
        "depth": 2,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_heads": 3,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "vocab_size": 300,
    "bos_token_id": 283,
    "eos_token_id": 285,
    "vision_start_token_id": 292,
    "vision_end_token_id": 293,
    "vision_token_id": 294,
    "image_token_id": 295,
    "video_token_id": 296,
}
TINY_ENCODER = {"width": 32, "layers": 2, "grid": 8}
TINY_OVERRIDES = {"geometry_config": {"num_attention_heads": 2}, "im_start_token_id": 284, "im_end_token_id": 285}


def _linear(name: str, rows: int, columns: int, bias: bool = True) -> Layout:
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def _gated_mlp(name: str, width: int, inner: int, bias: bool = True) -> Layout:
    return {
        **_linear(f"{name}.gate_proj", inner, width, bias),
        **_linear(f"{name}.up_proj", inner, width, bias),
        **_linear(f"{name}.down_proj", width, inner, bias),
    }


def qwen_layout(config: dict) -> Layout:
    """Qwen2.5-VL as its publishers name it: `visual.*`, `model.*`, `lm_head.weight` unless tied."""
    vision, width = config["vision_config"], config["hidden_size"]
    layout: Layout = {}
    inner = vision["hidden_size"]
    layout["visual.patch_embed.proj.weight"] = (inner, 3, 2, 14, 14)
    for i in range(vision["depth"]):
        block = f"visual.blocks.{i}"
        layout |= {f"{block}.norm1.weight": (inner,), f"{block}.norm2.weight": (inner,)}
        layout |= _linear(f"{block}.attn.qkv", 3 * inner, inner) | _linear(f"{block}.attn.proj", inner, inner)
        layout |= _gated_mlp(f"{block}.mlp", inner, vision["intermediate_size"])
    layout["visual.merger.ln_q.weight"] = (inner,)
    layout |= _linear("visual.merger.mlp.0", 4 * inner, 4 * inner)
    layout |= _linear("visual.merger.mlp.2", vision["out_hidden_size"], 4 * inner)
    head_dim = width // config["num_attention_heads"]
    narrow = config["num_key_value_heads"] * head_dim
    layout["model.embed_tokens.weight"] = (config["vocab_size"], width)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        layout |= _linear(f"{layer}.self_attn.q_proj", width, width)
        layout |= _linear(f"{layer}.self_attn.k_proj", narrow, width)
        layout |= _linear(f"{layer}.self_attn.v_proj", narrow, width)
        layout |= _linear(f"{layer}.self_attn.o_proj", width, width, bias=False)
        layout |= _gated_mlp(f"{layer}.mlp", width, config["intermediate_size"], bias=False)
        layout |= {f"{layer}.input_layernorm.weight": (width,), f"{layer}.post_attention_layernorm.weight": (width,)}
    layout["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        layout["lm_head.weight"] = (config["vocab_size"], width)
    return layout


def encoder_layout(prefix: str, width: int = 1024, layers: int = 24, grid: int = 37) -> Layout:
    """π³'s encoder: DINOv2 with four registers."""
    layout: Layout = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid * grid, width),
        "register_tokens": (1, 4, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(layers):
        block = f"blocks.{i}"
        for norm in ("norm1", "norm2"):
            layout |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        layout |= _linear(f"{block}.attn.qkv", 3 * width, width) | _linear(f"{block}.attn.proj", width, width)
        layout |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
        layout |= _linear(f"{block}.mlp.fc1", 4 * width, width) | _linear(f"{block}.mlp.fc2", width, 4 * width)
    layout |= {"norm.weight": (width,), "norm.bias": (width,)}
    return {prefix + name: shape for name, shape in layout.items()}


def dsr_layout(config: dict, encoder: dict | None = None, queries: int = 32) -> Layout:
    """The published DSR checkpoint: Qwen2.5-VL with the Geometry Selection Module inside `visual`."""
    encoder = {"width": 1024, "layers": 24, "grid": 37, **(encoder or {})}
    width, merged = config["hidden_size"], 8 * encoder["width"]
    narrow = config["num_key_value_heads"] * (width // config["num_attention_heads"])
    layout = {"visual.q_former_queries": (queries, width), **qwen_layout(config)}
    layout |= encoder_layout("visual.spatial_encoder.", **encoder)
    layout["visual.spatial_merger.ln_q.weight"] = (merged,)
    layout |= _linear("visual.spatial_merger.mlp.0", merged, merged) | _linear(
        "visual.spatial_merger.mlp.2", width, merged
    )
    for name in ("visual.q_former_1", "visual.q_former_2"):
        layout |= {f"{name}.norm1.weight": (width,), f"{name}.norm2.weight": (width,)}
        layout |= _linear(f"{name}.attn.q_proj", width, width)
        layout |= _linear(f"{name}.attn.k_proj", narrow, width) | _linear(f"{name}.attn.v_proj", narrow, width)
        layout |= _linear(f"{name}.attn.o_proj", width, width, bias=False)
        layout |= _gated_mlp(f"{name}.mlp", width, config["intermediate_size"])
    layout["visual.q_former_norm.weight"] = (width,)
    return layout


def write_random(path: Path, layout: Layout, seed: int = 0) -> dict[str, torch.Tensor]:
    """A safetensors file of small random numbers; returns them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {key: torch.randn(shape, generator=generator) * 0.05 for key, shape in layout.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return tensors


def write_sparse_shards(folder: Path, layout: Layout, shard_size: int, itemsize: int = 2) -> int:
    """bf16 shards of zeros with their index. The files are holes, so they take no space; returns their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict] = [{}]
    size = 0
    for key, shape in layout.items():
        nbytes = math.prod(shape) * itemsize
        if size and size + nbytes > shard_size:
            shards.append({})
            size = 0
        shards[-1][key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [size, size + nbytes]}
        size += nbytes
    total, weight_map = 0, {}
    for number, header in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        text = json.dumps(header).encode()
        end = 8 + len(text) + max(entry["data_offsets"][1] for entry in header.values())
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(end)
        total += end
        weight_map |= dict.fromkeys(header, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total
