"""The space world as rows of DSR's training: clips with many questions, each answered by two numbers and a letter."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch

from modeling_dsr.dsr_collator import DSRCollator, each_question
from modeling_dsr.training_collator import IGNORE_INDEX

from ..tiny.space_models import NUMBERS
from ..worlds.space import SpaceWorld
from ..worlds.space.facts import Facts
from ..worlds.space.questions import Question, Wish, ask, questions_for
from ..worlds.space.readings import camera_way, headings, readings, track
from ..worlds.space.scene import Scene
from .answers import letters_right, written
from .rows import Mapped

FRAMES, SIDE = 4, 112
CELL = 28
THINGS_SHOWN = 2  # whose tracks geometry tokens learn to tell
SLOTS = FRAMES * (3 * THINGS_SHOWN + 1) + 2  # numbers that they tell: see `slots_of`
PRIOR_SEED, PRIOR_SCENES = 990_001, 150
_weights: dict = {}  # of [`ClipQuestions`], by what they depend on


def answer_of(facts: Facts, question: Question, open_question: bool = False) -> str:
    """ "25 34 B": what is measured (see `readings`), then the letter; of an open question the answer as a sentence."""
    first, second = readings(facts, f"{question.type}/{question.viewer}", question.things)
    return f"{first:02d} {second:02d} {question.phrase if open_question else question.letter}"


def slots_of(scene: Scene, text: str, tau: np.ndarray) -> list[int]:
    """
    What the geometry tokens of a question learn to tell, in their order, -1 for nothing: the tracks of the things that
    it names first (places, distances and fronts at moments `tau`), where the camera looks at these, and its way.
    """
    shown = [track(scene, number, tau) for number in named_first([thing.name for thing in scene.things], text)]
    shown += [[-1] * 3 * len(tau)] * (THINGS_SHOWN - len(shown))
    return [value for values in shown for value in values] + headings(scene, tau) + camera_way(scene, tau)


def named_first(names: list[str], text: str) -> list[int]:
    """Numbers of the things that a question names first, in its order."""
    places = sorted((text.find(name), number) for number, name in enumerate(names) if name in text)
    return [number for _, number in places[:THINGS_SHOWN]]


def cells_of_slots(sample, text: str, slots: int = SLOTS) -> np.ndarray:
    """
    Which cells (two frames, 28 pixels) geometry tokens learn to read: bool `[slots, cells]`, for each track's number
    the cells that show its thing in its frame, for the camera's heading all of its frame; none for other tokens.
    """
    frames, side = sample.instances.shape[:2]
    rows = side // CELL
    found = np.zeros((slots, frames // 2, rows, rows), bool)
    for order, thing in enumerate(named_first(sample.names, text)):
        mask = (sample.instances == thing + 1).reshape(frames, rows, CELL, rows, CELL).mean((2, 4))
        for frame in range(frames):
            shown = mask[frame] >= min(0.15, mask[frame].max())
            for role in range(3):
                found[3 * frames * order + role * frames + frame, frame // 2] = shown
    for frame in range(frames):
        found[3 * frames * THINGS_SHOWN + frame, frame // 2] = True
    return found.reshape(slots, -1)


class ClipQuestions:
    """
    Rows of the space world: "video" `[T, H, W, 3]`, "fps", and lists "question" and "answer" about it.

    The first question is the world's own. The others are about the same clip, whatever is true of it: kinds are equally
    likely, and of each kind the answers that seldom hold come as often as the others.

    Args:
        seed, difficulty: see [`SpaceWorld`]. count: questions of a row.
        kinds: see `question_kinds` of [`SpaceWorld`].
        open_share: of the questions that come without options, to be answered in a sentence.
        wished: whether the first question is one that the motions were drawn to fit, as in evaluations; else the clip
            is any, which is quicker to draw.
    """

    def __init__(
        self, seed: int, count: int = 12, kinds=None, open_share: float = 0.1, wished: bool = True,
        difficulty: str = "easy", frames: int = FRAMES, side: int = SIDE,
    ):  # fmt: skip
        self.world = SpaceWorld(
            seed, frames, side, side, difficulty=difficulty, questions=int(wished), question_kinds=kinds
        )
        self.kinds, self.count, self.open_share = questions_for(kinds), count, open_share

    def candidates(self, facts: Facts) -> list[Wish]:
        """All that can be asked about a scene and has a clear answer."""
        found = []
        for kind in self.kinds:
            for things in permutations(range(len(facts.scene.things)), kind.things):
                key = kind.find(facts, *things)
                if key is not None:
                    found.append(Wish(kind, things, key))
        return found

    @property
    def weights(self) -> dict:
        """1 ÷ how often each answer of each kind holds, counted once in a process for equal worlds."""
        asked = self.world.settings, tuple((kind.type, kind.viewer) for kind in self.kinds)
        if asked not in _weights:
            _weights[asked] = self._count()
        return _weights[asked]

    def _count(self) -> dict:
        world = SpaceWorld(PRIOR_SEED, difficulty=self.world.settings, questions=0)
        counts: dict = {}
        for index in range(PRIOR_SCENES):
            for wish in self.candidates(Facts(world.scene(index), self.world.settings.margins)):
                name = (wish.kind.type, wish.kind.viewer, wish.key)
                counts[name] = counts.get(name, 0) + 1
        return {name: 1 / number for name, number in counts.items()}

    def texts(self, index: int, scene: Scene, asked: list[Question]) -> dict:
        """Of a scene, with `asked` questions that the world has already: "question", "answer", "kind", "slots"."""
        facts = Facts(scene, self.world.settings.margins)
        generator = self.world.generator(index, "more questions")
        questions, wishes = list(asked), self.candidates(facts)
        rare = max(self.weights.values())
        share = np.array([self.weights.get((w.kind.type, w.kind.viewer, w.key), rare) for w in wishes])
        number = min(self.count - len(questions), len(wishes))
        for chosen in generator.choice(len(wishes), number, replace=False, p=share / share.sum()) if number > 0 else ():
            questions.append(ask(generator, scene, wishes[chosen], self.world.settings.most_options))
        as_open = generator.random(len(questions)) < self.open_share
        return {
            "question": [q.text if free else q.prompt for q, free in zip(questions, as_open)],
            "answer": [answer_of(facts, q, free) for q, free in zip(questions, as_open)],
            "kind": [f"{q.type}/{q.viewer}" for q in questions],
            "slots": [slots_of(scene, q.text, self.world.tau) for q in questions],
        }

    def __getitem__(self, index: int) -> dict:
        sample = self.world[index]
        texts = self.texts(index, sample.scene, sample.questions)
        cells = [cells_of_slots(sample, question) for question in texts["question"]]
        return {"video": sample.images, "fps": sample.fps, **texts, "slot_cells": cells}


class SlotCollator(DSRCollator):
    """Rows with "slots" and "slot_cells": ids of the numbers that geometry tokens shall tell, `[prompts, slots]`, -100
    for none, and which cells they shall read, `[prompts, slots, cells]`. Without them, as in evaluations, answers alone
    are told."""

    def collate(self, rows: list[dict], seeds: list[int]) -> dict:
        batch = super().collate(rows, seeds)
        if not all("slots" in row for row in rows):
            return batch
        slots, cells = (np.array([one for row in rows for one in row[name]]) for name in ("slots", "slot_cells"))
        first = self.processor.tokenizer.convert_tokens_to_ids(NUMBERS[0])
        batch["slots"] = torch.from_numpy(np.where(slots < 0, IGNORE_INDEX, slots + first))
        return {**batch, "slot_cells": torch.from_numpy(cells)}


class EachQuestion(DSRCollator):
    """Rows with lists of questions as a row for each, the video repeated: for a Qwen2.5-VL without geometry tokens."""

    def collate(self, rows: list[dict], seeds: list[int]) -> dict:
        asked = [one for number, row in enumerate(rows) for one in each_question(row, number)]
        return super().collate(asked, seeds)


def world_rows(seed: int, kinds=None, difficulty: str = "easy", frames: int = FRAMES, side: int = SIDE) -> Mapped:
    """A question about each clip, as [`evaluate`](world_dsr.evaluate) asks it; also "letter" and "type"."""
    world = SpaceWorld(seed, frames, side, side, difficulty=difficulty, question_kinds=kinds)

    def row(sample) -> dict:
        (question,) = sample.questions
        answer = answer_of(Facts(sample.scene, world.settings.margins), question)
        return {
            "video": sample.images,
            "fps": sample.fps,
            "question": question.prompt,
            "answer": answer,
            "letter": question.letter,
            "type": question.type,
        }

    return Mapped(world, row)


def measure(model, processor, rows, inputs, outputs) -> dict:
    """Letters of greedy answers, over all and by type; and how far the numbers before them are from the true ones."""
    told = [text for text, _ in written(model, processor, inputs)]
    found: dict[str, list] = dict(letters_right(told, [row["letter"] for row in rows], [row["type"] for row in rows]))
    found["numbers_off"] = []
    for row, text in zip(rows, told):
        for said, true in zip(text.split()[:2], row["answer"].split()[:2]):
            found["numbers_off"].append(abs(int(said) - int(true)) if said.isdecimal() else 50)
    return found
