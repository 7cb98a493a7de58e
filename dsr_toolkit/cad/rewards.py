"""The reward of training by generated programs: how close the solid of each comes to the part that it is for."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeling_dsr.cad_files import as_triangles
from modeling_dsr.cad_solids import TriangleMesh, sample_surface

from .metrics import SURFACE_SAMPLES, chamfer_distance, normalize_prediction, overlap, solid_body
from .sandbox import Execution, Sandbox, SandboxLimits

IOU_WEIGHT, INVALID_REWARD = 10.0, -10.0  # of the published reinforcement learning of Cadrille
FAULTS = (ValueError, ArithmeticError, RuntimeError, MemoryError)


@dataclass
class Rewards:
    """
    What came of a batch of programs, an entry each.

    Args:
        valid: whether a program makes a valid solid.
        iou: of it with its part, both moved and scaled into the unit cube; 0 where there is no solid or it is open.
        chamfer: squared distances, both directions added, in the unit cube; NaN without a solid.
        codes: of the executions, see `dsr_toolkit.cad.answers.CODES`.
        values: one number each, the published reward: 10 · IoU, and -10 without a valid solid.
    """

    valid: list[bool]
    iou: list[float]
    chamfer: list[float]
    codes: list[str]
    values: list[float]


def reward(
    programs: Sequence[str],
    meshes: Sequence[TriangleMesh | str | Path],
    sandbox: Sandbox | None = None,
    samples: int = SURFACE_SAMPLES,
    seed: int = 0,
) -> Rewards:
    """
    Intersection over union, chamfer distance and validity of every program against its part.

    Programs run and are measured on all workers of the sandbox at once. Equal entries of `meshes`, as the members of a
    group have, are read once. As a reward function of TRL's `GRPOTrainer`, which calls with the columns of its data set
    by name and wants a list of numbers:

        def cad_reward(prompts, completions, mesh, **columns):
            texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
            return dsr_toolkit.cad.reward(texts, mesh).values

    Args:
        programs: source texts; a fence of markdown around one is taken off.
        meshes: the part of each: a file, or an object with vertices and faces such as a `TriangleMesh`.
        sandbox: to run in; by default one with a worker per core, which is started once and kept.
        samples: points on either surface.

    Raises:
        ValueError: there are not as many meshes as programs, or a mesh cannot be read; it is named.
    """
    programs, meshes = list(programs), list(meshes)
    if len(programs) != len(meshes):
        raise ValueError(f"`meshes` must hold one part per program, got {len(meshes)} for {len(programs)} programs.")
    sandbox = sandbox or shared_sandbox()
    first: dict = {}  # number of the first program of each part
    for number, mesh in enumerate(meshes):
        first.setdefault(_key(mesh), number)

    def one(pair) -> tuple[Execution, float, float]:
        program, mesh = pair
        found = sandbox.run(unfenced(program))
        return found, *parts[_key(mesh)].compare(found, samples, seed)

    with ThreadPoolExecutor(sandbox.workers, thread_name_prefix="reward") as pool:
        # All parts before the first program: one that cannot be used is named before anything runs.
        prepared = pool.map(lambda number: _Part(meshes[number], number, samples, seed), first.values())
        parts = dict(zip(first, prepared))
        results = list(pool.map(one, zip(programs, meshes)))
    valid = [found.ok for found, _, _ in results]
    iou = [iou for _, iou, _ in results]
    values = [IOU_WEIGHT * value if ok else INVALID_REWARD for ok, value in zip(valid, iou)]
    return Rewards(valid, iou, [chamfer for _, _, chamfer in results], [found.code for found, _, _ in results], values)


def unfenced(program: str) -> str:
    """The program of a text in which it may stand between ``` marks."""
    if "```" not in program:
        return program
    inside = program.split("```")[1]
    first, _, rest = inside.partition("\n")
    return rest if first.strip().lower() in ("", "python", "py", "cadquery") else inside


def _key(mesh):
    return str(mesh) if isinstance(mesh, (str, Path)) else id(mesh)


class _Part:
    """One part, prepared for any number of programs: a search tree of its surface and its body, None if it is open."""

    def __init__(self, mesh, number: int, samples: int, seed: int):
        from scipy.spatial import cKDTree

        try:
            part = normalize_prediction(as_triangles(mesh))
            self.tree = cKDTree(sample_surface(part, samples, np.random.default_rng(seed))[0])
        except FAULTS as error:
            raise ValueError(f"`meshes[{number}]` cannot be used: {error}") from error
        try:
            self.body = solid_body(part)
        except FAULTS:
            self.body = None

    def compare(self, found: Execution, samples: int, seed: int) -> tuple[float, float]:
        """Intersection over union and chamfer distance."""
        if not found.ok:
            return 0.0, float("nan")
        mesh = normalize_prediction(TriangleMesh(found.vertices, found.faces))
        # Other random numbers than the part's: the same would find the same points on equal meshes.
        points = sample_surface(mesh, samples, np.random.default_rng((seed, 1)))[0]
        chamfer = chamfer_distance(points, self.tree)
        try:
            return 0.0 if self.body is None else overlap(self.body, solid_body(mesh, found.solids)), chamfer
        except FAULTS:
            return 0.0, chamfer


_shared: list[Sandbox] = []
_lock = threading.Lock()


def shared_sandbox() -> Sandbox:
    """One sandbox for all calls of this process, ended with it."""
    with _lock:
        if not _shared:
            _shared.append(Sandbox(limits=SandboxLimits(seconds=3.0)))
            atexit.register(_shared[0].close)
        return _shared[0]
