"""Attention without a fused kernel."""

import torch
from torch import nn


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention with explicit weights, in the signature of transformers' attention interface.

    Args:
        query: `[B, heads, Q, head_dim]`.
        key, value: `[B, key_value_heads, K, head_dim]`; heads are repeated `module.num_key_value_groups` times.
        attention_mask: additive, broadcastable to `[B, heads, Q, K]`, or None.

    Returns:
        Outputs `[B, Q, heads, head_dim]` and weights `[B, heads, Q, K]`, softmax taken in float32.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights
