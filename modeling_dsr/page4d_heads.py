"""Camera head and dynamics-aware mask of PAGE-4D (arXiv 2510.17568), and the attention that the mask biases."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import eager_attention
from .vision_blocks import VisionAttention, VisionBlock, VisionMLP


def mask_schedule(step: float, hold_start: float, hold_end: float) -> float:
    """
    Strength of the mask after `step` training steps: 1 before `hold_start`, 0 from `hold_end`, half a cosine between.

    `hold_start = hold_end = 0` trains without the mask throughout.
    """
    if step < hold_start:
        return 1.0
    if step >= hold_end:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * (step - hold_start) / (hold_end - hold_start)))


POSE_WIDTHS = {"absT_quaR_FoV": 9, "R9D_t": 12}


class SpatialMaskHead(nn.Module):
    """
    Which patches the camera should look at: `sigmoid(conv(x) + mean_c(x)) - 0.5` of tokens standardised over each
    frame.

    Positive values attract the special tokens of every frame, negative ones (moving things) repel them. With
    `detach_input`, as published, input and channel mean carry no gradient, so that whatever the mask is trained with
    reaches the convolutions alone.
    """

    def __init__(self, dim: int, hidden_channels: int, detach_input: bool = True):
        super().__init__()
        self.detach_input = detach_input
        self.layers = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, hidden_channels, 1),
            nn.GELU(),
            nn.Conv2d(hidden_channels, 1, 1),
        )

    def forward(self, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Patch tokens `[N, h·w, C]` of N frames to a mask `[N, h, w]` in (-0.5, 0.5)."""
        x = (patches.detach() if self.detach_input else patches).transpose(1, 2).unflatten(2, grid)
        # The published deviation divides by h·w - 1, which a single patch does not have.
        deviation = x.std((2, 3), correction=1 if grid[0] * grid[1] > 1 else 0, keepdim=True)
        x = (x - x.mean((2, 3), keepdim=True)) / deviation.clamp_min(1e-6)
        return torch.sigmoid(self.layers(x) + x.mean(1, keepdim=True)).squeeze(1) - 0.5


class MultiviewSpatialMaskHead(nn.Module):
    """
    The spatial mask head of the multi-view project, with eight tensors:
    `-0.5 · clamp(a · sigmoid(-conv(x) / tau), 0, 1)`.

    0 leaves a patch alone, -0.5 repels the special tokens from it. `a` and `tau` are softplus of learned numbers.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, 1, 1),
        )
        self.alpha_logit, self.tau_logit = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))

    def forward(self, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Patch tokens `[N, h·w, C]` of N frames to a mask `[N, h, w]` in [-0.5, 0]."""
        score = self.layers(patches.detach().transpose(1, 2).unflatten(2, grid)).squeeze(1)
        tau = (F.softplus(self.tau_logit) + 1e-6).clamp_min(1e-3)
        strength = F.softplus(self.alpha_logit) + 1e-6
        return -0.5 * (strength * torch.sigmoid(-score / tau)).clamp(0, 1)


