"""Decoder of the scene Q-Former: learned queries read the image memory.

Layers have the parameters and the arithmetic of torch's `nn.TransformerDecoderLayer` (post-norm, ReLU, no final norm),
in which the published weights are, and compute less: what does not depend on the images is not computed per image, and
attention inputs are projected together.
"""

import math
from functools import partial

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deformable_detr.configuration_deformable_detr import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrMultiscaleDeformableAttention

from .attention import eager_attention
from .scene_position import weight_versions


def start_with(module: nn.Module, **values) -> nn.Module:
    """
    Give parameters of a library module initial values of their own: functions that fill them in place.

    Only the module itself can be asked for them: a parent is not initialised again when a checkpoint lacks a child's
    weight.
    """
    module.initial_values = values
    return module


def fill_from(make, parameter: torch.Tensor) -> None:
    """Fill a parameter with what `make()` returns, made when it is needed and not where the model is built without
    storage."""
    init.copy_(parameter, make())


def head_directions(heads: int, levels: int, points: int) -> torch.Tensor:
    """Offsets `[heads·levels·points·2]` in cells: each head in its direction, point p at distance p + 1."""
    angles = torch.arange(heads, dtype=torch.float32) * (2.0 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, points + 1, dtype=torch.float32)[:, None]
    return (directions[:, None, None] * steps).expand(-1, levels, -1, -1).reshape(-1)


