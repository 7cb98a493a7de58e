"""The HTTP side: `POST /` takes what an Inference Endpoint takes; `/docs`, `/tasks`, `/health`, `/metrics` beside
it."""

import asyncio
import json
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from . import handler_module
from .batching import BatchingQueue

RETRY_SECONDS = 1
# Bytes of a request beside its files: texts, names, numbers.
JSON_OVERHEAD = 2**20


def create_app(queue: BatchingQueue) -> FastAPI:
    """An application that ends the queue, when everything is answered, as it ends itself."""
    endpoint = handler_module()
    limits = queue.handler.limits
    # Points may come as text, of up to about 60 characters each.
    max_body = max(limits.bytes * 4 // 3, 60 * limits.points) + JSON_OVERHEAD

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        await asyncio.to_thread(queue.stop)

    app = FastAPI(
        title="Spatial models", description=endpoint.__doc__.split("\n\n")[0].strip(), version="1", lifespan=lifespan
    )
    app.state.queue = queue

    def refuse(error) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_SECONDS)} if error.status == 503 else None
        return JSONResponse(error.as_json(), error.status, headers)

    async def read_body(request: Request) -> bytes:
        """The body, or a `RequestError` as soon as it is known to be too long."""
        too_large = endpoint.RequestError("too_large", f"a request may have at most {max_body} bytes.")
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > max_body:
            raise too_large
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_body:
                raise too_large
        return bytes(body)

    @app.post("/", summary="Answer a request", **_documentation(queue.handler, endpoint))
    async def answer(request: Request) -> Response:
        try:
            body = await read_body(request)
            future = queue.submit(lambda: parse(body))
            return await asyncio.to_thread(JSONResponse, await asyncio.wrap_future(future))
        except endpoint.RequestError as error:
            return refuse(error)
        except Exception:  # the queue has logged it; what it says is nobody else's business
            return refuse(endpoint.RequestError("internal", "the server failed on this request; its log says why."))

    @app.get("/tasks", summary="What can be asked for")
    def tasks() -> dict:
        return queue.handler.describe()

    @app.get("/health", summary="Whether requests are taken")
    def health() -> Response:
        content = {
            "status": "ok" if queue.alive else "stopping",
            "models": queue.handler.models,
            "pending": queue.pending,
        }
        return JSONResponse(content, 200 if queue.alive else 503)

    @app.get("/metrics", summary="Counters, in Prometheus' text format")
    def metrics() -> Response:
        return Response(queue.metrics.text(), media_type="text/plain; version=0.0.4")

    return app


def parse(body: bytes):
    """JSON of a request."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise handler_module().RequestError("bad_request", f"the body is not JSON ({error}).") from error


def _documentation(handler, endpoint) -> dict:
    """Of `POST /`, for the OpenAPI page: a schema per task, and every error."""
    described = handler.describe()
    schemas = [
        {
            "type": "object",
            "title": name,
            "description": task["about"],
            "required": ["task", "inputs"],
            "additionalProperties": False,
            "properties": {"task": {"const": name}, "inputs": task["inputs"], "parameters": task["parameters"]},
        }
        for name, task in described.items()
    ]
    by_status: dict[int, list[str]] = {}
    for code, (status, when) in endpoint.ERRORS.items():
        by_status.setdefault(status, []).append(f"`{code}`: {when}")
    return {
        "responses": {status: {"description": "; ".join(texts)} for status, texts in by_status.items()},
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": {"oneOf": schemas}}}}
        },
    }
