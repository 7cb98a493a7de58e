"""Questions about a clip in the types of DSR-Bench, with answers from geometry.

A kind is drawn first, then the things it is about, then the answer that shall be true; motions are drawn to fit (see
`scene.draw_scene`). So neither the text nor the middle frame says anything about the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import facts
from .facts import CAMERA, Facts
from .scene import Scene

LETTERS = "ABCD"
TYPES = tuple(
    f"{view}_{kind}" for kind in ("dis", "dir", "ori", "spd", "spd_comp", "dir_pred") for view in ("abs", "rel")
)


@dataclass
class Question:
    """
    Args:
        type: of `TYPES`: distance, direction, orientation, change of speed, comparison of speeds, prediction; "rel" in
            the view of something that moves along, "abs" of something that stays in its place, or in the room.
        viewer: "camera" or "object", what the question relates the thing to.
        text: the question. options: in the order in which they are shown; one is true.
        answer: index of the true option. phrase: the answer as a sentence.
        key: the true answer's name in `facts`. keys: names of all answers; shown: those of the options, in their order.
        things: numbers of the things asked about.
    """

    type: str
    viewer: str
    text: str
    options: list[str]
    answer: int
    phrase: str
    key: str
    keys: tuple[str, ...]
    shown: tuple[str, ...]
    things: tuple[int, ...]

    @property
    def letter(self) -> str:
        """Letter of the true option."""
        return LETTERS[self.answer]

    @property
    def chance(self) -> float:
        """Share that guessing gets right."""
        return 1 / len(self.options)

    @property
    def prompt(self) -> str:
        """Question and options as DSR-Train's converter writes them."""
        lines = [f"{letter} {option}" for letter, option in zip(LETTERS, self.options)]
        return "\n".join([self.text, "Options:", *lines])


@dataclass(frozen=True)
class Kind:
    """
    A kind of question.

    Args:
        type, viewer: see [`Question`].
        things: how many it is about. find: from facts and things to the name of the answer, or None.
        texts: wordings; {a}, {b}, {c} are the things with their article.
        answers: name → wordings as an option, as many for each name.
        phrase: a sentence; {answer} is the option, {a} … as above.
    """

    type: str
    viewer: str
    things: int
    find: Callable[..., str | None]
    texts: tuple[str, ...]
    answers: dict[str, tuple[str, ...]]
    phrase: str


LARGER = {
    "more": ("becomes larger", "grows", "increases"),
    "less": ("becomes smaller", "shrinks", "decreases"),
    "same": ("stays nearly the same", "hardly changes", "keeps nearly constant"),
}
SIDES = {"left": ("to the left", "left", "leftwards"), "right": ("to the right", "right", "rightwards")}
WAYS = {
    "left": ("to the left", "left"),
    "right": ("to the right", "right"),
    "away": ("away from the viewer", "away"),
    "towards": ("towards the viewer", "nearer"),
}
TURNS = {
    "clockwise": ("clockwise", "it turns clockwise"),
    "anticlockwise": ("anticlockwise", "it turns anticlockwise"),
    "none": ("it does not turn", "it keeps its direction"),
}
SAME = {"same": ("the same way round", "in the same sense"), "opposite": ("opposite ways round", "in opposite senses")}
FRONTS = {"towards": ("towards it", "more towards it"), "away": ("away from it", "more away from it")}
FASTER = {
    "more": ("becomes faster", "speeds up"),
    "less": ("becomes slower", "slows down"),
    "same": ("keeps its speed", "has a nearly constant speed"),
}
WHICH = {"first": ("{a}",), "second": ("{b}",)}
NEXT = {"more": ("farther apart", "a larger distance"), "less": ("closer together", "a smaller distance")}
TO_PLACE = {"towards": ("towards that place", "towards it"), "away": ("away from that place", "away from it")}

