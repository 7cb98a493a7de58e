"""From a part to candidate programs, and from those to the one whose solid comes closest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from modeling_dsr.cad_solids import TriangleMesh, sample_surface

from .metrics import SURFACE_SAMPLES, chamfer_distance, normalize_prediction
from .sandbox import Execution, Sandbox


@dataclass
class Candidate:
    """
    A program and what came of it.

    Args:
        program: source text.
        execution: of it; None for one that was not run.
        chamfer: distance of its solid to the input, both in the unit cube; None without a solid, or without a shape to
            compare with.
        mesh: of its solid, in the unit cube.
        repairs: number of the candidate that it was written to mend, None for one of its own.
    """

    program: str
    execution: Execution | None = None
    chamfer: float | None = None
    mesh: TriangleMesh | None = None
    repairs: int | None = None

    @property
    def code(self) -> str:
        return self.execution.code


def generate_programs(
    model,
    processor,
    inputs: dict,
    count: int,
    batch_size: int | str = "auto",
    max_new_tokens: int = 768,
    temperature: float = 1.0,
    top_p: float = 0.95,
    seed: int = 0,
    progress: Callable[[list[str]], None] = lambda programs: None,
) -> list[str]:
    """
    `count` programs for one prompt: the greedy one, then samples.

    Args:
        inputs: of a single sample, from the processor.
        batch_size: samples at a time; "auto" tries all and halves when the GPU's memory does not suffice.
        progress: called with the programs that were added, as soon as they are written.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    if batch_size != "auto" and int(batch_size) < 1:
        raise ValueError(f'`batch_size` must be "auto" or at least 1, got {batch_size}.')
    if not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, got {temperature}.")
    inputs = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
    }
    prompt = inputs["input_ids"].shape[1]
    torch.manual_seed(seed)
    settings = {"max_new_tokens": max_new_tokens}
    greedy = model.generate(**inputs, **settings, do_sample=False, temperature=None, top_p=None, top_k=None)
    programs = processor.decode_programs(greedy, prompt)
    progress(programs[:])
    size = count - 1 if batch_size == "auto" else int(batch_size)
    while len(programs) < count:
        wanted = min(size, count - len(programs))
        try:
            sampled = model.generate(
                **inputs,
                **settings,
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                top_k=0,
                num_return_sequences=wanted,
            )
        except torch.OutOfMemoryError:
            if batch_size != "auto" or wanted == 1:
                raise
            torch.cuda.empty_cache()
            size = max(1, wanted // 2)
            continue
        written = processor.decode_programs(sampled, prompt)
        programs += written
        progress(written)
    return programs


def judge_programs(
    programs: Iterable[str],
    sandbox: Sandbox,
    target: TriangleMesh | np.ndarray | None = None,
    samples: int = SURFACE_SAMPLES,
    seed: int = 0,
    progress: Callable[[Candidate], None] = lambda candidate: None,
) -> list[Candidate]:
    """
    Run programs and measure their solids.

    Both sides are compared with bounding boxes centred and the longest side 1, whatever units a program chose.

    Args:
        target: the input as a mesh or as a cloud `[P, 3]`; None if there is no shape to compare with.
        progress: called with each candidate, in their order, as soon as it is judged.
    """
    programs = list(programs)
    points = None if target is None else unit_points(target, samples, seed)
    candidates = []
    for program, execution in zip(programs, sandbox.map(programs)):
        candidate = Candidate(program, execution)
        if execution.ok:
            measure(candidate, points, samples, seed)
        candidates.append(candidate)
        progress(candidate)
    return candidates


def measure(candidate: Candidate, points: np.ndarray | None, samples: int = SURFACE_SAMPLES, seed: int = 0) -> None:
    """Mesh and chamfer distance of a candidate with a solid. `points`: of the target, from `unit_points`."""
    execution = candidate.execution
    candidate.mesh = normalize_prediction(TriangleMesh(execution.vertices, execution.faces))
    if points is not None:
        # Other random numbers than the target's: the same would find the same points on equal meshes.
        own, _ = sample_surface(candidate.mesh, samples, np.random.default_rng((seed, 1)))
        candidate.chamfer = chamfer_distance(own, points)


def unit_points(target: TriangleMesh | np.ndarray, samples: int = SURFACE_SAMPLES, seed: int = 0) -> np.ndarray:
    """Points `[P, 3]` of a mesh or cloud with the bounding box centred in the unit cube."""
    if isinstance(target, TriangleMesh):
        return sample_surface(normalize_prediction(target), samples, np.random.default_rng(seed))[0]
    low, high = target.min(0), target.max(0)
    return (target - (low + high) / 2) / float((high - low).max()) + 0.5


def best_candidate(candidates: list[Candidate]) -> int | None:
    """Index of the solid with the smallest chamfer distance, of the first solid without one, None without any."""
    solid = [i for i, candidate in enumerate(candidates) if candidate.execution.ok]
    return min(solid, key=lambda i: (candidates[i].chamfer is None, candidates[i].chamfer or 0.0, i), default=None)


def placement_onto(execution: Execution, low: np.ndarray, high: np.ndarray) -> tuple[float, np.ndarray]:
    """Scale and offset that bring a solid's bounding box to the centre and longest side of another."""
    own_low, own_high = execution.vertices.min(0), execution.vertices.max(0)
    scale = float((high - low).max() / (own_high - own_low).max())
    return scale, (low + high) / 2 - (own_low + own_high) / 2 * scale
