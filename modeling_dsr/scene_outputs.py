"""What the Scene Q-Former returns."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput


@dataclass
class SceneQFormerOutput(ModelOutput):
    """
    Output of [`SceneQFormerModel`].

    Args:
        scene_tokens (`torch.FloatTensor` of shape `(batch, num_queries, llm_hidden_size)`): for a language model.
        last_hidden_state (`torch.FloatTensor` of shape `(batch, num_queries, embed_dims)`): before the projector.
        hidden_states (`tuple[torch.FloatTensor]`): with `output_hidden_states=True`, the queries and the output of each
            decoder layer, each `(batch, num_queries, embed_dims)`.
        attentions (`tuple[torch.FloatTensor]`): with `output_attentions=True`, for each decoder layer the probabilities
            `(batch, heads, num_queries, cameras, h, w)` with which each query read each cell of each camera. They sum
            to 1 over all cells of all cameras (with deformable attention to less where a query looks past the image's
            edge).
    """

    scene_tokens: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SceneQFormerCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Output of [`SceneQFormerForConditionalGeneration`]; see [`CausalLMOutputWithPast`] for the language model's fields.

    Args:
        scene_tokens (`torch.FloatTensor` of shape `(scenes, num_queries, hidden)`): what the language model reads.
        scene_attentions (`tuple[torch.FloatTensor]`): with `output_scene_attentions=True`, see [`SceneQFormerOutput`].
        query_outputs (`torch.FloatTensor` of shape `(batch, I·(1 + P), hidden)`): with `output_map=True`, the language
            model's last states of the output queries.
        class_logits (`torch.FloatTensor` of shape `(batch, I, classes)`): class scores before the sigmoid.
        points (`torch.FloatTensor` of shape `(batch, I, P, 2)`): map elements, -1 … 1 over `point_range` of the LiDAR
            frame.
        boxes (`torch.FloatTensor` of shape `(batch, I, 4)`): centre and size of the points' bounding box.
        class_loss, points_loss, direction_loss (`torch.FloatTensor`): terms of the map loss, unweighted, last
            refinement.
    """

    scene_tokens: torch.FloatTensor | None = None
    scene_attentions: tuple[torch.FloatTensor, ...] | None = None
    query_outputs: torch.FloatTensor | None = None
    class_logits: torch.FloatTensor | None = None
    points: torch.FloatTensor | None = None
    boxes: torch.FloatTensor | None = None
    class_loss: torch.FloatTensor | None = None
    points_loss: torch.FloatTensor | None = None
    direction_loss: torch.FloatTensor | None = None
