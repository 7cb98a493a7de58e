"""Workers on Ray: the chunks are a data set of Ray Data, the workers its actors."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence

from ..extras import needs
from .attempts import Attempts
from .local import WorkerFailed
from .store import Chunk, Finished


class RayWorker:
    """
    What `Dataset.map_batches` makes an actor of. It gets plain values and gives bytes: the model, whose class may come
    from a repository's own code, is loaded inside and never sent anywhere.

    Args:
        settings: of a `Worker`. attempts: name of the actor that counts them.
    """

    def __init__(self, settings: dict, attempts: str):
        import ray

        from .worker import Worker

        self.get, self.attempts, self.fault = ray.get, ray.get_actor(attempts), None
        try:
            self.worker = Worker(settings)
        except (ValueError, OSError, ImportError) as error:  # about the settings: no actor would fare better
            self.fault = str(error)

    def __call__(self, batch):
        """A table of chunks (`number`, `lines`) to a table of their answers."""
        import pyarrow as pa

        from .answering import finished

        columns: dict[str, list] = {name: [] for name in answers_schema().names}
        for row in batch.to_pylist():
            if self.fault is not None:
                done = Finished(row["number"], b"")
            else:
                chunk = Chunk(row["number"], row["lines"])
                alone, given_up = self.get(self.attempts.begin.remote(chunk.number))
                done = finished(self.worker, chunk, alone, given_up, lambda item: self._at(chunk.number, item))
                self.attempts.done.remote(chunk.number)
            folders, names, contents = zip(*done.files) if done.files else ((), (), ())
            values = (done.number, done.table, folders, names, contents, done.count, done.errors, self.fault)
            for name, value in zip(columns, values):
                columns[name].append(value)
        return pa.table(columns, schema=answers_schema())

    def _at(self, chunk: int, item: int) -> None:
        self.get(self.attempts.item.remote(chunk, item))


class InTurn(Sequence):
    """What Ray takes for a list and goes through once: chunks, which are read when they are asked for."""

    def __init__(self, chunks: Iterator[Chunk], count: int):
        self.chunks, self.count = chunks, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> dict:
        chunk = next(self.chunks)
        return {"number": chunk.number, "lines": chunk.lines}


def answers_schema():
    import pyarrow as pa

    texts = pa.large_list(pa.string())
    return pa.schema(
        {
            "number": pa.int64(), "table": pa.large_binary(), "folders": texts, "names": texts,
            "contents": pa.large_list(pa.large_binary()), "count": pa.int64(), "errors": pa.int64(),
            "fault": pa.string(),
        }
    )  # fmt: skip


def check_ray() -> None:
    """Before any work: the library is there."""
    needs("scale", "--engine ray")


def run_ray(
    settings: dict, chunks: Iterator[Chunk], count: int, workers: int, gpus: float, address: str | None = None
) -> Iterator[Finished]:
    """
    Answers of chunks, as they are finished. A worker that ends is started again by Ray, and its chunk tried again.

    Args:
        count: of the chunks. gpus: of each worker, or a part of one.
        address: of a cluster that runs; default: one of this machine, for as long as this takes.

    Raises:
        WorkerFailed: the settings are wrong, or the cluster is too small for the workers.
    """
    import ray

    ours = not ray.is_initialized()
    if ours:
        options = {"log_to_driver": False, "logging_level": logging.ERROR}
        options |= {} if address else {"include_dashboard": False}
        ray.init(address=address or "local", **options)
    try:
        _check_size(ray.cluster_resources(), workers, gpus)
        yield from _answers(settings, chunks, count, workers, gpus)
    finally:
        if ours:
            ray.shutdown()


def _check_size(there: dict, workers: int, gpus: float) -> None:
    for name, wanted in (("CPU", workers), ("GPU", workers * gpus)):
        if there.get(name, 0) < wanted:
            has = f"{there.get(name, 0):g}"
            raise WorkerFailed(
                f"{workers} workers want {wanted:g} {name}s; the cluster has {has}. See --workers, --gpus-per-worker."
            )


def _answers(settings: dict, chunks: Iterator[Chunk], count: int, workers: int, gpus: float) -> Iterator[Finished]:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    name = f"dsr-batch-{uuid.uuid4().hex}"
    attempts = ray.remote(Attempts).options(num_cpus=0, name=name).remote()
    ray.get(attempts.done.remote(-1))  # it is there
    # A block per chunk: they lie in Ray's object store, not in this process.
    answers = ray.data.from_items(InTurn(chunks, count), override_num_blocks=count).map_batches(
        RayWorker,
        fn_constructor_kwargs={"settings": settings, "attempts": name},
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=gpus or None,
    )
    try:
        for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                if row["fault"] is not None:
                    raise WorkerFailed(row["fault"])
                files = list(zip(row["folders"], row["names"], row["contents"]))
                yield Finished(row["number"], row["table"], files, row["count"], row["errors"])
    finally:
        ray.kill(attempts)
