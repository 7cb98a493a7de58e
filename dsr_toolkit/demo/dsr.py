"""DSR answers a question about the carried clip, the way a user of the Hub repository would ask it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ..console import RANDOM_WEIGHTS, say, step
from ..pictures import attention_sheet
from ..tiny import build
from .clip import CLIP

TITLE = "DSR: a question about motion"
QUESTION = "Does the red ball move towards the camera or away from it?"
HUB_USER = Path(__file__).with_name("dsr_hub_user.py")


def run(folder: Path, model: str | None = None) -> dict:
    """Convert, load in a process that knows transformers alone, ask, draw."""
    random_weights = model is None
    if random_weights:
        model = build("dsr", folder)
    with tempfile.TemporaryDirectory() as scratch:
        with step("Loading it and asking in a process that knows transformers alone"):
            result = ask_as_hub_user(model, CLIP, QUESTION, Path(scratch))
    picture = folder / "attention.png"
    attention_sheet(
        result["frames"],
        result["heat"],
        result["per_token"],
        result["labels"],
        f"Where the {len(result['per_token'])} geometry tokens looked",
        (f"Question: {QUESTION}", f"Answer: {result['answer']}", *([RANDOM_WEIGHTS] if random_weights else [])),
    ).save(picture)
    print(f"Q: {QUESTION}\nA: {result['answer']}")
    if random_weights:
        print(RANDOM_WEIGHTS)
    print(f"   {picture}")
    print(f"   {model}  loads with AutoModelForImageTextToText.from_pretrained(…, trust_remote_code=True)")
    return {
        "model": str(model),
        "model_class": result["model_class"],
        "random_weights": random_weights,
        "video": CLIP.name,
        "question": QUESTION,
        "answer": result["answer"],
        "picture": picture.name,
    }


def ask_as_hub_user(model: str | Path, video: Path, question: str, scratch: Path) -> dict:
    """
    Run `dsr_hub_user.py` where this library cannot be imported: another working directory, nothing added to the module
    path, a module cache of its own.

    Returns:
        Its arrays (`frames`, `heat`, `per_token`, `logits`) and texts (`answer`, `labels`, `model_class`).
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
