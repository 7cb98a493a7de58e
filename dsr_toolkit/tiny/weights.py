"""Random weights that depend on nothing but the tensor's name, its shape and a seed."""

import zlib

import torch


def random_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """
    A float32 tensor of a scale that keeps signals alive through a deep stack.

    Libraries start training from small numbers; a network of those answers nearly the same whatever it sees. Here a
    projection keeps the variance of its input, norms and LayerScales stay near one, and biases and position tables
    are not zero, so that what goes in can be told from what comes out.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    tensor = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.1 * tensor
    if len(shape) == 1:  # norm weights and LayerScales
        return 1 + 0.1 * tensor
    if "embed_tokens" in name:
        return 0.3 * tensor  # a word's own vector must not drown its context
    if "pos_embed" in name or name.endswith(("token", "tokens")):
        return tensor
    fan_in = tensor[0].numel()
    gain = 1.0
    if name.startswith("lm_head"):
        gain = 4.0  # logits a few units apart
    elif name.endswith(("q_proj.weight", "k_proj.weight")):
        gain = 2.5  # attention that prefers some tokens: an even mean over a long prompt would hide the question
    return gain * tensor / fan_in**0.5
