"""Cadrille and CAD-Recode in the parts world: programs written from points, views or text, executed and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from modeling_dsr.cad_solids import TriangleMesh

from ..cad.metrics import intersection_over_union, normalize_prediction
from ..cad.sandbox import Execution, Sandbox, SandboxLimits
from ..worlds.parts import PartSample, PartsWorld

CANDIDATES = (1, 4, 16)
PARTS_AT_ONCE = 16
MAX_NEW_TOKENS = 72  # the longest program of the world has fewer than 64
SECONDS = 60  # of a program, which takes a tenth of one: how busy the machine is must not count
INPUTS = {"cad_recode": ("points",), "cadrille": ("points", "views", "text")}


def evaluate(
    model,
    processor,
    seed: int,
    count: int = 100,
    candidates: tuple[int, ...] = CANDIDATES,
    sandbox: Sandbox | None = None,
    temperature: float = 0.7,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Callable[[], None] = lambda: None,
    allow_missing: Iterable[str] | str = (),
) -> dict:
    """
    The first `count` parts of a world, from every kind of input that the model reads.

    The first program of a part is the greedy one, the others are sampled. A program counts as valid if the sandbox gets
    a valid solid from it, and an invalid one has IoU 0. Solids are compared as published: bounding box centred, longest
    side 1. "Best of n" is the largest IoU among a part's first n programs, also as published, hence chosen with the
    truth at hand.

    Args:
        model: a `CADRecodeForCausalLM` or `CadrilleForConditionalGeneration`.
        seed: of the world, one that the model was not trained on.
        candidates: the n of "best of n", ascending.
        sandbox: to run programs in; else one of its own, with `allow_missing`. Needs the extra `[cad]`.
        progress: called after every part and kind of input.

    Returns:
        `{"model_type", "seed", "count", "metrics"}`. Metrics: `valid` (share) and `median_iou` of greedy programs from
        points, `mean_iou`, `exact` (share that the truth equals), `best_of` {n: {"valid", "median_iou", "mean_iou"}},
        `median_iou_by_family`; the same of each kind of input under `by_input` if
        there are several.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    if sandbox is None:
        with Sandbox(limits=SandboxLimits(seconds=SECONDS), allow_missing=allow_missing) as own:
            return evaluate(model, processor, seed, count, candidates, own, temperature, max_new_tokens, progress)
    kinds = INPUTS[model.config.model_type]
    world = PartsWorld(seed)
    samples = [world[index] for index in range(count)]
    judge = Judge(sandbox)
    by_input = {}
    for kind in kinds:
        written = []
        for start in range(0, count, PARTS_AT_ONCE):
            some = samples[start : start + PARTS_AT_ONCE]
            written += write_programs(model, processor, some, kind, max(candidates), temperature, max_new_tokens, seed)
            for _ in some:
                progress()
        ious = [judge.ious(programs, sample) for programs, sample in zip(written, samples)]
        by_input[kind] = _figures(ious, written, samples, candidates)
    metrics = {**by_input[kinds[0]], **({"by_input": by_input} if len(kinds) > 1 else {})}
    return {"model_type": model.config.model_type, "seed": seed, "count": count, "metrics": metrics}


def model_inputs(processor, samples: list[PartSample], kind: str):
    """What the processor makes of parts shown as "points" (of their meshes), "views" (likewise) or "text"."""
    if kind == "text":
        return processor(text=[sample.text for sample in samples])
    meshes = [TriangleMesh(*sample.mesh()) for sample in samples]
    return processor(meshes=meshes, **({"modality": "views"} if kind == "views" else {}))


@torch.inference_mode()
def write_programs(
    model,
    processor,
    samples: list[PartSample],
    kind: str,
    candidates: int = 1,
    temperature: float = 0.7,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
) -> list[list[str]]:
    """For each sample the greedy program, then `candidates` - 1 sampled ones."""
    inputs = model_inputs(processor, samples, kind).to(model.device)
    length = inputs["input_ids"].shape[1]
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, **greedy)
    programs = [[program] for program in processor.decode_programs(ids, length)]
    if candidates > 1:
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
        sampling["cache_implementation"] = "static"  # of many short rows the growing cache costs most
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, **sampling, num_return_sequences=candidates - 1)
        sampled = processor.decode_programs(ids, length)
        for row, own in enumerate(programs):
            own += sampled[row * (candidates - 1) : (row + 1) * (candidates - 1)]
    return programs


class Judge:
    """Programs to IoUs; each program is run once, however often it is written."""

    def __init__(self, sandbox: Sandbox):
        self.sandbox = sandbox
        self.executions: dict[str, Execution] = {}
        self.found: dict[tuple[str, str], float | None] = {}

    def ious(self, programs: list[str], sample: PartSample) -> list[float | None]:
        """IoU of each program's solid with the sample's, None for programs that leave no valid one."""
        true, programs = sample.program.strip(), [program.strip() for program in programs]
        new = [p for p in dict.fromkeys([true, *programs]) if p not in self.executions]
        self.executions.update(zip(new, self.sandbox.map(new)))
        pairs = [(true, p) for p in dict.fromkeys(programs) if (true, p) not in self.found]
        with ThreadPoolExecutor(self.sandbox.workers) as pool:
            self.found.update(zip(pairs, pool.map(self._compare, pairs)))
        return [self.found[true, program] for program in programs]

    def _compare(self, pair: tuple[str, str]) -> float | None:
        true, program = (self.executions[source] for source in pair)
        if not true.ok:
            raise RuntimeError(f"A true program gave no solid ({true.code}: {true.message}):\n{pair[0]}")
        if not program.ok:
            return None
        if pair[0] == pair[1]:
            return 1.0
        try:
            return intersection_over_union(
                normalize_prediction(TriangleMesh(true.vertices, true.faces)),
                normalize_prediction(TriangleMesh(program.vertices, program.faces)),
                true.solids,
                program.solids,
            )
        except ValueError:  # a solid whose mesh is not closed shares no volume that could be measured
            return 0.0


def _figures(ious, written, samples: list[PartSample], candidates: tuple[int, ...]) -> dict:
    def best(n):
        valid = [any(iou is not None for iou in own[:n]) for own in ious]
        values = [max(iou or 0.0 for iou in own[:n]) for own in ious]
        return {
            "valid": float(np.mean(valid)),
            "median_iou": float(np.median(values)),
            "mean_iou": float(np.mean(values)),
        }

    first = [own[0] or 0.0 for own in ious]
    families = sorted({sample.family for sample in samples})
    return {
        **best(1),
        "exact": float(np.mean([own[0].strip() == s.program.strip() for own, s in zip(written, samples)])),
        "best_of": {str(n): best(n) for n in candidates},
        "median_iou_by_family": {
            family: float(np.median([iou for iou, s in zip(first, samples) if s.family == family]))
            for family in families
        },
    }
