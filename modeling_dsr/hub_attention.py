"""Attention in which every token sees a few hubs and the hubs see every token. Exact, in two calls; no mask is built."""

import torch
from torch.nn import functional as F


def hub_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    hubs: torch.Tensor,
    key_bias: torch.Tensor | None = None,
    mutual: bool = True,
) -> torch.Tensor:
    """
    Attention of `[B, heads, L, d]` where i sees j if either is a hub.

    Args:
        hubs: positions of the hubs, `[B, K]`, K ≤ L.
        key_bias: added to the logits of each key, `[B, L]`.
        mutual: False: hubs too see hubs alone.
    """
    index = hubs[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    bias = None if key_bias is None else key_bias[:, None, None].to(query.dtype)
    hub_bias = None if bias is None else bias.gather(3, hubs[:, None, None])
    result = F.scaled_dot_product_attention(query, key.gather(2, index), value.gather(2, index), hub_bias)
    if not mutual:
        return result
    seen_all = F.scaled_dot_product_attention(query.gather(2, index), key, value, bias)
    if torch.is_grad_enabled():  # attention keeps its result for the backward pass
        return result.scatter(2, index, seen_all)
    return result.scatter_(2, index, seen_all)


def landmarks(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Positions `[B, I·k]`, in the sequence of all I images, of the k best tokens of each, by scores `[B, I, N]`."""
    length = scores.shape[2]
    best = scores.topk(min(k, length), dim=2).indices
    return (best + length * torch.arange(scores.shape[1], device=scores.device).view(1, -1, 1)).flatten(1)
