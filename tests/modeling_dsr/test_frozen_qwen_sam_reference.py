"""U-Net and SAM refiner against stored results of the published code (`tests/reference/frozen_qwen_sam`).

`python -m tests.parity frozen_qwen_sam` on the whole reference folder also covers language model, training and answers.
"""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from configuration_dsr import FrozenQwenSAMConfig
from convert_weights.architectures.frozen_qwen_sam import TRAINED_RULES
from modeling_dsr.modeling_frozen_qwen_sam import FrozenQwenSAMModel
from tests.modeling_dsr.frozen_qwen_sam_samples import tiny_config

STORED = load_file(Path(__file__).parents[1] / "reference" / "frozen_qwen_sam" / "heads.safetensors")
CHANNELS = 32  # of SAM's prompts


def our_name(published: str) -> str:
    """The parameter that a key of the published checkpoint becomes, by the converter's own rules."""
    for rule in TRAINED_RULES:
        match = re.fullmatch(rule.pattern, published)
        if match and rule.targets:
            target = rule.targets[0]
            return target(match) if callable(target) else match.expand(target)
    raise ValueError(f"no rule of the converter takes {published!r}")


@pytest.fixture(scope="module")
def model():
    """The trained parts of the stored checkpoint; language model and image encoder are not used here."""
    vlm = tiny_config().vlm_config.to_dict()
    vlm["text_config"] |= {"num_hidden_layers": 3, "num_attention_heads": 4, "layer_types": ["full_attention"] * 3}
    sam = dict(
        vision_config=dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, global_attn_indexes=[],
                           output_channels=CHANNELS, num_pos_feats=CHANNELS // 2),
        prompt_encoder_config=dict(hidden_size=CHANNELS),
        mask_decoder_config=dict(hidden_size=CHANNELS, mlp_dim=64, iou_head_hidden_dim=32),
    )  # fmt: skip
    config = FrozenQwenSAMConfig(vlm_config=vlm, sam_config=sam, mask_head_channels=8, mask_prompt_padding="image")
    model = FrozenQwenSAMModel(config).eval()
    weights = {our_name(name[7:]): value for name, value in STORED.items() if name.startswith("weight.")}
    positions = "positional_embedding"
    weights |= {f"sam.prompt_encoder.shared_embedding.{positions}": weights[f"sam.shared_image_embedding.{positions}"]}
    result = model.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    assert all(name.startswith(("vlm.", "sam.vision_encoder.", "text_")) for name in result.missing_keys)
    return model


@pytest.mark.parametrize("case", ["base_mean", "merge_max", "refcoco_prompt"])
def test_coarse_masks(model, case):
    with torch.no_grad():
        found = model.mask_head(STORED[f"{case}.mask_attentions"])
    torch.testing.assert_close(found, STORED[f"{case}.pred_masks"], atol=2e-3, rtol=0)


def test_refined_masks_with_an_empty_coarse_one(model):
    stored = {name[8:]: value for name, value in STORED.items() if name.startswith("refiner.")}
    embeds = [stored["text_embeds.0"], stored["text_embeds.1"]]
    mask = torch.arange(7) < torch.tensor([[len(e)] for e in embeds])
    size = stored["sam_pred_masks"].shape[-2:]
    reshaped = [[int(side * 1024 / max(size) + 0.5) for side in size]]
    with torch.no_grad():
        refined = model.refine(
            (stored["coarse_logits"],),
            torch.nn.utils.rnn.pad_sequence(embeds, batch_first=True),
            mask,
            stored["image_embedding"],
            [list(size)],
            reshaped,
        )
    torch.testing.assert_close(refined.boxes, stored["boxes"], atol=1e-3, rtol=0)
    torch.testing.assert_close(refined.masks[0], stored["sam_pred_masks"], atol=1e-3, rtol=0)
    assert refined.boxes[1].tolist() == [0, 0, reshaped[0][1], reshaped[0][0]]  # nothing found: the whole image
