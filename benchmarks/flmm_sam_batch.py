"""Twenty phrases of one image through SAM's decoder at once, against a loop; the image is encoded once on both
sides."""

import torch
from transformers import SamModel

from benchmarks.flmm_models import build, caption_inputs
from benchmarks.harness import alternate, assert_agreement, device, row
from modeling_dsr.configuration_frozen_qwen_sam import sam_config
from modeling_dsr.frozen_qwen_sam_refiner import PhraseSamModel

NAME = "flmm.sam_batch"
PHRASES, TOKENS = 20, 6
SMALL_ENCODER = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, global_attn_indexes=[])  # not measured


def run() -> list[dict]:
    torch.manual_seed(0)
    config = sam_config(vision_config=SMALL_ENCODER)  # prompt encoder and decoder at their published size
    ours = PhraseSamModel(config).eval().to(device())
    plain = SamModel(config).eval().to(device())
    plain.load_state_dict(ours.state_dict())
    image = torch.randn(1, 256, 64, 64, device=device())
    boxes = (
        torch.tensor([[100.0, 120.0, 500.0, 600.0]], device=device())
        + 10 * torch.arange(PHRASES, device=device())[:, None]
    )
    masks = torch.randn(PHRASES, 1, 256, 256, device=device())
    text = torch.randn(PHRASES, TOKENS, 256, device=device())

    @torch.no_grad()
    def loop():
        positions = plain.get_image_wide_positional_embeddings()
        found = []
        for i in range(PHRASES):
            sparse, dense = plain.prompt_encoder(
                input_points=None, input_labels=None, input_boxes=boxes[i].view(1, 1, 4), input_masks=masks[i : i + 1]
            )
            sparse = torch.cat([sparse, text[i][None, None]], dim=2)
            found.append(
                plain.mask_decoder(
                    image_embeddings=image,
                    image_positional_embeddings=positions,
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=False,
                )[0][0, 0]
            )
        return torch.stack(found)

    images = torch.zeros(PHRASES, dtype=torch.long, device=device())

    @torch.no_grad()
    def batch():
        return ours.decode_phrases(image, images, boxes, masks, text, None)[0]

    assert_agreement(batch(), loop(), 1e-3)
    assert image_encoder_calls() == 1
    return [row(NAME, "time", *alternate(loop, batch, rounds=3), 3 if device().type == "cuda" else 0.7)]


def image_encoder_calls() -> int:
    """How often a forward pass with several phrases runs SAM's image encoder."""
    model, calls = build(1).to(device()), []
    model.sam.vision_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    sizes = torch.tensor([[48, 64]])
    inputs = {name: value.to(device()) for name, value in caption_inputs(separate=True).items()}
    with torch.no_grad():
        model(
            **inputs,
            sam_pixel_values=torch.zeros(1, 3, 64, 64, device=device()),
            original_sizes=sizes,
            reshaped_input_sizes=sizes,
        )
    return len(calls)
