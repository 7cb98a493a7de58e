"""PAGE-4D over time and view: alternating attention, two streams, dynamic masks, sparse attention over all images."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .page4d_dpt import KeptLayers
from .page4d_dynamic_mask import DynamicMaskHead, pool_mask
from .page4d_multiview_attention import (
    dilated_attention,
    dilated_neighbours,
    epipolar_attention,
    fundamental_matrices,
    hub_attention,
    key_biased_attention,
    landmarks,
    time_biased_attention,
)
from .vision_blocks import VisionBlock, in_chunks
from .vision_rope import axial_rope_tables, patch_positions

STREAMS = ("pose", "geo")


@dataclass
class MultiviewInputs:
    """
    What may be known beside the images `[B, T, V, 3, H, W]`; each may be None.

    Args:
        ext_mask: 1 = dynamic, see [`pool_mask`].
        keypoints: `[B, T, V, P]`, draws the attention of sparse layers. confidence: `[B, T, V, P]`, chooses landmarks.
        intrinsics, extrinsics: `[B, T, V, 3, 3]` in pixels and `[B, T, V, 3 or 4, 4]`, camera from world, for the
            epipolar prior.
        memory: what the window before left, `[B, M, C]`, or (pose, geometry) of two streams.
    """

    ext_mask: torch.Tensor | None = None
    keypoints: torch.Tensor | None = None
    confidence: torch.Tensor | None = None
    intrinsics: torch.Tensor | None = None
    extrinsics: torch.Tensor | None = None
    memory: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None


@dataclass
class MultiviewTokens:
    """
    What leaves the trunk.

    Args:
        camera_tokens: `[B, T·V, 2C]`, of the pose stream.
        patch_tokens: `[B·T·V, K, h·w, 2C]` of the K layers that the dense heads read, of the geometry stream.
        last: on request, entry of the last layer, `[streams·B, T, V, N, 2C]`, pose first, of two streams.
        dynamic_mask, dynamic_mask_logit: `[B, T, V, P, 1]`, or None.
        memory: `[B, M, C]`, or (pose, geometry), or None.
        streams: on request, {"pose" and "geo": every layer's `[B, T, V, N, 2C]`}.
    """

    camera_tokens: torch.Tensor
    patch_tokens: torch.Tensor
    last: torch.Tensor | None = None
    dynamic_mask: torch.Tensor | None = None
    dynamic_mask_logit: torch.Tensor | None = None
    memory: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None
    streams: dict[str, tuple[torch.Tensor, ...]] | None = None


class Page4DMultiview(nn.Module):
    """
    What the multi-view model has beside the trunk of PAGE-4D, whose frame blocks attend over time and whose global
    blocks over views.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        dim = config.embed_dim

        def blocks(layers) -> nn.ModuleList:
            return nn.ModuleList(
                VisionBlock(
                    config,
                    dim,
                    config.num_heads,
                    norm_eps=config.layer_norm_eps,
                    qk_norm_eps=config.layer_norm_eps,
                    layer_scale=config.layer_scale_init,
                    mlp_ratio=config.mlp_ratio,
                )
                for _ in layers
            )

        self.dynamic_mask_head = None
        if config.enable_dynamic_mask:
            self.dynamic_mask_head = DynamicMaskHead(dim, config.use_gating, config.mask_standardize)
        if config.enable_dual_stream:
            self.pose_time_blocks, self.pose_view_blocks, self.geo_time_blocks, self.geo_view_blocks = (
                blocks(config.dual_stream_layers) for _ in range(4)
            )
        if config.enable_sparse_global:
            self.global_sparse_blocks = blocks(config.sparse_global_layers)
            if config.sparse_strategy == "memory_bank":
                self.memory_tokens = nn.Parameter(torch.empty(1, config.memory_tokens_num, dim))

        for name in self.initial_scalars():  # `lambda_…_logit` are no logits in spite of their published names
            self.register_parameter(name, nn.Parameter(torch.empty(())))

    def initial_scalars(self) -> dict[str, float]:
        """What the learned numbers start from."""
        config, values = self.config, {}
        if config.enable_dual_stream:
            for stream in STREAMS:
                for suffix in ("", "_t"):
                    values[f"lambda_{stream}{suffix}_logit"] = getattr(config, f"lambda_{stream}{suffix}")
        if config.enable_sparse_global:
            values["lambda_kpt"] = config.lambda_kpt
        return values

    def forward(
        self,
        trunk,
        patches: torch.Tensor,
        grid: tuple[int, int],
        given: MultiviewInputs,
        output_hidden_states: bool = False,
        keep_last: bool = False,
    ) -> MultiviewTokens:
        """
        Args:
            trunk: the [`Page4DAggregator`] whose blocks run. patches: `[B, T, V, h·w, C]`. grid: (h, w).
            keep_last: return `last`, which the loss reads.
        """
        config, special = self.config, trunk.num_special
        batch, times, views, _, width = patches.shape
        first = trunk.special_tokens(batch, times * views).unflatten(1, (times, views))
        tokens = torch.cat([first.to(patches.dtype), patches], 3)  # [B, T, V, N, C], later [streams·B, …]
        length = tokens.shape[3]
        positions = patch_positions(*grid, special, patches.device)
        positions[:special] = config.special_token_pos
        rope = axial_rope_tables(positions, width // config.num_heads, config.rope_freq)
        time_rope = rope
        if config.time_pos == "rope":
            moments = torch.arange(times, device=patches.device).repeat_interleave(length)
            time_rope = axial_rope_tables(
                positions.repeat(times, 1), width // config.num_heads, config.rope_freq, moments, config.time_rope_base
            )
        prior = None
        if config.enable_epipolar and given.extrinsics is not None:
            prior = fundamental_matrices(*(x.flatten(0, 1).float() for x in (given.intrinsics, given.extrinsics)))
        memory = self._first_memory(given.memory, batch)

        dual = list(config.dual_stream_layers) if config.enable_dual_stream else []
        kept = KeptLayers(config.dpt_layers)
        mask = logits = spread = None
        recorded: list[torch.Tensor] = []
        for layer in range(config.depth):
            if self.dynamic_mask_head is not None and layer == config.dynamic_mask_layer:
                mask, logits = self._mask(tokens[-batch:, ..., special:, :], grid, given.ext_mask)
                spread = F.pad(mask.squeeze(-1), (special, 0))  # [B, T, V, N], 0 on special tokens
            if dual and layer == dual[0]:
                tokens = torch.cat([tokens, tokens])
                memory = memory if memory is None or len(memory) == 2 * batch else torch.cat([memory, memory])
            halves = {}
            for axis in config.aa_order:
                if axis == "view":
                    run, shared = partial(self._view, rope=rope, prior=prior, grid=grid), trunk.global_blocks[layer]
                else:
                    run, shared = partial(self._time, rope=time_rope), trunk.frame_blocks[layer]
                if layer in dual:
                    tokens = torch.cat(
                        [
                            run(block, half, bias=self._bias(stream, axis, spread))
                            for stream, block, half in zip(
                                STREAMS, self._dual(axis, dual.index(layer)), tokens.chunk(2)
                            )
                        ]
                    )
                else:
                    tokens = run(shared, tokens)
                halves[axis] = tokens
            if config.enable_sparse_global and layer in config.sparse_global_layers:
                block = self.global_sparse_blocks[list(config.sparse_global_layers).index(layer)]
                tokens, memory = self._sparse(block, tokens, rope, given, memory, batch)
                halves[config.aa_order[-1]] = tokens
            kept.add(layer, *(halves[axis][-batch:, ..., special:, :] for axis in ("time", "view")))
            if output_hidden_states:
                recorded.append(torch.cat([halves["time"], halves["view"]], -1))
        both = (halves["time"], halves["view"])
        return MultiviewTokens(
            camera_tokens=torch.cat([half[:batch, :, :, 0] for half in both], -1).flatten(1, 2),
            patch_tokens=kept.stacked(),
            last=torch.cat(both, -1) if keep_last else None,
            dynamic_mask=mask,
            dynamic_mask_logit=logits,
            memory=tuple(memory.chunk(2)) if memory is not None and len(memory) == 2 * batch else memory,
            streams={
                name: tuple(entry[:batch] if name == "pose" else entry[-batch:] for entry in recorded)
                for name in STREAMS
            }
            if output_hidden_states
            else None,
        )

    # ---- parts of a layer ----------------------------------------------------------------

    def _mask(self, patches: torch.Tensor, grid, ext_mask) -> tuple[torch.Tensor, torch.Tensor]:
        external = None
        if ext_mask is not None:
            external = pool_mask(ext_mask, tuple(patches.shape[:3]), grid, self.config.patch_size).to(patches.dtype)
        patches = patches.detach() if self.config.detach_mask_input else patches
        return self.dynamic_mask_head(patches, grid, external)

    def _bias(self, stream: str, axis: str, spread: torch.Tensor | None) -> torch.Tensor | None:
        """Logits of the keys `[B, T, V, N]`: minus lambda times the mask for the camera, plus for geometry."""
        if spread is None:
            return None
        strength = getattr(self, f"lambda_{stream}{'_t' if axis == 'time' else ''}_logit")
        strength = strength.clamp(-self.config.lambda_clamp_value, self.config.lambda_clamp_value)
        return (-strength if stream == "pose" else strength) * spread

    def _dual(self, axis: str, index: int) -> list[VisionBlock]:
        return [getattr(self, f"{stream}_{axis}_blocks")[index] for stream in STREAMS]

    def _view(self, block, tokens: torch.Tensor, rope, prior, grid, bias=None) -> torch.Tensor:
        """Attention over the views of each time."""
        config, views = self.config, tokens.shape[2]
        rows = tokens.flatten(0, 1).flatten(1, 2)  # [B·T, V·N, C]
        inputs = [rows] if bias is None else [rows, bias.flatten(0, 1).flatten(1)]
        if prior is not None:  # the same for each stream
            inputs += [part.repeat(len(rows) // len(part), *[1] * (part.ndim - 1)) for part in prior]

        def run(x, *rest):
            key_bias, attend = (None if bias is None else rest[0]), None
            if prior is not None:
                attend = partial(
                    epipolar_attention,
                    matrices=rest[-2],
                    known=rest[-1],
                    grid=grid,
                    patch_size=config.patch_size,
                    band=config.epipolar_band,
                    penalty=config.epipolar_penalty,
                    bias=key_bias,
                )
            elif key_bias is not None:
                attend = partial(key_biased_attention, bias=key_bias)
            return block(x, rope=rope, attend=attend, chunk_size=self._tokens_at_once(tokens))

        return in_chunks(run, *inputs, chunk_size=self._rows_at_once(views)).view_as(tokens)

    def _time(self, block, tokens: torch.Tensor, rope, bias=None) -> torch.Tensor:
        """Attention over the times of each view."""
        times = tokens.shape[1]
        swapped = tokens.transpose(1, 2)
        rows = swapped.flatten(0, 1).flatten(1, 2)  # [B·V, T·N, C]
        inputs = [rows] if bias is None else [rows, bias.transpose(1, 2).flatten(0, 1).flatten(1)]

        def run(x, key_bias=None):
            attend = None
            if self.config.time_pos == "alibi":
                attend = partial(time_biased_attention, frames=times, bias=key_bias)
            elif key_bias is not None:
                attend = partial(key_biased_attention, bias=key_bias)
            return block(x, rope=rope, attend=attend, chunk_size=self._tokens_at_once(tokens))

        rows = in_chunks(run, *inputs, chunk_size=self._rows_at_once(times))
        return rows.view(swapped.shape).transpose(1, 2)

    def _sparse(self, block, tokens: torch.Tensor, rope, given: MultiviewInputs, memory, batch: int):
        """Attention over all images of the window; returns tokens and memory."""
        config = self.config
        count, times, views, length, width = tokens.shape
        rows = tokens.flatten(1, 3)
        bias = self._keypoint_bias(given.keypoints, length, count // batch)
        if config.sparse_strategy == "memory_bank":
            size = config.memory_tokens_num
            rows = torch.cat([memory[-count:].to(rows.dtype), rows], 1)
            bias = None if bias is None else F.pad(bias, (size, 0))
            still = (torch.ones_like(rope[0][:1]), torch.zeros_like(rope[1][:1]))  # memory has no position
            rope = tuple(
                torch.cat([one.expand(size, -1), part.repeat(times * views, 1)]) for one, part in zip(still, rope)
            )
            hubs = torch.arange(size, device=rows.device).expand(count, -1)
            attend = partial(hub_attention, hubs=hubs, bias=bias)
        elif config.sparse_strategy == "landmark":
            hubs = landmarks(*self._landmark_scores(tokens, given.confidence, count // batch))
            attend = partial(hub_attention, hubs=hubs, bias=bias, mutual=config.landmark_mutual)
        else:
            neighbours = dilated_neighbours(times, views, tuple(config.dilated_levels))
            attend = partial(dilated_attention, neighbours=neighbours, bias=bias)
        rows = block(rows, rope=rope, attend=attend, chunk_size=self._tokens_at_once(tokens))
        if config.sparse_strategy == "memory_bank":
            memory, rows = rows.split([size, rows.shape[1] - size], 1)
        return rows.reshape(tokens.shape), memory

    def _landmark_scores(self, tokens: torch.Tensor, confidence, streams: int) -> tuple[torch.Tensor, int]:
        """Scores `[streams·B, T·V, N]` and how many of each image count: confidence of patches, or the norm of
        tokens."""
        if confidence is None:
            return tokens.detach().float().norm(dim=-1).flatten(1, 2), min(self.config.landmark_k, tokens.shape[3])
        special = tokens.shape[3] - confidence.shape[3]
        scores = F.pad(confidence.flatten(1, 2), (special, 0), value=-torch.inf)
        return scores.repeat(streams, 1, 1), min(self.config.landmark_k, confidence.shape[3])

    def _keypoint_bias(self, keypoints, length: int, streams: int) -> torch.Tensor | None:
        """`[streams·B, T·V·N]`: keypoints draw the geometry stream (or the only one), and repel the pose stream if
        wished."""
        if keypoints is None:
            return None
        spread = F.pad(keypoints, (length - keypoints.shape[3], 0)).flatten(1)
        drawn = self.lambda_kpt * spread
        return drawn if streams == 1 else torch.cat([-self.config.lambda_kpt_pose * spread, drawn])

    def _first_memory(self, memory, batch: int) -> torch.Tensor | None:
        if not self.config.enable_sparse_global or self.config.sparse_strategy != "memory_bank":
            return None
        if memory is None:
            return self.memory_tokens.expand(batch, -1, -1)
        return torch.cat(list(memory)) if isinstance(memory, (tuple, list)) else memory

    def _rows_at_once(self, images: int) -> int:
        """Sequences of so many images each that pass a block at a time."""
        return -(-self.config.trunk_chunk_size // images)

    def _tokens_at_once(self, tokens: torch.Tensor) -> int:
        return self.config.trunk_chunk_size * tokens.shape[3]
