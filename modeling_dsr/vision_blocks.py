"""The pre-norm transformer block of π³ and of VGGT's aggregator, and how it runs over many frames in little memory."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import eager_attention
from .vision_rope import apply_axial_rope


def in_chunks(function: Callable, *inputs: torch.Tensor, chunk_size: int, overwrite: bool = False):
    """
    `function(*inputs)` for a function that treats each row of the first axis on its own, a few rows at a time.

    Only the results are ever whole. With gradients everything runs at once: the activations are kept anyway.

    Args:
        function: returns a tensor or a tuple of tensors.
        inputs: tensors of the same number of rows.
        chunk_size: rows at a time; 0 means all.
        overwrite: the first input is not needed any more and has the shape of the one result, which may take its place.
    """
    rows = len(inputs[0])
    if not chunk_size or rows <= chunk_size or torch.is_grad_enabled():
        return function(*inputs)
    whole: list[torch.Tensor] = [inputs[0]] if overwrite else []
    for start in range(0, rows, chunk_size):
        found = function(*(tensor[start : start + chunk_size] for tensor in inputs))
        parts = (found,) if isinstance(found, torch.Tensor) else found
        if not whole:
            whole = [part.new_empty(rows, *part.shape[1:]) for part in parts]
        for tensor, part in zip(whole, parts):
            tensor[start : start + chunk_size] = part
        single = isinstance(found, torch.Tensor)
        del found, parts  # or the next chunk would be computed beside them
    return whole[0] if single else tuple(whole)


class LayerScale(nn.Module):
    """A learned factor per channel (`gamma`), `init_value` at the start."""

    def __init__(self, dim: int, init_value: float):
        super().__init__()
        self.init_value = init_value
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.gamma


def add_scaled(hidden_states: torch.Tensor, update: torch.Tensor, scale: nn.Module) -> torch.Tensor:
    """`hidden_states + scale(update)` in one pass over memory; `scale` is a [`LayerScale`] or the identity."""
    if isinstance(scale, LayerScale):
        return torch.addcmul(hidden_states, update, scale.gamma)
    return hidden_states + update


def add_scaled_(hidden_states: torch.Tensor, update: torch.Tensor, scale: nn.Module) -> None:
    """[`add_scaled`] in place, for inference."""
    if isinstance(scale, LayerScale):
        hidden_states.addcmul_(update, scale.gamma)
    else:
        hidden_states.add_(update)


def init_layer_scale(module: nn.Module) -> None:
    """To be called from `_init_weights` of every model that holds a [`VisionBlock`]."""
    if isinstance(module, LayerScale):
        init.constant_(module.gamma, module.init_value)


class VisionMLP(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int | None = None):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, out_dim or dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))


class VisionAttention(nn.Module):
    """
    Multi-head self-attention with one fused projection, through transformers' attention interface.

    Args:
        config: read for `_attn_implementation` alone.
        dim, num_heads: width and heads.
        qk_norm_eps: epsilon of a LayerNorm over each head of queries and keys; None: no such norm.
    """

    def __init__(self, config, dim: int, num_heads: int, qk_norm_eps: float | None = None):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.Identity() if qk_norm_eps is None else nn.LayerNorm(self.head_dim, eps=qk_norm_eps)
        self.k_norm = nn.Identity() if qk_norm_eps is None else nn.LayerNorm(self.head_dim, eps=qk_norm_eps)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rope=None,
        attention_mask: torch.Tensor | None = None,
        attend: Callable | None = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: `[B, L, dim]`.
            rope: tables of one frame, see [`apply_axial_rope`]; None: no positions.
            attention_mask: additive, broadcastable to `[B, heads, L, L]`.
            attend: computes the attention instead of [`attend`](VisionAttention.attend): called with this module,
                queries, keys and values.
        """
        query, key, value = self.project(hidden_states, rope)
        attended = self.attend(query, key, value, attention_mask) if attend is None else attend(self, query, key, value)
        return self.proj(attended.flatten(2))

    def project(self, hidden_states: torch.Tensor, rope=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values `[B, heads, L, head_dim]`, normalised and rotated."""
        query, key, value = (
            self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )

        def place(heads: torch.Tensor, norm: nn.Module) -> torch.Tensor:
            heads = norm(heads).to(value.dtype)
            return heads if rope is None else apply_axial_rope(heads, rope)

        return place(query, self.q_norm), place(key, self.k_norm), value

    def attend(self, query, key, value, attention_mask=None) -> torch.Tensor:
        """Attention of `[B, heads, L, head_dim]` by the config's implementation; returns `[B, L, heads, head_dim]`."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        return attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, is_causal=False)[0]


class VisionBlock(GradientCheckpointingLayer):
    """
    `x ← x + ls1(Attn(norm1(x)))`, `x ← x + ls2(MLP(norm2(x)))`.

    Args:
        config: read for `_attn_implementation` alone.
        norm_eps: of `norm1` and `norm2`.
        qk_norm_eps: see [`VisionAttention`].
        layer_scale: initial value of `ls1` and `ls2`; None: no scales.
        mlp_ratio: hidden width of the MLP over `dim`.
    """

    def __init__(
        self,
        config,
        dim: int,
        num_heads: int,
        norm_eps: float,
        qk_norm_eps: float | None = None,
        layer_scale: float | None = None,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = VisionAttention(config, dim, num_heads, qk_norm_eps)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = VisionMLP(dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rope=None,
        attention_mask: torch.Tensor | None = None,
        attend: Callable | None = None,
        chunk_size: int = 0,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: `[B, L, dim]`.
            rope, attention_mask, attend: see [`VisionAttention`].
            chunk_size: tokens that pass the MLP at a time, see [`in_chunks`].
        """
        update = self.attn(self.norm1(hidden_states), rope, attention_mask, attend)
        return self.feed_forward(add_scaled(hidden_states, update, self.ls1).contiguous(), chunk_size)

    def feed_forward(self, hidden_states: torch.Tensor, chunk_size: int = 0) -> torch.Tensor:
        """The second half of the block, of contiguous tokens; without gradients in place, `chunk_size` tokens at a
        time."""
        if torch.is_grad_enabled():
            return add_scaled(hidden_states, self.mlp(self.norm2(hidden_states)), self.ls2)
        tokens = hidden_states.view(-1, hidden_states.shape[-1])
        for part in tokens.split(chunk_size or len(tokens)):
            add_scaled_(part, self.mlp(self.norm2(part)), self.ls2)
        return hidden_states
