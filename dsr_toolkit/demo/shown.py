"""What the sections share: the model, what is said of it, and what was measured."""

from ..loading import StandIn, resolve
from ..tiny import shipped


def choose(model: str | None, kind: str) -> tuple[str, StandIn | None]:
    """Where to load a section's model from; `model` is what `--model` gave."""
    return (str(model), None) if model is not None else resolve(None, kind)


def facts(source: str, stand_in: StandIn | None) -> dict:
    """What demo.json records of a section's model."""
    return {
        "model": source,
        "stand_in": stand_in and stand_in.remark,
        "random_weights": bool(stand_in and stand_in.random),
    }


def measured(kind: str, stand_in: StandIn | None, *names: str) -> dict | None:
    """Figures that were measured of the model that stands in, with "count" of the samples; None of any other model."""
    if stand_in is None or stand_in.random:
        return None
    found = shipped.figures(kind)
    return {name: shipped.figure(found["metrics"], name) for name in names} | {
        "count": found["seeds"] * found["count"],
        "metrics": found["metrics"],
    }


def told_accuracy(kind: str, stand_in: StandIn | None, samples: str) -> str | None:
    """How often the model that stands in answers rightly, beside the mean chance of all types of questions; None of any
    other model. `samples`: what the questions are about."""
    figures = measured(kind, stand_in, "accuracy")
    if figures is None:
        return None
    chance = figures["metrics"]["chance"].values()
    return (
        f"On the questions of {figures['count']} fresh {samples} it is right {figures['accuracy']:.0%} of the time; "
        f"chance is {sum(chance) / len(chance):.0%}."
    )
