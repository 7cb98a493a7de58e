"""
Cadrille's vision tower learns to see before it learns to describe: for every token of a picture of views, where in
space the surface lies that it shows. What it says of that point are the Fourier features that the point encoder reads,
so that a decoder which knows points understands the views from its first step on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.utils import ModelOutput

from configuration_dsr import CADRecodeConfig
from modeling_dsr.cad_point_encoder import FourierEmbedder

from .cad_inputs import VISION, cad_tokenizer, cadrille_processor

LOST = 0.1  # weight of tokens that show paper alone, whose target is 0


@dataclass
class SightOutput(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class PartSight(PreTrainedModel):
    """Qwen2-VL's vision tower with a linear layer that says of each token the Fourier features of a point."""

    config_class = Qwen2VLVisionConfig

    def __init__(self, config: Qwen2VLVisionConfig):
        super().__init__(config)
        points = CADRecodeConfig()
        self.embedder = FourierEmbedder(points.num_freqs, points.logspace, points.include_input, points.include_pi)
        self.visual = Qwen2VisionTransformerPretrainedModel(config)
        self.head = nn.Linear(config.hidden_size, self.embedder.out_features())
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor, points: torch.Tensor):
        """
        Args:
            pixel_values: patches `[B, L, 1176]`. grid_thw: `[B, 3]`.
            points: `[B, T, 3]` in model units, NaN for tokens that show none.
        """
        tokens = self.visual(pixel_values.flatten(0, 1), grid_thw=grid_thw).pooler_output
        said = self.head(tokens).float().view(*points.shape[:2], -1)
        shows = points.isfinite().all(-1)
        features = self.embedder(points.nan_to_num()) * shows[..., None]
        weights = torch.where(shows, 1.0, LOST)
        loss = ((said - features).square() @ self.feature_weights() * weights).sum() / weights.sum()
        return SightOutput(loss=loss, logits=said)

    def feature_weights(self) -> torch.Tensor:
        """Of coordinates, sines and cosines, with sum 1: half as much for each octave, pixels being coarse."""
        octaves = 0.5 ** torch.arange(self.embedder.num_freqs, device=self.device)
        weights = torch.cat([octaves.new_full((3,), 2.0), octaves.repeat(6)])
        return weights / weights.sum()


def build_sight(hidden_size: int = 256, attention: str = "eager", **vision):
    """(model, processor) of an untrained tower; `build` of a recipe. See `build_cadrille` for `vision`."""
    config = Qwen2VLVisionConfig(**{**VISION, "hidden_size": hidden_size, **vision})
    config._attn_implementation = attention
    return PartSight(config), cadrille_processor(cad_tokenizer())


@torch.no_grad()
def give_sight(visual, sight: PartSight, projection: nn.Linear) -> None:
    """Let a Cadrille's tower `visual` be the trained one, its last layer followed by the head and the projection of
    the point encoder."""
    visual.load_state_dict(sight.visual.state_dict())
    last, head = visual.merger.mlp[2], sight.head
    last.bias.copy_(projection(head(last.bias)))
    last.weight.copy_(projection.weight @ head.weight @ last.weight)


class SightCollator:
    """Rows with "views" and "seen" (see [`PartRows`]) to the inputs of [`PartSight`]."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict:
        inputs = self.processor(images=[row["views"] for row in rows])
        points = np.stack([row["seen"] for row in rows])
        return {
            "pixel_values": inputs["pixel_values_videos"],
            "grid_thw": inputs["video_grid_thw"],
            "points": torch.from_numpy(points) / self.processor.program_range,
        }


def measure(model, processor, rows, inputs, outputs) -> dict:
    """Distance between the point that a token says (its features begin with the coordinates) and the true one, in
    units of the program."""
    truth = inputs["points"]
    shows = truth.isfinite().all(-1)
    away = (outputs.logits[..., :3] - truth)[shows].norm(dim=-1) * processor.program_range
    return {"distance_median": away.tolist()}
