"""torch.compile of a decoding step of CAD-Recode with a static cache: 130 million parameters, random weights."""

import torch

from benchmarks import compiling
from benchmarks.cad_models import wide_model

NAME = "compile.cad_recode"


def run() -> list[dict]:
    model = wide_model()
    ids = torch.full((1, model.config.num_points + 1), model.config.point_token_id)
    ids[:, -1] = 5
    cloud = torch.rand(1, model.config.num_points, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "point_cloud": cloud}
    return compiling.rows(NAME, model, compiling.decoding(model, given), lambda found: found.logits, 0)
