"""Geometry Selection Module of DSR (arXiv 2512.20557): 32 queries read the question, then the geometry of the video."""

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLMLP,
    Qwen2_5_VLPatchMerger,
    Qwen2_5_VLRMSNorm,
    Qwen2_5_VLRotaryEmbedding,
    rotate_half,
)

from .attention import eager_attention

TARGET_ROWS = 4096  # keys projected at a time


def unflatten_patches(patches: torch.Tensor, grid: tuple[int, int, int], merge: int, patch: int) -> torch.Tensor:
    """
    Qwen's flattened patches back to frames.

    Args:
        patches: `[n·t·h·w, 3·2·patch²]`, rows ordered (time, row/2, column/2, 2, 2), columns (channel, 2 frames, y, x).
        grid: (t, h, w) of each of the `n` videos, all alike.

    Returns:
        `[n·t·2, 3, patch·h, patch·w]`; frame `2·t + t'` of each video.
    """
    t, h, w = grid
    x = patches.view(-1, t, h // merge, w // merge, merge, merge, 3, 2, patch, patch)
    x = x.permute(0, 1, 7, 6, 2, 4, 8, 3, 5, 9)  # [n, t, 2, 3, h/m, m, patch, w/m, m, patch]
    return x.reshape(-1, 3, patch * h, patch * w)


def regroup_patch_tokens(tokens: torch.Tensor, grid: tuple[int, int, int], merge: int) -> torch.Tensor:
    """
    Gather the `2·merge²` encoder tokens that lie under one vision token.

    Args:
        tokens: `[n·t·2, h·w, C]`, one row per frame.
        grid: (t, h, w) of each of the `n` videos, all alike.

    Returns:
        `[n·t·h·w/merge², 2·merge²·C]`, in the order of the vision tokens; inside a row: frame, row, column, channel.
    """
    t, h, w = grid
    x = tokens.view(-1, t, 2, h // merge, merge, w // merge, merge, tokens.shape[-1])
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7)  # [n, t, h/m, w/m, 2, m, m, C]
    return x.reshape(-1, 2 * merge * merge * tokens.shape[-1])


def renormalize(pixels: torch.Tensor, config) -> torch.Tensor:
    """
    From Qwen's normalisation to the geometry encoder's: `(x·std + mean - mean') / std'` per channel.

    Args:
        pixels: `[frames, 3, H, W]`, CLIP-normalised.

    Returns:
        The same frames, ImageNet-normalised, in the dtype of `pixels`.
    """
    dtype = pixels.dtype if config.geometry_constants_in_model_dtype else torch.float32
    std, mean, image_mean, image_std = (
        torch.tensor(values, dtype=dtype, device=pixels.device).view(3, 1, 1)
        for values in (
            config.unnormalize_std,
            config.unnormalize_mean,
            config.geometry_image_mean,
            config.geometry_image_std,
        )
    )
    return (((pixels.to(dtype) * std + mean) - image_mean) / image_std).to(pixels.dtype)


class QFormerAttention(nn.Module):
    """Cross-attention of a fixed number of queries to targets of any length, with rotary positions on both sides."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.num_key_value_groups = 1  # for the attention function: heads that share keys are folded into the queries
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        key_value_width = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, key_value_width, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, key_value_width, bias=True)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        query_states,
        targets,
        norm,
        query_rope,
        target_rope,
        target_slot,
        num_slots,
        attention_mask,
        output_attentions,
    ):
        groups, num_queries, width = query_states.shape
        query = self.q_proj(query_states).view(groups, num_queries, -1, self.head_dim).transpose(1, 2)  # [G, H, Q, d]
        # Heads that share a key are further queries to it: [G, kv, H/kv·Q, d] reads [G, kv, T, d] as it is.
        query = _rotate(query, *query_rope).reshape(groups, self.num_key_value_heads, -1, self.head_dim)
        # Targets are many and wide, keys and values narrow: normalise and project some rows at a time.
        projected = [(self.k_proj(rows), self.v_proj(rows)) for rows in map(norm, targets.split(TARGET_ROWS))]
        key, value = (torch.cat(x).view(len(targets), -1, self.head_dim) for x in zip(*projected))  # [N, kv, d]
        key = _rotate(key, *(table.unsqueeze(1) for table in target_rope))
        key, value = (
            _pad_rows(x, target_slot, groups, num_slots).transpose(1, 2) for x in (key, value)
        )  # [G, kv, T, d]
        # Few queries against padded keys is a shape that flash kernels have no mask for; torch's own attention has.
        eager = output_attentions or self.config._attn_implementation == "eager"
        attend = eager_attention if eager else ALL_ATTENTION_FUNCTIONS["sdpa"]
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, is_causal=False
        )  # [G, H/kv·Q, kv, d]
        output = output.transpose(1, 2).reshape(groups, -1, num_queries, self.head_dim).transpose(1, 2)
        weights = weights.reshape(groups, -1, num_queries, num_slots) if output_attentions else None
        return self.o_proj(output.reshape(groups, num_queries, width)), weights


class QFormerLayer(nn.Module):
    """`q ← q + Attn(norm1(q), norm1(target))`, `q ← q + MLP(norm2(q))`. `norm1` is shared by queries and targets."""

    def __init__(self, config, eps: float):
        super().__init__()
        self.norm1 = Qwen2_5_VLRMSNorm(config.hidden_size, eps=eps)
        self.norm2 = Qwen2_5_VLRMSNorm(config.hidden_size, eps=eps)
        self.attn = QFormerAttention(config)
        self.mlp = Qwen2_5_VLMLP(config, bias=True)

    def forward(self, queries, targets, output_attentions=False, **attention_inputs):
        attended, weights = self.attn(
            self.norm1(queries), targets, self.norm1, output_attentions=output_attentions, **attention_inputs
        )
        queries = queries + attended
        return queries + self.mlp(self.norm2(queries)), weights


class GeometrySelectionModule(nn.Module):
    """
    Condenses the geometry of a video into a fixed number of tokens chosen by the question.

    Q-Former 1 lets the learned queries read the question's text embeddings, Q-Former 2 lets the result read the merged
    geometry features; an RMS norm ends it. Only the learned queries are mixed with text or geometry, never with each
    other, and groups are independent of each other whatever else is in the batch.
    """

    def __init__(self, config):
        super().__init__()
        text_config = config.text_config
        self.num_queries = config.num_geometry_tokens
        merged_width = 2 * config.vision_config.spatial_merge_size**2 * config.geometry_config.hidden_size
        self.spatial_merger = Qwen2_5_VLPatchMerger(
            dim=text_config.hidden_size, context_dim=merged_width, spatial_merge_size=1
        )
        self.q_former_queries = nn.Parameter(torch.empty(config.num_geometry_tokens, text_config.hidden_size))
        self.q_former_1 = QFormerLayer(text_config, config.geometry_norm_eps)
        self.q_former_2 = QFormerLayer(text_config, config.geometry_norm_eps)
        self.q_former_norm = Qwen2_5_VLRMSNorm(text_config.hidden_size, eps=config.geometry_norm_eps)
        self.rotary_emb = Qwen2_5_VLRotaryEmbedding(config=text_config)

    def forward(
        self,
        text_states: torch.Tensor,
        text_lengths: torch.Tensor,
        spatial_states: torch.Tensor,
        spatial_lengths: torch.Tensor,
        spatial_position_ids: torch.Tensor,
        group_question: torch.Tensor,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            text_states: `[sum(text_lengths), D]`, question embeddings of the samples that have geometry, one after
            another.
            text_lengths: `[S]` on the CPU.
            spatial_states: `[sum(spatial_lengths), D]`, output of `spatial_merger`, group after group.
            spatial_lengths: `[G]` on the CPU.
            spatial_position_ids: `[3, sum(spatial_lengths)]`.
            group_question: `[G]`, which of the `S` questions a group answers.

        Returns:
            Geometry tokens `[G, Q, D]` and, on request, the probabilities of Q-Former 2
            `[G, heads, Q, max(spatial_lengths)]`.
        """
        queries = self.q_former_queries
        text_states, spatial_states = text_states.to(queries.dtype), spatial_states.to(queries.dtype)
        text_positions = _positions_in_segments(text_lengths).to(queries.device).expand(3, -1)
        queries, _ = self._read(
            self.q_former_1, queries.expand(len(text_lengths), -1, -1), text_states, text_positions, text_lengths
        )
        queries = queries[group_question.to(queries.device)]
        queries, weights = self._read(
            self.q_former_2, queries, spatial_states, spatial_position_ids, spatial_lengths, output_attentions
        )
        return self.q_former_norm(queries), weights

    def _read(self, layer, queries, targets, target_positions, lengths, output_attentions=False):
        device, num_slots = queries.device, max(int(lengths.max()), 1)
        segment = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        slot = segment * num_slots + _positions_in_segments(lengths)
        mask = None
        if int(lengths.min()) < num_slots:
            # A finite bias: queries without any text read zeros instead of dividing by zero.
            empty = torch.arange(num_slots) >= lengths.unsqueeze(1)
            bias = torch.finfo(queries.dtype).min
            mask = torch.zeros(len(lengths), 1, 1, num_slots, dtype=queries.dtype).masked_fill_(
                empty[:, None, None], bias
            )
            mask = mask.to(device)
        query_positions = torch.arange(queries.shape[1], device=device).expand(3, 1, -1)
        query_rope = self.rotary_emb(queries, query_positions)  # [1, Q, d] each
        cos, sin = self.rotary_emb(queries, target_positions.unsqueeze(1))
        return layer(
            queries,
            targets,
            query_rope=query_rope,
            target_rope=(cos[0], sin[0]),
            target_slot=slot.to(device),
            num_slots=num_slots,
            attention_mask=mask,
            output_attentions=output_attentions,
        )


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return x * cos + rotate_half(x) * sin


def _positions_in_segments(lengths: torch.Tensor) -> torch.Tensor:
    """`[0 … L0-1, 0 … L1-1, …]` for lengths `[L0, L1, …]`."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths)


def _pad_rows(x: torch.Tensor, slot: torch.Tensor, groups: int, num_slots: int) -> torch.Tensor:
    """Spread `[N, …]` rows over `[groups, num_slots, …]`, zeros elsewhere."""
    if len(x) == groups * num_slots:
        return x.view(groups, num_slots, *x.shape[1:])
    return x.new_zeros(groups * num_slots, *x.shape[1:]).index_copy(0, slot, x).view(groups, num_slots, *x.shape[1:])