KINDS = (
    Kind(
        "rel_dis", "camera", 1, lambda f, a: facts.distance_to_moving(f, a, CAMERA),
        ("How does the distance between the camera and {a} change?",
         "The camera and {a}: what happens to the distance between them?",
         "From the first to the last frame, how does the distance from the moving camera to {a} change?"),
        LARGER, "The distance between the camera and {a} {answer}.",
    ),
    Kind(
        "rel_dis", "object", 2, facts.distance_to_moving,
        ("How does the distance between {a} and {b} change?",
         "{A} and {b}: what happens to the distance between them?",
         "From the first to the last frame, how does the distance of {a} from {b} change?"),
        LARGER, "The distance between {a} and {b} {answer}.",
    ),
    Kind(
        "abs_dis", "camera", 1, lambda f, a: facts.distance_to_place(f, a, CAMERA),
        ("How does the distance of {a} from where the camera starts change?",
         "Take the place of the camera in the first frame. What happens to the distance of {a} from it?",
         "If the camera had stayed where it was at first, how would its distance to {a} change?"),
        LARGER, "The distance of {a} from where the camera starts {answer}.",
    ),
    Kind(
        "abs_dis", "object", 2, facts.distance_to_place,
        ("How does the distance of {a} from where {b} starts change?",
         "Take the place of {b} in the first frame. What happens to the distance of {a} from it?"),
        LARGER, "The distance of {a} from where {b} starts {answer}.",
    ),
    Kind(
        "rel_dir", "camera", 1, facts.shift_in_view,
        ("In the view of the moving camera, which way does {a} go?",
         "To which side of the picture does {a} move?",
         "Seen by the camera as it moves, where does {a} shift?"),
        SIDES, "In the view of the moving camera {a} goes {answer}.",
    ),
    Kind(
        "rel_dir", "object", 2, facts.shift_beside,
        ("In the picture, which way does {a} go compared with {b}?",
         "Relative to {b}, to which side does {a} shift in the camera's view?"),
        SIDES, "Compared with {b}, {a} goes {answer}.",
    ),
    Kind(
        "abs_dir", "camera", 1, facts.way_from_start,
        ("For a viewer who stays where the camera starts, which way does {a} move?",
         "If the camera had stayed as in the first frame, which way would {a} be seen to move?"),
        WAYS, "Seen from where the camera starts, {a} moves {answer}.",
    ),
    Kind(
        "abs_dir", "object", 2, facts.way_to_place,
        ("Does {a} move towards where {b} is in the first frame, or away from it?",
         "Take the place of {b} in the first frame. Which way does {a} move?"),
        TO_PLACE, "{A} moves {answer}.",
    ),
    Kind(
        "abs_ori", "camera", 1, facts.turning,
        ("Seen from above, which way does {a} turn?",
         "How does {a} turn about its own axis, looked at from above?"),
        TURNS, "Seen from above, {a}: {answer}.",
    ),
    Kind(
        "abs_ori", "object", 2, facts.same_turning,
        ("Do {a} and {b} turn the same way round?", "Compare how {a} and {b} turn, seen from above."),
        SAME, "{A} and {b} turn {answer}.",
    ),
    Kind(
        "rel_ori", "camera", 1, lambda f, a: facts.facing(f, a, CAMERA),
        ("Does the white mark of {a} turn towards the moving camera or away from it?",
         "The front of {a} is white. Does it come to face the camera more or less?"),
        {"towards": ("towards the camera", "more"), "away": ("away from the camera", "less")},
        "The front of {a} turns: {answer}.",
    ),
    Kind(
        "rel_ori", "object", 2, facts.facing,
        ("Does the white mark of {a} turn towards {b} or away from it?",
         "The front of {a} is white. With respect to {b}, which way does it turn?"),
        FRONTS, "The front of {a} turns {answer}.",
    ),
    Kind(
        "abs_spd", "camera", 1, facts.speed_in_room,
        ("How does the speed of {a} in the room change?",
         "For a viewer who does not move, how does the speed of {a} change?"),
        FASTER, "{A} {answer}.",
    ),
    Kind(
        "rel_spd", "camera", 1, facts.speed_in_view,
        ("How does the speed of {a} relative to the moving camera change?",
         "Measured from the moving camera, how does the speed of {a} change?"),
        FASTER, "Relative to the camera, {a} {answer}.",
    ),
    Kind(
        "rel_spd", "object", 2, facts.speed_beside,
        ("How does the speed of {a} relative to {b} change?", "Measured from {b}, how does the speed of {a} change?"),
        FASTER, "Relative to {b}, {a} {answer}.",
    ),
    Kind(
        "abs_spd_comp", "camera", 2, facts.faster_in_room,
        ("Which moves faster in the room, {a} or {b}?", "Which of {a} and {b} is the faster one?"),
        WHICH, "The faster one is {answer}.",
    ),
    Kind(
        "rel_spd_comp", "camera", 2, facts.faster_in_view,
        ("Relative to the moving camera, which moves faster, {a} or {b}?",
         "Measured from the moving camera, which of {a} and {b} is the faster one?"),
        WHICH, "Relative to the camera, the faster one is {answer}.",
    ),
    Kind(
        "rel_spd_comp", "object", 3, facts.faster_beside,
        ("Relative to {c}, which moves faster, {a} or {b}?",
         "Measured from {c}, which of {a} and {b} is the faster one?"),
        WHICH, "Relative to {c}, the faster one is {answer}.",
    ),
    Kind(
        "abs_dir_pred", "camera", 1, facts.heading_at_end,
        ("If {a} goes on like this and the camera stops, which way will it be seen to move?",
         "For a viewer who stays where the camera ends, which way will {a} move next?"),
        WAYS, "Next {a} will move {answer}.",
    ),
    Kind(
        "abs_dir_pred", "object", 2, facts.next_distance_to_place,
        ("If {a} goes on like this while {b} stays where it ends, what will be between them next?",
         "Suppose {b} stops now and {a} goes on. How will they be a moment later?"),
        NEXT, "They will be: {answer}.",
    ),
    Kind(
        "rel_dir_pred", "camera", 1, facts.next_shift_in_view,
        ("If camera and things go on like this, to which side of the picture will {a} move next?",
         "Which way will {a} shift next in the view of the moving camera?"),
        SIDES, "Next {a} will go {answer}.",
    ),
    Kind(
        "rel_dir_pred", "object", 2, facts.next_distance,
        ("If {a} and {b} go on like this, how will they be a moment later?",
         "What comes next between {a} and {b}, if both go on as they do?"),
        NEXT, "They will be: {answer}.",
    ),
)  # fmt: skip


