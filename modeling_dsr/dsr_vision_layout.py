"""
The vision tower's frames and windows as plain numbers, read from the grids once and before the first block.

transformers' tower reads their lengths from a tensor in every layer, which a compiled graph has to be left for, and
gives each window a call of its own. Here windows of one length are a batch.
"""

from typing import Any, NamedTuple

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
    eager_attention_forward,
)

try:
    from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index
except ImportError:  # a tower that takes nothing precomputed: all is as transformers has it
    get_vision_window_index = None


class Segments(NamedTuple):
    """
    Parts of a sequence whose tokens see each other.

    Args:
        groups: (how many, their length) of those of one length, which stand together in `order`.
        order: `[N]`, and back: `[N]` what undoes it; None where they stand together as they are.
    """

    groups: tuple[tuple[int, int], ...]
    order: torch.Tensor | None
    back: torch.Tensor | None


class VisionLayout(NamedTuple):
    """
    Args:
        grids: (time, rows, columns) of each medium. tokens: vision tokens of each.
        given: what the tower is called with beside patches and grids.
    """

    grids: tuple[tuple[int, int, int], ...]
    tokens: tuple[int, ...]
    given: dict[str, Any]


def vision_layout(grid_thw: torch.LongTensor, config, device: torch.device) -> VisionLayout:
    """Of media with `grid_thw` `[n, 3]`; `config` of the vision tower, `device` of its patches."""
    grids = tuple((t, h, w) for t, h, w in grid_thw.tolist())
    merge = config.spatial_merge_size
    tokens = tuple(t * h * w // merge**2 for t, h, w in grids)
    if get_vision_window_index is None:
        return VisionLayout(grids, tokens, {})
    grid = grid_thw.cpu()
    index, windows = get_vision_window_index(grid, merge, config.window_size, config.patch_size)
    frames = get_vision_cu_seqlens(grid)
    tensors = {
        "position_ids": get_vision_position_ids(grid, merge),
        "cu_seqlens": frames,
        "window_index": index,
        "cu_window_seqlens": windows,
    }
    given = {name: tensor.to(device) for name, tensor in tensors.items()}
    return VisionLayout(grids, tokens, {**given, "segments": (segments(windows, device), segments(frames, device))})


def segments(ends: torch.Tensor, device: torch.device) -> Segments:
    """Of cumulative lengths `[n + 1]`."""
    lengths = ends.diff()
    kinds, counts = lengths.unique(return_counts=True)
    groups = tuple(zip(counts.tolist(), kinds.tolist()))
    owner = torch.repeat_interleave(lengths)  # of each token
    order = lengths[owner].argsort(stable=True)
    if torch.equal(order, torch.arange(len(order), device=order.device)):
        return Segments(groups, None, None)
    return Segments(groups, order.to(device), order.argsort().to(device))


class SegmentAttention(Qwen2_5_VLVisionAttention):
    """
    transformers' attention of a vision block, called with `segments` (of windows, of frames) in place of lengths.

    Without them, and with flash attention, which takes lengths as they are, it is transformers' own.
    """

    sees_frames = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        segments: tuple[Segments, Segments] | None = None,
        **kwargs,
    ) -> torch.Tensor:
        if segments is None or "flash" in self.config._attn_implementation:
            return super().forward(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)
        kwargs.pop("max_seqlen", None)
        groups, order, back = segments[self.sees_frames]
        if order is not None:
            hidden_states = hidden_states[order]
            position_embeddings = tuple(part[order] for part in position_embeddings)
        length = len(hidden_states)
        query, key, value = self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1).unbind(1)  # [N, H, D]
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        sizes = [count * width for count, width in groups]
        outputs = []
        for (count, width), *parts in zip(groups, *(part.split(sizes) for part in (query, key, value))):
            batch = [part.unflatten(0, (count, width)).transpose(1, 2) for part in parts]  # [count, H, width, D]
            dropout = self.attention_dropout if self.training else 0.0
            found = attend(
                self, *batch, attention_mask=None, scaling=self.scaling, dropout=dropout, is_causal=False, **kwargs
            )
            outputs.append(found[0].flatten(0, 1))
        output = self.proj(torch.cat(outputs).reshape(length, -1))
        return output if back is None else output[back]


def use_segments(tower: torch.nn.Module) -> None:
    """The attention of every block becomes a [`SegmentAttention`] with the weights that it has."""
    for number, block in enumerate(tower.blocks):
        block.attn.__class__ = SegmentAttention
        block.attn.sees_frames = number in tower.fullatt_block_indexes
