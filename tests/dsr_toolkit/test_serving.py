"""The batching queue and the application around it, on tiny models of every kind."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dsr_toolkit.cli import main
from dsr_toolkit.commands.serve import read_limits
from dsr_toolkit.serving import handler_module
from tests.hub import samples
from tests.hub.compare import different

for library in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
    pytest.importorskip(library, reason="needs the extras [serve] and [test]")
testclient = importlib.import_module("fastapi.testclient")
application = importlib.import_module("dsr_toolkit.serving.application")
batching = importlib.import_module("dsr_toolkit.serving.batching")


@pytest.fixture
def endpoint(served):
    return served


@pytest.fixture
def queue(endpoint):
    with batching.BatchingQueue(endpoint, max_wait=0.5, max_requests=12) as queue:
        yield queue


class Held:
    """Keeps the model busy, so that what comes meanwhile has to wait."""

    def __init__(self, endpoint):
        self.endpoint, self.go = endpoint, threading.Event()

    def __enter__(self):
        run = self.endpoint.run
        self.endpoint.run = lambda jobs: (self.go.wait(60), run(jobs))[1]
        return self

    def __exit__(self, *exception):
        self.go.set()
        del self.endpoint.run


def calls_of(model) -> list[int]:
    """Rows of each call of `generate` from now on."""
    rows, generate = [], model.generate

    def counted(*args, **kwargs):
        rows.append(len(kwargs["input_ids"]))
        return generate(*args, **kwargs)

    model.generate = counted
    return rows


# ---- queue -------------------------------------------------------------------------------


def test_the_model_is_called_fewer_times_than_there_are_requests(endpoint, queue):
    requests = [samples.ask(seed) for seed in range(10)]
    alone = [endpoint(request) for request in requests]
    model = endpoint.model("dsr")
    rows = calls_of(model)
    answers = [future.result(60) for future in [queue.submit(request) for request in requests]]
    del model.generate
    assert sum(rows) == 10 and len(rows) <= 5, rows
    assert [different(answer, expected) for answer, expected in zip(answers, alone)] == [[]] * 10
    assert queue.metrics.value("dsr_model_calls_total", task="ask") == len(rows)
    assert queue.metrics.value("dsr_requests_total", task="ask", code="ok") == 10


def test_requests_of_different_kinds_do_not_wait_for_each_other(endpoint, queue):
    requests = [samples.ask(1), samples.cad_recode(), samples.ask(3), samples.segment_answer(), samples.cad(1)]
    answers = [future.result(60) for future in [queue.submit(request) for request in requests]]
    assert [different(answer, endpoint(request)) for answer, request in zip(answers, requests)] == [[]] * 5


def test_a_batch_is_no_larger_than_allowed(endpoint):
    with batching.BatchingQueue(endpoint, max_batch=3, max_wait=0.5) as queue:
        model = endpoint.model("cad_recode")
        rows = calls_of(model)
        futures = [queue.submit(samples.cad_recode(seed, candidates=2 if seed else 1)) for seed in range(4)]
        [future.result(60) for future in futures]
        del model.generate
    assert max(rows) <= 3 and sum(rows) == 7


def test_a_lone_request_does_not_wait(endpoint):
    with batching.BatchingQueue(endpoint, max_wait=30) as queue:
        start = time.perf_counter()
        queue.submit(samples.cad_recode()).result(60)
        assert time.perf_counter() - start < 10


def test_broken_requests_fail_alone(endpoint, queue):
    good, (bad, code) = samples.ask(1), samples.broken()["truncated png"]
    futures = [queue.submit(request) for request in (good, bad, good)]
    assert futures[0].result(60) == futures[2].result(60) == endpoint(good)
    assert futures[1].exception(60).code == code


def test_what_fails_in_the_model_takes_no_other_request_along(endpoint, queue):
    """Tokens that the vocabulary does not have make the batch fail; the rest of it is answered all the same."""
    prepare = endpoint.prepare

    def spoiling(data, listener):
        job = prepare(data, listener)
        if data["inputs"]["question"].startswith("Which"):
            job.inputs["input_ids"][0, 0] = 10**6
        return job

    endpoint.prepare = spoiling
    try:
        futures = [queue.submit(samples.ask(seed)) for seed in (1, 3, 5)]
        assert isinstance(futures[1].exception(60), Exception)
        answers = [futures[0].result(60), futures[2].result(60)]
    finally:
        del endpoint.prepare
    assert [different(answer, endpoint(samples.ask(seed))) for answer, seed in zip(answers, (1, 5))] == [[], []]
    assert queue.metrics.value("dsr_requests_total", task="ask", code="internal") == 1 and queue.alive


def test_too_many_requests_are_refused_and_room_comes_back(endpoint, queue):
    with Held(endpoint) as held:
        futures = [queue.submit(samples.cad_recode(seed)) for seed in range(12)]
        with pytest.raises(handler_module().RequestError) as caught:
            queue.submit(samples.cad_recode())
        assert caught.value.code == "overloaded" and caught.value.status == 503
        held.go.set()
        [future.result(60) for future in futures]
    assert queue.submit(samples.cad_recode()).result(60) and queue.pending == 0


def test_stopping_finishes_what_was_accepted(endpoint):
    queue = batching.BatchingQueue(endpoint)
    futures = [queue.submit(samples.ask(seed)) for seed in (1, 3, 5)]
    queue.stop()
    assert all(future.done() and future.result()["answer"] for future in futures)
    with pytest.raises(handler_module().RequestError, match="stopping"):
        queue.submit(samples.ask(1))
    assert not queue.alive and queue.pending == 0


@pytest.mark.parametrize("options", [{"max_batch": 0}, {"max_wait": -1}, {"max_requests": 0}, {"workers": 0}])
def test_settings_are_checked(endpoint, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        batching.BatchingQueue(endpoint, **options)


# ---- application -------------------------------------------------------------------------


@pytest.fixture
def client(endpoint):
    with testclient.TestClient(application.create_app(batching.BatchingQueue(endpoint))) as client:
        yield client


def test_an_answer_comes_over_http(client, endpoint):
    reply = client.post("/", json=samples.ask(1))
    assert reply.status_code == 200 and different(reply.json(), endpoint(samples.ask(1))) == []


@pytest.mark.parametrize("name", ["unknown task", "truncated png", "100 megapixels", "few points", "path", "no task"])
def test_errors_are_http_errors(client, name):
    request, code = samples.broken()[name]
    reply = client.post("/", json=request)
    assert reply.status_code == handler_module().ERRORS[code][0]
    assert reply.json()["error"]["code"] == code and reply.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'"ask"', b"[]", b"1e999", b'{"task": NaN}'])
def test_what_is_no_request_is_refused(client, body):
    assert client.post("/", content=body).json()["error"]["code"] == "bad_request"


def test_nan_points_are_refused_over_http(client):
    request, code = samples.broken()["NaN points"]
    assert client.post("/", content=json.dumps(request)).json()["error"]["code"] == code


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_are_limited(repository, chunked):
    endpoint = handler_module().EndpointHandler(str(repository), handler_module().Limits(bytes=1000, points=10))
    body = b" " * 1_100_000
    with testclient.TestClient(application.create_app(batching.BatchingQueue(endpoint))) as client:
        reply = client.post("/", content=iter([body[:500_000], body[500_000:]]) if chunked else body)
    assert reply.status_code == 413 and reply.json()["error"]["code"] == "too_large"


def test_overload_is_a_503_that_says_when_to_come_back(endpoint):
    queue = batching.BatchingQueue(endpoint, max_requests=1)
    with testclient.TestClient(application.create_app(queue)) as client, Held(endpoint) as held:
        first = queue.submit(samples.cad_recode())
        reply = client.post("/", json=samples.cad_recode())
        assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
        held.go.set()
        first.result(60)


def test_faults_of_the_server_are_not_told_to_the_world(endpoint, client):
    def broken(data, listener):
        raise RuntimeError("a secret of the server")

    endpoint.prepare = broken
    try:
        reply = client.post("/", json=samples.ask(1))
    finally:
        del endpoint.prepare
    assert reply.status_code == 500 and "secret" not in reply.text


def test_health_and_metrics(client):
    assert client.get("/health").json()["status"] == "ok"
    client.post("/", json=samples.cad_recode())
    client.post("/", json={"task": "sing"})
    text = client.get("/metrics").text
    assert 'dsr_requests_total{code="ok",task="cad"} 1.0' in text
    assert 'dsr_requests_total{code="unknown_task",task="none"} 1.0' in text
    assert "dsr_requests_pending 0.0" in text
    client.app.state.queue.stop()
    assert client.get("/health").status_code == 503


def test_the_openapi_page_describes_every_task(client, endpoint):
    content = client.get("/openapi.json").json()["paths"]["/"]["post"]
    (schema,) = content["requestBody"]["content"].values()
    assert [one["title"] for one in schema["schema"]["oneOf"]] == list(endpoint.tasks)
    assert {"400", "404", "413", "415", "422", "503"} <= set(content["responses"])
    assert client.get("/docs").status_code == 200 and set(client.get("/tasks").json()) == set(endpoint.tasks)


# ---- command -----------------------------------------------------------------------------


def test_limits_on_the_command_line():
    limits = handler_module().Limits.from_environment(
        **read_limits(["pixels=100", "frames=2"], handler_module().Limits)
    )
    assert (limits.pixels, limits.frames, limits.points) == (100, 2, 200_000)
    for wrong in ("pixels=many", "pixels", "atoms=3"):
        with pytest.raises(ValueError, match="NAME=N"):
            read_limits([wrong], handler_module().Limits)


def test_what_is_wrong_is_told_before_anything_is_served(repository, capsys):
    assert main(["serve", "--model", str(repository), "--port", "99999"]) == 2
    assert main(["serve", "--model", str(repository), "--preload", "gpt"]) == 2
    assert main(["serve", "--model", str(repository), "--limit", "atoms=3"]) == 2
    assert "--port" in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """`dsr serve` in a process of its own."""

    timeout = 300.0  # seconds that an answer may take

    def __init__(self, repository, *options: str):
        self.port = free_port()
        command = [
            sys.executable,
            "-m",
            "dsr_toolkit.cli",
            "serve",
            "--model",
            str(repository),
            "--port",
            str(self.port),
        ]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self.process = subprocess.Popen(
            [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.log: list[bytes] = []
        threading.Thread(target=lambda: self.log.extend(self.process.stdout), daemon=True).start()

    def __enter__(self):
        for _ in range(3000):  # libraries take their time where others work, too
            try:
                self.get("/health")
                return self
            except OSError:
                assert self.process.poll() is None, b"".join(self.log).decode()
                time.sleep(0.1)
        raise TimeoutError(b"".join(self.log).decode())

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as reply:
            return reply.read()

    def post(self, request: dict | bytes) -> tuple[int, dict]:
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", body, timeout=self.timeout) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest.mark.slow
def test_a_stopped_server_answers_what_it_accepted(repository):
    with Server(repository) as server, ThreadPoolExecutor(6) as clients:
        server.post(samples.ask(0))
        futures = [clients.submit(server.post, samples.ask(seed, tokens=400)) for seed in range(6)]
        while json.loads(server.get("/health"))["pending"] < 6:
            assert not any(future.done() for future in futures)
            time.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        replies = [future.result(120) for future in futures]
        assert server.process.wait(60) == 0 or server.process.returncode == -signal.SIGTERM
    assert [status for status, _ in replies] == [200] * 6 and all(len(reply["tokens"]) > 100 for _, reply in replies)
    with pytest.raises(OSError):
        server.get("/health")


# ---- load --------------------------------------------------------------------------------


def mixed_requests(count: int, broken_share: float) -> list[tuple[dict, str | None]]:
    """(request, code of its error or None); every kind of good and of broken request, in random order."""
    kinds, bad = list(samples.GOOD), list(samples.broken().values())
    generator = np.random.default_rng(0)
    chosen = [bad[number % len(bad)] for number in generator.permutation(len(bad))[: round(count * broken_share)]]
    chosen += [(_seeded(kinds[number % len(kinds)], number), None) for number in range(count - len(chosen))]
    return [chosen[number] for number in generator.permutation(count)]


def _seeded(kind: str, number: int) -> dict:
    """A good request with a seed of its own; every other one that can sample does."""
    request = samples.GOOD[kind](number)
    request["parameters"]["seed"] = number
    if kind in ("ask", "scene") and number // len(samples.GOOD) % 2:
        request["parameters"]["temperature"] = 1.3
    if kind in ("cad", "cad_recode"):
        request["parameters"]["candidates"] = 1 + number % 3
    return request


@pytest.mark.parametrize("count", [pytest.param(60, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.long)])
def test_load_of_good_and_broken_requests(repository, count):
    """Requests from 16 clients, 20 of them broken: right answers, clear errors, no memory or thread lost."""
    psutil = pytest.importorskip("psutil")
    requests = mixed_requests(count, 20 / count)
    assert sum(code is not None for _, code in requests) == 20
    alone = handler_module().EndpointHandler(str(repository))
    expected = [json.loads(json.dumps(alone(request))) if code is None else None for request, code in requests]

    with Server(repository, "--max-requests", "16") as server, ThreadPoolExecutor(16) as clients:
        process = psutil.Process(server.process.pid)
        every = [request for request, _ in requests]
        list(clients.map(server.post, every))  # models and threads are up, and have seen every size
        time.sleep(3)  # idle servers give memory back
        memory, threads = process.memory_info().rss, process.num_threads()
        calls = metric(server, "dsr_model_calls_total")
        answers = list(clients.map(server.post, every))
        time.sleep(3)
        memory_after, threads_after = process.memory_info().rss, process.num_threads()
        calls = metric(server, "dsr_model_calls_total") - calls
        assert json.loads(server.get("/health"))["status"] == "ok"
        assert metric(server, "dsr_requests_pending") == 0
        log = b"".join(server.log).decode()

    for (request, code), (status, answer), wanted in zip(requests, answers, expected):
        if code is None:
            assert status == 200 and different(answer, wanted) == [], (request["task"], different(answer, wanted))
        else:
            assert status == handler_module().ERRORS[code][0] and answer["error"]["code"] == code, (code, answer)
    print(
        f"memory {memory / 2**20:.0f} -> {memory_after / 2**20:.0f} MiB, threads {threads} -> {threads_after}, "
        f"{calls:.0f} calls"
    )
    assert calls < count - 20, "nothing was batched"
    assert memory_after <= 1.05 * memory
    # Thread pools may still grow; a worker that died would be missing.
    assert threads_after >= threads and "Traceback" not in log


def metric(server: Server, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = [line for line in server.get("/metrics").decode().splitlines() if line.startswith((name + "{", name + " "))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
