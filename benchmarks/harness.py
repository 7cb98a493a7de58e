"""What the benchmarks share: alternating timing, peak memory in a process of its own, agreement, rows.

A benchmark is a module of this package with a `NAME` and

    def run() -> list[dict]     # rows made by `row`

Its baseline stands in the same module, written in the plain way in which published code does it, and
`assert_agreement` shows that both sides compute the same before either is timed.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.0005
FEWEST_ROUNDS = 5  # that can tell a median with 90 %
ROW_SECONDS = 120.0  # after which no more rounds begin; `--seconds`


class Seconds(float):
    """The median of a side's rounds, which are in `rounds`, in the order in which they were run."""

    rounds: tuple[float, ...]

    def __new__(cls, rounds: list[float]):
        self = super().__new__(cls, statistics.median(rounds))
        self.rounds = tuple(rounds)
        return self


def row(name: str, metric: str, baseline: float, ours: float, target: float | None) -> dict:
    """
    One result. `baseline` and `ours` are costs (seconds, bytes) whose ratio says how many times less ours needs.

    Of two sides that were timed in turn, the ratio is the median over the rounds, each against its neighbour, and
    `interval` holds the ends between which that median lies with a probability of 90 %.
    """
    found = {"name": name, "metric": metric, "baseline": float(baseline), "ours": float(ours)}
    if isinstance(baseline, Seconds) and isinstance(ours, Seconds):
        ratios = paired(baseline.rounds, ours.rounds)
        found |= {"ratio": statistics.median(ratios), "interval": median_interval(ratios), "rounds": len(ratios)}
    else:
        found |= {"ratio": baseline / ours, "interval": None, "rounds": None}
    return {**found, "target": target}


def paired(baseline, ours) -> list[float]:
    return [plain / quick for plain, quick in zip(baseline, ours, strict=True)]


def median_interval(values: list[float], level: float = 0.9) -> tuple[float, float]:
    """
    The ends between which the median of the distribution lies with probability `level`, whatever it looks like: order
    statistics of the sample. Fewer than five values cannot be that sure; theirs are the smallest and the largest.
    """
    ordered, count = sorted(values), len(values)
    below, outside = 0.0, 0  # probability that fewer than `outside` values lie below the median
    while 2 * (below + math.comb(count, outside) / 2**count) <= 1 - level:
        below += math.comb(count, outside) / 2**count
        outside += 1
    outside = max(outside, 1)
    return ordered[outside - 1], ordered[-outside]


def is_held(line: dict) -> bool | None:
    """Whether a row reaches its target, the lower end of its interval included; None without a target."""
    if line["target"] is None:
        return None
    return (line["interval"][0] if line["interval"] else line["ratio"]) >= line["target"]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> str:
    """Kind of machine and versions, in one line."""
    if torch.cuda.is_available():
        kind = torch.cuda.get_device_name()
    else:
        kind = platform.processor() or platform.machine()
        cpuinfo = Path("/proc/cpuinfo")
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
        kind = names[0].split(":", 1)[1].strip() if names else kind
        kind = f"CPU {kind}, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{kind}; Python {platform.python_version()}, {versions}"


def busy_cores(seconds: float = 2.0) -> float:
    """
    Cores that work in the next `seconds`: what others do, when it is called between two benchmarks. Unlike the load
    average it does not remember the last one. Where there is no /proc/stat, the load average of the last minute.
    """
    before = _processor_ticks()
    if before is None:
        return os.getloadavg()[0]
    time.sleep(seconds)
    busy, whole = (after - earlier for after, earlier in zip(_processor_ticks(), before))
    return (os.cpu_count() or 1) * busy / max(whole, 1)


