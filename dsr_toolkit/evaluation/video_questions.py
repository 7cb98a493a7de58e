"""Run a model over a benchmark of video questions: resumable, scored by the published rule and by a strict one."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from ..console import say
from ..outputs import Output, earlier_report
from .video_benchmarks import BENCHMARKS, Benchmark, Question, strict_score

PREDICTIONS, RESULT = "predictions.jsonl", "result.json"
SAVED_EVERY = 5.0  # seconds


def evaluate(
    model,
    processor,
    name: str,
    questions: list[Question],
    output: str | Path,
    settings: dict | None = None,
    overwrite: bool = False,
) -> dict:
    """
    Ask every question and score all; `output/result.json` has the answers as they come, and an interrupted run goes on
    from there.

    Args:
        settings: what the answers depend on beside the questions, such as the model's name. Answers that were given
            under other settings are not gone on with.
        overwrite: replace the files of an earlier run with other settings.

    Returns:
        {"benchmark", "count", "published", "strict", "types": {type: {"count", "published", "strict"}}}, also written
        to `output/result.json`. Scores are means of credit, 0 … 1.

    Raises:
        ValueError: something of somebody else, or of a run with other settings, is in the way.
    """
    benchmark, settings = BENCHMARKS[name], {"benchmark": name, **(settings or {})}
    if len({question.key for question in questions}) < len(questions):
        raise ValueError("`questions` must have keys of their own: answers are kept by them, and some are the same.")
    earlier = earlier_report(Path(output) / RESULT, settings)
    answers: dict[str, str] = earlier.get("answers", {})
    files = Output(output, RESULT, names=(PREDICTIONS,), overwrite=overwrite or bool(earlier))
    left = [question for question in questions if question.key not in answers]
    if len(left) < len(questions):
        say(f"{len(questions) - len(left)} of {len(questions)} questions are answered already.")
    with files:
        files.keep(PREDICTIONS)
        try:
            saved = time.monotonic()
            for number, (question, text) in enumerate(ask(model, processor, benchmark, left), 1):
                answers[question.key] = text
                if time.monotonic() - saved > SAVED_EVERY:
                    files.report({"settings": settings, "answers": answers})
                    saved = time.monotonic()
                if number % 20 == 0:
                    say(f"  {number}/{len(left)}")
        finally:
            files.report({"settings": settings, "answers": answers})
        lines = [json.dumps({"key": key, "text": text}, ensure_ascii=False) for key, text in answers.items()]
        files.write_text(PREDICTIONS, "\n".join(lines) + "\n")
        result = score(name, questions, answers)
        files.report({**result, "settings": settings, "answers": answers})
    return result


def ask(model, processor, benchmark: Benchmark, questions: list[Question]) -> Iterator[tuple[Question, str]]:
    """Each question with what the model says, under the published frames, prompt and settings."""
    import torch

    processor.fixed_second_per_grid_ts = benchmark.seconds_per_step
    low, high = benchmark.pixels
    limits = {name: value for name, value in (("min_pixels", low), ("max_pixels", high)) if value is not None}
    for question in questions:
        inputs = question_inputs(processor, question, benchmark.num_frames, limits).to(model.device)
        with torch.no_grad():
            tokens = model.generate(**inputs, **{"do_sample": False, **benchmark.generation})
        yield question, processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def question_inputs(processor, question: Question, num_frames: int, limits: dict):
    content = [{"type": "video"}, {"type": "text", "text": question.text}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return processor(text=[prompt], videos=[question.video], num_frames=num_frames, return_tensors="pt", **limits)


def score(name: str, questions: list[Question], answers: dict[str, str]) -> dict:
    rule = BENCHMARKS[name].score
    types: dict[str, list[tuple[float, float]]] = {}
    for question in questions:
        text = answers[question.key]
        types.setdefault(question.type, []).append((rule(text, question), strict_score(text, question)))
    everything = [pair for pairs in types.values() for pair in pairs]
    return {"benchmark": name, **_means(everything), "types": {kind: _means(types[kind]) for kind in sorted(types)}}


def _means(pairs: list[tuple[float, float]]) -> dict:
    published, strict = (sum(values) / len(pairs) for values in zip(*pairs))
    return {"count": len(pairs), "published": published, "strict": strict}


def table(result: dict) -> str:
    """Type by type, as text."""
    rows = [*result["types"].items(), ("all", result)]
    width = max(len(kind) for kind, _ in rows)
    lines = [f"{'type':{width}}  questions  published  strict"]
    lines += [f"{k:{width}}  {r['count']:9}  {r['published']:9.1%}  {r['strict']:6.1%}" for k, r in rows]
    return "\n".join(lines)
