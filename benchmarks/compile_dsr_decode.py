"""torch.compile of a decoding step of DSR with a static cache: a small model, random weights."""

from benchmarks import compiling
from benchmarks.dsr_decode import GRID
from benchmarks.dsr_models import prompt, small_model, video

NAME = "compile.dsr_decode"


def run() -> list[dict]:
    model = small_model()
    given = {**prompt(GRID, 40, model.config.num_geometry_tokens), **video(GRID)}
    return compiling.rows(NAME, model, compiling.decoding(model, given), lambda found: found.logits, 3)
