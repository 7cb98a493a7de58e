"""
Replicas of a server on Ray Serve. One process keeps the door, the same that a server without Ray has: keys, shares,
limits, bodies, names and logs of requests. It sends each request, parsed, to a replica, and hears its events.

    client ─ application (door, routes) ─ RayQueue ─ Ray's router ─ Replica (queue, handler, models)

Ray gives a request to the replica with fewer on their way, or, where replicas hold only some of the models
(`max_models`), to one that holds its model. Requests of a replica that ends get the error "interrupted"; the others
go on, and Ray starts another in its place.

[`application`] builds the same for Ray's own `serve deploy`: there the door is a deployment, too, behind Ray's proxies.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from . import handler_module
from .admission import Admission
from .application import check_preload, create_app, make_handler
from .batching import GIVE_UP_SECONDS
from .keys import Keys
from .replica import Replica
from .settings import Settings
from .tickets import Ticket
from .tracing import past_spans

logger = logging.getLogger(__name__)

DEPLOYMENT, DOOR = "Replica", "Door"
LOOK_SECONDS = 0.5  # how often the number of replicas is asked for


@dataclass
class Scale:
    """
    Args:
        replicas: processes with models. max_replicas: up to which Ray starts more while many requests wait; None: no
            more. gpus_per_replica: GPUs of each, or a part of one.
    """

    replicas: int = 1
    max_replicas: int | None = None
    gpus_per_replica: float = 0.0

    def __post_init__(self):
        if self.replicas < 1:
            raise ValueError(f"`replicas` must be at least 1, got {self.replicas}.")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"`max_replicas` must be at least `replicas`, {self.replicas}, got {self.max_replicas}.")
        gpus = self.gpus_per_replica
        if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
            raise ValueError(f"`gpus_per_replica` must be a whole number or a part of one, got {gpus}.")

    @property
    def most(self) -> int:
        return self.max_replicas or self.replicas


def replicas_of(settings: Settings, scale: Scale):
    """The deployment of the replicas, bound to its settings."""
    options: dict = {
        "name": DEPLOYMENT, "max_ongoing_requests": settings.max_requests,
        "graceful_shutdown_timeout_s": settings.stop_limit, "graceful_shutdown_wait_loop_s": 0.2,
        "ray_actor_options": {"num_cpus": 1, "num_gpus": scale.gpus_per_replica},
    }  # fmt: skip
    if scale.most > scale.replicas:
        options["autoscaling_config"] = {
            "min_replicas": scale.replicas, "max_replicas": scale.most, "target_ongoing_requests": settings.max_batch,
        }  # fmt: skip
    else:
        options["num_replicas"] = scale.replicas
    return serve.deployment(Replica, **options).bind(asdict(settings), _by_model(settings))


def _whole(settings: Settings) -> Settings:
    """With every limit, as this process's environment has them: those of other nodes may differ."""
    return replace(settings, limits=asdict(handler_module().Limits.from_environment(**settings.limits)))


def _by_model(settings: Settings) -> bool:
    """Where every replica may hold every model, any of them is as good: Ray looks at their load alone."""
    return settings.max_models is not None or settings.max_model_bytes is not None


