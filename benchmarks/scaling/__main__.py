"""
`python -m benchmarks.scaling [CURVE …] [--again] [--page] [--most N]`: time and peak memory against the work.

Every curve is written to `points.json` as soon as it is measured, so that an interrupted run goes on with the next;
SCALING.md and the plots are made of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from benchmarks.harness import machine, peak_memory, timed
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
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in CURVES:
            parser.error(f"no curve {name!r}; there are {', '.join(CURVES)}")
    points = json.loads(POINTS.read_text()) if POINTS.exists() else {}
    for name in () if options.page else options.names or CURVES:
        if options.most:
            print(name, json.dumps(measure(CURVES[name], options.most)), flush=True)
        elif options.again or name not in points:
            points[name] = measure(CURVES[name])
            POINTS.write_text(json.dumps(points, indent=1) + "\n")
            write_page(points)
            print(f"{name}: {points[name]['seconds']}", flush=True)
    if not options.most:
        write_page(points)
    return 0


def measure(curve: Curve, most: int | None = None) -> dict:
    """Seconds (the least of rounds in turn, so that a busy machine hits all counts alike) and bytes at every count."""
    counts = [count for count in curve.counts if most is None or count <= most]
    load = os.getloadavg()[0]
    calls = [curve.build(count) for count in counts]
    rounds = [[timed(call) for call in calls]]  # the first one warms up
    while len(rounds) <= ROUNDS and sum(map(sum, rounds)) < CURVE_SECONDS:
        rounds.append([timed(call) for call in calls])
    seconds = [min(times[len(times) > 1 :]) for times in zip(*rounds)]
    memory = [peak_memory("benchmarks.scaling.curves:prepare", curve.name, count) for count in counts]
    return {"counts": counts, "seconds": seconds, "memory": memory, "machine": machine(), "load": round(load, 1)}


if __name__ == "__main__":
    sys.exit(main())
