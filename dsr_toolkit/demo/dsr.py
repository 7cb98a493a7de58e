"""DSR answers a question about the carried clip, the way a user of the Hub repository would ask it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_dsr.pictures import overlay_heat

from ..console import say, step
from ..evaluation.multiple_choice import extract_letter_strict
from ..pictures import attention_sheet
from .clip import CLIP, sample
from .clip import question as question_of
from .page import Panel, Text, verdict
from .shown import choose, facts, told_accuracy

TITLE = "DSR: a question about motion"
HUB_USER = Path(__file__).with_name("dsr_hub_user.py")
SHOWN = 4  # frames on the page


def run(folder: Path, model: str | None = None) -> tuple[dict, Panel]:
    """Load in a process that knows transformers alone, ask, judge, draw."""
    source, stand_in = choose(model, "dsr")
    truth = sample()
    question = question_of(truth)
    with tempfile.TemporaryDirectory() as scratch, step("Asking in a process that knows transformers alone"):
        result = ask_as_hub_user(source, CLIP, question.prompt, Path(scratch))
    right = is_right(result["answer"], question)
    true = f"{question.letter} {question.options[question.answer]}"
    picture = folder / "attention.png"
    lines = [f"Question: {question.text}", f"Answer: {result['answer']} (true: {true})"]
    attention_sheet(
        result["frames"],
        result["heat"],
        result["per_token"],
        result["labels"],
        f"Where the {len(result['per_token'])} geometry tokens looked",
        (*lines, *([stand_in.remark] if stand_in else [])),
    ).save(picture)
    share, area = attention_on(truth.instances[result["numbers"]] == question.things[0] + 1, result["heat"])
    word, colour = verdict(right)
    said = [
        Text(question.prompt.replace("\n", "  ")),
        Text(f"It says: {result['answer']!r}. True is {true!r}: {word}.", colour),
        Text(looked_at(truth, question, share, area)),
    ]
    if accuracy := told_accuracy("dsr", stand_in, "clips"):
        said.append(Text(accuracy))
    for line in said:
        print(f"   {line.text}")
    print(
        f"   {picture}\n   {source}  loads with AutoModelForImageTextToText.from_pretrained(…, trust_remote_code=True)"
    )
    chosen = np.linspace(0, len(result["frames"]) - 1, SHOWN).round().astype(int)
    top = max(float(np.quantile(result["heat"], 0.998)), 1e-12)
    row = [
        (result["labels"][one], overlay_heat(Image.fromarray(result["frames"][one]), result["heat"][one] / top))
        for one in chosen
    ]
    report = {
        **facts(source, stand_in),
        "model_class": result["model_class"],
        "video": CLIP.name,
        "question": question.prompt,
        "answer": result["answer"],
        "true_answer": true,
        "right": right,
        "attention": {"share": share, "area": area},
        "picture": picture.name,
    }
    return report, Panel(TITLE, stand_in.remark if stand_in else source, [row], said)


def is_right(answer: str, question) -> bool:
    """Whether an answer names the true option, by its letter or in its words."""
    letter = extract_letter_strict(answer)
    if letter is not None:
        return letter == question.letter
    return answer.strip().casefold() in (question.phrase.casefold(), question.options[question.answer].casefold())


def looked_at(truth, question, share: float, area: float) -> str:
    """What the first thing that is asked about covers of the pixels, and gets of the attention."""
    name = truth.names[question.things[0]]
    return f"The {name} covers {area:.1%} of the pixels and gets {share:.1%} of the geometry tokens' attention."


def attention_on(mask: np.ndarray, heat: np.ndarray) -> tuple[float, float]:
    """Share of `heat` `[T, H, W]` on the pixels of `mask` `[T, h, w]`, and the share of the pixels that these are."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(heat.shape[1:], mask.shape[1:]))
    mask = mask[:, rows][:, :, columns]
    return float(heat[mask].sum() / heat.sum()), float(mask.mean())


def ask_as_hub_user(model: str | Path, video: Path, question: str, scratch: Path) -> dict:
    """
    Run `dsr_hub_user.py` where this library cannot be imported: another working directory, nothing added to the module
    path, a module cache of its own.

    Returns:
        Its arrays (`frames`, `heat`, `per_token`, `logits`, and `numbers` of the frames in the video) and texts
        (`answer`, `labels`, `model_class`).
    """
    output = scratch / "result.npz"
    source = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(scratch / "modules")
    if Path(model).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    finished = subprocess.run(
        [sys.executable, "-P", str(HUB_USER), source, str(video.resolve()), question, str(output)],
        cwd=scratch,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        say(finished.stderr)
        raise ValueError(f"the converted model could not be used from {source}; the process's own words are above.")
    with np.load(output) as stored:
        result = {name: stored[name] for name in stored.files if name != "texts"}
        return result | json.loads(str(stored["texts"]))
