"""What π³ and Pi3X make of the decoder's tokens: small transformers, heads for points, confidence, camera and scale."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import eager_attention
from .vision_blocks import VisionBlock, VisionMLP
from .vision_rope import apply_axial_rope


class FrameDecoder(nn.Module):
    """A transformer inside each frame, between decoder and head: no LayerScale, no query/key norm, no last norm."""

    def __init__(self, config, out_dim: int):
        super().__init__()
        dim = config.head_hidden_size
        self.projects = nn.Linear(2 * config.hidden_size, dim)
        self.blocks = nn.ModuleList(
            VisionBlock(config, dim, config.head_num_attention_heads, config.layer_norm_eps, mlp_ratio=config.mlp_ratio)
            for _ in range(config.head_num_layers)
        )
        self.linear_out = nn.Linear(dim, out_dim)

    def forward(self, features: torch.Tensor, rope) -> torch.Tensor:
        """`[n, T, 2·hidden]` to `[n, T, out_dim]`."""
        hidden_states = self.projects(features)
        for block in self.blocks:
            hidden_states = block(hidden_states, rope)
        return self.linear_out(hidden_states)


class PixelHead(nn.Module):
    """π³'s dense head: each patch token becomes the values of its pixels."""

    def __init__(self, dim: int, channels: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(dim, channels * patch_size**2)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """`[n, rows·columns, dim]` to `[n, H, W, channels]`; a token's numbers are ordered (channel, y, x)."""
        rows, columns = grid
        x = self.proj(tokens).view(len(tokens), rows, columns, -1, self.patch_size, self.patch_size)
        return x.permute(0, 1, 4, 2, 5, 3).reshape(len(tokens), rows * self.patch_size, columns * self.patch_size, -1)


class ResidualMLP(nn.Module):
    """`x + relu(L3(relu(L2(relu(L1(x))))))`."""

    def __init__(self, dim: int):
        super().__init__()
        self.res_conv1 = nn.Linear(dim, dim)
        self.res_conv2 = nn.Linear(dim, dim)
        self.res_conv3 = nn.Linear(dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inner = hidden_states
        for layer in (self.res_conv1, self.res_conv2, self.res_conv3):
            inner = layer(inner).relu()
        return hidden_states + inner


class CameraHead(nn.Module):
    """The camera of each frame from its patch tokens."""

    def __init__(self, dim: int):
        super().__init__()
        self.res_conv = nn.ModuleList(ResidualMLP(dim) for _ in range(2))
        self.more_mlps = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.fc_t = nn.Linear(dim, 3)
        self.fc_rot = nn.Linear(dim, 9)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[n, P, dim]` to camera-to-world matrices `[n, 4, 4]`, float32."""
        for block in self.res_conv:
            tokens = block(tokens)
        frame = self.more_mlps(tokens.mean(1))
        translation = self.fc_t(frame).float()
        matrix = nn.functional.normalize(self.fc_rot(frame).float().view(-1, 3, 3), dim=-1)
        rotation = NearestRotation.apply(matrix)
        pose = torch.cat([rotation, translation.unsqueeze(-1)], -1)
        bottom = pose.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(pose), 1, 4)
        return torch.cat([pose, bottom], 1)


class NearestRotation(torch.autograd.Function):
    """
    The rotation nearest to a matrix M `[n, 3, 3]`: R = U diag(1, 1, det(UVᵀ)) Vᵀ of M = U S Vᵀ.

    The derivative is written out, because that of the decomposition divides by differences of singular values, which
    vanish just where the prediction is best. R moves by R·Ω, and Ω, skew, solves ΩP + PΩ = RᵀdM - dMᵀR with
    P = RᵀM; in the basis V of P this divides by sums of (signed) singular values.
    """

    @staticmethod
    def forward(ctx, matrix: torch.Tensor) -> torch.Tensor:
        # A diverged model ends in NaN, as everywhere else, and not in an error of the decomposition.
        broken = ~matrix.isfinite().all(-1).all(-1)[..., None, None]
        u, s, vh = torch.linalg.svd(torch.where(broken, torch.eye(3).to(matrix), matrix))
        # The sign as a triple product: `torch.det` reads pivots back from the device.
        a, b, c = (u @ vh).unbind(-2)
        sign = (a * torch.linalg.cross(b, c)).sum(-1, keepdim=True)
        signs = torch.cat([torch.ones_like(s[:, :2]), sign.sign()], -1)
        rotation = (u * signs.unsqueeze(-2) @ vh).masked_fill(broken, torch.nan)
        ctx.save_for_backward(rotation, s * signs, vh)
        return rotation

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        rotation, s, vh = ctx.saved_tensors
        inner = vh @ (rotation.mT @ gradient) @ vh.mT
        skew = inner - inner.mT
        sums = s.unsqueeze(-1) + s.unsqueeze(-2)
        # The diagonal of a skew matrix is zero; off it, a sum near zero is a rotation that is not defined.
        return rotation @ vh.mT @ (skew / sums.clamp_min(1e-6)) @ vh


# --------------------------------------------------------------------------------------
# Pi3X
# --------------------------------------------------------------------------------------


class ResidualConvBlock(nn.Module):
    """`x + conv(relu(norm(conv(relu(norm(x))))))`, twice as wide inside."""

    def __init__(self, channels: int):
        super().__init__()
        wide = 2 * channels
        self.layers = nn.Sequential(
            nn.GroupNorm(1, channels),
            nn.ReLU(),
            nn.Conv2d(channels, wide, 3, padding=1, padding_mode="replicate"),
            nn.GroupNorm(max(1, wide // 32), wide),
            nn.ReLU(),
            nn.Conv2d(wide, channels, 3, padding=1, padding_mode="replicate"),
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.layers(hidden_states)


class ConvHead(nn.Module):
    """Pi3X's dense head: three doublings of the patch grid, resizing to the image, one small branch per output."""

    def __init__(self, config, out_channels: tuple[int, ...]):
        super().__init__()
        widths = [config.point_dim, *config.conv_head_dims]
        self.upsample_blocks = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(
                    nn.ConvTranspose2d(before + 2, after, kernel_size=2, stride=2),
                    nn.Conv2d(after, after, 3, padding=1, padding_mode="replicate"),
                ),
                *(ResidualConvBlock(after) for _ in range(config.conv_head_num_res_blocks)),
            )
            for before, after in zip(widths, widths[1:])
        )
        self.output_block = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[-1] + 2, config.conv_head_hidden_size, 3, padding=1, padding_mode="replicate"),
                nn.ReLU(),
                nn.Conv2d(config.conv_head_hidden_size, channels, 1),
            )
            for channels in out_channels
        )

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> list[torch.Tensor]:
        """
        Args:
            tokens: `[n, rows·columns, point_dim]`.
            grid: (rows, columns). size: (height, width) of the image in pixels.

        Returns:
            Per output `[n, channels, height, width]`.
        """
        aspect = size[1] / size[0]
        x = tokens.transpose(1, 2).unflatten(-1, grid)
        for block in self.upsample_blocks:
            x = block(_with_image_plane(x, aspect))
        x = nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)
        x = _with_image_plane(x, aspect)
        return [branch(x) for branch in self.output_block]


def _with_image_plane(features: torch.Tensor, aspect: float) -> torch.Tensor:
    """Append where each cell `[n, C, h, w]` lies in the image: (u, v) in units of half the image's diagonal."""
    h, w = features.shape[-2:]
    diagonal = (1 + aspect**2) ** 0.5
    span_u, span_v = aspect / diagonal * (w - 1) / w, 1 / diagonal * (h - 1) / h
    u = torch.linspace(-span_u, span_u, w, dtype=features.dtype, device=features.device)
    v = torch.linspace(-span_v, span_v, h, dtype=features.dtype, device=features.device)
    plane = torch.stack([u.expand(h, w), v.unsqueeze(1).expand(h, w)])
    return torch.cat([features, plane.expand(len(features), -1, -1, -1)], 1)


class CrossAttention(nn.Module):
    """Attention of few queries to many tokens, with rotary positions of the tokens (queries stand at (0, 0))."""

    def __init__(self, config, dim: int, num_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: torch.Tensor, context: torch.Tensor, rope) -> torch.Tensor:
        """`[B, Q, dim]` and `[B, L, dim]` to `[B, Q, dim]`."""
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, x in ((self.q_proj, queries), (self.k_proj, context), (self.v_proj, context))
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        key = apply_axial_rope(key, rope)
        output = attend(self, query, key, value, None, dropout=0.0, scaling=self.scaling, is_causal=False)[0]
        return self.proj(output.flatten(2))


class CrossBlock(GradientCheckpointingLayer):
    """`x ← x + Attn(norm2(x), norm_y(y))`, `x ← x + MLP(norm3(x))`."""

    def __init__(self, config, dim: int, num_heads: int):
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.norm_y = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.cross_attn = CrossAttention(config, dim, num_heads)
        self.norm3 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(dim, int(dim * config.mlp_ratio))

    def forward(self, queries: torch.Tensor, context: torch.Tensor, rope) -> torch.Tensor:
        queries = queries + self.cross_attn(self.norm2(queries), self.norm_y(context), rope)
        return queries + self.mlp(self.norm3(queries))


class MetricDecoder(nn.Module):
    """One learned query reads all tokens of all frames."""

    def __init__(self, config):
        super().__init__()
        dim = config.metric_hidden_size
        self.projects_x = nn.Linear(2 * config.hidden_size, dim)
        self.projects_y = nn.Linear(2 * config.hidden_size, dim)
        self.blocks = nn.ModuleList(
            CrossBlock(config, dim, config.metric_num_attention_heads) for _ in range(config.head_num_layers)
        )
        self.linear_out = nn.Linear(dim, config.metric_dim)

    def forward(self, query: torch.Tensor, context: torch.Tensor, rope) -> torch.Tensor:
        """
        Args:
            query: `[B, 1, 2·hidden]`. context: `[B, L, metric_hidden_size]`, of `projects_y`. rope: of one frame.

        Returns:
            `[B, metric_dim]`.
        """
        hidden_states = self.projects_x(query)
        for block in self.blocks:
            hidden_states = block(hidden_states, context, rope)
        return self.linear_out(hidden_states).squeeze(1)
