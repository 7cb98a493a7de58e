"""Small Cadrille and CAD-Recode checkpoints in the layout of the published ones."""

import re
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from .tokenizer import write_json, write_tokenizer
from .weights import random_tensor

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_window_layers": 2,
}
VISION = {"depth": 2, "embed_dim": 32, "num_heads": 4, "hidden_size": 64, "mlp_ratio": 4}
POINT_FEATURES = 51
VOCABULARY_MULTIPLE = 64  # published embeddings have more rows than the tokenizer has tokens
PUBLISHED_NAMES = ((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual."))


def write_cadrille(folder: str | Path, seed: int = 0) -> Path:
    """Config, generation config, tokenizer and weights of a small Cadrille, as transformers 4.50 wrote them."""
    folder, ids = _start(folder)
    config = _text_config(ids) | {
        "architectures": ["Cadrille"],
        "model_type": "qwen2_vl",
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vision_config": {
            **VISION,
            "in_chans": 3,
            "model_type": "qwen2_vl",
            "patch_size": 14,
            "spatial_patch_size": 14,
        },
        "transformers_version": "4.50.3",
    }
    with torch.device("meta"):
        skeleton = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config))
    return _finish(folder, config, ids, skeleton, [ids["<|im_end|>"], ids["<|endoftext|>"]], ids["<|endoftext|>"], seed)


def write_cad_recode(folder: str | Path, seed: int = 0) -> Path:
    """Config, generation config, tokenizer and weights of a small CAD-Recode, as transformers 4.47 wrote them."""
    folder, ids = _start(folder)
    config = _text_config(ids) | {
        "architectures": ["CADRecode"],
        "model_type": "qwen2",
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|endoftext|>"],
        "transformers_version": "4.47.1",
    }
    with torch.device("meta"):
        skeleton = Qwen2ForCausalLM(Qwen2Config.from_dict(config))
    return _finish(folder, config, ids, skeleton, ids["<|endoftext|>"], ids["<|im_end|>"], seed)


def _start(folder: str | Path) -> tuple[Path, dict[str, int]]:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder, write_tokenizer(folder)


def _text_config(ids: dict[str, int]) -> dict:
    tokens = max(ids.values()) + 1
    return {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        **TEXT,
        "initializer_range": 0.02,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": -(-tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
    }


def _finish(folder, config, ids, skeleton, eos, pad, seed) -> Path:
    write_json(folder / "config.json", config)
    generation = {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": eos, "pad_token_id": pad}
    write_json(folder / "generation_config.json", generation)
    weights = {}
    for name, parameter in skeleton.named_parameters():
        if name == "lm_head.weight":  # tied, hence absent
            continue
        for pattern, replacement in PUBLISHED_NAMES:
            name = re.sub(pattern, replacement, name)
        weights[name] = random_tensor(name, tuple(parameter.shape), seed)
    for name, shape in (("weight", (TEXT["hidden_size"], POINT_FEATURES)), ("bias", (TEXT["hidden_size"],))):
        weights[f"point_encoder.projection.{name}"] = random_tensor(f"point_encoder.projection.{name}", shape, seed)
    save_torch_state_dict(weights, folder)
    return folder
