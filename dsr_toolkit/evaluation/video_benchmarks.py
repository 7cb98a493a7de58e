"""Benchmarks of questions about videos: their files, prompts, frames, settings and scores, as published.

- DSR-Bench (arXiv 2512.20557): four options, by letter.
- VLM4D (arXiv 2508.02095): four choices, by letter, real and synthetic videos pooled.
- STI-Bench (arXiv 2503.23765): up to five candidates about a stretch of time, by letter.
- VSI-Bench (arXiv 2412.14171): by letter, or a number scored by mean relative accuracy.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..datasets.lines import parsed, read_lines
from .multiple_choice import extract_letter_dsr_bench, extract_letter_sti, extract_letter_strict, is_correct_sti

RELATIVE_TOLERANCES = [0.5 + 0.05 * step for step in range(10)]  # VSI-Bench's thresholds of confidence


@dataclass
class Question:
    """
    Args:
        key: unique within the benchmark. video: its file. text: all that is said to the model beside the video.
        answer: a letter, or a number as text. type: of the question, for the table. letters: of its options; "" of a
            question that asks for a number.
    """

    key: str
    video: str
    text: str
    answer: str
    type: str
    letters: str = "ABCD"


@dataclass
class Benchmark:
    """
    Args:
        read: (row, its number) -> a [`Question`] whose video lacks the folder.
        score: (model's text, question) -> credit by the published rule, 0 … 1.
        num_frames, pixels: frames of a video, and least and most pixels of a frame; None: the processor's own.
        seconds_per_step: what the model is told of time: 1.0 as the published evaluation does, None: the truth.
        generation: for `generate`.
    """

    read: Callable[[dict, int], Question]
    score: Callable[[str, Question], float]
    num_frames: int = 32
    pixels: tuple[int | None, int | None] = (None, None)
    seconds_per_step: float | None = 1.0
    generation: dict = field(default_factory=dict)


def _options(value) -> list[str]:
    """A list that may be written as JSON."""
    return list(json.loads(value)) if isinstance(value, str) else list(value)


def _dsr_bench(row: dict, number: int) -> Question:
    options = "\n".join(_options(row["options"]))
    text = (
        "\nThese are the frames of a video. Select the best answer to the following multiple-choice question based on "
        "the video. Respond with only the letter (A, B, C, or D) of the correct option.\n"
        f"Question: {row['question']}\n{options}\nAnswer: "
    )
    key = str(row.get("index", number))
    return Question(key, str(row["videoID"]), text, row["answer"], str(row.get("type") or row.get("Type") or "all"))


def _vlm4d(row: dict, number: int) -> Question:
    choices = row["choices"]
    choices = json.loads(choices) if isinstance(choices, str) else choices
    listed = "; ".join(f"{letter}: {choice}" for letter, choice in choices.items())
    text = (
        f"{row['question']}. Choose the closest answer from the following 4 candidates and only output your choice as "
        f"one of A,B,C,D: {listed}"
    )
    answer = row["answer"]
    if answer not in choices:  # the published file names the choice by its text
        answer = next((letter for letter, choice in choices.items() if choice == answer), answer)
    kind = row.get("question_type") or row.get("type") or "multiple-choice"
    return Question(str(row.get("id", number)), str(row["video"]), text, answer, kind, "".join(choices))


def _sti_bench(row: dict, number: int) -> Question:
    candidates = row["Candidates"]
    candidates = json.loads(candidates) if isinstance(candidates, str) else candidates
    candidates = {letter: value for letter, value in candidates.items() if value is not None}
    lines = "\n".join(f"({letter}) {value}" for letter, value in candidates.items())
    text = (
        f"From {row['time_start']} s to {row['time_end']} s. {row['Question']}\n{lines}\n"
        "Please output only the option letter!"
    )
    return Question(
        str(row.get("ID", number)), str(row["Video"]), text, row["Answer"], str(row["Task"]), "".join(candidates)
    )


def _vsi_bench(row: dict, number: int) -> Question:
    video = f"{row['dataset']}/{row['scene_name']}"
    options = _options(row["options"]) if row.get("options") is not None else None
    before = f"These are frames of a video.\n{row['question']}\n"
    if options is None:
        text = f"{before}Please answer the question using a single word or phrase."
    else:
        text = "\n".join(
            [
                before.rstrip("\n"),
                "Options:",
                *options,
                "Answer with the option's letter from the given choices directly.",
            ]
        )
    letters = "ABCDEFGH"[: len(options or ())]
    return Question(str(row.get("id", number)), video, text, str(row["ground_truth"]), row["question_type"], letters)


def _letter_dsr(text: str, question: Question) -> float:
    return float(extract_letter_dsr_bench(text) == question.answer)


def _letter_vlm4d(text: str, question: Question) -> float:
    parsed = extract_letter_sti(text) or text.strip()
    return float(parsed == question.answer)


def _letter_sti(text: str, question: Question) -> float:
    return float(is_correct_sti(text, question.answer))


def _vsi(text: str, question: Question) -> float:
    """The first word is the letter or the number; a number earns the share of tolerances within which it lies."""
    word = text.strip().split(" ")[0].rstrip(".").strip() if text.strip() else ""
    if question.letters:
        return float(word.lower() == question.answer.lower())
    try:
        found, true = float(word), float(question.answer)
    except ValueError:
        return 0.0
    error = abs(found - true) / true if true else float(found != true)
    return sum(error <= 1 - tolerance for tolerance in RELATIVE_TOLERANCES) / len(RELATIVE_TOLERANCES)


def strict_score(text: str, question: Question) -> float:
    """Right where the text states one letter as its answer, and that one; a number as published."""
    if not question.letters:
        numbers = re.findall(r"-?\d+(?:\.\d+)?", text)
        return _vsi(numbers[0], question) if len(numbers) == 1 else 0.0
    return float(extract_letter_strict(text, question.letters) == question.answer)


SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 5}
BENCHMARKS = {
    "dsr-bench": Benchmark(_dsr_bench, _letter_dsr, 32, (100352, 602112), 1.0, {"max_new_tokens": 2048}),
    "vlm4d": Benchmark(_vlm4d, _letter_vlm4d, 32, (None, 360 * 640), None, {"max_new_tokens": 20, **SAMPLED}),
    "sti-bench": Benchmark(_sti_bench, _letter_sti, 32, (None, 360 * 640), None, {"max_new_tokens": 512, **SAMPLED}),
    "vsi-bench": Benchmark(_vsi_bench, _vsi, 32, (None, None), None, {"max_new_tokens": 16}),
}


def read_questions(name: str, path: str | Path, videos: str | Path | None = None) -> list[Question]:
    """
    The questions of a benchmark's file.

    Args:
        name: one of `BENCHMARKS`. path: parquet, JSON (a list), or lines of JSON, with the published columns.
        videos: folder of the videos; default: `videos` beside the file, else the file's folder.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}.")
    folder = Path(videos) if videos is not None else path.parent / "videos"
    folder = folder if folder.is_dir() or videos is not None else path.parent
    questions, keys = [], set()
    for number, row in enumerate(_table(path)):
        try:
            question = BENCHMARKS[name].read(row, number)
        except KeyError as error:
            raise ValueError(f"{path.name}, row {number} lacks {error}; it has {sorted(row)}.") from error
        questions.append(question)
        # Answers are kept by their key, and pooled files number their questions each from the first.
        key, copies = question.key, 1
        while question.key in keys:
            copies += 1
            question.key = f"{key}#{copies}"
        keys.add(question.key)
        question.video = _video_file(folder, question.video)
    if not questions:
        raise ValueError(f"{path} holds no question.")
    return questions


def _table(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return read_lines(path)
    return parsed(path.read_text(encoding="utf-8-sig"), str(path))


def _video_file(folder: Path, name: str) -> str:
    """The file that a row names, by its path below the folder or by its last part, with or without a suffix."""
    for candidate in (folder / name, folder / Path(name).name):
        if candidate.is_file():
            return str(candidate)
        found = sorted(candidate.parent.glob(f"{candidate.name}.*")) if candidate.parent.is_dir() else []
        if found:
            return str(found[0])
    return str(folder / name)
