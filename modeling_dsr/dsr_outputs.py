"""What DSR returns."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast


@dataclass
class DSRVisionFeatures(BaseModelOutputWithPooling):
    """
    Everything that DSR computes of images or videos before it sees a question.

    Encode once, ask many: pass it as `mm_encoder_outputs={"video": features}` instead of pixels, with any prompts whose
    videos are these, in this order; [`~DSRVisionFeatures.select`] repeats or reorders them.

    Args:
        pooler_output (`tuple[torch.FloatTensor]`): vision tokens `[t·h·w/4, D]` of each medium.
        geometry_features (`tuple[torch.FloatTensor]`, *optional*): spatial states `[t·h·w/4, D]` of each medium.
        grid_thw (`torch.LongTensor` of shape `(n, 3)`): patches (time, rows, columns) of each medium.
    """

    geometry_features: tuple[torch.FloatTensor, ...] | None = None
    grid_thw: torch.LongTensor | None = None

    def select(self, indices) -> "DSRVisionFeatures":
        """The media of `indices` (repeats allowed), sharing memory: `features.select([0] * 8)` for eight questions."""
        indices = [int(i) for i in indices]
        return DSRVisionFeatures(
            pooler_output=tuple(self.pooler_output[i] for i in indices),
            geometry_features=None
            if self.geometry_features is None
            else tuple(self.geometry_features[i] for i in indices),
            grid_thw=self.grid_thw[indices],
        )


@dataclass
class DSRModelOutputWithPast(BaseModelOutputWithPast):
    """
    Output of [`DSRModel`]; see [`BaseModelOutputWithPast`] for the fields of the language model.

    Args:
        rope_deltas (`torch.LongTensor` of shape `(batch, 1)`): next rotary position minus number of tokens.
        geometry_tokens (`torch.FloatTensor` of shape `(groups, num_geometry_tokens, hidden)`): what the language model
            reads in the geometry placeholders.
        geometry_attentions (`tuple[torch.FloatTensor]`): with `output_geometry_attentions=True`, for each medium that
            has geometry the probabilities `(heads, num_geometry_tokens, t, h/2, w/2)` with which each token read each
            2-frame, 28×28-pixel cell. They sum to 1 over all media of a group.
    """

    rope_deltas: torch.LongTensor | None = None
    geometry_tokens: torch.FloatTensor | None = None
    geometry_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class DSRCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output of [`DSRForConditionalGeneration`]; the last three fields are those of [`DSRModelOutputWithPast`]."""

    rope_deltas: torch.LongTensor | None = None
    geometry_tokens: torch.FloatTensor | None = None
    geometry_attentions: tuple[torch.FloatTensor, ...] | None = None
