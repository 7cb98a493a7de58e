"""A run from its input to its output."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ..console import say, step
from .on_ray import check_ray
from .progress import Progress
from .source import Source
from .sources import open_source
from .store import RESULTS, Store
from .tables import Table

ENGINES = ("local", "ray")


@dataclass
class Batch:
    """
    What is asked for.

    Args:
        task: ask, reconstruct, segment, cad or scene. input: a file, folder, glob, manifest or data set.
        output: a folder.
        model: repository or folder; None: tiny ones. split: of a data set.
        parameters: of the endpoint's task, for every item. defaults: inputs of items that do not bring their own.
        chunk_size: items that a worker takes at a time. max_batch: rows of a batch.
        engine: "local" or "ray". workers, gpus: processes, and GPUs of each. address: of a Ray cluster.
        resume: go on where a run into `output` stopped.
    """

    task: str
    input: str
    output: str | Path
    model: str | None = None
    split: str = "train"
    parameters: dict = field(default_factory=dict)
    defaults: dict = field(default_factory=dict)
    device: str | None = None
    dtype: str = "auto"
    allow_missing: tuple[str, ...] = ()
    chunk_size: int = 16
    max_batch: int = 16
    readers: int = 4
    engine: str = "local"
    workers: int = 1
    gpus: float = 0.0
    address: str | None = None
    resume: bool = False

    def __post_init__(self):
        for name in ("chunk_size", "max_batch", "readers", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.engine not in ENGINES:
            raise ValueError(f"`engine` must be one of {', '.join(ENGINES)}, got {self.engine!r}.")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ValueError(f"`gpus` must be a whole number or a part of one, got {self.gpus}.")
        if self.address is not None and self.engine != "ray":
            raise ValueError("an address of a cluster goes with the engine ray.")

    def settings(self) -> dict:
        """What the answers depend on; plain values."""
        names = ("task", "input", "split", "model", "parameters", "defaults", "dtype")
        return {name: getattr(self, name) for name in names}

    def worker_settings(self, source: Source) -> dict:
        """Of a `Worker`: plain values."""
        names = ("task", "model", "parameters", "defaults", "device", "gpus", "dtype", "max_batch", "readers", "split")
        model = self.model if self.model is None or not Path(self.model).exists() else str(Path(self.model).resolve())
        settings = {name: getattr(self, name) for name in names} | {"model": model}
        name = source.name
        if isinstance(source, Table):
            name = str(Path(name).resolve()) if Path(name).exists() else name
        return settings | {
            "allow_missing": list(self.allow_missing),
            "source": name if isinstance(source, Table) else None,
        }


def run_batch(batch: Batch) -> dict:
    """
    Answer every item of the input.

    Returns:
        the report: items, done, errors, finished.

    Raises:
        ValueError: the settings, the input or the output are wrong; ImportError: an extra is missing. Both before any
            item is touched.
    """
    if batch.engine == "ray":
        check_ray()
    source = open_source(batch.task, batch.input, batch.split)
    with Store(batch.output, batch.settings(), batch.chunk_size, batch.resume) as store:
        if store.is_finished:
            store.clean()
            say(f"All {store.report['items']} items are answered in {store.folder / RESULTS}.")
            return store.report
        try:
            _plan(batch, store, source)
            _answer(batch, store, source)
        except ValueError:  # of the input or the settings, before anything was answered: as if nothing had happened
            if not store.has_answers:
                store.discard()
            raise
    return store.report


def _plan(batch: Batch, store: Store, source: Source) -> None:
    store.save()
    if not store.has_plan:
        if isinstance(source, Table):
            store.save(table=source.fingerprint)
        with step(f"Listing the items of {batch.input}"):
            store.plan(source.items())
        if source.left_out:
            say(f"Left out, as no input of {batch.task}: {', '.join(source.left_out[:10])}.")
    elif isinstance(source, Table) and store.report["table"] != source.fingerprint:
        raise ValueError(f"--resume: {batch.input} was changed since the run began; choose another -o.")


def _answer(batch: Batch, store: Store, source: Source) -> None:
    progress = Progress(store.report["items"], store.done_items())
    if progress.done:
        say(f"{progress.done} of {progress.total} items are answered already.")
    settings, workers = batch.worker_settings(source), max(1, min(batch.workers, store.num_left))
    if batch.engine == "ray":
        from .on_ray import run_ray

        answers = run_ray(settings, store.left(), store.num_left, workers, batch.gpus, batch.address)
    else:
        from .local import run_local

        answers = run_local(settings, store.left(), workers, batch.gpus)
    try:
        with closing(answers):
            if progress.done < progress.total:
                for finished in answers:
                    store.commit(finished)
                    progress.add(finished.count, finished.errors)
    except BaseException:
        progress.close()
        if not store.has_answers:
            raise
        rows, _ = store.compact()
        say(f"{rows} of {progress.total} items are in {store.folder / RESULTS}; --resume goes on from there.")
        raise
    progress.close()
    rows, _ = store.compact()
    if rows != progress.total:
        raise RuntimeError(f"{progress.total - rows} of {progress.total} items have no row; --resume tries them again.")
    store.finish()
