"""Running CadQuery programs in the sandbox, against a fresh process each and against its server unconfined."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import alternate, row, timed
from dsr_toolkit.cad import Sandbox

NAME = "cad.execute"
TARGET, TARGET_UNCONFINED = 20.0, 0.7
CASES = Path(__file__).resolve().parent.parent / "tests" / "reference" / "cadrille" / "cad_execution_cases.json"
REPEATS = 3
FRESH = """\
import sys
import numpy
names = {}
exec(sys.argv[1], names)
vertices, faces = names["r"].val().tessellate(0.001, 0.1)
print(len(faces))
"""


def fresh(programs: list[str]) -> list[int]:
    """The plain way: an interpreter for each, which imports CadQuery, runs the program and tessellates."""
    run = [sys.executable, "-c", FRESH]
    return [
        int(subprocess.run([*run, p], capture_output=True, text=True, check=True).stdout.split()[-1]) for p in programs
    ]


def served(sandbox: Sandbox, programs: list[str]) -> list[int]:
    return [len(sandbox.run(program).faces) for program in programs]


def run() -> list[dict]:
    """One worker on every side; the start of the server is not counted, as it is needed once for any number of
    programs."""
    programs = [script["code"] for script in json.loads(CASES.read_text())["scripts"].values()]
    with Sandbox(workers=1) as sandbox, Sandbox(workers=1, confined=False) as unconfined:
        assert fresh(programs) == served(sandbox, programs) == served(unconfined, programs), "the meshes differ"
        each = lambda call: timed(call) / len(programs)  # noqa: E731
        baseline, ours = alternate(
            lambda: fresh(programs), lambda: served(sandbox, programs), rounds=3, warmup=0, measure=each
        )
        many = programs * REPEATS
        each_of_many = lambda call: timed(call) / len(many)  # noqa: E731
        without, confined = alternate(
            lambda: served(unconfined, many), lambda: served(sandbox, many), rounds=7, measure=each_of_many
        )
    return [
        row(NAME, "time", baseline, ours, TARGET),
        row(NAME, "time_vs_unconfined", without, confined, TARGET_UNCONFINED),
    ]
