"""DSR in the space world: multiple-choice questions answered by greedy generation, with and without geometry tokens."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager

import torch

from ..worlds.space import SpaceWorld
from ..worlds.space.questions import TYPES
from .multiple_choice import extract_letter_strict

CLIPS_AT_ONCE = 16
MOST_TOKENS = 6  # two numbers, a letter, the end of the turn, and some to spare


def evaluate(model, processor, seed: int, count: int = 64, difficulty: str = "easy") -> dict:
    """
    A question about each of the first `count` clips of a space world, as multiple choice.

    Args:
        model: a `DSRForConditionalGeneration`. seed: of the world, one that the model was not trained on.

    Returns:
        `{"model_type", "seed", "count", "metrics"}`; metrics: `accuracy`, `accuracy_by_type`, `chance` by type,
        `accuracy_without_geometry`: of the same model whose geometry tokens are zeros, and the same by type.
    """
    frames = processor.num_frames
    side = round(processor.video_processor.size["longest_edge"] ** 0.5)
    world = SpaceWorld(seed, frames, side, side, difficulty=difficulty)
    right, blind, chance = defaultdict(list), defaultdict(list), defaultdict(list)
    for start in range(0, count, CLIPS_AT_ONCE):
        samples = [world[index] for index in range(start, min(start + CLIPS_AT_ONCE, count))]
        questions = [sample.questions[0] for sample in samples]
        clips = [(sample.images, sample.fps) for sample in samples]
        prompts = [question.prompt for question in questions]
        told = answer_clips(model, processor, clips, prompts)
        with without_geometry(model):
            told_blind = answer_clips(model, processor, clips, prompts)
        for question, answer, other in zip(questions, told, told_blind):
            right[question.type].append(extract_letter_strict(answer) == question.letter)
            blind[question.type].append(extract_letter_strict(other) == question.letter)
            chance[question.type].append(question.chance)
    metrics = {
        "accuracy": _mean(right),
        "accuracy_by_type": _by_type(right),
        "chance": _by_type(chance),
        "accuracy_without_geometry": _mean(blind),
        "accuracy_without_geometry_by_type": _by_type(blind),
    }
    return {"model_type": model.config.model_type, "seed": seed, "count": count, "metrics": metrics}


def _mean(values: dict[str, list]) -> float:
    flat = [value for some in values.values() for value in some]
    return sum(flat) / len(flat)


def _by_type(values: dict[str, list]) -> dict[str, float]:
    return {kind: sum(values[kind]) / len(values[kind]) for kind in TYPES if kind in values}


@torch.inference_mode()
def answer_clips(model, processor, clips: list, prompts: list[str], max_new_tokens: int = MOST_TOKENS) -> list[str]:
    """
    Greedy answers to one prompt about each clip.

    Args:
        clips: pairs (frames `[T, H, W, 3]` uint8, frames a second).
    """
    from transformers.video_utils import VideoMetadata

    messages = [
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}] for prompt in prompts
    ]
    metadata = [
        VideoMetadata(
            total_num_frames=len(frames), fps=fps, duration=len(frames) / fps, frames_indices=list(range(len(frames)))
        )
        for frames, fps in clips
    ]
    inputs = processor(
        text=[processor.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in messages],
        videos=[frames for frames, _ in clips],
        video_metadata=metadata,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(model.device)
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    written = ids[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(written, skip_special_tokens=True)]


@contextmanager
def without_geometry(model):
    """Within it a DSR reads zeros where its geometry tokens would stand."""
    hook = model.model.geometry_selection.register_forward_hook(lambda module, given, told: (told[0] * 0, told[1]))
    try:
        yield
    finally:
        hook.remove()