class SceneAttention(nn.Module):
    """Multi-head attention with the fused parameters of torch's `nn.MultiheadAttention`."""

    def __init__(self, config, dims: int | None = None, num_heads: int | None = None):
        super().__init__()
        self.config = config
        self.dims = dims or config.embed_dims
        self.head_dim = self.dims // (num_heads or config.num_heads)
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.num_key_value_groups = 1
        self.in_proj_weight = nn.Parameter(torch.empty(3 * self.dims, self.dims))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * self.dims))
        self.out_proj = start_with(nn.Linear(self.dims, self.dims), bias=init.zeros_)

    def reset_parameters(self):
        init.xavier_uniform_(self.in_proj_weight)
        init.zeros_(self.in_proj_bias)

    def project(self, hidden_states: torch.Tensor, first: int, count: int) -> tuple[torch.Tensor, ...]:
        """`count` of query (0), key (1), value (2) from `first` on; each `[B, heads, L, head_dim]`."""
        rows = slice(first * self.dims, (first + count) * self.dims)
        projected = nn.functional.linear(hidden_states, self.in_proj_weight[rows], self.in_proj_bias[rows])
        projected = projected.unflatten(-1, (count, -1, self.head_dim))  # [B, L, count, heads, head_dim]
        return projected.permute(2, 0, 3, 1, 4).unbind(0)

    def attend(self, query, key, value, output_attentions: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        eager = output_attentions or self.config._attn_implementation == "eager"
        # The island is float32, which flash kernels do not take; torch's own attention does.
        attention = eager_attention if eager else ALL_ATTENTION_FUNCTIONS["sdpa"]
        dropout = self.config.dropout if self.training else 0.0
        output, weights = attention(
            self, query, key, value, None, dropout=dropout, scaling=self.scaling, is_causal=False
        )
        return self.out_proj(output.flatten(2)), weights if output_attentions else None

    def forward(self, hidden_states, memory=None, output_attentions=False, **kwargs):
        """Self-attention, or attention to `memory`. Returns `[B, Q, C]` and probabilities `[B, heads, Q, M]` or
        None."""
        if memory is None:
            return self.attend(*self.project(hidden_states, 0, 3), output_attentions)
        (query,) = self.project(hidden_states, 0, 1)
        return self.attend(query, *self.project(memory, 1, 2), output_attentions)


class SceneDeformableAttention(DeformableDetrMultiscaleDeformableAttention):
    """
    transformers' deformable attention over the cameras as its levels.

    Every query owns a reference point in every camera, learned, and reads a few cells around it.
    """

    def __init__(self, config):
        super().__init__(
            DeformableDetrConfig(d_model=config.embed_dims, num_feature_levels=config.num_cams),
            config.num_heads,
            config.num_deformable_points,
        )
        # Logits of (x, y) in [0, 1] of each camera's image.
        self.reference_points = nn.Parameter(torch.empty(config.num_queries, config.num_cams, 2))

        # Deformable DETR's beginning: heads look in all directions, farther with each point, all with the same weight.
        offsets = partial(head_directions, self.n_heads, self.n_levels, self.n_points)
        start_with(self.sampling_offsets, weight=init.zeros_, bias=partial(fill_from, offsets))
        start_with(self.attention_weights, weight=init.zeros_, bias=init.zeros_)
        start_with(self.value_proj, weight=init.xavier_uniform_, bias=init.zeros_)
        start_with(self.output_proj, weight=init.xavier_uniform_, bias=init.zeros_)

    def reset_parameters(self):
        """Reference points spread over the images."""
        init.uniform_(self.reference_points, -2.0, 2.0)

    def forward(self, hidden_states, memory, output_attentions=False, num_cameras=None, grid=None):
        """
        Args:
            hidden_states: `[B, Q, C]`. memory: `[B, N·h·w, C]`. grid: cells (h, w) of each of the `num_cameras` images.

        Returns:
            `[B, Q, C]`, and on request the weight of every cell `[B, heads, Q, N·h·w]`; cells outside the image get
            none.
        """
        batch = len(hidden_states)
        shapes = [tuple(grid)] * num_cameras
        points = self.reference_points.sigmoid().to(hidden_states.dtype).expand(batch, -1, -1, -1)
        output, weights = super().forward(
            hidden_states,
            encoder_hidden_states=memory,
            reference_points=points,
            spatial_shapes=torch.tensor(shapes, device=memory.device),
            spatial_shapes_list=shapes,
            level_start_index=torch.arange(num_cameras, device=memory.device) * (grid[0] * grid[1]),
        )
        return output, self._cell_weights(hidden_states, points, weights, grid) if output_attentions else None

    def _cell_weights(self, hidden_states, points, weights, grid) -> torch.Tensor:
        """Spread each sample's weight over the four cells that its bilinear interpolation reads."""
        rows, columns = grid
        offsets = self.sampling_offsets(hidden_states).unflatten(-1, (self.n_heads, self.n_levels, self.n_points, 2))
        size = offsets.new_tensor([columns, rows])
        places = points[:, :, None, :, None] * size + offsets - 0.5  # [B, Q, heads, N, points, (x, y)] in cells
        corner, inside = places.floor().long(), places - places.floor()
        cells = weights.new_zeros(*weights.shape[:-1], rows * columns)  # [B, Q, heads, N, h·w]
        for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
            x, y = corner[..., 0] + right, corner[..., 1] + down
            share = (inside[..., 0] if right else 1 - inside[..., 0]) * (inside[..., 1] if down else 1 - inside[..., 1])
            share = share * ((x >= 0) & (x < columns) & (y >= 0) & (y < rows))
            cells = cells.scatter_add(-1, (y.clamp(0, rows - 1) * columns + x.clamp(0, columns - 1)), weights * share)
        return cells.flatten(3).transpose(1, 2)  # [B, heads, Q, N·h·w]


class SceneDecoderLayer(GradientCheckpointingLayer):
    """`x = LN1(x + SelfAttn(x)); x = LN2(x + CrossAttn(x, memory)); x = LN3(x + W2·relu(W1·x))`."""

    def __init__(self, config):
        super().__init__()
        dims = config.embed_dims
        self.self_attn = SceneAttention(config)
        self.multihead_attn = SceneAttention(config) if config.attention == "full" else SceneDeformableAttention(config)
        self.linear1 = nn.Linear(dims, config.ffn_dims)
        self.linear2 = nn.Linear(config.ffn_dims, dims)
        self.norm1 = nn.LayerNorm(dims)
        self.norm2 = nn.LayerNorm(dims)
        self.norm3 = nn.LayerNorm(dims)
        self.dropout = nn.Dropout(config.dropout)

    def attend_to_queries(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm1(hidden_states + self.dropout(self.self_attn(hidden_states)[0]))

    def forward(self, hidden_states, memory, output_attentions=False, skip_queries=False, **geometry):
        """
        Args:
            hidden_states: `[B, Q, C]`. memory: `[B, M, C]`. skip_queries: the self-attention is in `hidden_states`
            already.

        Returns:
            `[B, Q, C]`, and the probabilities of the memory `[B, heads, Q, M]` or None.
        """
        if not skip_queries:
            hidden_states = self.attend_to_queries(hidden_states)
        read, weights = self.multihead_attn(hidden_states, memory, output_attentions=output_attentions, **geometry)
        hidden_states = self.norm2(hidden_states + self.dropout(read))
        widened = nn.functional.relu(self.linear1(hidden_states), inplace=True)
        return self.norm3(hidden_states + self.dropout(self.linear2(self.dropout(widened)))), weights


class SceneDecoder(nn.Module):
    """`num_decoder_layers` layers, initialised independently of each other."""

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(SceneDecoderLayer(config) for _ in range(config.num_decoder_layers))
        self._first: tuple | None = None

    def forward(
        self, queries, memory, query_weights=(), output_attentions=False, output_hidden_states=False, **geometry
    ):
        """
        Args:
            queries: `[1, Q, C]`, the same for every scene. memory: `[B, M, C]`. query_weights: the parameters that the
                queries are made of.

        Returns:
            `[B, Q, C]`, attentions per layer or None, hidden states (queries, then the output of each layer) or None.
        """
        batch = len(memory)
        attentions = () if output_attentions else None
        hidden_states = (queries.expand(batch, -1, -1),) if output_hidden_states else None
        # Without dropout the queries exchange the same words in every scene.
        shared = not self.training
        states = (self._first_exchange(queries, query_weights) if shared else queries).expand(batch, -1, -1)
        for number, layer in enumerate(self.layers):
            states, weights = layer(
                states, memory, output_attentions=output_attentions, skip_queries=shared and number == 0, **geometry
            )
            if output_attentions:
                attentions += (weights,)
            if output_hidden_states:
                hidden_states += (states,)
        return states, attentions, hidden_states

    def _first_exchange(self, queries: torch.Tensor, query_weights) -> torch.Tensor:
        """Self-attention of the first layer; in inference kept until one of its weights changes."""
        layer = self.layers[0]
        versions = weight_versions((*query_weights, *layer.self_attn.parameters(), *layer.norm1.parameters()))
        if versions is None:
            return layer.attend_to_queries(queries)
        key = (versions, layer.self_attn.config._attn_implementation)
        if self._first is None or self._first[0] != key:
            self._first = (key, layer.attend_to_queries(queries))
        return self._first[1]
