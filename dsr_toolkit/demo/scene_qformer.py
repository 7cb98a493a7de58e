"""Six cameras of a street of the surround world become scene tokens, and a language model answers about them."""

from pathlib import Path

import numpy as np

from ..commands.scene import READER, ask, describe, look, read_scene
from ..console import step
from ..worlds.surround import LAYOUT, SurroundWorld
from ..worlds.surround_export import write_scene
from .page import Panel, Text, verdict
from .shown import choose, facts, told_accuracy

TITLE = "Scene Q-Former: questions about a street, through six cameras"
SEED, INDEX = 2026, 3  # no recipe trains on this seed
LARGE = (192, 336)  # of the pictures on the page; the model gets the world's own size
TOLD = ("lanes", "bend", "colour", "what", "direction")  # types of questions on the page


def run(folder: Path, model: str | None = None) -> tuple[dict, Panel]:
    """Draw, look, ask, judge."""
    from transformers import AutoConfig

    from ..loading import load

    source, stand_in = choose(model, "scene_qformer")
    sample = SurroundWorld(SEED)[INDEX]
    scene = read_scene(write_scene(sample, folder / "street"))
    with step("Reading six cameras"):
        auto_class = READER if AutoConfig.from_pretrained(source).text_config is not None else None
        qformer, processor = load(source, "scene_qformer", auto_class=auto_class)
        summary, picture = look(getattr(qformer, "scene_qformer", qformer), processor, scene)
    picture.save(folder / "attention.png")
    print(describe(summary))
    answers, said, counted = [], [], []
    if auto_class is not None and processor.tokenizer is not None:
        given = ask(qformer, processor, scene, [one.text for one in sample.questions], max_new_tokens=16)
        for question, answer in zip(sample.questions, given):
            right = answer.casefold() == question.answer.casefold()
            answers.append({"type": question.type, "question": question.text, "answer": answer, "right": right}
                           | {"true_answer": question.answer})  # fmt: skip
            word, colour = verdict(right)
            line = Text(f"{question.text} It says: {answer!r}, true is {question.answer!r}: {word}.", colour, 15)
            print(f"   {line.text}")
            if question.type in TOLD:
                said.append(line)
        hits = sum(one["right"] for one in answers)
        counted.append(Text(f"Of the {len(answers)} questions about this street {hits} are answered right."))
    if accuracy := told_accuracy("scene_qformer", stand_in, "streets"):
        counted.append(Text(accuracy))
    for line in counted:
        print(f"   {line.text}")
    print(f"   {folder / 'attention.png'}")
    report = {
        **facts(source, stand_in),
        "summary": summary,
        "answers": answers,
        "picture": "attention.png",
    }
    return report, Panel(TITLE, stand_in.remark if stand_in else source, street(), said + counted)


def street() -> list[list]:
    """The six pictures as they surround the car."""
    from PIL import Image

    images = SurroundWorld(SEED, *LARGE)[INDEX].images
    return [
        [
            (name.removeprefix("CAM_").replace("_", " ").lower(), Image.fromarray(np.asarray(images[name])))
            for name in row
        ]
        for row in LAYOUT
    ]
