"""`dsr serve --engine ray`: the same answers from replicas, one of which may be killed. Ray is started once."""

import importlib
import json
import os
import signal
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dsr_toolkit.cli import main
from tests import ray_cluster
from tests.dsr_toolkit.running_server import RunningApp, spans_of, until
from tests.dsr_toolkit.test_serving import Server, free_port
from tests.hub import samples
from tests.hub.compare import different

for library in ("ray", "psutil", "fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(library, reason="needs the extras [scale], [serve] and [test]")
psutil = importlib.import_module("psutil")
PATIENCE = 900  # seconds that starting a replica may take where others work, too
KEY = {"X-API-Key": "12345678"}


@pytest.fixture(scope="module")
def ray():
    """Two CPUs for replicas, one for those of a file; Ray's own proxy listens for these alone."""
    ray = ray_cluster.start(cpus=3)
    serve = importlib.import_module("ray.serve")
    serve.start(proxy_location="HeadOnly", http_options={"port": (port := free_port())})
    yield port
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def server(ray, repository, tmp_path_factory):
    from dsr_toolkit.serving.on_ray import Scale, replicated
    from dsr_toolkit.serving.settings import Settings

    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"anna:{KEY['X-API-Key']}")
    settings = {"model": str(repository), "preload": ["dsr"], "keys_file": str(keys), "max_requests": 32}
    with replicated(settings, Scale(2)) as app, RunningApp(app, Settings.of(settings)) as server:
        until(lambda: server.queue.watch.running == 2, PATIENCE)
        yield server


def replicas() -> list:
    """Processes of replicas, of this Ray alone."""
    return [
        one for one in psutil.Process().children(recursive=True) if any("ServeReplica" in part for part in name_of(one))
    ]


def name_of(process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


# ---- before any work ---------------------------------------------------------------------


def test_the_extra_is_named_where_ray_is_missing(repository, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["serve", "--model", str(repository), "--engine", "ray"]) == 2
    assert "dsr-models[scale]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--replicas", "2"], "--engine ray"), (["--engine", "ray", "--replicas", "0"], "replicas"),
        (["--engine", "ray", "--replicas", "3", "--max-replicas", "2"], "max_replicas"),
        (["--engine", "ray", "--gpus-per-replica", "1.5"], "gpus_per_replica"),
        (["--engine", "ray", "--preload", "gpt"], "preload"),
    ],
)  # fmt: skip
def test_wrong_scales_are_told_before_ray_is_started(repository, capsys, options, message):
    assert main(["serve", "--model", str(repository), *options]) == 2
    assert message in capsys.readouterr().err
    assert not importlib.import_module("ray").is_initialized()


# ---- answers -----------------------------------------------------------------------------


@pytest.mark.slow
def test_replicas_answer_as_one_process_does(server, served):
    requests = [samples.GOOD[kind](1) for kind in ("ask", "reconstruct", "segment", "cad", "scene")]
    requests += [samples.ask(seed, temperature=1.3, seed=seed) for seed in range(6)]
    with ThreadPoolExecutor(8) as clients:
        replies = list(clients.map(lambda request: server.post(request, **KEY), requests))
    for request, (status, answer, _) in zip(requests, replies):
        assert status == 200 and different(answer, json.loads(json.dumps(served(request)))) == [], request["task"]
    assert "dsr_replicas 2.0" in (text := metrics(server)) and 'dsr_model_calls_total{task="ask"}' in text


def metrics(server) -> str:
    asked = urllib.request.Request(f"{server.url}/metrics", headers=KEY)
    with urllib.request.urlopen(asked, timeout=60) as reply:
        return reply.read().decode()


@pytest.mark.slow
def test_answers_stream_from_replicas(server, served):
    body = json.dumps(samples.ask(1, tokens=8) | {"stream": True}).encode()
    with urllib.request.urlopen(urllib.request.Request(server.url, body, KEY), timeout=120) as reply:
        events = [line.decode().removeprefix("data: ").strip() for line in reply if line.strip()]
    *pieces, last = map(json.loads, events[:-1])
    assert events[-1] == "[DONE]" and len(pieces) > 1
    assert (
        "".join(piece["text"] for piece in pieces)
        == last["answer"]["answer"]
        == served(samples.ask(1, tokens=8))["answer"]
    )


