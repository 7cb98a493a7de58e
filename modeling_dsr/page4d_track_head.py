"""Track head of VGGT: points of the first frame followed through the others (after CoTracker, arXiv 2307.07635)."""

import torch
from torch import nn
from torch.nn import functional as F

from .page4d_dpt import DPTHead
from .vision_blocks import VisionMLP


def sample_bilinear(features: torch.Tensor, coordinates: torch.Tensor, padding_mode: str = "border") -> torch.Tensor:
    """
    Values of maps `[N, C, h, w]` at `[N, K, 2]` (x, y) in their pixels, corners at whole numbers: `[N, K, C]`.
    """
    height, width = features.shape[-2:]
    extent = coordinates.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    grid = (coordinates * (2 / extent) - 1).unsqueeze(2)
    values = F.grid_sample(features, grid, align_corners=True, padding_mode=padding_mode)
    return values.squeeze(-1).transpose(1, 2)


def sincos_embedding(position: torch.Tensor, channels: int, base: float) -> torch.Tensor:
    """`[..., ]` positions to `[..., channels]`: sines then cosines at frequencies `base^(-2k/channels)`, from
    float64."""
    exponent = torch.arange(channels // 2, device=position.device, dtype=torch.float64) / (channels / 2)
    angle = position.double().unsqueeze(-1) * base**-exponent
    return torch.cat([angle.sin(), angle.cos()], -1).float()


def flow_embedding(flow: torch.Tensor, channels: int) -> torch.Tensor:
    """
    `[..., 2]` flows in pixels of the feature map to `[..., 2·channels]`, x then y.

    Sines and cosines alternate, at angles `flow · k·(1000/channels)` for k = 0, 2, 4, …
    """
    factor = torch.arange(0, channels, 2, device=flow.device, dtype=torch.float32) * (1000.0 / channels)
    angle = flow.float().unsqueeze(-1) * factor
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-3)


class TrackBlock(nn.Module):
    """
    `x ← norm1(x)`, `x ← x + Attn(x, context)`, `x ← x + MLP(norm2(x))`: the residual branch starts from the *normed* x.

    Args:
        cross: attend to a context of its own, which is normed too; otherwise to `x`.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, cross: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim) if cross else None
        self.attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = VisionMLP(dim, int(dim * mlp_ratio))

    def forward(self, hidden_states: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        hidden_states = self.norm1(hidden_states)
        context = hidden_states if self.norm_context is None else self.norm_context(context)
        hidden_states = hidden_states + self.attn(hidden_states, context, context, need_weights=False)[0]
        return hidden_states + self.mlp(self.norm2(hidden_states))


class UpdateTransformer(nn.Module):
    """
    Corrections of positions and features from what each track sees.

    Alternates attention over time (every track alone) and attention between the tracks of a frame, the latter through
    learned virtual tracks so that its cost grows with the number of tracks and not its square.
    """

    def __init__(self, in_dim: int, out_dim: int, config):
        super().__init__()
        dim, heads = config.track_hidden_size, config.track_num_heads
        self.num_virtual_tracks = config.track_num_virtual
        self.input_norm = nn.LayerNorm(in_dim)
        self.input_transform = nn.Linear(in_dim, dim)
        self.virtual_tracks = nn.Parameter(torch.randn(1, self.num_virtual_tracks, 1, dim))

        def blocks(cross: bool = False) -> nn.ModuleList:
            return nn.ModuleList(
                TrackBlock(dim, heads, config.track_mlp_ratio, cross) for _ in range(config.track_depth)
            )

        self.time_blocks = blocks()
        self.virtual_from_points_blocks = blocks(cross=True)
        self.virtual_blocks = blocks()
        self.points_from_virtual_blocks = blocks(cross=True)
        self.output_norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, out_dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[B, N, S, in_dim]` to `[B, N, S, out_dim]`."""
        batch, count, frames, _ = tokens.shape
        projected = self.input_transform(self.input_norm(tokens))
        x = torch.cat([projected, self.virtual_tracks.to(projected.dtype).expand(batch, -1, frames, -1)], 1)
        for time, virtual_from_points, virtual, points_from_virtual in zip(
            self.time_blocks, self.virtual_from_points_blocks, self.virtual_blocks, self.points_from_virtual_blocks
        ):
            x = time(x.flatten(0, 1)).unflatten(0, (batch, -1))
            by_frame = x.transpose(1, 2).flatten(0, 1)  # [B·S, N + V, D]
            points, virtual_tokens = by_frame[:, :count], by_frame[:, count:]
            virtual_tokens = virtual(virtual_from_points(virtual_tokens, points))
            points = points_from_virtual(points, virtual_tokens)
            x = torch.cat([points, virtual_tokens], 1).unflatten(0, (batch, frames)).transpose(1, 2)
        return self.output(self.output_norm(x[:, :count] + projected))