class SpecialQueryAttention(VisionAttention):
    """
    Attention over the frames of a sequence in which special tokens see patches through a bias.

    The logit of query i and key j gains `bias_j` for special queries (camera and registers of every frame) and nothing
    for patch queries, all heads alike. No bias matrix is built: patch queries and special queries are two calls, and
    the bias of the second is one number per key.
    """

    def __init__(self, config, dim: int, num_heads: int, num_special: int, qk_norm_eps: float | None = None):
        super().__init__(config, dim, num_heads, qk_norm_eps)
        self.num_special = num_special

    def forward(
        self, hidden_states: torch.Tensor, rope=None, attention_mask: torch.Tensor | None = None, attend=None
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: `[B, S·N, dim]`, N tokens per frame, `num_special` special ones first.
            rope: tables of one frame.
            attention_mask: biases of the keys `[B, S, N]`, zero for special keys; None: plain attention.
            attend: see [`VisionAttention`].
        """
        if attention_mask is None:
            return super().forward(hidden_states, rope, attend=attend)
        query, key, value = self.project(hidden_states, rope)
        return self.proj(self.attend_biased(query, key, value, attention_mask).flatten(2))

    def attend_biased(self, query, key, value, key_bias: torch.Tensor) -> torch.Tensor:
        """
        Attention of `[B, heads, S·N, d]` with biases of the keys `[B, S, N]` for special queries alone.

        Returns:
            `[B, S·N, heads, d]`.
        """
        frames, length = key_bias.shape[1:]
        special, patches = query.unflatten(2, (frames, length)).split([self.num_special, length - self.num_special], 3)
        bias = key_bias.flatten(1)[:, None, None].to(query.dtype)  # [B, 1, 1, S·N]
        # Few queries against a bias per key: flash kernels have no bias, and there is little to gain.
        eager = self.config._attn_implementation == "eager"
        attend = eager_attention if eager else ALL_ATTENTION_FUNCTIONS["sdpa"]
        special = attend(
            self, special.flatten(2, 3), key, value, bias, dropout=0.0, scaling=self.scaling, is_causal=False
        )[0]
        patches = self.attend(patches.flatten(2, 3), key, value)
        return torch.cat([part.unflatten(1, (frames, -1)) for part in (special, patches)], 2).flatten(1, 2)


class GlobalBlock(VisionBlock):
    """[`VisionBlock`] over all frames, with the attention of [`SpecialQueryAttention`]."""

    def __init__(self, config, dim: int, num_heads: int, num_special: int, qk_norm_eps: float | None = None, **kwargs):
        super().__init__(config, dim, num_heads, qk_norm_eps=qk_norm_eps, **kwargs)
        self.attn = SpecialQueryAttention(config, dim, num_heads, num_special, qk_norm_eps)


class CameraHead(nn.Module):
    """
    Cameras of all frames from their camera tokens, refined a few times.

    In each round the tokens are modulated by the previous estimate (adaptive layer norm), pass a small transformer over
    the frames and give a correction. What is fed back has no activation and no gradient.
    """

    def __init__(self, config, dim: int):
        super().__init__()
        self.num_iterations = config.camera_iterations
        eps = config.layer_norm_eps
        self.token_norm = nn.LayerNorm(dim, eps=eps)
        self.pose_encoding = config.pose_encoding_type
        self.per_frame = config.camera_trunk_scope == "frame"
        width = POSE_WIDTHS[self.pose_encoding]
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.embed_pose = nn.Linear(width, dim)
        self.pose_modulation = nn.Linear(dim, 3 * dim)
        self.modulated_norm = nn.LayerNorm(dim, elementwise_affine=False, eps=config.modulated_norm_eps)
        self.trunk = nn.ModuleList(
            VisionBlock(
                config,
                dim,
                config.camera_num_heads,
                norm_eps=eps,
                layer_scale=config.layer_scale_init,
                mlp_ratio=config.camera_mlp_ratio,
            )
            for _ in range(config.camera_depth)
        )
        self.trunk_norm = nn.LayerNorm(dim, eps=eps)
        self.pose_branch = VisionMLP(dim, dim // 2, width)

    def forward(self, tokens: torch.Tensor, num_iterations: int | None = None) -> list[torch.Tensor]:
        """
        Args:
            tokens: `[B, S, dim]`, the camera token of each frame.

        Returns:
            The estimate after each iteration. "absT_quaR_FoV" `[B, S, 9]`: translation, quaternion (x, y, z, w),
            vertical and horizontal field of view (rectified, so that 0 can occur). "R9D_t" `[B, S, 12]`: a 3×3 matrix
            to be brought to the nearest rotation, translation.
        """
        if self.per_frame:  # the published multi-view head, whose transformer sees one token at a time
            estimates = self._refine(tokens.flatten(0, 1).unsqueeze(1), num_iterations)
            return [estimate.view(*tokens.shape[:2], -1) for estimate in estimates]
        return self._refine(tokens, num_iterations)

    def _refine(self, tokens: torch.Tensor, num_iterations: int | None) -> list[torch.Tensor]:
        tokens = self.token_norm(tokens)
        normed = self.modulated_norm(tokens)  # the same in every iteration
        state, estimates = self.empty_pose_tokens.expand(*tokens.shape[:2], -1), []
        for iteration in range(num_iterations or self.num_iterations):
            modulation = self.pose_modulation(F.silu(self.embed_pose(state)))
            shift, scale, gate = modulation.chunk(3, dim=-1)
            hidden_states = gate * (normed * (1 + scale) + shift) + tokens
            for block in self.trunk:
                hidden_states = block(hidden_states)
            delta = self.pose_branch(self.trunk_norm(hidden_states))
            state = delta if iteration == 0 else state + delta
            is_raw = self.pose_encoding == "R9D_t"
            estimates.append(state if is_raw else torch.cat([state[..., :7], F.relu(state[..., 7:])], -1))
            state = state.detach()
        return estimates
