"""
`python -m benchmarks.scaling [CURVE …] [--minutes N] [--again] [--page] [--most N]`: time and memory against the work.

Every curve is written to `points.json` as soon as it is measured, so that an interrupted run goes on with the next;
SCALING.md and the plots are made of it. After `--minutes` no more curves begin.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from benchmarks.harness import busy_cores, machine, peak_memory, timed
from benchmarks.scaling.curves import CURVES, Curve
from benchmarks.scaling.page import POINTS, write_page

ROUNDS, CURVE_SECONDS = 5, 90.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="CURVE", help=f"of {', '.join(CURVES)}; default all")
    parser.add_argument("--again", action="store_true", help="also curves that are measured")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--most", type=int, metavar="N", help="counts up to N alone: a quick look, which is not kept")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no more curves after N minutes")
    parser.add_argument("--seconds", type=float, default=CURVE_SECONDS, metavar="N",
                        help=f"of rounds of a curve (default: {CURVE_SECONDS:g})")  # fmt: skip
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in CURVES:
            parser.error(f"no curve {name!r}; there are {', '.join(CURVES)}")
    points = json.loads(POINTS.read_text()) if POINTS.exists() else {}
    start, left_out = time.monotonic(), []
    for name in () if options.page else options.names or CURVES:
        due = options.most or options.again or name not in points
        if due and options.minutes is not None and time.monotonic() - start > 60 * options.minutes:
            left_out.append(name)
        elif options.most:
            print(name, json.dumps(measure(CURVES[name], options.most, options.seconds)), flush=True)
        elif due:
            points[name] = measure(CURVES[name], seconds=options.seconds)
            POINTS.write_text(json.dumps(points, indent=1) + "\n")
            write_page(points)
            print(f"{name}: {points[name]['seconds']}", flush=True)
    if left_out:
        print(f"no time was left for {', '.join(left_out)}; the same command goes on with them")
    if not options.most:
        write_page(points)
    return 0


def measure(curve: Curve, most: int | None = None, seconds: float = CURVE_SECONDS) -> dict:
    """Seconds (the least of rounds in turn, so that a busy machine hits all counts alike) and bytes at every count."""
    counts = [count for count in curve.counts if most is None or count <= most]
    load = busy_cores()
    calls = [curve.build(count) for count in counts]
    rounds = [[timed(call) for call in calls]]  # the first one warms up
    while len(rounds) <= ROUNDS and sum(map(sum, rounds)) < seconds:
        rounds.append([timed(call) for call in calls])
    least = [min(times[len(times) > 1 :]) for times in zip(*rounds)]
    memory = [peak_memory("benchmarks.scaling.curves:prepare", curve.name, count) for count in counts]
    return {"counts": counts, "seconds": least, "memory": memory, "machine": machine(), "load": round(load, 2)}


if __name__ == "__main__":
    sys.exit(main())
