"""Samples of the three worlds that two cores make in a minute, against 2,000."""

import time

from benchmarks.harness import row
from dsr_toolkit.worlds import make_world

NAME = "worlds.speed"
A_MINUTE, CORES = 2000, 2
SAMPLES = {"space": 20, "surround": 40, "parts": 200}


def run() -> list[dict]:
    rows = []
    for name, count in SAMPLES.items():
        world = make_world(name, 1)
        world[0]
        start = time.process_time()  # of one process; worlds share nothing, so two take the same each
        for index in range(1, count + 1):
            world[index]
        taken = (time.process_time() - start) / count
        rows.append(row(NAME, f"time_{name}", CORES * 60 / A_MINUTE, taken, 1))
    return rows
