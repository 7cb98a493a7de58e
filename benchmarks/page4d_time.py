"""Time of PAGE-4D's forward over 32 frames and of its parts, against the plain way of `page4d_plain`."""

import torch

from benchmarks import page4d_plain
from benchmarks.harness import alternate, assert_agreement, row

NAME = "page4d.time"
TARGET = 1.1
MASK = 1.0


def run() -> list[dict]:
    model, images = page4d_plain.measured_model()
    grid = tuple(side // model.config.patch_size for side in images.shape[-2:])
    with torch.no_grad():
        patches = model.encode_frames(images)
        layers = page4d_plain.trunk(model, patches, grid, MASK)
        tokens = model.aggregator(patches, grid, MASK)
        expected = page4d_plain.heads(model, layers, images.shape)
        found = model.run_heads(tokens, images.shape)
        for name, values in expected.items():
            assert_agreement(found[name], values, atol=2e-3 * float(values.abs().max().clamp_min(1)))
        sides = {
            "time": (lambda: page4d_plain.forward(model, images, MASK), lambda: model(images, mask_alpha=MASK)),
            "time_encoder": (lambda: page4d_plain.encode(model, images), lambda: model.encode_frames(images)),
            "time_trunk": (
                lambda: page4d_plain.trunk(model, patches, grid, MASK),
                lambda: model.aggregator(patches, grid, MASK),
            ),
            "time_heads": (
                lambda: page4d_plain.heads(model, layers, images.shape),
                lambda: model.run_heads(tokens, images.shape),
            ),
        }
        return [
            row(NAME, metric, *alternate(baseline, ours), TARGET if metric == "time" else None)
            for metric, (baseline, ours) in sides.items()
        ]
