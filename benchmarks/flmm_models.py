"""FrozenQwenSAM models for benchmarks: a text stack of the size in question, everything else tiny."""

import torch

from modeling_dsr.configuration_frozen_qwen_sam import FrozenQwenSAMConfig
from modeling_dsr.modeling_frozen_qwen_sam import FrozenQwenSAMModel

IMAGE_TOKEN = 500
GRID = (64, 84)  # patches: 32 × 42 = 1344 image tokens
SEQUENCE = 1500
HEADS = 16
PHRASES = (8, 12, 6, 14)  # tokens: 40 rows


def build(layers: int) -> FrozenQwenSAMModel:
    """`layers` decoder layers of width 1024 with 16 heads (2 for keys and values), float32."""
    text = dict(
        vocab_size=512, hidden_size=1024, intermediate_size=2752, num_hidden_layers=layers, num_attention_heads=HEADS,
        num_key_value_heads=2, max_window_layers=layers, pad_token_id=0,
        bos_token_id=1, eos_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    )  # fmt: skip
    vision = dict(
        depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=1024, fullatt_block_indexes=[],
        patch_size=14,
        window_size=112, spatial_merge_size=2, temporal_patch_size=2,
    )  # fmt: skip
    small = dict(hidden_size=16)
    config = FrozenQwenSAMConfig(
        vlm_config=dict(
            model_type="qwen2_5_vl", text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN,
            tie_word_embeddings=False
        ),
        sam_config=dict(
            vision_config=dict(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, global_attn_indexes=[], output_channels=16,
                num_pos_feats=8, image_size=64,
            ),
            prompt_encoder_config=dict(**small, image_size=64),
            mask_decoder_config=dict(**small, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=16),
        ),
        mask_head_channels=8,
    )  # fmt: skip
    torch.manual_seed(0)
    return FrozenQwenSAMModel(config).eval()


def caption_inputs(separate: bool = False) -> dict[str, torch.Tensor]:
    """One row of `SEQUENCE` tokens: text, the image, text, and phrases of `PHRASES` tokens at its end."""
    generator = torch.Generator().manual_seed(1)
    cells = GRID[0] * GRID[1] // 4
    total = sum(PHRASES)
    ids = torch.randint(1, 499, (1, SEQUENCE), generator=generator)
    ids[0, 20 : 20 + cells] = IMAGE_TOKEN
    mask_ids = torch.full((1, SEQUENCE), -1)
    mask_ids[0, -total:] = torch.repeat_interleave(torch.arange(len(PHRASES)), torch.tensor(PHRASES))
    caption_ids = mask_ids + 1 if separate else (mask_ids >= 0).long()
    return {
        "input_ids": ids,
        "mask_ids": mask_ids,
        "caption_ids": caption_ids,
        "pixel_values": torch.randn(GRID[0] * GRID[1], 1176, generator=generator),
        "image_grid_thw": torch.tensor([[1, *GRID]]),
    }
