"""From the start of a process to the first thing that it says: help, an answer, the refusal of a wrong file.

Seconds of processor time (of the process and all that it starts), which other work on the machine changes little.
`start.answer` is held against the same command with every architecture registered and Python's collector at work, as it
was; its target is half of that. What `import torch` and transformers' own Qwen2.5-VL take, which nothing of ours can
shorten, is the last row. The others stand against limits: 0.3 s of help, 1 s until a file is refused.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import ROOT, Seconds, alternate, row

NAME = "start"
HELP_SECONDS, REFUSAL_SECONDS = 0.3, 1.0
ANSWER_TARGET = 2.0
ROUNDS = 5
CLIP = ROOT / "dsr_toolkit" / "assets" / "demo.mp4"
COMMAND = "import sys; from dsr_toolkit.cli import main; sys.exit(main())"
# As it was: all architectures, and a collector that nobody stops.
AS_IT_WAS = "import gc; gc.disable = lambda: None; " + COMMAND
LIBRARIES = "import torch; from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl"


def seconds_of(code: str, words: Sequence[str] = (), folder: str | None = None, status: int = 0, **variables) -> float:
    """Processor time of a Python process, user and system."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **variables}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == status, f"{words}: {done.returncode}\n{done.stderr[-2000:]}"
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def answering(code: str, variables: dict, folder: str):
    """`dsr ask` of eight words about the carried clip; each run writes to a folder of its own."""
    words = ["ask", "What moves?", "--video", str(CLIP), "--max-new-tokens", "8"]
    return lambda: seconds_of(code, [*words, "-o", tempfile.mkdtemp(dir=folder) + "/out"], **variables)


def run() -> list[dict]:
    from modeling_dsr import ARCHITECTURES

    as_measured = {"measure": lambda call: call()}
    with tempfile.TemporaryDirectory(prefix="start-") as folder:
        (Path(folder) / "wrong.mp4").write_text("no video")
        wrong = ["ask", "What moves?", "--video", "wrong.mp4"]
        seconds_of(COMMAND, ["--help"])
        told = Seconds([seconds_of(COMMAND, ["--help"]) for _ in range(ROUNDS)])
        refused = Seconds([seconds_of(COMMAND, wrong, folder, status=2) for _ in range(ROUNDS)])
        was = answering(AS_IT_WAS, {"DSR_ARCHITECTURES": ",".join(ARCHITECTURES)}, folder)
        before, now = alternate(was, answering(COMMAND, {}, folder), ROUNDS, **as_measured)
        libraries, again = alternate(lambda: seconds_of(LIBRARIES), answering(COMMAND, {}, folder), 3, 0, **as_measured)
    return [
        row("start.help", "processor time", HELP_SECONDS, told, 1),
        row("start.refusal", "processor time", REFUSAL_SECONDS, refused, 1),
        row("start.answer", "processor time", before, now, ANSWER_TARGET),
        row("start.answer", "processor time, of which imports of others", again, libraries, None),
    ]
