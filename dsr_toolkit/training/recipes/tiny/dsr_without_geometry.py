"""What geometry tokens are worth: the same Qwen-VL on the same rows, as often, without π³ and geometry tokens."""

import copy

from ...recipe import Recipe
from .dsr import QUESTIONS
from .dsr import RECIPE as DSR


def _stages():
    look, answer = copy.deepcopy(DSR.stages[-2:])
    look.model = {"recipe": "tiny/qwen_vl", "attention": "eager"}
    for stage in (look, answer):
        stage.collator, stage.freeze, stage.learning_rates = f"{QUESTIONS}:EachQuestion", None, {}
    return [look, answer]


RECIPE = Recipe(
    name="tiny/dsr_without_geometry",
    description="A tiny Qwen2.5-VL that answers questions about motion, to compare the tiny DSR with.",
    requires=["tiny/qwen_vl"],
    stages=_stages(),
)
