"""Rows as a stream of `datasets`, which trainers split over processes and the workers of their data loaders."""

from functools import partial

SHARDS = 64


def stream(rows, shards: int = SHARDS):
    """
    A `datasets.IterableDataset` of rows that are read when their turn comes, each by one process and one worker alone.

    Trainer and accelerate split it by its shards over processes (with `dispatch_batches=False`; else the first process
    reads for all) and torch's data loader over workers; `datasets.distributed.split_dataset_by_node` does it by hand.
    Shard i holds rows i, i + shards, …, so that every process has its part however few steps are taken.

    Args:
        rows: anything with a length that can be indexed, such as [`dsr_toolkit.datasets.rows.rows`] or [`Rows`], and
            that can be pickled. A "seed" is left out: noise is then fresh in every epoch.
        shards: at least processes times workers; never more than there are rows.
    """
    from datasets import IterableDataset

    count = len(rows)
    if not count:
        raise ValueError("`rows` holds no row.")
    if shards < 1:
        raise ValueError(f"`shards` must be at least 1, got {shards}.")
    shards = min(shards, count)
    numbers = [range(shard, count, shards) for shard in range(shards)]
    return IterableDataset.from_generator(partial(_read, rows), gen_kwargs={"numbers": numbers})


def _read(rows, numbers):
    for shard in numbers:
        for number in shard:
            row = rows[number]
            yield {name: value for name, value in row.items() if name != "seed"}