class Tracker(nn.Module):
    """Iterative refinement of tracks on feature maps."""

    def __init__(self, config):
        super().__init__()
        self.iterations, self.stride = config.track_iterations, config.track_stride
        self.levels, self.radius = config.track_correlation_levels, config.track_correlation_radius
        self.max_scale = config.track_max_scale
        dim = config.track_features
        self.dim = dim
        correlations = self.levels * (2 * self.radius + 1) ** 2
        self.correlation_mlp = VisionMLP(correlations, config.track_hidden_size, dim)
        token_dim = 3 * dim + 4
        self.query_ref_token = nn.Parameter(torch.randn(1, 2, token_dim))
        self.update_transformer = UpdateTransformer(token_dim, dim + 2, config)
        self.feature_map_norm = nn.LayerNorm(dim)
        self.feature_norm = nn.GroupNorm(1, dim)
        self.feature_update = nn.Linear(dim, dim)
        self.visibility = nn.Linear(dim, 1)
        self.confidence = nn.Linear(dim, 1)

    def forward(self, query_points: torch.Tensor, feature_maps: torch.Tensor, num_iterations: int | None = None):
        """
        Args:
            query_points: `[B, N, 2]` (x, y) in pixels of the first image.
            feature_maps: `[B, S, C, h, w]`.

        Returns:
            Tracks after every iteration, a list of `[B, S, N, 2]` in pixels; visibility and confidence logits
            `[B, S, N]`.
        """
        coordinates, features, scene = self.start(query_points, feature_maps)
        tracks = []
        for _ in range(num_iterations or self.iterations):
            coordinates, features = self.refine(coordinates, features, scene)
            tracks.append(coordinates * self.stride)
        return tracks, *self.judge(features)

    def start(self, query_points: torch.Tensor, feature_maps: torch.Tensor):
        """Coordinates `[B, S, N, 2]` and features `[B, S, N, C]` before the first iteration, and what stays the
        same."""
        frames = feature_maps.shape[1]
        maps = self.feature_map_norm(feature_maps.movedim(2, -1)).movedim(-1, 2)
        query = query_points.to(maps.dtype) / self.stride
        query_features = sample_bilinear(maps[:, 0], query)  # [B, N, C]
        reference = torch.cat([self.query_ref_token[:, :1], self.query_ref_token[:, 1:].expand(-1, frames - 1, -1)], 1)
        scene = self._pyramid(maps), self._position(query, maps.shape[-2:]) + reference.unsqueeze(1)
        features = query_features.unsqueeze(1).expand(-1, frames, -1, -1)
        return query.unsqueeze(1).expand(-1, frames, -1, -1), features, scene

    def refine(self, coordinates: torch.Tensor, features: torch.Tensor, scene) -> tuple[torch.Tensor, torch.Tensor]:
        """One iteration, in pixels of the feature maps."""
        pyramid, position = scene
        coordinates = coordinates.detach()
        correlation = self.correlation_mlp(self._correlate(features, coordinates, pyramid))
        flow = coordinates - coordinates[:, :1]
        scaled = flow / self.max_scale
        tokens = torch.cat(
            [flow_embedding(flow, self.dim // 2).to(flow.dtype), scaled, scaled, correlation, features], -1
        )
        delta = self.update_transformer(tokens.transpose(1, 2) + position).transpose(1, 2)  # [B, S, N, 2 + C]
        delta_features = self.feature_norm(delta[..., 2:].flatten(0, 2)).view_as(features)
        features = features + F.gelu(self.feature_update(delta_features))
        moved = coordinates + delta[..., :2]
        return torch.cat([coordinates[:, :1], moved[:, 1:]], 1), features  # the query stays where it was asked

    def judge(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[B, S, N]` of visibility and confidence."""
        return self.visibility(features).squeeze(-1), self.confidence(features).squeeze(-1)

    def _pyramid(self, maps: torch.Tensor) -> list[torch.Tensor]:
        """The feature maps `[B·S, C, h, w]`, halved again and again."""
        levels = [maps.flatten(0, 1)]
        for _ in range(self.levels - 1):
            levels.append(F.avg_pool2d(levels[-1], 2, stride=2))
        return levels

    def _correlate(self, features, coordinates, pyramid) -> torch.Tensor:
        """
        Dot products of the tracks' features with the maps around their positions, `[B, S, N, levels·(2r + 1)²]`.

        Maps are sampled first and multiplied after: (2r + 1)² vectors per track instead of a product with every pixel.
        In the window x is the outer offset and y the inner one.
        """
        offset = torch.arange(-self.radius, self.radius + 1, device=coordinates.device, dtype=coordinates.dtype)
        window = torch.cartesian_prod(offset, offset)  # [(2r+1)², 2] (x, y), x outer
        target = features.flatten(0, 1)  # [B·S, N, C]
        found = []
        for level, maps in enumerate(pyramid):
            centres = coordinates.flatten(0, 1) / 2**level
            at = (centres.unsqueeze(2) + window).flatten(1, 2)
            sampled = sample_bilinear(maps, at, padding_mode="zeros").unflatten(1, (-1, len(window)))
            found.append(torch.einsum("fnc,fnkc->fnk", target, sampled) / self.dim**0.5)
        return torch.cat(found, -1).view(*coordinates.shape[:3], -1)

    def _position(self, query: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """The image-wide sine map sampled at the queries, `[B, N, 1, 3C + 4]`; x takes the first half of the
        channels."""
        channels = (3 * self.dim + 4) // 2
        height, width = size
        # Bilinear samples of a map that is constant along one axis: interpolation along the other.
        axes = [
            sincos_embedding(torch.arange(length, device=query.device), channels, 10000.0).to(query.dtype)
            for length in (width, height)
        ]
        maps = [
            axis.T.unsqueeze(0).unsqueeze(2).expand(len(query), -1, -1, -1) for axis in axes
        ]  # [B, channels, 1, length]
        zero = torch.zeros_like(query[..., 0])
        parts = [sample_bilinear(axis, torch.stack([query[..., index], zero], -1)) for index, axis in enumerate(maps)]
        return torch.cat(parts, -1).unsqueeze(2)


class TrackHead(nn.Module):
    """Feature maps from the tokens, then [`Tracker`]."""

    def __init__(self, config, in_channels: int):
        super().__init__()
        self.feature_extractor = DPTHead(
            in_channels,
            None,
            config.track_features,
            config.track_out_channels,
            config.patch_size,
            use_positions=False,
            down_ratio=config.track_stride,
            norm_eps=config.layer_norm_eps,
        )
        self.tracker = Tracker(config)