@dataclass
class Wish:
    """A kind, the things it shall be about, and the answer that shall be true."""

    kind: Kind
    things: tuple[int, ...]
    key: str

    def granted(self, found: Facts) -> bool:
        return self.kind.find(found, *self.things) == self.key


def draw_kinds(generator: np.random.Generator, kinds: tuple[Kind, ...], count: int) -> list[tuple[Kind, str]]:
    """`count` kinds of different types, each with the answer that shall be true: types are equally likely, then
    viewers, then answers."""
    types = sorted({kind.type for kind in kinds})
    chosen = []
    for number in generator.choice(len(types), count, replace=False):
        fitting = [kind for kind in kinds if kind.type == types[number]]
        kind = fitting[generator.integers(len(fitting))]
        chosen.append((kind, list(kind.answers)[generator.integers(len(kind.answers))]))
    return chosen


def wishes_for(generator: np.random.Generator, scene: Scene, chosen: list[tuple[Kind, str]]) -> list[Wish] | None:
    """What the chosen kinds shall be about in a scene; None where it has too few things for one of them."""
    wishes = []
    for kind, key in chosen:
        able = [i for i, thing in enumerate(scene.things) if not thing.floats or not kind.type.endswith("ori")]
        if len(able) < kind.things:
            return None
        wishes.append(Wish(kind, tuple(int(i) for i in generator.permutation(able)[: kind.things]), key))
    return wishes


def ask(generator: np.random.Generator, scene: Scene, wish: Wish, most_options: int | None = None) -> Question:
    """The question of a wish that was granted, in one of its wordings and orders of its options, at most so many."""
    kind = wish.kind
    names = {letter: f"the {scene.things[thing].name}" for letter, thing in zip("abc", wish.things)}
    names["A"] = names["a"][0].upper() + names["a"][1:]
    wording = generator.integers(len(kind.answers[wish.key]))
    order = generator.permutation(len(kind.answers))
    keys = [list(kind.answers)[i] for i in order]
    if most_options is not None:
        # Of the wrong ones any are as likely. What is kept is shuffled once more: in the order so far the true one is
        # seldom before the first wrong ones.
        keys = [wish.key, *[key for key in keys if key != wish.key][: most_options - 1]]
        keys = [keys[i] for i in generator.permutation(len(keys))]
    options = [kind.answers[key][wording].format(**names) for key in keys]
    answer = keys.index(wish.key)
    plain = kind.answers[wish.key][0].format(**names)
    text = kind.texts[generator.integers(len(kind.texts))].format(**names)
    phrase = kind.phrase.format(answer=plain, **names)
    return Question(
        kind.type, kind.viewer, text, options, answer, phrase, wish.key, tuple(kind.answers), tuple(keys), wish.things
    )


def questions_for(kinds) -> tuple[Kind, ...]:
    """
    The kinds named in `kinds`: types ("rel_dis"), viewers ("camera"), or both ("rel_dis/object"); None: all.
    """
    if kinds is None:
        return KINDS
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    found = tuple(k for k in KINDS if {k.type, k.viewer, f"{k.type}/{k.viewer}"} & set(names))
    known = {name for k in KINDS for name in (k.type, k.viewer, f"{k.type}/{k.viewer}")}
    for name in names:
        if name not in known:
            raise ValueError(f"`question_kinds` names {name!r}; known are {', '.join(sorted(known))}.")
    return found
