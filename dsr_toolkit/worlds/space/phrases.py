"""Phrases that name one thing of a frame, with its mask: "the red ball", "the box behind it"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_SHARE = 0.0012  # of the frame's pixels that a thing needs to be spoken of
DEEPER = 0.6  # metres
ASIDE = np.radians(7)
NEARER = 1.15  # ratio of the distances of the nearest thing and the next
RELATIONS = ("behind", "in front of", "to the left of", "to the right of")


@dataclass
class Phrase:
    """
    Args:
        text: names one thing of the frame and no other, as in "the box behind the red ball".
        kind: "name", "shape", "colour", "relation" or "nearest".
        thing: number of what it names. mask: bool `[H, W]`, its pixels.
        it: of a relation, the phrase after `antecedent` was named, as in "the box behind it"; else the text.
        antecedent: number of the thing that "it" stands for, or None.
    """

    text: str
    kind: str
    thing: int
    mask: np.ndarray
    it: str
    antecedent: int | None = None


def phrases(sample, frame: int) -> list[Phrase]:
    """
    Every phrase that is true of one thing alone in a frame of a `SpaceSample` with one view.

    A thing counts as being in the frame when enough of it is seen. What relates to a second thing is clear: anything
    else that the words could mean is clearly not so related.
    """
    instances = sample.instances[frame]
    if instances.ndim != 2:
        raise ValueError(f"`sample` must have one view, got instances of shape {list(sample.instances.shape)}.")
    masks = [instances == number + 1 for number in range(len(sample.names))]
    seen = [number for number, mask in enumerate(masks) if mask.mean() > LEAST_SHARE]
    pose = sample.poses[frame]
    local = (sample.positions[:, frame] - pose[:3, 3]) @ pose[:3, :3]
    colours, shapes = zip(*(name.split() for name in sample.names))
    found = []

    def add(text, kind, thing, it=None, antecedent=None):
        found.append(Phrase(text, kind, thing, masks[thing], it or text, antecedent))

    for thing in seen:
        add(f"the {sample.names[thing]}", "name", thing)
        # Also things of which little is seen could be meant.
        if shapes.count(shapes[thing]) == 1:
            add(f"the {shapes[thing]}", "shape", thing)
        if colours.count(colours[thing]) == 1:
            add(f"the {colours[thing]} thing", "colour", thing)
    for relation in RELATIONS:
        for second in seen:
            others = [number for number in range(len(masks)) if number != second]
            holds = {number: _holds(relation, local[number], local[second]) for number in others}
            for noun in dict.fromkeys((*shapes, "thing")):
                named = [number for number in others if noun in ("thing", shapes[number])]
                true = [number for number in named if holds[number]]
                if len(true) == 1 and true[0] in seen and all(holds[n] is not None for n in named):
                    start = f"the {noun} {relation} "
                    add(f"{start}the {sample.names[second]}", "relation", true[0], f"{start}it", second)
    distances = np.linalg.norm(local, axis=-1)
    order = np.argsort(distances)
    if len(order) > 1 and order[0] in seen and distances[order[1]] > NEARER * distances[order[0]]:
        add("the thing nearest to the camera", "nearest", int(order[0]))
    return found


def _holds(relation: str, first: np.ndarray, second: np.ndarray) -> bool | None:
    """Whether `first` is so related to `second`, both in the camera's axes; None: hard to say."""
    if relation in ("behind", "in front of"):
        value, margin = first[2] - second[2], DEEPER
    else:
        value, margin = np.arctan2(first[0], first[2]) - np.arctan2(second[0], second[2]), ASIDE
    if abs(value) < margin:
        return None
    return bool(value > 0) == (relation in ("behind", "to the right of"))
