"""What geometry tokens are worth: the same Qwen-VL on the same rows, without π³ and geometry tokens, and without what
is told to these."""

import copy

from ...recipe import Recipe
from .dsr import QUESTIONS
from .dsr import RECIPE as DSR


def _answer():
    stage = copy.deepcopy(DSR.stages[-1])
    stage.model = {"recipe": "tiny/qwen_vl", "attention": "eager"}
    stage.collator, stage.freeze, stage.learning_rates = f"{QUESTIONS}:EachQuestion", None, {}
    # It gets no other lesson, so twice as many steps of this one.
    stage.arguments |= {"learning_rate": 1.5e-3, "max_steps": 1000}
    return stage


RECIPE = Recipe(
    name="tiny/dsr_without_geometry",
    description="A tiny Qwen2.5-VL that answers questions about motion, to compare the tiny DSR with.",
    requires=["tiny/qwen_vl"],
    stages=[_answer()],
)
