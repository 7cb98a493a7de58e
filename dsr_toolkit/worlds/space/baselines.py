"""What can be guessed about the space world's questions without seeing the clip: from the text alone, from one frame
alone.

Each baseline is a linear model over the options that is given more than any network could read: the text as the kinds,
words and places of its options; the frame as the exact geometry of things and camera at that moment. It learns on one
half of the questions and is measured on the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .questions import Question
from .scene import Scene

STEPS, RATE, DECAY = 300, 0.5, 1e-3


@dataclass
class Guess:
    """
    Accuracy of a baseline on questions that it has not seen.

    Args:
        accuracy: share right. chance: what guessing gets. sigma: standard deviation of the accuracy of guessing.
        count: number of questions. by_type: the same for each type.
    """

    accuracy: float
    chance: float
    sigma: float
    count: int
    by_type: dict[str, Guess] | None = None

    @property
    def sigmas(self) -> float:
        """By how many standard deviations it is better than chance."""
        return (self.accuracy - self.chance) / self.sigma


def measure_guessing(world, count: int, moment: float | None = None) -> Guess:
    """
    Accuracy of guessing on the first `count` samples of a space world.

    Args:
        moment: None: from text alone. -1 … 1: from text and the frame at that part of the clip, 0 is its middle.
    """
    asked = [(scene, question) for scene, questions in map(world.asked, range(count)) for question in questions]
    questions = [question for _, question in asked]
    groups = {}
    for number, (scene, question) in enumerate(asked):
        groups.setdefault((question.type, question.viewer), []).append(number)
    right = np.full(len(asked), -1)
    for numbers in groups.values():
        rows = [_describe(*asked[number], moment) for number in numbers]
        targets = [asked[number][1].answer for number in numbers]
        split = len(numbers) // 2
        # Each half is guessed by what was learned on the other.
        for learn, test in ((slice(0, split), slice(split, None)), (slice(split, None), slice(0, split))):
            guesses = _learn_and_guess(rows[learn], targets[learn], rows[test])
            for number, guess, target in zip(numbers[test], guesses, targets[test]):
                right[number] = guess == target
    return _summary(questions, right)


def _summary(questions: list[Question], right: np.ndarray, split: bool = True) -> Guess:
    chances = np.array([question.chance for question in questions])
    by_type = None
    if split:
        types = np.array([question.type for question in questions])
        by_type = {}
        for name in dict.fromkeys(types):
            chosen = np.flatnonzero(types == name)
            by_type[str(name)] = _summary([questions[i] for i in chosen], right[chosen], False)
    sigma = np.sqrt((chances * (1 - chances)).sum()) / len(chances)
    return Guess(float(right.mean()), float(chances.mean()), float(sigma), len(questions), by_type)


def _describe(scene: Scene, question: Question, moment: float | None) -> np.ndarray:
    """Features `[options, F]` of a question: each option's place and words, or its meaning crossed with the
    geometry."""
    names = [name for thing in question.things for name in scene.things[thing].name.split()]
    rows = []
    for place, option in enumerate(question.options):
        if moment is None:
            words = [f"place {place}", f"says {option}", f"long {len(question.text)} {option}"]
            words += [f"{name} {option}" for name in names] + [f"things {len(scene.things)} {option}"]
            row = np.zeros(256)
            for word in words:
                row[_hash(word) % 256] += 1
        else:
            # What the option means does not depend on its wording.
            meaning = _meaning(question, place)
            row = np.zeros((4, 40))
            geometry = _geometry(scene, question, moment)
            row[meaning, : len(geometry)] = geometry
            row = row.reshape(-1)
        rows.append(row)
    return np.stack(rows)


def _meaning(question: Question, place: int) -> int:
    """Number of the answer that the option at `place` stands for, the same in every order of the options."""
    return question.keys.index(question.shown[place])


def _hash(word: str) -> int:
    """The same on every machine, unlike `hash`."""
    value = 5381
    for letter in word.encode():
        value = (value * 33 + letter) % 2**32
    return value


def _geometry(scene: Scene, question: Question, moment: float) -> np.ndarray:
    """Numbers of one frame: where the things asked about are in the camera's view, how they face, how large they
    are."""
    tau = np.array([moment])
    pose = scene.cameras[0].poses(tau)[0]
    local = (scene.positions(tau)[:, 0] - pose[:3, 3]) @ pose[:3, :3]
    fronts = scene.rotations(tau)[:, 0, :, 0] @ pose[:3, :3]
    values = [1.0, pose[2, 3] - 2]
    for thing in question.things[:2]:
        x, y, z = local[thing]
        distance = np.linalg.norm(local[thing])
        angle = np.arctan2(fronts[thing, 0], fronts[thing, 2])
        values += [np.arctan2(x, z), y / z, np.log(distance / 4), np.log(distance / 4) ** 2, np.arctan2(x, z) ** 2]
        values += [np.cos(angle), np.sin(angle), scene.things[thing].radius - 0.4, scene.things[thing].floats]
    if len(question.things) > 1:
        gap = np.linalg.norm(local[question.things[0]] - local[question.things[1]])
        values += [np.log(gap / 2), np.log(gap / 2) ** 2]
    return np.array(values)


def _learn_and_guess(rows, targets, others) -> np.ndarray:
    """Options that a softmax over linear scores, learned on `rows` `[N][options, F]`, takes for `others`."""
    if not rows:
        return np.zeros(len(others), int)
    features, targets = np.stack(rows), np.array(targets)
    scale = np.sqrt((features**2).mean((0, 1))) + 1e-6
    features = features / scale
    weights = np.zeros(features.shape[-1])
    for _ in range(STEPS):
        scores = features @ weights
        share = np.exp(scores - scores.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        share[np.arange(len(share)), targets] -= 1
        weights -= RATE * ((share[..., None] * features).sum((0, 1)) / len(features) + DECAY * weights)
    return np.array([(row / scale @ weights).argmax() for row in others], int)
