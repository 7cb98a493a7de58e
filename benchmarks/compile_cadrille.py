"""torch.compile of a decoding step of Cadrille with a static cache: the trained tiny model, points of a part."""

from benchmarks import compiling
from benchmarks.cad_models import tiny

NAME = "compile.cadrille"


def run() -> list[dict]:
    model, _, (inputs,) = tiny("cadrille", 1)
    return compiling.rows(NAME, model, compiling.decoding(model, inputs), lambda found: found.logits, 0)
