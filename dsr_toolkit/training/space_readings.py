"""Which geometry tokens somebody would read to measure what a question of the space world asks for."""

from __future__ import annotations

from ..worlds.space.readings import READINGS
from .space_questions import FRAMES, THINGS_SHOWN

START, NEAR_START, NEAR_END, END = range(FRAMES)


def _slot(role: int, thing: int, frame: int) -> int:
    """See `slots_of`: place, distance and front of each thing, each in all frames."""
    return FRAMES * (3 * thing + role) + frame


def place(thing: int, *frames: int) -> list[int]:
    """Where a thing is as the camera sees it: place across the picture, and distance."""
    return [_slot(role, thing, frame) for frame in frames for role in (0, 1)]


def front(thing: int, *frames: int) -> list[int]:
    return [_slot(2, thing, frame) for frame in frames]


def across(thing: int, *frames: int) -> list[int]:
    return [_slot(0, thing, frame) for frame in frames]


def distance(thing: int, *frames: int) -> list[int]:
    return [_slot(1, thing, frame) for frame in frames]


def heading(*frames: int) -> list[int]:
    return [3 * FRAMES * THINGS_SHOWN + frame for frame in frames]


# The camera goes around the room's middle, to which it looks: its headings tell where it is, better than two tokens
# that never were found to tell its way.
MOVED = heading(START, END)
BOTH_STARTS, BOTH_ENDS = place(0, START) + place(1, START), place(0, END) + place(1, END)
TO_START = place(0, END) + place(1, START) + MOVED  # of the one at the end to the other at the start
ALL_ALONG = [place(thing, START, NEAR_START, NEAR_END, END) for thing in range(2)]


def _turn(thing: int) -> list[int]:
    return front(thing, START, END) + across(thing, START, END) + heading(START, END)


# For the first and the second number of each kind of question.
READS: dict[str, tuple[list[int], list[int]]] = {
    "rel_dis/camera": (distance(0, START), distance(0, END)),
    "rel_dis/object": (BOTH_STARTS, BOTH_ENDS),
    "abs_dis/camera": (distance(0, START), place(0, END) + MOVED),
    "abs_dis/object": (BOTH_STARTS, TO_START),
    "rel_dir/camera": (across(0, START), across(0, END)),
    "rel_dir/object": (across(0, START) + across(1, START), across(0, END) + across(1, END)),
    "abs_dir/camera": (place(0, START, END) + MOVED, place(0, START, END) + MOVED),
    "abs_dir/object": (BOTH_STARTS, TO_START),
    "abs_ori/camera": ([], _turn(0)),
    "abs_ori/object": (_turn(0), _turn(1)),
    "rel_ori/camera": (front(0, START), front(0, END)),
    "rel_ori/object": (BOTH_STARTS + front(0, START), BOTH_ENDS + front(0, END)),
    "abs_spd/camera": (place(0, START, NEAR_START) + MOVED, place(0, NEAR_END, END) + MOVED),
    "rel_spd/camera": (place(0, START, NEAR_START), place(0, NEAR_END, END)),
    "rel_spd/object": (
        place(0, START, NEAR_START) + place(1, START, NEAR_START),
        place(0, NEAR_END, END) + place(1, NEAR_END, END),
    ),
    "abs_spd_comp/camera": (place(0, START, END) + MOVED, place(1, START, END) + MOVED),
    "rel_spd_comp/camera": (ALL_ALONG[0], ALL_ALONG[1]),
    "rel_spd_comp/object": (ALL_ALONG[0], ALL_ALONG[1]),
    "abs_dir_pred/camera": (place(0, NEAR_END, END) + MOVED, place(0, NEAR_END, END) + MOVED),
    "abs_dir_pred/object": (BOTH_ENDS, BOTH_ENDS + place(0, NEAR_END) + heading(NEAR_END, END)),
    "rel_dir_pred/camera": (across(0, END), across(0, NEAR_END, END)),
    "rel_dir_pred/object": (BOTH_ENDS, BOTH_ENDS + place(0, NEAR_END) + place(1, NEAR_END)),
}
assert READS.keys() == READINGS.keys()


def reads_of(kind: str, heads: int, layers: int) -> list[list[int]]:
    """Of both numbers of a kind, what each head of the reading layers, last layer first, reads; -1 for what it likes.

    A layer's heads share what there is; what goes beyond a layer is left to the one before.
    """
    told = []
    for slots in READS[kind]:
        line: list[int] = []
        for layer in range(layers):
            some = slots[layer * heads :][:heads]
            line += [some[head % len(some)] if some else -1 for head in range(heads)]
        told.append(line)
    return told
