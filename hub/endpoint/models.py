"""The repository behind an endpoint: its models, loaded when first asked for, and the steps of a request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from .ask import Ask
from .budget import Budget
from .cad import Cad
from .files_in import Files
from .files_out import finite
from .generation import Listener
from .reconstruct import Reconstruct
from .request import Limits, RequestError, read_fields, shown_value
from .residents import Listeners, Residents
from .scene import Scene
from .segment import Segment
from .task import Job, Task
from .toolkit import import_toolkit
from .widget import as_answer, as_request

TASKS = {task.NAME: task for task in (Ask, Reconstruct, Segment, Cad, Scene)}


# The Auto classes that open a model, by preference: with a language model's head where it has one.
AUTO_CLASSES = {
    "AutoModelForImageTextToText": AutoModelForImageTextToText,
    "AutoModelForCausalLM": AutoModelForCausalLM,
    "AutoModel": AutoModel,
}


class EndpointHandler:
    """
    Every model of a repository folder, loaded when it is first asked for.

    Args:
        path: folder of the repository: a model at the root, more in subfolders; or a folder of whole converted folders.
        limits: of requests; default: [`Limits`], with what the environment says.
        device: default a GPU if there is one. dtype: "auto" (as stored) or one of torch.
        allow_missing: confinements of the CAD sandbox that this machine may lack.
        max_models, max_model_bytes: in memory at a time; the least recently used ones are given up. Default: no limit.
    """

    def __init__(
        self,
        path: str = "",
        limits: Limits | None = None,
        device=None,
        dtype: str = "auto",
        allow_missing=(),
        max_models: int | None = None,
        max_model_bytes: int | None = None,
    ):
        self.path = Path(path)
        self.limits = limits or Limits.from_environment()
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype, self.allow_missing = dtype, allow_missing
        self.models, self._subfolders, self._facts = self._find_models()
        self.tasks = {name: task(self) for name, task in TASKS.items() if self.answering(task)}
        if not self.tasks:
            raise ValueError(
                f"{str(self.path)!r} holds no model of {sorted({t for c in TASKS.values() for t in c.MODEL_TYPES})}."
            )
        self.residents = Residents(self._load_model, max_models, max_model_bytes)
        self._listeners = Listeners(self.processor)
        self.media_budget, self._here = Budget(self.limits.in_flight), threading.local()
        self.prepared = Budget(self.limits.in_flight)  # of jobs: it is counted, and nobody waits for it here
        # Called between two tokens of an answer: a server lends the model to others there.
        self.pause: Callable[[], None] = lambda: None
        self._processors, self._configs, self._sandbox = {}, {}, None
        self._lock, self._locks = threading.RLock(), {name: threading.RLock() for name in self.models}

    def _find_models(self) -> tuple[dict[str, str], dict[str, str], dict[str, dict]]:
        """Model type, subfolder and what it can do, by name: the subfolder's, or of the root its type."""
        types, subfolders, facts = {}, {}, {}
        for file in [self.path / "config.json", *sorted(self.path.glob("*/config.json"))]:
            if not file.is_file():
                continue
            config = json.loads(file.read_text(encoding="utf-8-sig"))
            at_root = file.parent == self.path
            name = config.get("model_type") if at_root else file.parent.name
            types[name], subfolders[name] = config.get("model_type"), "" if at_root else file.parent.name
            known = config.get("auto_map") or {}
            language = config.get("text_config") is not None or "AutoModelForCausalLM" in known
            facts[name] = {
                "language": config.get("text_config") is not None,
                "auto_class": next((auto for auto in AUTO_CLASSES if auto in known and language), "AutoModel"),
            }
        return types, subfolders, facts

    def answering(self, task) -> list[str]:
        """Names of the models that can do a task, best first."""
        return [name for wanted in task.MODEL_TYPES for name, kind in self.models.items() if kind == wanted]

    # ---- a request, step by step ---------------------------------------------------------

    def __call__(self, data: dict) -> dict | list[dict]:
        job = self.prepare(data)
        return self.finish(job, self.run([job])[0])

    def prepare(self, data: dict, listener: Listener | None = None) -> Job:
        """
        Read, check and process a request; whatever is wrong with it is found here.

        Args:
            listener: follows the request until it is answered, and may give it up.
        """
        listener = listener or Listener()
        self._here.listener, self._here.files = listener, []
        try:
            job = self._prepare(data)
            job.listener = listener
            kept = sum(value.nbytes for value in job.inputs.values() if isinstance(value, torch.Tensor))
            self.prepared.hold(kept).release_with(job)
            return job
        finally:
            for files in self._here.files:
                files.release()
            self._here.files = []

    def _prepare(self, data: dict) -> Job:
        if not isinstance(data, dict):
            raise RequestError("bad_request", f"a request must be a JSON object, got {shown_value(data)}.")
        plain = as_request(data, self.limits) if "ask" in self.tasks else None
        data = plain or data
        unknown = sorted(str(key)[:80] for key in data if key not in ("task", "inputs", "parameters"))
        if unknown:
            raise RequestError(
                "bad_request", f"unknown fields {unknown[:5]}; a request has task, inputs and parameters."
            )
        name = data.get("task")
        if not isinstance(name, str):
            raise RequestError(
                "bad_request", f"`task` must be one of {', '.join(self.tasks)}, got {shown_value(name)}."
            )
        if name not in self.tasks:
            raise RequestError("unknown_task", f"`task` must be one of {', '.join(self.tasks)}, got {name[:80]!r}.")
        task = self.tasks[name]
        inputs = read_fields("inputs", data.get("inputs"), task.INPUTS, self.limits)
        parameters = read_fields("parameters", data.get("parameters"), task.PARAMETERS, self.limits)
        model = self._choose(task, parameters["model"])
        try:
            job = task.prepare(model, inputs, parameters)
            job.plain = plain is not None
            return job
        except RequestError:
            raise
        except ValueError as error:  # the processors' own checks
            raise RequestError("invalid_input", str(error)) from error

    def run(self, jobs: list[Job]) -> list:
        """Results of jobs of one key, in their order. One thread computes at a time; between tokens, see `pause`."""
        with self.residents.using(jobs[0].model):
            return self.tasks[jobs[0].task].run(jobs)

    def finish(self, job: Job, result) -> dict | list[dict]:
        """The answer as JSON; numbers that are not finite, which JSON does not know, are null."""
        answer = self.tasks[job.task].finish(job, result)
        return as_answer(answer) if job.plain else finite({"task": job.task, "model": job.model, **answer})

    def files(self, processor) -> Files:
        """The reader of the files of the request that this thread prepares; what it unpacks counts until then."""
        listener = self._here.listener

        def check() -> None:
            if listener.cancelled:
                raise RequestError("cancelled", "the request was given up.")

        files = Files(self.limits, processor.media, self.media_budget, check)
        self._here.files.append(files)
        return files

    def _choose(self, task: Task, wanted: str | None) -> str:
        able = self.answering(task)
        if wanted is None:
            return able[0]
        if wanted not in able:
            raise RequestError(
                "bad_request", f"`parameters.model` must be one of {', '.join(able)}, got {wanted[:80]!r}."
            )
        return wanted

    # ---- models --------------------------------------------------------------------------

    def has_language_model(self, name: str) -> bool:
        return self._facts[name]["language"]

    def knows_views(self, name: str) -> bool:
        """Whether a reconstruction model was made for synchronised views."""
        return getattr(self.config(name), "is_multiview", False)

    @property
    def loaded(self) -> int:
        """How many models are in memory."""
        return len(self.residents)

    def processing(self, name: str) -> threading.RLock:
        """Held while a processor works: fast tokenizers do not share their state between threads."""
        return self._locks[name]

    def config(self, name: str):
        if name not in self._configs:
            self._configs[name] = self._load(AutoConfig, name)
        return self._configs[name]

    def processor(self, name: str):
        if name not in self._processors:
            with self._lock:
                if name not in self._processors:
                    self._processors[name] = self._load(AutoProcessor, name)
        return self._processors[name]

    def listening(self, name: str):
        """A processor that makes text of tokens while the model writes, and nothing else."""
        return self._listeners.get(name)

    def text_so_far(self, task: str, model: str, tokens: list[int], parameters: dict) -> str:
        """What an answer says, by the tokens that are written so far."""
        return self.tasks[task].text(self.listening(model), tokens, parameters)

    def model(self, name: str):
        return self.residents.get(name)

    def _load_model(self, name: str):
        auto = AUTO_CLASSES[self._facts[name]["auto_class"]]
        return self._load(auto, name, dtype=self.dtype, device_map=self.device).eval()

    def _load(self, auto, name: str, **options):
        """A model's own folder may be whole, code and all; else the code is at the root."""
        path, subfolder = self.path, self._subfolders[name]
        if any((path / subfolder).glob("configuration_*.py")):
            path, subfolder = path / subfolder, ""
        return auto.from_pretrained(path, subfolder=subfolder, trust_remote_code=True, **options)

    # ---- CAD programs --------------------------------------------------------------------

    def sandbox(self):
        """The sandbox of this library's toolkit, started when it is first needed."""
        with self._lock:
            if self._sandbox is None:
                try:
                    sandbox = import_toolkit("dsr_toolkit.cad.sandbox").Sandbox
                except ImportError as error:
                    raise RequestError(
                        "not_available",
                        f"`execute` needs this library's toolkit with its extra [cad] on the server ({error}).",
                    ) from error
                try:
                    self._sandbox = sandbox(allow_missing=self.allow_missing)
                except OSError as error:
                    raise RequestError("not_available", str(error)) from error
            return self._sandbox

    def close(self) -> None:
        """End what runs beside this process."""
        with self._lock:
            if self._sandbox is not None:
                self._sandbox.close()
                self._sandbox = None

    # ---- for people and programs ---------------------------------------------------------

    def describe(self) -> dict:
        """Tasks with their models, and the JSON schemas of their inputs and parameters."""
        described = {}
        for name, task in self.tasks.items():
            described[name] = {"about": task.ABOUT, "models": self.answering(task)}
            for part, known in (("inputs", task.INPUTS), ("parameters", task.PARAMETERS)):
                properties = {key: one.schema(self.limits) for key, one in known.items()}
                described[name][part] = {"type": "object", "properties": properties, "additionalProperties": False}
        return described
