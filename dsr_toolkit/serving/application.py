"""
The HTTP side: `POST /` takes what an Inference Endpoint takes, `POST /v1/chat/completions` what OpenAI's clients send.

`/docs`, `/tasks`, `/health`, `/ready` and `/metrics` are beside them. [`build`] makes an application of plain settings.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response

from . import handler_module
from .admission import Admission
from .batching import BatchingQueue, give_memory_back
from .docs_page import docs_page
from .door import ID_HEADER, Door
from .keys import Keys
from .logs import where
from .openai_requests import chat_models
from .openai_route import model_list, openai_dialect
from .own_route import own_dialect
from .settings import Settings

logger = logging.getLogger(__name__)


def build(settings: dict | Settings) -> FastAPI:
    """
    The whole application of plain settings: handler, queue and routes. Models of `preload` load in the background.

    Args:
        settings: see [`Settings`].
    """
    settings = settings if isinstance(settings, Settings) else Settings.of(settings)
    keys = Keys.read(settings.keys_file)
    handler = make_handler(settings)
    check_preload(handler, settings.preload)
    queue = BatchingQueue(handler, settings.max_batch, settings.max_wait, settings.max_requests, settings.workers)
    return create_app(queue, settings, keys)


def make_handler(settings: Settings):
    """The repository's handler; fetches the repository where it is a name on the Hub."""
    endpoint, source = handler_module(), settings.model
    if not Path(source).is_dir():
        from huggingface_hub import snapshot_download

        source = snapshot_download(source)
    limits = endpoint.Limits.from_environment(**settings.limits)
    return endpoint.EndpointHandler(
        source, limits, settings.device, settings.dtype, settings.allow_missing, settings.max_models,
        settings.max_model_bytes,
    )  # fmt: skip


def check_preload(handler, names: tuple[str, ...]) -> None:
    if unknown := [name for name in names if name not in handler.models]:
        raise ValueError(f"`preload` knows the models {', '.join(handler.models)}, got {unknown[0]!r}.")


def create_app(
    queue: Admission, settings: Settings | None = None, keys: Keys | None = None, preloading=None
) -> FastAPI:
    """
    An application that ends the queue, when everything is answered, as it ends itself.

    Args:
        preloading: whether the models are there; default: it loads them into this process, see [`Preloading`].
    """
    endpoint, handler = handler_module(), queue.handler
    settings = settings or Settings(str(handler.path))
    door = Door(queue, settings, keys or Keys())
    preloading = preloading or Preloading(handler, settings.preload)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        await asyncio.to_thread(give_memory_back)  # now, and not while somebody waits
        preloading.start()
        yield
        door.stop_reading()
        app.state.ended = await asyncio.to_thread(queue.stop, settings.stop_limit)
        door.bodies.close()

    app = FastAPI(
        title="Spatial models", description=endpoint.__doc__.split("\n\n")[0].strip(), version="1", lifespan=lifespan,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.queue, app.state.door, app.state.ended = queue, door, True
    own, openai = own_dialect(handler), openai_dialect(handler)
    created = int(time.time())

    @app.post("/", summary="Answer a request", **_documentation(handler, endpoint))
    async def answer(request: Request) -> Response:
        return await door.pass_through(request, own)

    @app.post("/v1/chat/completions", summary="OpenAI's chat completions", responses=_statuses(endpoint))
    async def complete(request: Request) -> Response:
        return await door.pass_through(request, openai)

    def known(request: Request) -> Response | None:
        """What to say to somebody without a key."""
        try:
            door.keys.client(request.headers, "-")
        except endpoint.RequestError as error:
            return door.refusal(error, openai, request.headers.get(ID_HEADER, "-")[:64])
        return None

    @app.get("/v1/models", summary="The models that chat")
    async def models(request: Request) -> Response:
        return known(request) or JSONResponse(model_list(handler, created))

    @app.get("/v1/models/{name}", summary="One of them")
    async def model(request: Request, name: str) -> Response:
        found = [one for one in model_list(handler, created)["data"] if one["id"] == name]
        missing = endpoint.RequestError("unknown_task", f"there is no model {name[:80]!r} that chats.")
        return known(request) or (JSONResponse(found[0]) if found else door.refusal(missing, openai, "-"))

    @app.get("/tasks", summary="What can be asked for")
    async def tasks() -> dict:
        return handler.describe()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(handler.describe(), endpoint.ERRORS, chat_models(handler)))

    def health() -> tuple[int, dict]:
        content = {"status": "ok" if queue.alive else "stopping", "models": handler.models, "pending": queue.pending}
        return 200 if queue.alive else 503, content

    def ready() -> tuple[int, dict]:
        state = preloading.state if queue.alive else "stopping"
        return 200 if state == "ready" else 503, {"status": state, **preloading.facts()}

    app.state.says = {"/health": health, "/ready": ready}

    @app.get("/health", summary="Whether the server is alive and takes requests")
    async def health_route() -> Response:
        status, content = health()
        return JSONResponse(content, status)

    @app.get("/ready", summary="Whether the models that were to be loaded are loaded")
    async def ready_route() -> Response:
        status, content = ready()
        return JSONResponse(content, status)

    @app.get("/metrics", summary="Counters, in Prometheus' text format")
    async def metrics(request: Request) -> Response:
        return known(request) or Response(queue.metrics.text(), media_type="text/plain; version=0.0.4")

    if settings.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", ID_HEADER], expose_headers=[ID_HEADER],
        )  # fmt: skip
    return app


class Preloading:
    """Loads models beside the server that is up already."""

    def __init__(self, handler, names: tuple[str, ...]):
        self.handler, self.names = handler, tuple(names)
        self.state = "loading" if self.names else "ready"

    def start(self) -> None:
        if self.names:
            threading.Thread(target=self._load, name="preload", daemon=True).start()

    def facts(self) -> dict:
        return {"loaded": self.handler.loaded}

    def _load(self) -> None:
        try:
            for name in self.names:
                self.handler.processor(name), self.handler.model(name)
        except Exception as error:
            logger.error("a model could not be loaded: %s", where(error))
            self.state = "failed"
        else:
            self.state = "ready"


def _statuses(endpoint) -> dict:
    """Every error by its status, for the OpenAPI document."""
    by_status: dict[int, list[str]] = {}
    for code, (status, when) in endpoint.ERRORS.items():
        by_status.setdefault(status, []).append(f"`{code}`: {when}")
    return {status: {"description": "; ".join(texts)} for status, texts in by_status.items()}


def _documentation(handler, endpoint) -> dict:
    """Of `POST /`, for the OpenAPI document: a schema per task, and every error."""
    schemas = [
        {
            "type": "object",
            "title": name,
            "description": task["about"],
            "required": ["task", "inputs"],
            "additionalProperties": False,
            "properties": {
                "task": {"const": name}, "inputs": task["inputs"], "parameters": task["parameters"],
                "stream": {"type": "boolean", "default": False},
            },
        }
        for name, task in handler.describe().items()
    ]  # fmt: skip
    return {
        "responses": _statuses(endpoint),
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": {"oneOf": schemas}}}}
        },
    }
