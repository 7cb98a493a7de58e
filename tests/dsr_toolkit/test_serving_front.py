"""The process that listens: it answers /health and /ready whatever the server does, and hands everything else over."""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from types import SimpleNamespace

import pytest

for library in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(library, reason="needs the extra [serve]")
import fastapi  # noqa: E402

from dsr_toolkit.serving import front_process  # noqa: E402
from dsr_toolkit.serving.front import open_sockets  # noqa: E402
from dsr_toolkit.serving.protocol import make_server  # noqa: E402
from tests.dsr_toolkit.running_server import RunningServer, until  # noqa: E402
from tests.dsr_toolkit.test_serving import Server  # noqa: E402
from tests.hub import samples  # noqa: E402

ORIGIN = "https://a.example"


@pytest.fixture
def server(served):
    with RunningServer(served, cors=(ORIGIN,), read_timeout=1.0) as running:
        running.get("/health")  # it is up
        yield running


class Busy:
    """Keeps the server's loop from doing anything."""

    def __init__(self, server):
        self.server, self.go, self.begun = server, threading.Event(), threading.Event()

    def __enter__(self):
        self.server.server.loop.call_soon_threadsafe(lambda: (self.begun.set(), self.go.wait(60)))
        assert self.begun.wait(60)

    def __exit__(self, *exception):
        self.go.set()


def test_a_server_that_can_do_nothing_is_alive(server):
    with Busy(server):
        assert json.loads(server.get("/health"))["status"] == "ok"
        assert json.loads(server.get("/ready?now"))["status"] == "ready"
        with server.socket() as other, pytest.raises(TimeoutError):  # what the server answers itself waits
            other.sendall(b"GET /tasks HTTP/1.1\r\nHost: test\r\n\r\n")
            other.settimeout(0.3)
            other.recv(1)


def test_a_server_that_is_silent_for_long_is_stuck():
    front = front_process.Front([], socket.socket(), 1.0, 10)
    front.told = {"/health": [200, {"status": "ok"}]}
    front.heard = time.monotonic()
    assert front._reply("/health").startswith(b"HTTP/1.1 200 OK\r\n")
    front.heard -= front_process.STALE_SECONDS + 1
    assert front._reply("/health").startswith(b"HTTP/1.1 503 ") and b'"stuck"' in front._reply("/health")


def test_states_are_those_of_the_server(server):
    until(lambda: json.loads(server.get("/health"))["pending"] == 0)
    ticket = server.queue.submit(samples.ask(0, tokens=2))
    ticket.result(60)
    server.queue.stopping = True
    try:
        with pytest.raises(urllib.error.HTTPError, match="503"):
            until(lambda: server.get("/health") is None, 10)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            until(lambda: server.get("/ready") is None, 10)
    finally:
        server.queue.stopping = False


def test_everything_else_is_the_servers(server):
    """Also a request for the same with something special about it, in pieces, or behind another on its connection."""
    asked = urllib.request.Request(server.url + "/health", headers={"Origin": ORIGIN})
    with urllib.request.urlopen(asked, timeout=60) as reply:
        assert reply.headers["access-control-allow-origin"] == ORIGIN and json.load(reply)["status"] == "ok"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for path in ("/tasks", "/health", "/ready", "/none"):
        connection.request("GET", path)
        reply = connection.getresponse()
        assert (reply.status == 404) == (path == "/none") and reply.read()
    connection.close()
    with server.socket() as client:
        client.sendall(b"GET /hea")
        time.sleep(0.2)
        client.sendall(b"lth HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
    assert server.post(samples.ask(0, tokens=2))[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"HEAD /health HTTP/1.1\r\n\r\n",
        b"GET /healthy HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nContent-Length: 3\r\n\r\n",
        b"GET /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\nGET /ready HTTP/1.1\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"\r\n\r\n",
        b"\x00\xff \x00 \xff\r\n\r\n",
    ],
)
def test_what_is_special_is_not_answered_here(head):
    assert front_process.asked_for(head) not in ("/health", "/ready")


def test_who_says_nothing_is_not_waited_for(server):
    with server.socket() as silent:
        assert silent.recv(1) == b""
    with server.socket() as gone:
        gone.close()
    assert server.get("/health")


def test_the_oldest_of_too_many_silent_connections_go():
    """Also where all of them come at once."""

    async def flooded() -> None:
        server, _theirs = socket.socketpair()
        (listener,) = open_sockets("127.0.0.1", 0)
        front = front_process.Front([listener], server, head_seconds=600.0, most=10)
        front.told, front.heard = {"/health": [200, {}]}, time.monotonic()
        clients = [socket.create_connection(listener.getsockname()) for _ in range(31)]
        running = asyncio.ensure_future(front.run())
        for client in clients:
            client.setblocking(False)
        loop = asyncio.get_running_loop()
        for client in clients[:21]:
            assert await asyncio.wait_for(loop.sock_recv(client, 1), 60) == b""
        for client in clients[21:]:
            await loop.sock_sendall(client, b"GET /health HTTP/1.1\r\n\r\n")
            assert (await asyncio.wait_for(loop.sock_recv(client, 20), 60)).startswith(b"HTTP/1.1 200")
        running.cancel()
        for one in (*clients, listener, server, _theirs):
            one.close()

    asyncio.run(flooded())


def test_without_it_the_server_listens_itself(server):
    server.server.front.process.kill()
    until(lambda: server.server.servers)
    assert server.get("/health") and server.post(samples.ask(0, tokens=2))[0] == 200


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
def test_without_it_the_server_ends_in_order(loop):
    ended = []

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        ended.append(app)

    app = fastapi.FastAPI(lifespan=lifespan)
    app.state.says = {"/health": lambda: (200, {})}
    app.state.door = SimpleNamespace(stop_reading=lambda: None)
    server = make_server(app, open_sockets("127.0.0.1", 0))
    server.config.loop = loop
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: hasattr(server.front, "process"))
    server.front.process.kill()
    until(lambda: server.servers)
    server.should_exit = True
    thread.join(60)
    assert ended == [app]


def test_a_port_that_is_taken_is_told():
    (first,) = open_sockets("127.0.0.1", 0)
    with first, pytest.raises(ValueError, match="--port"):
        open_sockets("127.0.0.1", first.getsockname()[1])
    with pytest.raises(ValueError, match="--host"):
        open_sockets("no.such.host.invalid", 0)


def test_addresses_of_a_host_that_this_machine_has_not_are_left_out(monkeypatch):
    """As `localhost` is ::1, too, in the hosts file of a container without IPv6."""
    absent, present = ((socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("192.0.2.1", "127.0.0.1"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [absent, present])
    (opened,) = open_sockets("localhost", 0)
    with opened:
        assert opened.getsockname()[0] == "127.0.0.1"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [absent])
    with pytest.raises(ValueError, match="--host localhost"):
        open_sockets("localhost", 0)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pgrep"), reason="needs pgrep")
def test_it_ends_with_the_server_however_that_ends(repository):
    with Server(repository) as server:
        found = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=True)
        children = [int(number) for number in found.stdout.split()]
        assert children
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(60)
        with pytest.raises(OSError):
            until(lambda: server.get("/health") is None, 10)
        until(lambda: not any(_lives(child) for child in children), 10)


def _lives(number: int) -> bool:
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
