"""DSR models and prompts that its benchmarks share: random weights, real shapes, no files."""

import torch

from modeling_dsr.configuration_dsr import DSRConfig
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration

IMAGE, VIDEO, VISION_START, VISION_END, VISION_PAD, IM_START, IM_END, END_OF_TEXT = range(1000, 1008)
TOKEN_IDS = dict(
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    vision_start_token_id=VISION_START,
    vision_end_token_id=VISION_END,
    vision_pad_token_id=VISION_PAD,
    im_start_token_id=IM_START,
    im_end_token_id=IM_END,
)
FRAMES, HEIGHT, WIDTH = 32, 336, 616  # what DSR sees of a 16:9 video: 16 × 24 × 44 patches, 4224 vision tokens
GRID = (FRAMES // 2, HEIGHT // 14, WIDTH // 14)
TOKENS = GRID[0] * GRID[1] * GRID[2] // 4


def full_width_config(layers: int) -> DSRConfig:
    """Every width as in the published 7B model; `layers` in each tower."""
    return DSRConfig(
        text_config=dict(
            vocab_size=1024,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=layers,
            num_attention_heads=28,
            num_key_value_heads=4,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            bos_token_id=END_OF_TEXT,
            eos_token_id=IM_END,
        ),
        vision_config=dict(depth=layers, out_hidden_size=3584, fullatt_block_indexes=[layers - 1]),
        geometry_config=dict(num_hidden_layers=layers),
        **TOKEN_IDS,
    )


def small_config(
    text_layers: int = 8, vision_layers: int = 8, geometry_layers: int = 6, vocabulary: int = 1024, **token_ids: int
) -> DSRConfig:
    """
    A model whose three towers stand in the published proportion of work, forward, at the benchmarks' 16 frames, small
    enough to be timed on a CPU.

    Args:
        vocabulary, token_ids: of a processor; by default those above.
    """
    return DSRConfig(
        text_config=dict(
            vocab_size=vocabulary,
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=text_layers,
            num_attention_heads=8,
            num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
            bos_token_id=END_OF_TEXT,
            eos_token_id=IM_END,
        ),
        vision_config=dict(
            depth=vision_layers,
            hidden_size=256,
            intermediate_size=704,
            num_heads=4,
            out_hidden_size=512,
            fullatt_block_indexes=[(vision_layers - 1) // 2, vision_layers - 1],
        ),
        geometry_config=dict(hidden_size=256, num_hidden_layers=geometry_layers, num_attention_heads=4),
        **(token_ids or TOKEN_IDS),
    )


def small_model() -> DSRForConditionalGeneration:
    torch.manual_seed(0)
    return DSRForConditionalGeneration(small_config()).eval()


def video(grid: tuple[int, int, int], seed: int = 0) -> dict[str, torch.Tensor]:
    """A processed video of noise."""
    generator = torch.Generator().manual_seed(seed)
    t, h, w = grid
    return {
        "pixel_values_videos": torch.randn(t * h * w, 1176, generator=generator),
        "video_grid_thw": torch.tensor([grid]),
        "second_per_grid_ts": torch.tensor([1.0]),
    }


def prompt(grid: tuple[int, int, int], words: int, geometry_tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A question of `words` random words about one video."""
    text = torch.randint(0, 1000, (words,), generator=torch.Generator().manual_seed(seed)).tolist()
    pads = [VIDEO] * (grid[0] * grid[1] * grid[2] // 4 + geometry_tokens)
    ids = [IM_START, 7, VISION_START, *pads, VISION_END, *text, IM_END, IM_START, 9]
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
