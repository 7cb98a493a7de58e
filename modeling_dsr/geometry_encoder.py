"""The image encoder of π³, shared by the models that build on it: transformers' DINOv2 with registers."""

import torch
from torch import nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import eager_attention


class GeometryEncoder(Dinov2WithRegistersModel):
    """
    [`Dinov2WithRegistersModel`] under one set of parameter names.

    transformers renamed the attention parameters of this model between 5.17 and 5.23 and translates checkpoints for
    its own class only. A published file has one set of names, so this subclass holds the newer ones
    (`attention.q_proj` … `attention.o_proj`) in memory and on disk under every version.
    """

    def __init__(self, config: Dinov2WithRegistersConfig):
        super().__init__(config)
        for layer in self.encoder.layer:
            if not hasattr(layer.attention, "q_proj"):
                layer.attention = _GeometryAttention(config)
        self.post_init()


class _GeometryAttention(nn.Module):
    """Multi-head self-attention with separate projections, for transformers releases that name them otherwise."""

    def __init__(self, config: Dinov2WithRegistersConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups = 1
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=True)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        batch, length, width = hidden_states.shape
        query, key, value = (
            projection(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)  # [B, heads, L, head_dim]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        hidden_states, _ = attend(
            self, query, key, value, None, dropout=0.0, scaling=self.scaling, is_causal=False, **kwargs
        )
        return self.o_proj(hidden_states.reshape(batch, length, width))
