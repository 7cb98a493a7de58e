"""Points as tokens: the Fourier point encoder of Cadrille and CAD-Recode, and its placeholders in a prompt."""

import math

import torch
from torch import nn


class FourierEmbedder(nn.Module):
    """
    Coordinates to `[x, sin(f·x), cos(f·x)]`, coordinate by coordinate within the sines and within the cosines.

    With `logspace` the n frequencies are 2⁰ … 2ⁿ⁻¹, else n evenly spaced numbers from 1 to 2ⁿ⁻¹; `include_pi`
    multiplies them by π; without `include_input` the coordinates themselves are left out.
    """

    def __init__(self, num_freqs: int, logspace: bool = True, include_input: bool = True, include_pi: bool = True):
        super().__init__()
        self.num_freqs = num_freqs
        self.logspace = logspace
        self.include_input = include_input
        self.include_pi = include_pi

    def out_features(self, coordinates: int = 3) -> int:
        return coordinates * (2 * self.num_freqs + int(self.include_input))

    def frequencies(self, device: torch.device) -> torch.Tensor:
        """`[num_freqs]` float32, computed when asked: nothing to keep in a checkpoint, nothing to lose on loading."""
        if self.logspace:
            frequencies = 2.0 ** torch.arange(self.num_freqs, dtype=torch.float32, device=device)
        else:
            frequencies = torch.linspace(1.0, 2.0 ** (self.num_freqs - 1), self.num_freqs, device=device)
        return frequencies * math.pi if self.include_pi else frequencies

    def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
        """`[..., C]` → `[..., out_features(C)]`."""
        angles = (coordinates[..., None] * self.frequencies(coordinates.device)).flatten(-2)  # [..., C·num_freqs]
        features = [coordinates] if self.include_input else []
        return torch.cat([*features, angles.sin(), angles.cos()], dim=-1)


class FourierPointEncoder(nn.Module):
    """
    One token per point: Fourier features of x, y, z, further channels as they are, one linear layer.

    It computes in float32 whatever the dtype of the language model: sin(128·x) has no meaning in bfloat16.
    """

    def __init__(self, config, hidden_size: int, point_channels: int = 3):
        super().__init__()
        self.point_channels = point_channels
        self.fourier_embedder = FourierEmbedder(
            config.num_freqs, config.logspace, config.include_input, config.include_pi
        )
        self.projection = nn.Linear(self.fourier_embedder.out_features() + point_channels - 3, hidden_size)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """`[B, N, point_channels]` in model units (about [-1, 1]) → `[B, N, hidden_size]`."""
        with torch.autocast(points.device.type, enabled=False):
            points = points.float()
            features = self.fourier_embedder(points[..., :3])
            features = torch.cat([features, points[..., 3 : self.point_channels]], dim=-1)
            return self.projection(features.to(self.projection.weight.dtype))


def find_point_tokens(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, point_token_id: int
) -> torch.BoolTensor:
    """
    The placeholders of each row: every −1 of the mask if it has any (CAD-Recode's convention), else the first unmasked
    run of `point_token_id`, which padding and the ends of texts may share as an id.

    Args:
        input_ids: `[B, S]`. attention_mask: `[B, S]`, or None for no padding.

    Returns:
        `[B, S]` bool.
    """
    is_point = input_ids == point_token_id
    if attention_mask is not None:
        is_point = is_point & (attention_mask > 0)
    seen = is_point.cumsum(1) > 0
    first_run = is_point & ((seen & ~is_point).cumsum(1) == 0)
    if attention_mask is None:
        return first_run
    marked = attention_mask < 0
    return torch.where(marked.any(), marked, first_run)  # chosen on the device: no synchronisation


def plain_attention_mask(attention_mask: torch.Tensor) -> torch.LongTensor:
    """The mask `[B, S]` that the decoder works with: 0 on padding, 1 on everything else, a -1 included."""
    return (attention_mask != 0).long()


def write_points(
    inputs_embeds: torch.Tensor,
    point_embeds: torch.Tensor,
    point_token_mask: torch.BoolTensor,
    has_points: torch.BoolTensor,
) -> torch.Tensor:
    """
    Write the points of every row that has some into its placeholders, in order, by one indexed write.

    Args:
        inputs_embeds: `[B, S, D]`. point_embeds: `[B, N, D]`.
        point_token_mask: `[B, S]`, N placeholders in every row that has points.
        has_points: `[B]`.
    """
    num_points = point_embeds.shape[1]
    rows = torch.arange(len(inputs_embeds), device=inputs_embeds.device)[:, None]
    # A stable sort brings the placeholders to the front and keeps their order.
    positions = (~point_token_mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :num_points]  # [B, N]
    values = torch.where(
        has_points[:, None, None], point_embeds.to(inputs_embeds.dtype), inputs_embeds[rows, positions]
    )
    return inputs_embeds.index_put((rows, positions), values)


def check_points(
    points: torch.Tensor, point_token_mask: torch.BoolTensor, has_points: torch.BoolTensor, name: str, channels: int
) -> None:
    """
    Refuse clouds that do not fit the prompt or hold numbers that are not finite.

    What depends on values is compared on the host for tensors that are there, and asserted on the device otherwise, so
    that a GPU never waits.
    """
    if points.ndim != 3 or len(points) != len(point_token_mask) or points.shape[2] < channels or points.shape[1] < 1:
        raise ValueError(
            f"`{name}` must be [{len(point_token_mask)}, points, {channels}], one cloud per row of `input_ids`, got "
            f"{tuple(points.shape)}. The processor writes it."
        )
    counts = point_token_mask.sum(1)
    fits = (counts == points.shape[1]) | ~has_points
    if points.device.type != "cpu":
        torch._assert_async(fits.all(), f"the placeholders of a row are not as many as its `{name}`")
        torch._assert_async(points.isfinite().all(), f"`{name}` holds NaN or infinite numbers")
        return
    if not points.isfinite().all():
        raise ValueError(f"`{name}` holds NaN or infinite coordinates. Remove those points before sampling.")
    if not fits.all():
        row = int((~fits).nonzero()[0])
        relation = "fewer points than placeholders" if points.shape[1] < counts[row] else "too many points"
        raise ValueError(
            f"`{name}` has {relation}: {points.shape[1]} points, but row {row} of `input_ids` has {int(counts[row])} "
            "placeholders. Sample the cloud to the processor's `num_points`."
        )
