"""Tiny FrozenQwenSAM configurations and inputs."""

import torch

from configuration_dsr import FrozenQwenSAMConfig

VOCABULARY, IMAGE_TOKEN, PAD = 480, 80, 81  # as many words as the tiny tokenizer, which Trainer compares
SAM_SIZE = 64
TEXT = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_window_layers=2, rms_norm_eps=1e-6, pad_token_id=PAD, bos_token_id=82, eos_token_id=83,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
)  # fmt: skip
VLM = {
    "qwen2_5_vl": dict(
        text_config=TEXT,
        vision_config=dict(
            depth=2, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=32, fullatt_block_indexes=[1],
            window_size=56, patch_size=14, spatial_merge_size=2, temporal_patch_size=2,
        ),
    ),
    "qwen2_vl": dict(
        text_config=TEXT,
        vision_config=dict(
            depth=2, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=14, spatial_merge_size=2
        ),
    ),
    "qwen3_vl": dict(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": {**TEXT["rope_parameters"], "mrope_section": [2, 1, 1]}},
        vision_config=dict(
            depth=2, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=32, patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2, num_position_embeddings=64, deepstack_visual_indexes=[0],
        ),
    ),
}  # fmt: skip


def tiny_config(kind: str = "qwen2_5_vl", **overrides) -> FrozenQwenSAMConfig:
    ids = dict(image_token_id=IMAGE_TOKEN, video_token_id=84, vision_start_token_id=85, vision_end_token_id=86)
    values = dict(
        vlm_config={"model_type": kind, "tie_word_embeddings": False, **VLM[kind], **ids},
        sam_config=dict(
            vision_config=dict(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, global_attn_indexes=[1], window_size=2,
                image_size=SAM_SIZE, patch_size=16, output_channels=16, num_pos_feats=8, mlp_dim=32,
                initializer_range=0.02,
            ),
            prompt_encoder_config=dict(hidden_size=16, image_size=SAM_SIZE, patch_size=16, mask_input_channels=8),
            mask_decoder_config=dict(hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16),
        ),
        mask_head_channels=8,
        mask_head_stages=3,
        mask_head_size=16,
    )  # fmt: skip
    return FrozenQwenSAMConfig(**{**values, **overrides})


def sample(index: int, grid=(4, 6), phrases=(3, 2), size=(30, 40), separate: bool = False) -> dict:
    """
    One row: five tokens, the image, two tokens, then captions of `phrases` tokens each, with a token after each phrase.

    Args:
        separate: every phrase is a caption of its own.
    """
    generator = torch.Generator().manual_seed(100 + index)

    def words(count: int) -> list[int]:
        return torch.randint(0, 70, (count,), generator=generator).tolist()

    cells = grid[0] * grid[1] // 4
    input_ids = words(4) + [85] + [IMAGE_TOKEN] * cells + [86] + words(2)
    mask_ids, caption_ids = [-1] * len(input_ids), [0] * len(input_ids)
    for number, length in enumerate(phrases):
        input_ids += words(length + 1)
        mask_ids += [number] * length + [-1]
        caption_ids += [number + 1 if separate else 1] * (length + 1)
    scale = SAM_SIZE / max(size)
    reshaped = [int(side * scale + 0.5) for side in size]
    pixels = torch.zeros(3, SAM_SIZE, SAM_SIZE)
    pixels[:, : reshaped[0], : reshaped[1]] = torch.randn(3, *reshaped, generator=generator)
    return {
        "input_ids": torch.tensor(input_ids),
        "mask_ids": torch.tensor(mask_ids),
        "caption_ids": torch.tensor(caption_ids),
        "pixel_values": torch.randn(grid[0] * grid[1], 3 * 2 * 14 * 14, generator=generator),
        "image_grid_thw": torch.tensor([[1, *grid]]),
        "sam_pixel_values": pixels[None],
        "original_sizes": torch.tensor([list(size)]),
        "reshaped_input_sizes": torch.tensor([reshaped]),
        "labels": (torch.rand(len(phrases), *size, generator=generator) > 0.6).to(torch.uint8),
    }


def collate(samples: list[dict], padding_side: str = "right", labels: bool = True) -> dict:
    length = max(len(one["input_ids"]) for one in samples)
    batch = {}
    for name, fill in (("input_ids", PAD), ("mask_ids", -1), ("caption_ids", 0), ("attention_mask", 0)):
        rows = []
        for one in samples:
            row = one.get(name, torch.ones(len(one["input_ids"]), dtype=torch.long))
            missing = length - len(row)
            pad = (missing, 0) if padding_side == "left" else (0, missing)
            rows.append(torch.nn.functional.pad(row, pad, value=fill))
        batch[name] = torch.stack(rows)
    for name in ("pixel_values", "image_grid_thw", "sam_pixel_values", "original_sizes", "reshaped_input_sizes"):
        batch[name] = torch.cat([one[name] for one in samples])
    if labels:
        batch["labels"] = [one["labels"] for one in samples]
    return batch
