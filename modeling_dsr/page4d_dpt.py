"""DPT head (arXiv 2103.13413) as VGGT and PAGE-4D use it: four layers of tokens to one dense map. Plus its
activations."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

POSITION_STRENGTH = 0.1  # factor of the positional map
POSITION_BASE = 100.0


def axis_positions(size: int, span: float, device=None) -> torch.Tensor:
    """Centres of `size` cells that share the extent ±`span` of an image axis, `[size]`."""
    limit = span * (size - 1) / size
    return torch.linspace(-limit, limit, size, device=device)


def position_rows(position: torch.Tensor, channels: int) -> torch.Tensor:
    """
    Sines and cosines of the positions of one image axis, `[n]` to `[channels, n]` float32.

    Args:
        channels: even; frequencies are `100^(-k/(channels/2))`, sines first.
    """
    exponent = torch.arange(channels // 2, device=position.device, dtype=torch.float64) / (channels / 2)
    angle = POSITION_BASE ** -exponent.unsqueeze(-1) * position.double()
    return torch.cat([angle.sin(), angle.cos()]).float()


def image_spans(aspect: float) -> tuple[float, float]:
    """Half extents (x, y) of an image of `aspect` = width / height whose diagonal is 2."""
    diagonal = (1 + aspect**2) ** 0.5
    return aspect / diagonal, 1 / diagonal


def add_position_map(features: torch.Tensor, aspect: float) -> torch.Tensor:
    """
    Add 0.1 × the positional map to features `[N, C, h, w]`, in place: half of the channels tell x, half y.

    The map is never built: each half is constant along one axis.
    """
    channels, height, width = features.shape[1:]
    span_x, span_y = image_spans(aspect)
    half = channels // 2
    columns = POSITION_STRENGTH * position_rows(axis_positions(width, span_x, features.device), half)
    rows = POSITION_STRENGTH * position_rows(axis_positions(height, span_y, features.device), half)
    features[:, :half] += columns.to(features.dtype).unsqueeze(1)
    features[:, half:] += rows.to(features.dtype).unsqueeze(2)
    return features


class KeptLayers:
    """
    What dense heads read of a trunk: patch tokens `[rows, K, P, 2C]` of K layers, two halves side by side.

    Without gradients every layer is written to its place at once, so that nothing is held twice.

    Args:
        layers: whose tokens are kept.
    """

    def __init__(self, layers: Sequence[int]):
        self.slots = {layer: slot for slot, layer in enumerate(layers)}
        self.kept: torch.Tensor | list = [None] * len(self.slots)

    def add(self, layer: int, first: torch.Tensor, second: torch.Tensor) -> None:
        """Halves `[…, P, C]` of a layer; all axes before P become rows."""
        if layer not in self.slots:
            return
        slot, width = self.slots[layer], first.shape[-1]
        if torch.is_grad_enabled():
            self.kept[slot] = torch.cat([first, second], -1).flatten(0, -3)
            return
        rows = first.shape[:-2]
        if isinstance(self.kept, list):
            self.kept = first.new_empty(rows.numel(), len(self.slots), first.shape[-2], 2 * width)
        entry = self.kept[:, slot].view(*rows, -1, 2 * width)
        entry[..., :width], entry[..., width:] = first, second

    def stacked(self) -> torch.Tensor:
        return torch.stack(self.kept, 1) if isinstance(self.kept, list) else self.kept


class ResidualConvUnit(nn.Module):
    """
    `x ← relu(x) + conv2(relu(conv1(relu(x))))`.

    The shortcut is rectified too: the first ReLU of the published code works in place, and its weights are trained so.
    """

    def __init__(self, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(x)
        return self.conv2(F.relu(self.conv1(x))) + x


class FeatureFusion(nn.Module):
    """Join a coarse map with a finer one and enlarge it. The coarsest level has no `skip`."""

    def __init__(self, features: int, has_skip: bool = True):
        super().__init__()
        self.skip_unit = ResidualConvUnit(features) if has_skip else None
        self.unit = ResidualConvUnit(features)
        self.projection = nn.Conv2d(features, features, 1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None, size: Sequence[int]) -> torch.Tensor:
        """`[N, F, h, w]` to `[N, F, *size]`."""
        if self.skip_unit is not None:
            x = x + self.skip_unit(skip)
        # The published order is resize, then project. Both are linear and the resizing weights of a pixel sum to 1, so
        # the projection may come first, on a quarter of the pixels.
        x = self.projection(self.unit(x))
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class DPTHead(nn.Module):
    """
    Patch tokens of four layers to a dense map.

    Args:
        in_channels: width of the tokens.
        output_dim: channels of the map; None: the head ends with its features.
        features: width inside.
        out_channels: widths of the four levels, finest first.
        use_positions: add positional maps.
        down_ratio: the map is this many times smaller than the image.
    """

    def __init__(
        self,
        in_channels: int,
        output_dim: int | None,
        features: int,
        out_channels: Sequence[int],
        patch_size: int,
        use_positions: bool = True,
        down_ratio: int = 1,
        hidden_channels: int = 32,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.patch_size, self.use_positions, self.down_ratio = patch_size, use_positions, down_ratio
        self.norm = nn.LayerNorm(in_channels, eps=norm_eps)  # one norm for all four layers
        self.projections = nn.ModuleList(nn.Conv2d(in_channels, width, 1) for width in out_channels)
        first, second, _, last = out_channels
        self.resizes = nn.ModuleList(
            [
                nn.ConvTranspose2d(first, first, 4, stride=4),
                nn.ConvTranspose2d(second, second, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(last, last, 3, stride=2, padding=1),
            ]
        )
        self.level_convs = nn.ModuleList(nn.Conv2d(width, features, 3, padding=1, bias=False) for width in out_channels)
        self.fusions = nn.ModuleList(FeatureFusion(features, has_skip=level < 3) for level in range(4))
        self.output_conv1 = nn.Conv2d(features, features if output_dim is None else features // 2, 3, padding=1)
        self.output_conv2 = None
        if output_dim is not None:
            self.output_conv2 = nn.Sequential(
                nn.Conv2d(features // 2, hidden_channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(hidden_channels, output_dim, 1),
            )

    def forward(self, layers: Sequence[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
        """
        Args:
            layers: four of `[N, h·w, in_channels]`, shallow to deep.
            grid: (h, w) in patches.

        Returns:
            `[N, output_dim or features, h·patch_size/down_ratio, w·patch_size/down_ratio]`.
        """
        aspect = grid[1] / grid[0]
        # Coarse to fine, so that a level's map lives only until it is joined; the next finer one tells the size.
        fused, sizes = None, self._level_sizes(grid)
        for level in (3, 2, 1, 0):
            skip = self._level(level, layers[level], grid, aspect)
            x = skip if fused is None else fused
            fused = self.fusions[level](x, None if fused is None else skip, sizes[level - 1] if level else sizes[-1])
        fused = self.output_conv1(fused)
        size = [int(cells * self.patch_size / self.down_ratio) for cells in grid]
        fused = F.interpolate(fused, size=size, mode="bilinear", align_corners=True)
        if self.use_positions:
            fused = add_position_map(fused, aspect)
        return fused if self.output_conv2 is None else self.output_conv2(fused)

    def _level(self, level: int, tokens: torch.Tensor, grid: tuple[int, int], aspect: float) -> torch.Tensor:
        tokens = self.norm(tokens.to(self.norm.weight.dtype))
        x = self.projections[level](tokens.transpose(1, 2).unflatten(2, grid))
        if self.use_positions:
            x = add_position_map(x, aspect)
        return self.level_convs[level](self.resizes[level](x))

    @staticmethod
    def _level_sizes(grid: tuple[int, int]) -> list[tuple[int, int]]:
        """Sizes of the four levels, finest first, and of the map that leaves the last fusion."""
        h, w = grid
        return [(4 * h, 4 * w), (2 * h, 2 * w), (h, w), ((h + 1) // 2, (w + 1) // 2), (8 * h, 8 * w)]


def _inverse_log(x: torch.Tensor) -> torch.Tensor:
    return x.sign() * torch.expm1(x.abs())


def _split_norm(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    length = x.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    return x / length, length


def _norm_exp(x: torch.Tensor) -> torch.Tensor:
    direction, length = _split_norm(x)
    return direction * torch.expm1(length)


def _xy_inverse_log(x: torch.Tensor) -> torch.Tensor:
    z = _inverse_log(x[..., 2:])
    return torch.cat([x[..., :2] * z, z], -1)


VALUE_ACTIVATIONS = {
    "exp": torch.exp,
    "inv_log": _inverse_log,
    "norm_exp": _norm_exp,
    "norm": lambda x: _split_norm(x)[0],
    "xy_inv_log": _xy_inverse_log,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "linear": lambda x: x,
}
CONFIDENCE_ACTIVATIONS = {
    "expp1": lambda x: 1 + torch.exp(x),
    "expp0": torch.exp,
    "sigmoid": torch.sigmoid,
}


def activate_dense(raw: torch.Tensor, activation: str, confidence_activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Values `[N, H, W, C]` and confidences `[N, H, W]` of a head's map `[N, C + 1, H, W]`, confidence in the last
    channel.

    Args:
        activation: one of `VALUE_ACTIVATIONS`. confidence_activation: one of `CONFIDENCE_ACTIVATIONS`.
    """
    values, confidence = raw[:, :-1].permute(0, 2, 3, 1), raw[:, -1]
    return VALUE_ACTIVATIONS[activation](values), CONFIDENCE_ACTIVATIONS[confidence_activation](confidence)
