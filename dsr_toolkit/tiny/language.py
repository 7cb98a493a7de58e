"""What the language models of the trained tiny models share: rotary positions, and how numbers begin."""

import torch


def mrope_section(head_size: int) -> list[int]:
    """Pairs of channels that turn with time, height and width: 16, 24 and 24 of the published 64, others likewise."""
    half = head_size // 2
    side = 3 * half // 8
    return [half - 2 * side, side, side]


def number_vectors(values: torch.Tensor, logarithms: tuple[float, float], width: int) -> torch.Tensor:
    """
    Smooth functions of `values` `[N]`, with a standard deviation of 1: `[N, width]`.

    Sines and cosines, mixed at random: neighbours are alike from the first step on, and what is learnt of 95 is not
    unknown to 100.

    Args:
        logarithms: of the lowest and the highest frequency, radians for a step of 1.
    """
    angles = values[:, None] * torch.exp(torch.linspace(*logarithms, width // 4))
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    vectors = waves @ torch.randn(waves.shape[1], width)
    return vectors / vectors.std()


def marks(count: int, width: int) -> torch.Tensor:
    """Always the same random vectors, with a standard deviation of 1, by which `count` tokens are told apart:
    `[count, width]`."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))
