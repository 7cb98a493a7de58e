"""A training step of DSR in its second epoch: features of the frozen towers from the cache, against computing them.

The published presets train merger, Geometry Selection Module and language model; here only the geometry module and the
mergers, as a first stage would. One video of 16 frames per step.
"""

import tempfile

import torch

from benchmarks.dsr_models import IM_END, prompt, small_model, video
from benchmarks.harness import alternate, row
from dsr_toolkit.training.feature_cache import FeatureCache

NAME = "train.feature_cache"
TARGET = 3.0
GRID = (8, 12, 22)


def run() -> list[dict]:
    plain, cached = small_model().freeze("published").train(), small_model().freeze("published").train()
    one = prompt(GRID, 40, plain.config.num_geometry_tokens)
    ids = torch.cat([one["input_ids"], torch.tensor([[5, IM_END]])], 1)
    labels = torch.full_like(ids, -100)
    labels[:, -2:] = ids[:, -2:]
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), **video(GRID)}

    def step(model) -> float:
        model.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        return loss.item()

    with tempfile.TemporaryDirectory() as folder:
        FeatureCache(folder).attach(cached)
        step(cached)  # the first epoch fills it
        assert abs(step(cached) - step(plain)) < 1e-4, "the losses differ"
        baseline, ours = alternate(lambda: step(plain), lambda: step(cached), rounds=5, warmup=1)
    return [row(NAME, "step time", baseline, ours, TARGET)]
