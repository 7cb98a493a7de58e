"""Rewards of a batch of generated programs, as GRPO asks for them: on two workers against one."""

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import alternate, row
from dsr_toolkit.cad import Sandbox, reward
from dsr_toolkit.cad.part_files import stl_bytes
from dsr_toolkit.worlds.parts import PartsWorld
from modeling_dsr.cad_solids import TriangleMesh

NAME = "cad.reward"
TARGET = 1.8
GROUPS, EACH = 16, 4


def run() -> list[dict]:
    """64 programs of 16 groups: of each part its own program and those of three others. The server runs already."""
    world = PartsWorld(seed=7)
    samples = [world.sample(number) for number in range(GROUPS)]
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.stl" for number in range(GROUPS)]
        for file, sample in zip(files, samples):
            file.write_bytes(stl_bytes(TriangleMesh(*sample.mesh()), None))
        programs = [samples[(group + other) % GROUPS].program for group in range(GROUPS) for other in range(EACH)]
        meshes = [file for file in files for _ in range(EACH)]
        with Sandbox(workers=1) as single, Sandbox(workers=2) as double:
            first, second = reward(programs, meshes, single), reward(programs, meshes, double)
            assert first == second and all(first.valid), "the rewards differ"
            assert all(iou > 0.99 for iou in first.iou[::EACH]), "a part's own program does not make it"
            baseline, ours = alternate(
                lambda: reward(programs, meshes, single), lambda: reward(programs, meshes, double), rounds=5
            )
    return [row(NAME, "time", baseline, ours, TARGET)]