class RayQueue(Admission):
    """
    A queue whose requests are answered by replicas.

    Args:
        handler: knows the repository's tasks, models and processors; it loads no model.
        replicas: the handle of their deployment. settings, scale: of them.
        app_name: of Ray's application.
    """

    def __init__(self, handler, replicas, settings: Settings, scale: Scale, app_name: str):
        self.watch = Watch(app_name)
        super().__init__(handler, settings.max_requests * scale.most)
        self.by_model = _by_model(settings)
        self._method = replicas.answer.options(stream=True)
        # A thread per request, which mostly waits.
        self._pool = ThreadPoolExecutor(self.max_requests, thread_name_prefix="replica")
        self._replies: dict[Ticket, serve.handle.DeploymentResponseGenerator] = {}

    def gauges(self) -> dict[str, tuple[str, Callable[[], float]]]:
        return super().gauges() | {"dsr_replicas": ("replicas that take requests", lambda: self.watch.running)}

    def enter(
        self, data, ticket: Ticket | None = None, large: bool = False, then: Callable[[], None] = lambda: None
    ) -> Ticket:
        ticket = ticket or Ticket()
        with self._changed:
            self._admit(ticket)
        ticket.on_cancel = self._given_up
        self._pool.submit(self._ask, ticket, data, Once(then))
        return ticket

    def stop(self, limit: float | None = None) -> bool:
        """As a [`BatchingQueue`]'s: finish what was accepted, or give it up after `limit` seconds."""
        with self._changed:
            self.stopping = True
            ended = self._changed.wait_for(lambda: not self.pending, limit)
        if not ended:
            self.give_up_all()
            with self._changed:
                ended = self._changed.wait_for(lambda: not self.pending, GIVE_UP_SECONDS)
        self._pool.shutdown(wait=ended, cancel_futures=not ended)
        self.watch.stop()
        self.handler.close()
        return ended

    # ---- threads -------------------------------------------------------------------------

    def _ask(self, ticket: Ticket, data, then: Once) -> None:
        try:
            answer = self._answer(ticket, data() if callable(data) else data, then)
        except BaseException as error:
            self._end(ticket, error=self._meaning(ticket, error))
        else:
            self._end(ticket, answer)
        finally:
            then()
            self._replies.pop(ticket, None)

    def _answer(self, ticket: Ticket, data, then: Once):
        self._check_wanted(ticket)
        if isinstance(data, dict) and data.get("task") in tuple(self.handler.tasks):
            ticket.task = data["task"]
        method = self._method
        if self.by_model and (model := self._model_of(data)):
            method = method.options(multiplexed_model_id=model)
        replies = self._replies[ticket] = method.remote(data, ticket.name, ticket.on_token is not None)
        del data
        if ticket.cancelled:
            replies.cancel()
        for kind, *facts in replies:
            if kind == "read":
                ticket.task, ticket.model, ticket.parameters = facts
                then()
                if ticket.on_token is not None and ticket.model in self.handler.models:
                    self.handler.listening(ticket.model)  # not when the first token waits for it
            elif kind == "token":
                ticket.token(*facts)
            elif kind == "ran":
                for batch in facts[0]:
                    self.metrics.ran(*batch)
            elif kind == "stages":
                past_spans(ticket, *facts)
            elif kind == "answer":
                answer, seconds = facts
                ticket.seconds = seconds | ticket.seconds
                return answer
            else:
                code, message, place, seconds = facts
                ticket.seconds = seconds | ticket.seconds
                raise Fault(place) if place else self.error(code, message)
        raise self.error("interrupted", INTERRUPTED)

    def _meaning(self, ticket: Ticket, error: BaseException) -> BaseException:
        """What became of a request, where Ray says it."""
        if hasattr(error, "code") or isinstance(error, Fault):
            return error
        if ticket.cancelled:
            return self.error("cancelled", "the request was given up.")
        if isinstance(error, RayActorError):
            return self.error("interrupted", INTERRUPTED)
        if isinstance(error, (BackPressureError, DeploymentUnavailableError)):
            return self.error("overloaded", "no replica takes requests; try again in a moment.")
        return error

    def _model_of(self, data) -> str | None:
        """The model that a request is for, if that can be told."""
        if not isinstance(data, dict):
            return None
        parameters, task = data.get("parameters"), data.get("task", "ask")
        named = parameters.get("model") if isinstance(parameters, dict) else None
        able = self.handler.answering(self.handler.tasks[task]) if task in tuple(self.handler.tasks) else []
        return named if named in able else next(iter(able), None)

    def _given_up(self, ticket: Ticket) -> None:
        if (replies := self._replies.get(ticket)) is not None:
            replies.cancel()


INTERRUPTED = "the process that worked on it has ended, and nothing of its work is left; ask again."


