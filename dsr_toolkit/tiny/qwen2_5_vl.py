"""A small Qwen2.5-VL checkpoint in the layout of the published ones."""

import re
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

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
VISION = {
    "depth": 2,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_heads": 3,
    "fullatt_block_indexes": [1],
    "window_size": 112,
}
VOCABULARY_MULTIPLE = 64  # published embeddings have more rows than the tokenizer has tokens
# Pixels of a frame or image after resizing, small because the small model is meant for CPUs.
MIN_PIXELS, MAX_PIXELS = 56 * 56, 224 * 280

# transformers' names in memory -> names in published files.
PUBLISHED_NAMES = ((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual."))


def write_qwen2_5_vl(folder: str | Path, seed: int = 0) -> Path:
    """Write config, generation config, preprocessor, tokenizer, chat template and two weight shards into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(folder)
    config = published_config(ids)
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": ids["<|endoftext|>"],
            "do_sample": True,
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
            "repetition_penalty": 1.05,
            "temperature": 1e-6,
            "transformers_version": "4.49.0",
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "min_pixels": MIN_PIXELS,
            "max_pixels": MAX_PIXELS,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": OPENAI_CLIP_MEAN,
            "image_std": OPENAI_CLIP_STD,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
    )
    with torch.device("meta"):
        skeleton = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(config))
    weights = {}
    for name, parameter in skeleton.named_parameters():
        for pattern, replacement in PUBLISHED_NAMES:
            name = re.sub(pattern, replacement, name)
        weights[name] = random_tensor(name, tuple(parameter.shape), seed)
    # Random answers in words: single bytes, control tokens and unused rows are seldom the likeliest.
    words = range(256, min(ids.values()))
    weights["lm_head.weight"][[row for row in range(config["vocab_size"]) if row not in words]] *= 0.2
    size = sum(tensor.nbytes for tensor in weights.values())
    save_torch_state_dict(weights, folder, max_shard_size=size * 2 // 3)
    return folder


def published_config(ids: dict[str, int]) -> dict:
    """`config.json` as published for Qwen2.5-VL: text fields at the top level, old spelling of rope and dtype."""
    tokens = max(ids.values()) + 1
    head_dim = TEXT["hidden_size"] // TEXT["num_attention_heads"]
    # The published sections 16, 24, 24 of 64 rotary frequencies, in proportion.
    section = [head_dim // 8, head_dim * 3 // 16, head_dim // 2 - head_dim // 8 - head_dim * 3 // 16]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        **TEXT,
        # Published: 0.02, about the inverse root of the width, as here. What is added to the model starts with this.
        "initializer_range": TEXT["hidden_size"] ** -0.5,
        "max_position_embeddings": 128000,
        "model_type": "qwen2_5_vl",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": section},
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            **VISION,
            "hidden_act": "silu",
            "in_chans": 3,
            "out_hidden_size": TEXT["hidden_size"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
        },
        "vocab_size": -(-tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
    }
