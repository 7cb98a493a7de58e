"""The coarse mask head of FrozenQwenSAM: a small U-Net on stacked attention maps (F-LMM, arXiv 2406.05821)."""

import torch
from torch import nn
from torch.nn import functional as F


def normalize_maps(maps: torch.Tensor) -> torch.Tensor:
    """Every channel of `[n, C, h, w]` divided by its sum over the image."""
    return maps / maps.sum((-2, -1), keepdim=True).clamp_min(1e-12)


def resize_bilinear(x: torch.Tensor, **kwargs) -> torch.Tensor:
    """Bilinear interpolation computed in float32, in the dtype of `x`."""
    return F.interpolate(x.float(), mode="bilinear", align_corners=False, **kwargs).to(x.dtype)


class ConvNormActivation(nn.Module):
    """Convolution without bias, group norm with a single group, ReLU. Keeps height and width."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(1, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class DoubleConv(nn.Module):
    """Two 3×3 convolutions."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.convs = nn.Sequential(
            ConvNormActivation(in_channels, out_channels, 3), ConvNormActivation(out_channels, out_channels, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convs(x)


class UpBlock(nn.Module):
    """Twice the size at half the channels, joined with the encoder's features of that size."""

    def __init__(self, channels: int):
        super().__init__()
        self.reduce = ConvNormActivation(2 * channels, channels, 1)
        self.fuse = DoubleConv(2 * channels, channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.fuse(torch.cat([skip, self.reduce(resize_bilinear(x, scale_factor=2))], dim=1))


class MaskHead(nn.Module):
    """
    Attention maps of phrases to coarse mask logits.

    Args:
        in_channels: layers × heads of the language model.
        channels: width of the first stage; each further stage halves the size and doubles the width.
        stages: number of stages.
        size: maps whose longer side is shorter are enlarged to it first.
    """

    def __init__(self, in_channels: int, channels: int = 64, stages: int = 4, size: int = 64):
        super().__init__()
        widths = [channels * 2**i for i in range(stages)]
        self.size = size
        self.encoder = nn.ModuleList(DoubleConv(a, b) for a, b in zip([in_channels, *widths], widths))
        self.decoder = nn.ModuleList(UpBlock(width) for width in widths[:-1])
        self.classifier = nn.Conv2d(channels, 1, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """
        Args:
            maps: attention `[n, layers·heads, h, w]` in [0, 1].

        Returns:
            Logits `[n, h', w']`, the longer side of h', w' being `size` or that of the maps if longer.
        """
        maps = normalize_maps(maps.to(self.classifier.weight.dtype))
        # The scale itself defines the sampling grid and the size is rounded down, so a side of 49 becomes 63, not 64.
        maps = resize_bilinear(maps, scale_factor=max(1.0, self.size / max(maps.shape[-2:])))
        height, width = maps.shape[-2:]
        multiple = 2 ** len(self.decoder)
        # The padding takes part in the group norms' statistics: maps are only batched with maps of the same size.
        x = F.pad(maps, (0, -width % multiple, 0, -height % multiple))
        skips = []
        for number, stage in enumerate(self.encoder):
            x = stage(F.max_pool2d(x, 2) if number else x)
            skips.append(x)
        for block, skip in zip(reversed(self.decoder), reversed(skips[:-1])):
            x = block(x, skip)
        return self.classifier(x[..., :height, :width])[:, 0]
