"""A tiny SAM that learns the space world's masks from prompts: boxes around things, and rough masks of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import SamConfig, SamImageProcessor
from transformers.utils import ModelOutput

from modeling_dsr.frozen_qwen_sam_losses import mask_losses
from modeling_dsr.frozen_qwen_sam_refiner import PhraseSamModel

from ..evaluation.segmentation_metrics import mask_overlaps, masks_from_logits
from ..worlds.space import SpaceWorld
from .geometry import start_narrow
from .rows import Mapped

SIDE = 112
LEAST_PIXELS = 16


@dataclass
class SamTrainingOutput(ModelOutput):
    """`loss`, and `logits` `[n, S/2, S/2]` of the masks."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class PromptedSam(PhraseSamModel):
    """[`SamModel`](https://huggingface.co/docs/transformers/model_doc/sam) with the loss of its masks."""

    def forward(self, pixel_values, prompt_image, boxes, masks, labels=None):  # type: ignore[override]
        """
        Args:
            pixel_values: `[B, 3, S, S]`. prompt_image: `[n]`, the picture of each prompt.
            boxes: `[n, 4]` in pixels. masks: `[n, 1, S/2, S/2]` logits. labels: `[n, S, S]` true masks.
        """
        embeddings = self.vision_encoder(pixel_values).last_hidden_state
        low, _ = self.decode_phrases(embeddings, prompt_image, boxes, masks, None, None, chunk_size=0)
        found = {"logits": low[:, 0]}
        if labels is not None:
            losses = mask_losses([low[:, 0]], [labels])
            found["loss"] = losses["loss_mask"] + losses["loss_dice"]
        return SamTrainingOutput(**found)


def build_sam(width: int = 64, layers: int = 3, prompt_width: int = 64, patch: int = 8):
    """(model, processor) of an untrained SAM for pictures of 112 pixels; `build` of a recipe."""
    config = SamConfig(
        vision_config={
            "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 4, "image_size": SIDE,
            "patch_size": patch, "mlp_dim": 2 * width, "output_channels": prompt_width, "window_size": 0,
            "global_attn_indexes": list(range(layers)), "num_pos_feats": prompt_width // 2, "initializer_range": 0.02,
        },
        prompt_encoder_config={"hidden_size": prompt_width, "image_size": SIDE, "patch_size": patch},
        mask_decoder_config={
            "hidden_size": prompt_width, "mlp_dim": 2 * prompt_width, "num_attention_heads": 4,
            "iou_head_hidden_dim": prompt_width, "layer_norm_eps": 1e-5,
        },
    )  # fmt: skip
    model = PromptedSam(config)
    start_narrow(model)
    # Waves of positions that are as long as the picture, not as short as a pixel.
    nn.init.normal_(model.shared_image_embedding.positional_embedding, std=1.0)
    model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(
        model.shared_image_embedding.positional_embedding
    )
    size = {"size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
    return model, SamImageProcessor(**size)


def prompt_rows(seed: int, difficulty: str = "easy") -> Mapped:
    """Rows "image", and per thing that is seen "masks" `[n, H, W]`, "boxes" `[n, 4]` and "rough" `[n, H/2, W/2]`."""
    world = SpaceWorld(seed, 1, SIDE, SIDE, difficulty=difficulty, questions=0)

    def row(sample) -> dict:
        generator = world.generator(sample.index, "prompts")
        masks = [sample.instances[0] == number + 1 for number in range(len(sample.names))]
        masks = [mask for mask in masks if mask.sum() >= LEAST_PIXELS]
        prompts = [prompts_of(mask, generator) for mask in masks]
        return {
            "image": Image.fromarray(sample.images[0]),
            "masks": np.stack(masks),
            "boxes": np.stack([box for box, _ in prompts]),
            "rough": np.stack([rough for _, rough in prompts]),
        }

    return Mapped(world, row)


def prompts_of(mask: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A box `[4]` around a mask `[H, W]`, shaken by a fifth of its sides, and logits `[H/2, W/2]` of a blob near it."""
    rows, columns = np.nonzero(mask)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
    sides = np.tile(box[2:] - box[:2], 2)
    shaken = np.clip(box + generator.uniform(-0.25, 0.25, 4) * sides, 0, SIDE).astype(np.float32)
    middle = [(box[i] + box[i + 2]) / 2 + generator.uniform(-0.2, 0.2) * sides[i] for i in (0, 1)]
    reach = generator.uniform(0.35, 0.8, 2) * sides[:2]
    y, x = np.mgrid[1:SIDE:2, 1:SIDE:2].astype(np.float32)
    away = ((x - middle[0]) / reach[0]) ** 2 + ((y - middle[1]) / reach[1]) ** 2
    return shaken, np.clip(generator.uniform(2, 6) * (1 - away), -8, 8).astype(np.float32)


class PromptCollator:
    """Pictures as SAM's processor makes them, and the prompts of all of them one after another."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict:
        pixels = self.processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
        counts = torch.tensor([len(row["masks"]) for row in rows])
        joined = {name: torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in ("boxes", "rough")}
        return {
            "pixel_values": pixels,
            "prompt_image": torch.arange(len(rows)).repeat_interleave(counts),
            "boxes": joined["boxes"],
            "masks": joined["rough"][:, None],
            "labels": torch.from_numpy(np.concatenate([row["masks"] for row in rows])),
        }


def measure(model, processor, rows, inputs, outputs) -> dict:
    """cIoU of the masks at the pictures' size."""
    common, union = mask_overlaps(masks_from_logits(outputs["logits"], (SIDE, SIDE)), inputs["labels"])
    return {"ciou": (int(common.sum()), int(union.sum()))}
