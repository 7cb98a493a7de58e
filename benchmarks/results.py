"""
`python -m benchmarks.results [NAME …] [--minutes N]`: measure all rows, the most telling first; rewrite the table.

Each benchmark runs in a process of its own with two threads, and its rows are kept in `results.json` at once: what was
interrupted goes on with the benchmarks that have none yet, `--again` measures the named ones anew. Run it where nothing
else runs: a benchmark that began beside other work is marked in the table. `--minutes` is the time for all together:
what is under way at its end is stopped and has no rows, what is known to take longer than what is left is left out.
`--small` tries the benchmarks of published sizes on small models and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import ROOT, busy_cores, format_rows, is_held

FOLDER = Path(__file__).resolve().parent
STATE, PAGE = FOLDER / "results.json", FOLDER / "RESULTS.md"
BEGIN, END = "<!-- rows: python -m benchmarks.results -->", "<!-- end of rows -->"
THREADS = 2
QUIET = 0.2  # cores at work before a benchmark begins above which a machine is busy
FIRST = (
    "full.pi3", "full.page4d", "full.load", "full.cad", "full.dsr_prefill", "media.video_in", "pi3.memory",
    "mv.key_bias", "page4d.time", "hub.load", "start", "decode.static", "dsr.decode", "scene.decoder", "bf16.weights",
    "quant.tiny",
)  # fmt: skip
LAST = ("compile",)  # minutes of a compiler's work each


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks, or prefixes; default all")
    parser.add_argument("--again", action="store_true", help="also those that have rows")
    parser.add_argument("--seconds", type=float, default=120.0, metavar="N", help="rounds of a row; default 120")
    parser.add_argument("--minutes", type=float, metavar="N", help="for all together; default: as long as it takes")
    parser.add_argument("--small", action="store_true", help="try `full` on small models; nothing is kept")
    parser.add_argument("--table", action="store_true", help="measure nothing, rewrite the table")
    options = parser.parse_args(arguments)
    state = json.loads(STATE.read_text()) if STATE.exists() else {}
    if not options.table:
        from benchmarks.__main__ import discover

        found = discover()
        names = [name for name in in_order(found) if not options.names or wanted(name, options.names)]
        if options.small:
            names = [name for name in names if "small" in getattr(found[name], "SIZES", ())]
        if not names:
            parser.error(f"no benchmark is called {' or '.join(options.names) or 'so'}")
        left_out = run_all(names, state, options)
        if left_out:
            print(f"no time was left for {', '.join(left_out)}; the same command goes on with them")
        if options.small:
            return 0
    write_table(state)
    missed = [name for name, one in state.items() if any(is_held(line) is False for line in one.get("rows", ()))]
    failed = [name for name, one in state.items() if "rows" not in one]
    print(f"missed: {', '.join(missed) or 'none'}; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def in_order(names) -> list[str]:
    """Most telling first, those that compile last, the others by name between."""
    rank = {name: number for number, name in enumerate(FIRST)}
    middle = len(FIRST)
    return sorted(names, key=lambda name: (rank.get(name, middle + wanted(name, list(LAST))), name))


def run_all(names: list[str], state: dict, options) -> list[str]:
    """Measure what has no rows and keep it at once; returns those for which no time was left."""
    end = time.monotonic() + 60 * options.minutes if options.minutes else None
    left_out = []
    for name in names:
        earlier = state.get(name, {})
        if "rows" in earlier and not options.again and not options.small:
            continue
        left = None if end is None else end - time.monotonic()
        if left is not None and left < max(earlier.get("seconds", 0), 1) and not options.small:
            left_out.append(name)
            continue
        found = measure(name, options.seconds, left, options.small)
        if found is None:
            left_out.append(name)
        elif not options.small:
            state[name] = found
            STATE.write_text(json.dumps(dict(sorted(state.items())), indent=1) + "\n")
            write_table(state)
    return left_out


def wanted(name: str, names: list[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in names)


def measure(name: str, seconds: float, left: float | None = None, small: bool = False) -> dict | None:
    """
    The rows of one benchmark, how long it took, the machine, and the cores at work just before; None if it is not done
    in the seconds that are `left`.
    """
    load = busy_cores()
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks", name, "--json", str(file), "--seconds", f"{seconds:g}"]
        done = call(command + ["--small"] * small, environment, left)
        if done is None:
            return None
        status, output, errors = done
        found = {"seconds": round(time.time() - start), "load": round(load, 2), "machine": None}
        if status:
            print(output[-2000:], errors[-4000:], sep="\n", file=sys.stderr)
            return found | {"failed": errors.strip().splitlines()[-1:]}
        found |= {"machine": output.splitlines()[0], "rows": json.loads(file.read_text())}
    # A benchmark may give rows of other names, as `serve.stream` does of `serve.health`; the state keeps them together.
    print(f"{name} ({found['seconds']} s, {load:.2f} cores busy before)\n{format_rows(found['rows'])}", flush=True)
    return found


def call(command: list[str], environment: dict, left: float | None) -> tuple[int, str, str] | None:
    """Status, output and errors of a process; after `left` seconds it and all that it started are ended."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=left)
    except BaseException as error:  # a Ctrl-C, too, must not leave gigabytes behind
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            return None
        raise
    return process.returncode, output, errors


def write_table(state: dict) -> None:
    """Replace what stands between the two marks of RESULTS.md."""
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(state)}\n\n{END}{rest.split(END)[1]}")


def table(state: dict) -> str:
    measured = {name: one for name, one in sorted(state.items()) if "rows" in one}
    if not measured:
        return "No row is measured yet."
    machines = sorted({one["machine"] for one in measured.values()})
    busy = [name for name, one in measured.items() if one["load"] > QUIET]
    slow = [f"{name} {one['seconds']} s" for name, one in measured.items() if one["seconds"] > 180]
    notes = [f"{'; '.join(machines)}. float32 where nothing else is said."]
    if busy:
        notes.append(
            f"Other work ran on the machine when these began, so their times are preliminary: {', '.join(busy)}."
        )
    if slow:
        notes.append(f"Longer than three minutes: {', '.join(slow)}.")
    rows = [line for one in measured.values() for line in one["rows"]]
    return "\n".join(notes) + "\n\n" + format_rows(rows)


if __name__ == "__main__":
    sys.exit(main())
