"""Questions about the surround world, with true answers.

Each question lists everything that its wording leaves possible (`options`), and the world is drawn so that each option
is equally likely given the wording: who reads the text alone is right once in `len(options)` times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .surround_scene import CAMERA_YAWS, COLOURS, CROSSINGS, DISTANCES, KINDS, LANES, MOST, PLACES, Surroundings, Thing

NUMBERS = ("zero", "one", "two", "three", "four")
PLURALS = {kind: f"{kind}s" for kind in (*KINDS, "building")}
# "front left" and so on: the camera that looks there.
DIRECTIONS = {name.removeprefix("CAM_").replace("_", " ").lower(): yaw for name, yaw in CAMERA_YAWS.items()}
# Degrees around the border between two directions, and metres between two distances, that nobody is asked to tell
# apart.
BORDER, CLEAR = 4.0, 2.5


@dataclass(frozen=True)
class Question:
    """
    Args:
        type: key of `TYPES`. text, answer: as a person would say them. options: all answers that the text allows,
        `answer` among them, in an order that does not depend on it.
    """

    type: str
    text: str
    answer: str
    options: tuple[str, ...]

    @property
    def chance(self) -> float:
        """The share of right answers of someone who sees nothing."""
        return 1 / len(self.options)


def _pick(rng: np.random.Generator, items):
    items = list(items)
    return items[rng.integers(len(items))]


def _off(azimuth: float, yaw: float) -> float:
    """Degrees between two directions, 0 … 180."""
    return abs((azimuth - yaw + 180) % 360 - 180)


def _nearest_direction(thing: Thing) -> str:
    return min(DIRECTIONS, key=lambda name: _off(thing.azimuth, DIRECTIONS[name]))


def direction_of(thing: Thing) -> str | None:
    """The direction in which a thing is, None close to the border between two."""
    name = _nearest_direction(thing)
    return name if _off(thing.azimuth, DIRECTIONS[name]) < 30 - BORDER else None


def named_things(scene: Surroundings) -> list[tuple[str, Thing]]:
    """Things that a few words single out: by kind ("the truck"), else by colour and kind ("the red car")."""
    kinds = [thing.kind for thing in scene.things]
    both = [(thing.colour, thing.kind) for thing in scene.things]
    found = []
    for thing in scene.things:
        if kinds.count(thing.kind) == 1:
            found.append((f"the {thing.kind}", thing))
        elif thing.colour is not None and both.count((thing.colour, thing.kind)) == 1:
            found.append((f"the {thing.colour} {thing.kind}", thing))
    return found


# ---- one function per type: (texts to choose from, answer, options), or None where the scene has nothing to ask
# ----------


def _lanes(scene, rng):
    texts = ("How many lanes does the road have?", "How many lanes are there?")
    return texts, NUMBERS[scene.road.lanes], tuple(NUMBERS[lanes] for lanes in LANES)


def _lane(scene, rng):
    return ("Which lane are we in?", "In which lane is our car?"), scene.place, PLACES


def _bend(scene, rng):
    return ("Which way does the road bend?", "Does the road bend?"), scene.bend, ("left", "straight", "right")


def _crossing(scene, rng):
    where = "none" if scene.road.crossing is None else "ahead" if scene.road.crossing > 0 else "behind"
    return ("Where is the crossing?", "Is there a crossing ahead of us or behind us?"), where, CROSSINGS


def _count(scene, rng):
    kind = _pick(rng, (*KINDS, "building"))
    count = sum(thing.kind == kind for thing in scene.boxes)
    texts = (f"How many {PLURALS[kind]} are there?", f"How many {PLURALS[kind]} do you see?")
    return texts, NUMBERS[count], NUMBERS[: MOST + 1]


def _more(scene, rng):
    one, other = (KINDS[i] for i in rng.permutation(len(KINDS))[:2])
    difference = sum((thing.kind == one) - (thing.kind == other) for thing in scene.things)
    options = (PLURALS[one], PLURALS[other], "equal")
    answer = options[0] if difference > 0 else options[1] if difference < 0 else options[2]
    return (f"Are there more {options[0]} or more {options[1]}?",), answer, options


def _what(scene, rng):
    directions = [direction_of(thing) for thing in scene.things]
    near = [_nearest_direction(thing) for thing in scene.things]
    alone = [(d, thing.kind) for d, thing in zip(directions, scene.things) if d is not None and near.count(d) == 1]
    if not alone:
        return None
    direction, kind = _pick(rng, alone)
    return (f"What is to the {direction}?", f"What does the {direction} camera see nearby?"), kind, KINDS


def _colour(scene, rng):
    kinds = [thing.kind for thing in scene.things]
    single = [thing for thing in scene.things if thing.colour is not None and kinds.count(thing.kind) == 1]
    if not single:
        return None
    thing = _pick(rng, single)
    return (
        (f"What colour is the {thing.kind}?", f"Which colour does the {thing.kind} have?"),
        thing.colour,
        tuple(COLOURS),
    )


def _direction(scene, rng):
    named = [(name, direction_of(thing)) for name, thing in named_things(scene) if direction_of(thing) is not None]
    if not named:
        return None
    name, direction = _pick(rng, named)
    return (f"Where is {name}?", f"Which camera sees {name}?"), direction, tuple(DIRECTIONS)


def _nearer(scene, rng):
    named = named_things(scene)
    pairs = [(a, b) for a in named for b in named if abs(a[1].distance - b[1].distance) > CLEAR]
    if not pairs:
        return None
    (one, first), (other, second) = _pick(rng, pairs)
    answer = one if first.distance < second.distance else other
    return (f"Which is nearer, {one} or {other}?", f"What is closer to us: {one} or {other}?"), answer, (one, other)


def _distance(scene, rng):
    named = named_things(scene)
    if not named:
        return None
    name, thing = _pick(rng, named)
    answer = next(words for words, (low, high) in DISTANCES.items() if low <= thing.distance <= high)
    return (f"How far away is {name}?", f"What is the distance to {name}?"), answer, tuple(DISTANCES)


def _side(scene, rng):
    if len(scene.buildings) != 1:
        return None
    answer = "left" if scene.buildings[0].centre[1] > 0 else "right"
    return ("On which side is the building?", "Is the building on the left or on the right?"), answer, ("left", "right")


TYPES: dict[str, Callable] = {
    "lanes": _lanes,
    "lane": _lane,
    "bend": _bend,
    "crossing": _crossing,
    "count": _count,
    "more": _more,
    "what": _what,
    "colour": _colour,
    "direction": _direction,
    "nearer": _nearer,
    "distance": _distance,
    "side": _side,
}


def describe(scene: Surroundings) -> tuple[tuple[str, str], ...]:
    """
    What there is in each direction, as (request, answer): training that questions with few answers do not give. Not
    balanced: many directions hold nothing.
    """
    distances = {
        thing: next(words for words, (low, high) in DISTANCES.items() if low <= thing.distance <= high)
        for thing in scene.things
    }
    found = []
    for direction, yaw in DIRECTIONS.items():
        here = [thing for thing in scene.things if _nearest_direction(thing) == direction]
        here.sort(key=lambda thing: (thing.azimuth - yaw + 180) % 360, reverse=True)  # from left to right
        words = [" ".join(filter(None, (thing.colour, thing.kind, distances[thing]))) for thing in here]
        found.append((f"Describe the {direction}.", " and ".join(words) or "nothing"))
    return tuple(found)


def ask(scene: Surroundings, rng: np.random.Generator, types=None) -> tuple[Question, ...]:
    """
    One question of each type that the scene has something for, in random order.

    Args:
        types: the types to ask, in the order in which to ask them, a type as often as it is named; default all, once.
    """
    wanted = list(TYPES) if types is None else list(types)
    unknown = sorted(set(wanted) - set(TYPES))
    if unknown:
        raise ValueError(f"`types` must be among {list(TYPES)}, got {unknown}.")
    if types is None:
        rng.shuffle(wanted)
    questions = []
    for kind in wanted:
        found = TYPES[kind](scene, rng)
        if found is not None:
            texts, answer, options = found
            questions.append(Question(kind, _pick(rng, texts), answer, options))
    return tuple(questions)
