"""What answers items: a repository's handler, made from plain settings, so that nothing of it is ever sent anywhere."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..model_check import check_dtype
from .columns import COLUMNS, ItemError
from .rows import Answered, answered
from .sources import open_source

TEXT = ("input_ids", "attention_mask", "mm_token_type_ids")  # inputs that differ from question to question
DIED = "the worker process ended, more than once, while it was at this item; it is not tried again."


@dataclass
class Asked:
    """
    One request of an item.

    Args:
        number: of the item in its chunk. place: of the request in the item. request: as the endpoint takes it.
        job, answer, error: what came of it. seconds: of work on it.
    """

    number: int
    place: int
    request: dict
    job: object = None
    answer: dict | None = None
    error: tuple[str, str] | None = None
    seconds: float = 0.0


@dataclass
class Item:
    """An item on its way: what it asks, or why it cannot."""

    id: str
    asked: list[Asked] = field(default_factory=list)
    error: tuple[str, str] | None = None
    seconds: float = 0.0


class Worker:
    """
    Args:
        settings: plain values: `task`; `model`, `device`, `gpus`, `dtype`, `allow_missing` of the handler; `parameters`
            and `defaults` (inputs) of every item; `max_batch` rows of a batch and `readers` threads; `source` and
            `split` of a table.

    Raises:
        ValueError: settings that no item can be answered with.
    """

    def __init__(self, settings: dict):
        import torch
        from transformers.utils import logging

        from ..loading import REPOSITORY, resolve
        from ..serving import handler_module

        logging.disable_progress_bar()  # the run has one
        self.settings, self.task_name = settings, settings["task"]
        check_dtype(settings["dtype"])
        self.endpoint, device = handler_module(), settings["device"]
        if settings["gpus"] and not torch.cuda.is_available():
            raise ValueError(f"--gpus-per-worker {settings['gpus']:g}: there is no GPU here.")
        if settings["gpus"] > 1 and device is None:
            device = "auto"  # the model is spread over them
        source, _ = resolve(settings["model"], REPOSITORY)
        if not Path(source).is_dir():
            from huggingface_hub import snapshot_download

            source = snapshot_download(source)
        allowed = settings["allow_missing"]
        self.handler = self.endpoint.EndpointHandler(
            source, self._limits(), device, settings["dtype"], "all" if "all" in allowed else tuple(allowed)
        )
        self.task = self._check(source)
        self.model = settings["parameters"].get("model") or self.handler.describe()[self.task_name]["models"][0]
        self.handler.processor(self.model), self.handler.model(self.model)
        self.revision = revision_of(Path(source), self.model)
        self.table = open_source(self.task_name, settings["source"], settings["split"]) if settings["source"] else None
        self.pool = ThreadPoolExecutor(settings["readers"], thread_name_prefix="readers")

    def _limits(self):
        """The requests of a chunk are all prepared before the first one runs: what they hold together has no limit."""
        limits = self.endpoint.Limits.from_environment()
        return replace(limits, **{"in_flight": 2**62} if hasattr(limits, "in_flight") else {})

    def _check(self, source):
        task = self.handler.tasks.get(self.task_name)
        if task is None:
            raise ValueError(
                f"--model {source} holds no model for {self.task_name}; its models: {self.handler.models}."
            )
        reader = self.endpoint.request.read_fields
        try:
            parameters = reader("--set", self.settings["parameters"], task.PARAMETERS, self.handler.limits)
            if (parameters["model"] or "") not in ("", *self.handler.describe()[self.task_name]["models"]):
                raise ValueError(
                    f"--set model must be one of {', '.join(self.handler.describe()[self.task_name]['models'])}, got "
                    f"{parameters['model']!r}."
                )
        except self.endpoint.RequestError as error:
            raise ValueError(error.message) from error
        if self.task_name == "ask" and parameters.get("candidates", 1) > 1:
            raise ValueError(
                "--set candidates: a question has one answer here; ask it several times, with other seeds."
            )
        if parameters.get("execute"):
            try:
                self.handler.sandbox()  # says now if there is none
            except self.endpoint.RequestError as error:
                raise ValueError(error.message) from error
        return task

    def close(self) -> None:
        self.pool.shutdown()
        self.handler.close()

    # ---- a chunk -------------------------------------------------------------------------

    def run(
        self,
        given: list[dict],
        alone: bool = False,
        given_up: Sequence[int] = (),
        began: Callable[[int], None] = lambda number: None,
    ) -> list[Answered]:
        """
        Answers of a chunk's items, in their order.

        Args:
            given: items as a source lists them.
            alone: one item after the other, each told to `began` first: a worker ended at this chunk, and the next one
                is to find out at which item.
            given_up: numbers of items that are not tried again.
        """
        if not alone:
            return self._answer(given)
        found = []
        for number, one in enumerate(given):
            if number in given_up:
                found.append(self._row(one["id"], [], ("crashed", DIED), 0.0))
                continue
            began(number)
            found += self._answer([one])
        return found

    def _answer(self, given: list[dict]) -> list[Answered]:
        items = [self._item(number, one) for number, one in enumerate(given)]
        asked = [one for item in items for one in item.asked]
        list(self.pool.map(self._prepare_group, self._groups(asked)))
        for batch in self._batches([one for one in asked if one.job is not None]):
            self._run(batch)
        return [self._finished(item) for item in items]

    def _item(self, number: int, given: dict) -> Item:
        start, item = time.perf_counter(), Item(given["id"])
        try:
            if "error" in given:
                raise ItemError(*given["error"])
            whole = self.table.read(given["row"]) if "row" in given else given
            defaults = self.settings["defaults"]
            inputs = {**{name: value for name, value in defaults.items() if name not in whole["inputs"]}} | whole[
                "inputs"
            ]
            parameters = self.settings["parameters"] | whole["parameters"]
            for place, one in enumerate(self._one_by_one(inputs)):
                request = {"task": self.task_name, "inputs": one, "parameters": parameters}
                item.asked.append(Asked(number, place, request))
        except ItemError as error:
            item.error = (error.code, error.message)
        item.seconds = time.perf_counter() - start
        return item

    def _one_by_one(self, inputs: dict) -> list[dict]:
        """Inputs of each request of an item: one per question, where it has a list of them."""
        if COLUMNS[self.task_name].get("question") != "texts" or "question" not in inputs:
            return [inputs]
        return [inputs | {"question": question} for question in inputs["question"]]

    # ---- steps ---------------------------------------------------------------------------

    def _groups(self, asked: list[Asked]) -> list[list[Asked]]:
        """Requests that differ in their questions alone, of one item or of several."""
        groups: dict = {}
        for one in asked:
            inputs = {name: value for name, value in one.request["inputs"].items() if name != "question"}
            same = digest_of([inputs, one.request["parameters"]]) if "question" in one.request["inputs"] else id(one)
            groups.setdefault(same, []).append(one)
        return list(groups.values())

    def _prepare_group(self, group: list[Asked]) -> None:
        """Media are read once for all questions, where the task can do that; their tensors are shared in any case."""
        first = None
        for one in group:
            start = time.perf_counter()
            try:
                question = one.request["inputs"].get("question")
                if first is not None and hasattr(self.task, "another") and self.task.can_share(first):
                    one.job = self.task.another(first, question)
                else:
                    one.job = self.handler.prepare(self._with_files(one.request))
                    share(one.job, first)
                first = first or one.job
            except Exception as error:
                self._failed(one, error)
            one.seconds += time.perf_counter() - start

    def _with_files(self, request: dict) -> dict:
        """The request with the contents of the files that it names."""
        kinds, inputs = COLUMNS[self.task_name], {}
        for name, value in request["inputs"].items():
            kind = kinds[name]
            if name == "part":
                inputs |= read_part(value)
            elif name == "calibration" and isinstance(value, str):
                inputs[name] = read_json(name, value)
            elif kind == "file" or (kind == "cloud" and isinstance(value, (str, bytes))):
                inputs[name] = content(name, value)
            elif kind == "files":
                inputs[name] = [content(f"{name}[{number}]", one) for number, one in enumerate(value)]
            elif kind == "cameras":
                inputs[name] = {camera: content(f"{name}.{camera}", one) for camera, one in value.items()}
            else:
                inputs[name] = value
        return request | {"inputs": inputs}

    def _batches(self, asked: list[Asked]) -> list[list[Asked]]:
        """Requests that run together, as in the server: the same key, and no more rows than allowed."""
        batches, open_batches = [], {}
        for one in asked:
            batch = open_batches.get(one.job.key)
            if one.job.key is None or batch is None or _rows(batch) + one.job.cost > self.settings["max_batch"]:
                batches.append(batch := [])
                if one.job.key is not None:
                    open_batches[one.job.key] = batch
            batch.append(one)
        return batches

    def _run(self, batch: list[Asked]) -> None:
        start = time.perf_counter()
        try:
            results = self.handler.run([one.job for one in batch])
        except Exception as error:
            if len(batch) > 1:  # whoever is at fault must not take the others along
                for one in batch:
                    self._run([one])
            else:
                self._failed(batch[0], error)
                batch[0].seconds += time.perf_counter() - start
            return
        each, rows = time.perf_counter() - start, _rows(batch)
        for one in batch:
            one.seconds += each * one.job.cost / rows
        list(self.pool.map(self._finish, batch, results))

    def _finish(self, one: Asked, result) -> None:
        start = time.perf_counter()
        try:
            one.answer = self.handler.finish(one.job, result)
        except Exception as error:
            self._failed(one, error)
        one.job = None  # its media are needed no longer
        one.seconds += time.perf_counter() - start

    def _failed(self, one: Asked, error: Exception) -> None:
        if isinstance(error, (ItemError, self.endpoint.RequestError)):
            one.error = (error.code, error.message)
        elif isinstance(error, ValueError) and one.job is None:  # the processors' own checks
            one.error = ("invalid_input", str(error))
        else:
            one.error = ("internal", f"{type(error).__name__}: {error}")

    def _finished(self, item: Item) -> Answered:
        error = item.error
        for one in item.asked:
            if one.error is not None and error is None:
                where = f"question {one.place + 1}: " if len(item.asked) > 1 else ""
                error = (one.error[0], where + one.error[1])
        if not item.asked and error is None:
            error = ("bad_request", "the list of questions is empty.")
        seconds = item.seconds + sum(one.seconds for one in item.asked)
        return self._row(item.id, [(one.request, one.answer) for one in item.asked], error, seconds)

    def _row(self, name: str, pairs: list, error, seconds: float) -> Answered:
        return answered(self.task_name, name, pairs, error, seconds, self.model, self.revision)


def _rows(batch: list[Asked]) -> int:
    return sum(one.job.cost for one in batch)


def share(job, other) -> None:
    """Let a job be about the media of another one where the model sees the same: `run` encodes those once."""
    import torch

    if other is None:
        return
    seen = [
        {name: value for name, value in one.inputs.items() if isinstance(value, torch.Tensor) and name not in TEXT}
        for one in (job, other)
    ]
    if seen[0].keys() == seen[1].keys() and all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0]):
        job.inputs |= seen[1]  # the copies are needed no longer
        job.shared = other.shared


def content(name: str, value: str | bytes) -> bytes:
    """Bytes of a file."""
    if isinstance(value, bytes):
        return value
    try:
        if Path(value).exists() and not Path(value).is_file():  # a pipe would be waited for
            raise ItemError("unreadable_media", f"`{name}` is no file: {value}")
        return Path(value).read_bytes()
    except OSError as error:
        raise ItemError("unreadable_media", f"`{name}`: {error.strerror or error}: {value}") from error


def digest_of(value) -> str:
    """The same for equal values: of JSON with bytes in it."""
    shortened = json.dumps(value, sort_keys=True, default=lambda content: hashlib.sha256(content).hexdigest())
    return hashlib.sha256(shortened.encode()).hexdigest()


def read_json(name: str, path: str):
    try:
        return json.loads(content(name, path).decode("utf-8-sig"))
    except ValueError as error:
        raise ItemError("unreadable_media", f"`{name}`: {path} is not JSON ({error}).") from error


def read_part(value: str | bytes) -> dict:
    """The endpoint's input of a mesh or a cloud of any kind that the library reads."""
    from modeling_dsr.cad_files import load_part

    if isinstance(value, bytes):
        return {"stl": value}
    suffix = Path(value).suffix.lower()
    if suffix in (".stl", ".npy"):
        return {"stl" if suffix == ".stl" else "points": content("part", value)}
    try:
        part = load_part(value)
    except (ValueError, OSError) as error:
        raise ItemError("unreadable_media", f"`part`: {error}") from error
    if hasattr(part, "faces"):
        return {"mesh": {"vertices": part.vertices.tolist(), "faces": part.faces.tolist()}}
    return {"points": part.tolist()}


def revision_of(repository: Path, model: str) -> str:
    """What tells one state of a model from another: the Hub's commit, or a digest of all files in a folder."""
    if repository.parent.name == "snapshots":
        return repository.name
    folder = repository / model if (repository / model / "config.json").is_file() else repository
    digest = hashlib.sha256()
    for file in sorted(one for one in folder.iterdir() if one.is_file() and not one.name.startswith(".")):
        with open(file, "rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
