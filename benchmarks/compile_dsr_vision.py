"""torch.compile of DSR's vision tower and geometry encoder on 8 frames of 112×168: a small model, random weights."""

from benchmarks import compiling
from benchmarks.dsr_decode import GRID
from benchmarks.dsr_models import small_model, video

NAME = "compile.dsr_vision"


def run() -> list[dict]:
    clip = video(GRID)
    given = {name: clip[name] for name in ("pixel_values_videos", "video_grid_thw")}
    features = small_model().get_video_features
    return compiling.rows(NAME, features, given, lambda found: found.pooler_output[0], 3)