@pytest.mark.slow
def test_the_door_is_the_same(server):
    """Keys, names, errors, chat, state."""
    assert server.post(samples.ask(1))[0] == 401
    named = {**KEY, "X-Request-ID": "mine"}
    for name in ("truncated png", "unknown task", "few points"):
        request, code = samples.broken()[name]
        status, answer, headers = server.post(request, **named)
        assert (answer["error"]["code"], answer["error"]["request"], headers["x-request-id"]) == (code, "mine", "mine")
    chat = {"model": "dsr", "messages": [{"role": "user", "content": "What moves?"}], "max_tokens": 3}
    status, answer, _ = server.post(chat, "/v1/chat/completions", **KEY)
    assert status == 200 and answer["usage"]["completion_tokens"] <= 3
    assert json.loads(server.get("/ready")) == {"status": "ready", "replicas": 2}
    assert json.loads(server.get("/health"))["status"] == "ok"


@pytest.mark.slow
def test_traces_hold_the_stages_of_replicas(server):
    found = spans_of(lambda headers: server.post(samples.ask(1), **KEY, **headers))
    root = found["request"].context.span_id
    assert all(found[name].parent.span_id == root for name in ("prepare", "run", "finish"))


@pytest.mark.slow
def test_what_a_client_gave_up_ends_in_the_replica(server):
    body = json.dumps(samples.ask(1, tokens=1000) | {"stream": True}).encode()
    with urllib.request.urlopen(urllib.request.Request(server.url, body, KEY), timeout=120) as reply:
        reply.readline()
    until(lambda: server.queue.pending == 0)
    start = time.monotonic()
    assert server.post(samples.ask(1, tokens=1), **KEY)[0] == 200
    print(f"the next answer took {time.monotonic() - start:.2f} s")


# ---- a replica is killed -----------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_replica_takes_only_what_it_held_along(server):
    """Those end in a clear 503; what is asked meanwhile and afterwards is answered."""
    with ThreadPoolExecutor(24) as clients:
        held = [clients.submit(server.post, samples.ask(1, tokens=600), **KEY) for _ in range(8)]
        until(lambda: server.queue.pending == 8)
        time.sleep(1)
        killed, alive = replicas()
        os.kill(killed.pid, signal.SIGKILL)
        later = [clients.submit(server.post, samples.ask(seed, tokens=2), **KEY) for seed in range(16)]
        replies = [one.result(300) for one in held]
        assert [one.result(300)[0] for one in later] == [200] * 16
    interrupted = [answer["error"] for status, answer, _ in replies if status != 200]
    assert {(one["status"], one["code"]) for one in interrupted} == {(503, "interrupted")}
    assert len(interrupted) < 8 and all("ask again" in one["message"] for one in interrupted)
    until(lambda: server.queue.watch.running == 2, PATIENCE)
    assert alive.is_running() and killed.pid not in [one.pid for one in replicas()]


# ---- other doors -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_file_for_serve_deploy_answers(ray, server, repository, served):
    """Its application, with the tiny models and one replica, behind Ray's own proxy."""
    from ray import serve
    from ray.serve.schema import ServeDeploySchema

    text = (Path(__file__).parents[2] / "deploy" / "serve.yaml").read_text()
    (told,) = ServeDeploySchema.model_validate(importlib.import_module("yaml").safe_load(text)).applications
    module, function = told.import_path.split(":")
    arguments = told.args | {"replicas": 1, "max_replicas": 1}
    arguments["settings"] = told.args["settings"] | {"model": str(repository)}
    serve.run(getattr(importlib.import_module(module), function)(arguments), name=told.name, route_prefix="/")
    body, url = json.dumps(samples.ask(1)).encode(), f"http://127.0.0.1:{ray}"
    with urllib.request.urlopen(urllib.request.Request(url, body, {"X-Request-ID": "mine"}), timeout=120) as reply:
        assert (
            different(json.loads(reply.read()), served(samples.ask(1))) == []
            and reply.headers["x-request-id"] == "mine"
        )
    with urllib.request.urlopen(f"{url}/health", timeout=60) as reply:
        assert json.loads(reply.read())["status"] == "ok"
    serve.delete(told.name)


@pytest.mark.slow
def test_a_stopped_server_ends_with_its_replicas(repository):
    with Server(repository, "--engine", "ray") as server, ThreadPoolExecutor(1) as clients:
        family = psutil.Process(server.process.pid).children(recursive=True)
        asked = clients.submit(server.post, samples.ask(1, tokens=300))
        until(lambda: json.loads(server.get("/health"))["pending"] == 1)
        server.process.send_signal(signal.SIGTERM)
        status, answer = asked.result(300)
        assert server.process.wait(120) == 0 and status == 200 and len(answer["tokens"]) > 100
    psutil.wait_procs(family, 30)
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
