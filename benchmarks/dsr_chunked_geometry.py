"""Peak memory of the geometry encoder on 32 frames of 336×616, full width, 2 layers.

Baseline: all frames in one batch, as the published code runs them.
"""

import torch

from benchmarks.dsr_models import GRID, full_width_config, video
from benchmarks.harness import alternate, assert_agreement, peak_memory, row
from modeling_dsr.modeling_dsr import DSRModel

NAME = "dsr.chunked_geometry"
LAYERS = 2


def setup(side: str):
    """Encoding of one video, in chunks of the default size or in one batch."""
    torch.manual_seed(0)
    config = full_width_config(LAYERS)
    config.vision_config.depth = config.text_config.num_hidden_layers = 0  # the other towers do not run here
    config.text_config.layer_types = []
    config.geometry_chunk_size = 0 if side == "baseline" else type(config)().geometry_chunk_size
    model = DSRModel(config).eval()
    clip = video(GRID)

    @torch.no_grad()
    def call():
        (states,) = model.encode_geometry(clip["pixel_values_videos"], clip["video_grid_thw"])
        return states

    return call


def run() -> list[dict]:
    baseline, ours = setup("baseline"), setup("ours")
    assert_agreement(ours(), baseline(), 1e-4)
    times = alternate(baseline, ours, rounds=3, warmup=0)
    del baseline, ours
    memory = [peak_memory("benchmarks.dsr_chunked_geometry:setup", side) for side in ("baseline", "ours")]
    return [row(NAME, "memory", *memory, target=4.0), row(NAME, "time", *times, target=None)]
