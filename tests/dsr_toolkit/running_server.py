"""A real server on a port of this machine, in a thread of the test's process: models are loaded once for all."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from dsr_toolkit.serving.application import create_app
from dsr_toolkit.serving.batching import BatchingQueue
from dsr_toolkit.serving.front import open_sockets
from dsr_toolkit.serving.keys import Keys
from dsr_toolkit.serving.protocol import make_server
from dsr_toolkit.serving.settings import Settings


class RunningApp:
    """
    Args:
        app: an application. settings: its own.
    """

    def __init__(self, app, settings: Settings):
        self.app, self.settings, self.queue = app, settings, app.state.queue
        sockets = open_sockets("127.0.0.1", 0)
        self.port = sockets[0].getsockname()[1]
        self.server = make_server(app, sockets, self.port, settings.read_timeout, settings.stop_limit, 100)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *exception):
        self.stop()
        self.thread.join(120)
        assert not self.thread.is_alive()

    def stop(self) -> None:
        self.server.should_exit = True

    def socket(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.settimeout(60)
        return connection

    def post(self, request, path: str = "/", **headers: str) -> tuple[int, dict, dict]:
        """Status, JSON and headers."""
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        asked = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json", **headers})
        try:
            with urllib.request.urlopen(asked, timeout=120) as reply:
                return reply.status, json.loads(reply.read()), dict(reply.headers)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()), dict(error.headers)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=60) as reply:
            return reply.read().decode()


class RunningServer(RunningApp):
    """
    Args:
        endpoint: an `EndpointHandler`. keys: name -> key. queue: options of the queue. settings: see [`Settings`].
    """

    def __init__(self, endpoint, keys=None, queue=None, **settings):
        told = Settings(str(endpoint.path), **settings)
        super().__init__(create_app(BatchingQueue(endpoint, **(queue or {})), told, Keys(keys)), told)


def head(length: int | str, path: str = "/") -> bytes:
    """Of a POST whose body has `length` bytes."""
    return f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n".encode()


def until(condition, seconds: float = 60.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)


def spans_of(call) -> dict:
    """OpenTelemetry's spans by name of what `call` does with the headers that name a trace."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    if not isinstance(trace.get_tracer_provider(), sdk.TracerProvider):  # of the whole process
        trace.set_tracer_provider(sdk.TracerProvider())
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter := InMemorySpanExporter()))
    call({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    return {span.name: span for span in exporter.get_finished_spans()}
