"""The same items on Ray by two actors against one, each of one thread; the figure means something on two free cores.

Start-up counts for neither side: Ray begins to give out chunks when every actor has loaded its model, and time runs
once a few of them are answered, for as many items in both.
"""

import json
import logging
import tempfile
import time
from pathlib import Path

from benchmarks.batch_local import items, settings
from benchmarks.harness import row
from dsr_toolkit.batch.store import Chunk
from dsr_toolkit.extras import needs

NAME = "batch.ray"
VIDEOS, CHUNK, WARM = 48, 1, 6  # chunks that are answered before time runs: every actor has answered some
LOAD_SECONDS = 300  # that loading may take on a busy machine


def seconds(given: list[dict], workers: int, warm: int) -> tuple[float, dict]:
    """Of the chunks after the first `warm` ones, and the answers by chunk."""
    from dsr_toolkit.batch.on_ray import run_ray

    lines = [json.dumps(item).encode() for item in given]
    chunks = iter([Chunk(number, lines[number * CHUNK :][:CHUNK]) for number in range(len(given) // CHUNK)])
    tables, times = {}, []
    for finished in run_ray(settings(), chunks, len(given) // CHUNK, workers, 0.0):
        tables[finished.number] = finished.table
        times.append(time.perf_counter())
    return times[-1] - times[warm - 1], tables


def answers(tables: dict[int, bytes]) -> list:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    return [parquet.read_table(pa.BufferReader(tables[number]))["tokens"].to_pylist() for number in sorted(tables)]


def run(videos: int = VIDEOS, warm: int = WARM) -> list[dict]:
    needs("scale", NAME)
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    # Chunks wait for all actors: without it the first one to be there would begin alone.
    ray.data.DataContext.get_current().wait_for_min_actors_s = LOAD_SECONDS
    try:
        with tempfile.TemporaryDirectory() as scratch:
            given = items(Path(scratch), videos)
            one, found = seconds(given, 1, warm)
            two, others = seconds(given, 2, warm)
    finally:
        ray.shutdown()
    assert answers(found) == answers(others), "two actors answer otherwise than one"
    return [row(NAME, "time", one, two, target=1.7)]