class Fault(Exception):
    """Of a replica: where it came from, without what it says."""

    def __init__(self, place: str):
        super().__init__(place)
        self.place = place


class Once:
    """Calls a function the first time it is called."""

    def __init__(self, call: Callable[[], None]):
        self.call: Callable[[], None] | None = call

    def __call__(self) -> None:
        call, self.call = self.call, None
        if call is not None:
            call()


class Watch:
    """How many replicas take requests, asked for beside everything else; what `/ready` says."""

    def __init__(self, app_name: str):
        self.app_name, self.running, self.state = app_name, 0, "loading"
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def facts(self) -> dict:
        return {"replicas": self.running}

    def _look(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            try:
                told = serve.status().applications.get(self.app_name)
            except Exception:  # Ray's controller may be starting again; the replicas go on without it
                logger.warning("Ray's controller does not answer")
                continue
            if told is None:
                continue
            deployment = told.deployments.get(DEPLOYMENT)
            self.running = deployment.replica_states.get("RUNNING", 0) if deployment else 0
            failed = told.status in ("DEPLOY_FAILED", "UNHEALTHY")
            self.state = "ready" if self.running else "failed" if failed else "loading"


def start(address: str | None) -> bool:
    """Connect to a cluster, or start one of this machine; whether it is ours."""
    ours = not ray.is_initialized()
    if ours:
        options = {"log_to_driver": False, "logging_level": logging.ERROR}
        options |= {} if address else {"include_dashboard": False}
        ray.init(address=address or "local", **options)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    return ours


@contextmanager
def replicated(settings: dict, scale: Scale, address: str | None = None):
    """
    The application of a server whose replicas run on Ray, for as long as the context lasts.

    Args:
        settings: see [`Settings`]. address: of a cluster that runs; default: one of this machine.

    Raises:
        ValueError: the settings are wrong, or the cluster is too small.
    """
    told = _whole(Settings.of(settings))
    keys, handler = Keys.read(told.keys_file), make_handler(told)
    check_preload(handler, told.preload)
    ours, name = start(address), f"dsr-{uuid.uuid4().hex[:8]}"
    try:
        _check_size(ray.cluster_resources(), scale)
        target = serve.RunTarget(replicas_of(told, scale), name, None)
        (replicas,) = serve.run_many([target], wait_for_applications_running=False)
        queue = RayQueue(handler, replicas, told, scale, name)
        yield create_app(queue, told, keys, queue.watch)
    finally:
        if ours:
            serve.shutdown()
            ray.shutdown()
        else:
            serve.delete(name)


def _check_size(there: dict, scale: Scale) -> None:
    for name, wanted in (("CPU", scale.replicas), ("GPU", scale.replicas * scale.gpus_per_replica)):
        if there.get(name, 0) < wanted:
            raise ValueError(
                f"{scale.replicas} replicas want {wanted:g} {name}s; the cluster has {there.get(name, 0):g}. See "
                "--replicas, --gpus-per-replica."
            )


def application(arguments: dict):
    """
    For the configuration file of `serve deploy`; see deploy/serve.yaml.

    Args:
        arguments: `settings`, see [`Settings`], and what [`Scale`] knows.
    """
    settings = _whole(Settings.of(arguments["settings"]))
    scale = Scale(**{name: value for name, value in arguments.items() if name != "settings"})

    def door():
        """Called in the door's own process."""
        name = serve.get_replica_context().app_name
        handler = make_handler(settings)
        check_preload(handler, settings.preload)
        queue = RayQueue(handler, serve.get_deployment_handle(DEPLOYMENT, name), settings, scale, name)
        return create_app(queue, settings, Keys.read(settings.keys_file), queue.watch)

    options = {
        "name": DOOR, "max_ongoing_requests": 10 * settings.max_requests * scale.most,
        "graceful_shutdown_timeout_s": settings.stop_limit, "ray_actor_options": {"num_cpus": 0},
    }  # fmt: skip
    return serve.deployment(serve.ingress(door)(), **options).bind(replicas_of(settings, scale))
