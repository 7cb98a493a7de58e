"""
`python -m benchmarks.results [NAME …] [--again] [--seconds N] [--table]`: measure all rows, rewrite the table.

Each benchmark runs in a process of its own with two threads, and its rows are kept in `results.json` at once: what was
interrupted goes on with the benchmarks that have none yet, `--again` measures the named ones anew. Run it where nothing
else runs: a benchmark that began beside other work is marked in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import ROOT, format_rows, is_held

FOLDER = Path(__file__).resolve().parent
STATE, PAGE = FOLDER / "results.json", FOLDER / "RESULTS.md"
BEGIN, END = "<!-- rows: python -m benchmarks.results -->", "<!-- end of rows -->"
THREADS = 2
QUIET = 0.7  # load average of the last minute above which a machine is busy
SETTLE_SECONDS = 90  # that a benchmark waits for the last one's load to fade from that average


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks, or prefixes; default all")
    parser.add_argument("--again", action="store_true", help="also those that have rows")
    parser.add_argument("--seconds", type=float, default=120.0, metavar="N", help="rounds of a row; default 120")
    parser.add_argument("--table", action="store_true", help="measure nothing, rewrite the table")
    options = parser.parse_args(arguments)
    state = json.loads(STATE.read_text()) if STATE.exists() else {}
    if not options.table:
        from benchmarks.__main__ import discover

        names = [name for name in discover() if not options.names or wanted(name, options.names)]
        if not names:
            parser.error(f"no benchmark is called {' or '.join(options.names)}")
        for name in names:
            if options.again or "rows" not in state.get(name, {}):
                state[name] = measure(name, options.seconds)
                STATE.write_text(json.dumps(dict(sorted(state.items())), indent=1) + "\n")
                write_table(state)
    write_table(state)
    missed = [name for name, one in state.items() if any(is_held(line) is False for line in one.get("rows", ()))]
    failed = [name for name, one in state.items() if "rows" not in one]
    print(f"missed: {', '.join(missed) or 'none'}; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def wanted(name: str, names: list[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in names)


def measure(name: str, seconds: float) -> dict:
    """The rows of one benchmark, how long it took, the machine, and its load just before."""
    load = settled_load()
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks", name, "--json", str(file), "--seconds", f"{seconds:g}"]
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        found = {"seconds": round(time.time() - start), "load": round(load, 2), "machine": None}
        if process.returncode:
            print(process.stdout[-2000:], process.stderr[-4000:], sep="\n", file=sys.stderr)
            return found | {"failed": process.stderr.strip().splitlines()[-1:]}
        found |= {"machine": process.stdout.splitlines()[0], "rows": json.loads(file.read_text())}
    # A benchmark may give rows of other names, as `serve.stream` does of `serve.health`; the state keeps them together.
    print(f"{name} ({found['seconds']} s, load {load:.2f} before)\n{format_rows(found['rows'])}", flush=True)
    return found


def settled_load() -> float:
    """The load average, once it has fallen or no longer falls."""
    before = os.getloadavg()[0]
    for _ in range(SETTLE_SECONDS // 15):
        if before <= QUIET:
            break
        time.sleep(15)
        now = os.getloadavg()[0]
        if now > 0.95 * before:
            return now
        before = now
    return before


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
