"""What the benchmarks at full size share: models of random weights, made fast, and the originals beside them."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import torch
from torch import nn
from transformers.initialization import no_init_weights

from benchmarks.harness import device

# Every benchmark has SIZES: "small", to try it; "cpu", for two cores and 23 GB; "gpu", for one card of 80 GB.
BLOCK = 2**22 - 3  # random numbers that all tensors repeat; a prime, so that rows of a matrix differ


def make_model(model_class, config, dtype: torch.dtype = torch.float32):
    """A model on the benchmarks' device, with random weights that keep signals alive."""
    with no_init_weights(), device():
        model = model_class._from_config(config, dtype=dtype).eval()
    fill(model)
    return model


@torch.no_grad()
def fill(module: nn.Module, seed: int = 0) -> None:
    """One block of normal numbers, repeated in every parameter at the scale that it needs: a billion takes seconds."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)).to(next(module.parameters()).device)
    for name, parameter in module.named_parameters():
        flat, scale, centre = parameter.data.view(-1), 0.02, 0.0
        if name.endswith(("gamma", "lambda1")):
            centre = 0.1
        elif parameter.ndim == 1 and name.endswith("weight"):
            centre = 1.0
        elif parameter.ndim > 1 and not name.endswith(("token", "tokens", "embeddings", "embed")):
            scale = parameter[0].numel() ** -0.5
        for start in range(0, len(flat), BLOCK):
            part = flat[start : start + BLOCK]
            part.copy_(block[: len(part)] * scale + centre)


def import_original(folder: str | Path, module: str, name: str):
    """
    A class of the published code from a clone of its repository.

    Raises:
        ValueError: there is no such module in the folder.
    """
    folder = Path(folder).resolve()
    if not (folder / module.replace(".", os.sep)).with_suffix(".py").is_file():
        raise ValueError(f"`--original` must be a clone of the published repository, with {module}; got {folder}.")
    sys.path.insert(0, str(folder))
    return getattr(importlib.import_module(module), name)


def autocast(size: str):
    """On a GPU bfloat16, as the published examples run there."""
    return torch.autocast(device().type, torch.bfloat16, enabled=size == "gpu")


def relative(values: torch.Tensor, share: float) -> float:
    """A tolerance that grows with the values."""
    return share * float(values.abs().max().clamp_min(1))
