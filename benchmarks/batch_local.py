"""200 questions about 40 videos: `dsr batch`'s worker against one `dsr ask` per question.

Both sides read the videos, encode them and write at most 32 tokens per answer with the tiny DSR model. Start-up counts
for neither: the model is loaded once, and the baseline calls what `dsr ask` calls after that, reading the video each
time, but for its picture of attention, which `dsr batch` does not draw. The pass over the prompt that `dsr ask` makes
before it writes, for the likeliest first words and the attention that it reports, is part of each call.
"""

import shutil
import tempfile
from pathlib import Path

from benchmarks.harness import alternate, device, row
from dsr_toolkit.batch.worker import Worker
from dsr_toolkit.commands.ask import answer, read_media
from dsr_toolkit.demo.clip import CLIP
from dsr_toolkit.loading import load
from dsr_toolkit.tiny import hub_folder

NAME = "batch.local"
VIDEOS, QUESTIONS, TOKENS, FRAMES, CHUNK = 40, 5, 32, 4, 16


def items(folder: Path, videos: int) -> list[dict]:
    """A video of its own for each, with its questions."""
    found = []
    for number in range(videos):
        path = folder / f"{number}.mp4"
        shutil.copyfile(CLIP, path)
        questions = [f"Which way does the ball move? ({number}, {place})" for place in range(QUESTIONS)]
        found.append({"id": str(number), "inputs": {"video": str(path), "question": questions}, "parameters": {}})
    return found


def settings() -> dict:
    return {
        "task": "ask", "model": str(hub_folder("dsr")), "device": str(device()), "gpus": 0, "dtype": "auto",
        "parameters": {"max_new_tokens": TOKENS, "num_frames": FRAMES}, "defaults": {}, "allow_missing": [],
        "max_batch": 16, "readers": 4, "source": None, "split": "train",
    }  # fmt: skip


def one_by_one(model, processor, given: list[dict]) -> list[str]:
    """What one call of `dsr ask` per question does, once the model is loaded, without its picture."""
    found = []
    for item in given:
        for question in item["inputs"]["question"]:
            media = read_media([item["inputs"]["video"]], [], FRAMES)
            (result,) = answer(model, processor, media, [question], TOKENS)
            found.append(result["answer"])
    return found


def run(videos: int = VIDEOS, rounds: int = 3) -> list[dict]:
    worker, answers = Worker(settings()), {}
    model, processor = load(str(hub_folder("dsr")), "dsr", device=str(device()))
    with tempfile.TemporaryDirectory() as scratch:
        given = items(Path(scratch), videos)

        def baseline():
            answers["lone"] = one_by_one(model, processor, given)

        def ours():
            chunks = [given[start : start + CHUNK] for start in range(0, len(given), CHUNK)]
            answers["batch"] = [one for chunk in chunks for found in worker.run(chunk) for one in found.row["answers"]]

        seconds = alternate(baseline, ours, rounds, seconds=60)
        assert answers["lone"] == answers["batch"], "a batch answers otherwise than `dsr ask`"
    worker.close()
    return [row(NAME, "time", *seconds, target=4.0)]
