"""Writing the points of 64 prompts into their embeddings: one indexed write against a loop over the samples."""

import torch

from benchmarks.harness import alternate, assert_agreement, device, row
from modeling_dsr.cad_point_encoder import find_point_tokens, write_points

NAME = "cad.scatter"
BATCH, LENGTH, HIDDEN, POINTS, POINT = 64, 300, 1536, 256, 7


def loop(embeds, points, mask, has_points):
    """The published way: the start of every row from its mask, a slice assignment each."""
    embeds = embeds.clone()
    starts = mask.shape[1] - mask.sum(dim=1)
    for i, start in enumerate(starts):
        if has_points[i]:
            embeds[i, start : start + POINTS] = points[i]
    return embeds


def once(ids, embeds, points, mask, has_points):
    return write_points(embeds, points, find_point_tokens(ids, mask, POINT), has_points)


def problem():
    generator = torch.Generator().manual_seed(0)
    padding = torch.randint(0, 20, (BATCH,), generator=generator)
    mask = (torch.arange(LENGTH) >= padding[:, None]).long()
    ids = torch.full((BATCH, LENGTH), 1)
    ids[torch.arange(LENGTH) < padding[:, None] + POINTS] = POINT
    has_points = torch.arange(BATCH) % 4 != 3
    embeds = torch.randn(BATCH, LENGTH, HIDDEN, generator=generator).bfloat16()
    points = torch.randn(BATCH, POINTS, HIDDEN, generator=generator).bfloat16()
    return [tensor.to(device()) for tensor in (ids, embeds, points, mask, has_points)]


def run() -> list[dict]:
    ids, embeds, points, mask, has_points = problem()
    assert_agreement(once(ids, embeds, points, mask, has_points), loop(embeds, points, mask, has_points), atol=0)
    if embeds.is_cuda:
        torch.cuda.set_sync_debug_mode("error")  # any synchronisation with the host raises
        once(ids, embeds, points, mask, has_points)
        torch.cuda.set_sync_debug_mode("default")
    baseline, ours = alternate(
        lambda: loop(embeds, points, mask, has_points), lambda: once(ids, embeds, points, mask, has_points), rounds=7
    )
    return [row(NAME, "time", baseline, ours, None)]