def _processor_ticks() -> tuple[int, int] | None:
    """Busy and all ticks of all cores since the machine began."""
    file = Path("/proc/stat")
    if not file.exists():
        return None
    ticks = [int(part) for part in file.read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # without idle and waiting for disks


def assert_agreement(found: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    """Both sides of a benchmark must give the same numbers, or their times mean nothing."""
    assert found.shape == expected.shape, f"shapes differ: {tuple(found.shape)} and {tuple(expected.shape)}"
    difference = (found.double() - expected.double()).abs().max().item()
    assert difference <= atol, f"the two sides differ by {difference:.2e}, more than {atol:.0e}"


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(
    baseline: Callable[[], object],
    ours: Callable[[], object],
    rounds: int = 5,
    warmup: int = 1,
    within: float = 0.03,
    seconds: float | None = None,
    measure: Callable[[Callable[[], object]], float] | None = None,
) -> tuple[Seconds, Seconds]:
    """
    Seconds of both sides, called in turn (and in turn first), so that a busy machine hits both alike.

    Args:
        rounds: at least so many, where time allows it. Then more, until the interval of the paired ratios lies within
            `within` of their median, or `seconds` (default `ROW_SECONDS`) have passed, which is said.
        measure: runs a call and returns its seconds; default [`timed`].
    """
    for _ in range(warmup):
        baseline()
        ours()
    seconds = ROW_SECONDS if seconds is None else seconds
    times: dict[str, list[float]] = {"baseline": [], "ours": []}
    sides = (("baseline", baseline), ("ours", ours))
    start = time.perf_counter()
    while True:
        for side, call in sides if len(times["ours"]) % 2 == 0 else sides[::-1]:
            times[side].append((measure or timed)(call))
        ratios = paired(times["baseline"], times["ours"])
        up = time.perf_counter() - start > seconds
        if len(ratios) < rounds and not up:
            continue
        middle, (low, high) = statistics.median(ratios), median_interval(ratios)
        if len(ratios) >= FEWEST_ROUNDS and max(high - middle, middle - low) <= within * middle:
            break
        if up:
            said = f"after {len(ratios)} rounds the interval is {low / middle - 1:+.1%} … {high / middle - 1:+.1%}"
            print(f"  time is up: {said} of the median", file=sys.stderr, flush=True)
            break
    return Seconds(times["baseline"]), Seconds(times["ours"])


def peak_memory(setup: str, *arguments) -> int:
    """
    Bytes by which a call raises memory above the point before it, at its peak, in a process of its own.

    On a GPU these are the bytes that torch allocates; on a CPU anonymous memory (page cache and mapped files not
    counted), read from outside every half millisecond. Freed blocks go back to the system at once, so that memory
    kept by the allocator after `setup` hides nothing.

    Args:
        setup: "module:function" of a function that prepares everything and returns the call to measure.
        arguments: its arguments, JSON values.
    """
    code = (
        "import importlib, json, sys; from benchmarks.harness import measure_in_child; "
        "measure_in_child(*json.loads(sys.argv[1]))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    child = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps([setup, list(arguments)])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    with child:
        if _next_mark(child) != "ready":
            raise RuntimeError(f"{setup} failed while setting up")
        before = peak = _anonymous_bytes(child.pid)
        child.stdin.write("go\n")
        child.stdin.flush()
        os.set_blocking(child.stdout.fileno(), False)
        output = b""
        while child.poll() is None and b"done" not in output:
            peak = max(peak, _anonymous_bytes(child.pid))
            try:
                output += os.read(child.stdout.fileno(), 4096)
            except BlockingIOError:
                time.sleep(POLL_SECONDS)
        child.stdin.close()
        child.wait()
    if b"done" not in output:
        raise RuntimeError(f"{setup} failed while being measured")
    on_device = int(output.split(b"done")[1].split()[0])
    return on_device if on_device >= 0 else peak - before


def measure_in_child(setup: str, arguments: list) -> None:
    """Child's side of `peak_memory`: set up, report, wait, call, report."""
    import importlib

    module, function = setup.split(":")
    call = getattr(importlib.import_module(module), function)(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
    print("\nready", flush=True)
    sys.stdin.readline()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        print(f"\ndone {torch.cuda.max_memory_allocated() - start}", flush=True)
    else:
        print("\ndone -1", flush=True)
    sys.stdin.read()


def _next_mark(child: subprocess.Popen) -> str:
    """The child's next line that is one of ours; libraries may print before it."""
    for line in child.stdout:
        if line.strip() == "ready":
            return "ready"
    return ""


def _anonymous_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def format_rows(rows: list[dict]) -> str:
    """The rows as a Markdown table; what misses its target says so."""
    lines = [
        "| name | metric | baseline | ours | ratio | 90 % interval | target | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in rows:
        target = "" if line["target"] is None else f"{line['target']:g}"
        missed = "**missed**" if is_held(line) is False else ""
        show = _show_bytes if line["metric"].startswith("memory") else _show_seconds
        show = "{:.3f}".format if line["metric"] == "exponent" else show
        show = "{:.2%}".format if line["metric"].startswith(("scale drift", "error", "agreement")) else show
        show = "{:.0f}".format if line["metric"] == "graphs" else show
        ends = line["interval"]
        interval = f"{ends[0]:.2f} … {ends[1]:.2f} ({line['rounds']} rounds)" if ends else ""
        values = (show(line["baseline"]), show(line["ours"]), f"{line['ratio']:.2f}", interval, target, missed)
        lines.append(f"| {line['name']} | {line['metric']} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _show_seconds(value: float) -> str:
    return f"{value:.3f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def _show_bytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
