"""What operators look for: keys, shares, origins, names and logs of requests, time limits, traces, models in memory."""

import json
import logging
import sys
import threading
from collections import deque

import pytest
import torch

from dsr_toolkit.serving import handler_module, tracing
from tests.hub import samples

for library in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
    pytest.importorskip(library, reason="needs the extras [serve] and [test]")
from fastapi.testclient import TestClient  # noqa: E402

from dsr_toolkit.serving.answers import pieces  # noqa: E402
from dsr_toolkit.serving.application import build, create_app  # noqa: E402
from dsr_toolkit.serving.batching import BatchingQueue  # noqa: E402
from dsr_toolkit.serving.keys import Keys, Shares  # noqa: E402
from dsr_toolkit.serving.logs import JsonLines, PlainLines, request_id, where  # noqa: E402
from dsr_toolkit.serving.replica import Ran  # noqa: E402
from dsr_toolkit.serving.settings import Settings  # noqa: E402
from dsr_toolkit.serving.streaming import TextStream  # noqa: E402
from dsr_toolkit.serving.tickets import Ticket  # noqa: E402
from tests.dsr_toolkit.running_server import spans_of  # noqa: E402


def client_of(served, keys=None, **settings) -> TestClient:
    return TestClient(create_app(BatchingQueue(served), Settings(str(served.path), **settings), Keys(keys)))


@pytest.fixture(scope="module")
def client(served):
    with client_of(served, {"one": "secret-1", "two": "secret-2"}, time_limit=60) as client:
        yield client


# ---- keys --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 401), ({"Authorization": "Bearer secret-3"}, 401), ({"Authorization": "Basic secret-1"}, 401),
        ({"Authorization": "Bearer secret-1"}, 400), ({"X-API-Key": "secret-2"}, 400), ({"X-API-Key": "é"}, 401),
    ],
)  # fmt: skip
def test_keys_open_the_door(client, headers, status):
    headers = {name: value.encode() for name, value in headers.items()}
    for path in ("/", "/v1/chat/completions"):
        assert client.post(path, json={}, headers=headers).status_code in (status, 404 if status == 400 else status)
    assert client.get("/metrics", headers=headers).status_code == (200 if status == 400 else 401)
    assert client.get("/health").status_code == client.get("/ready").status_code == 200


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys.txt"
    file.write_text("# of the laboratory\nanna:12345678\n\nabcdefgh\n")
    keys = Keys.read(str(file))
    assert (
        keys.client({"x-api-key": "12345678"}, "-") == "anna" and keys.client({"x-api-key": "abcdefgh"}, "-") == "key-2"
    )
    monkeypatch.setenv("DSR_API_KEYS", "bert:87654321,hgfedcba")
    assert Keys.read().client({"authorization": "bearer hgfedcba"}, "-") == "key-2"
    monkeypatch.delenv("DSR_API_KEYS")
    assert Keys.read().client({}, "10.0.0.1") == "10.0.0.1"
    for text, message in (("", "holds no key"), ("short", "8 characters"), ("a:12345678\na:abcdefgh", "differ")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            Keys.read(str(file))
    with pytest.raises(ValueError, match="cannot be read"):
        Keys.read(str(tmp_path / "absent"))


def test_every_client_has_its_share():
    shares = Shares(2)
    with shares.one("a"), shares.one("a"), shares.one("b"):
        with pytest.raises(handler_module().RequestError) as caught, shares.one("a"):
            pass
    assert caught.value.code == "too_many" and caught.value.status == 429
    with shares.one("a"):
        assert shares._count == {"a": 1}


# ---- requests ----------------------------------------------------------------------------


def test_requests_have_names(client):
    headers = {"X-API-Key": "secret-1", "X-Request-ID": "my-request.7"}
    reply = client.post("/", json={"task": "sing"}, headers=headers)
    assert reply.headers["x-request-id"] == reply.json()["error"]["request"] == "my-request.7"
    named = client.post("/", json={}, headers={"X-API-Key": "secret-1", "X-Request-ID": "two\twords"})
    assert len(named.headers["x-request-id"]) == 32 and request_id(None) != request_id(None)


def test_the_log_has_a_line_per_request_without_its_contents(client, served, caplog):
    """Also of a request that fails with a message that quotes it."""

    def failing(data, listener):
        raise KeyError(data["inputs"]["question"])

    served.prepare = failing
    try:
        with caplog.at_level(logging.INFO, "dsr_toolkit.serving"):
            headers = {"X-API-Key": "secret-2", "X-Request-ID": "logged"}
            request = samples.ask(1)
            request["inputs"]["question"] = "a private matter"
            assert client.post("/", json=request, headers=headers).status_code == 500
    finally:
        del served.prepare
    for formatter in (JsonLines(), PlainLines()):
        text = "\n".join(formatter.format(record) for record in caplog.records)
        assert "private" not in text and "secret" not in text
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    (failed,) = [line for line in lines if line["level"] == "error"]
    assert "KeyError" in failed["message"] and "failing" in failed["message"] and failed["request"] == "logged"
    (line,) = [line for line in lines if line["message"] == "request" and line["request"] == "logged"]
    assert line["client"] == "two" and line["status"] == 500 and line["code"] == "internal" and line["task"] == "ask"
    assert line["bytes"] > 100 and line["seconds"] > 0


def test_where_an_error_came_from_is_told_without_its_message():
    try:
        int("a secret")
    except ValueError as error:
        told = where(error)
    assert told.startswith("ValueError < test_serving_operators.py:") and "secret" not in told


def test_origins_are_refused_unless_they_are_named(client, served):
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/", headers=asked).headers
    with client_of(served, cors=("https://page.example",)) as other:
        assert other.options("/", headers=asked).headers["access-control-allow-origin"] == "https://page.example"
        strange = other.options("/", headers={**asked, "Origin": "https://other.example"})
        assert "access-control-allow-origin" not in strange.headers


def test_an_answer_that_takes_too_long_is_given_up(served):
    with client_of(served, time_limit=0.5) as client:
        reply = client.post("/", json=samples.ask(1, tokens=1000))
        assert reply.status_code == 504 and reply.json()["error"]["code"] == "timed_out"
        metrics = client.app.state.queue.metrics
    assert metrics.value("dsr_requests_total", task="ask", code="cancelled") == 1


def test_stages_are_measured_per_task(client):
    headers = {"X-API-Key": "secret-1"}
    assert client.post("/", json=samples.ask(1), headers=headers).status_code == 200
    assert client.post("/", json=samples.ask(1)).status_code == 401
    text = client.get("/metrics", headers=headers).text
    for stage in ("prepare", "wait", "run", "finish", "first_token"):
        assert f'dsr_stage_seconds_count{{stage="{stage}",task="ask"}}' in text
    assert 'dsr_refused_total{code="unauthorized"}' in text


def test_traces_have_a_span_per_stage(client):
    found = spans_of(
        lambda headers: client.post("/", json=samples.ask(1), headers={"X-API-Key": "secret-1", **headers})
    )
    assert {"request", "prepare", "run", "finish"} <= set(found)
    root = found["request"]
    assert root.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert all(found[name].parent.span_id == root.context.span_id for name in ("prepare", "run", "finish"))
    assert root.attributes["dsr.task"] == "ask" and samples.ask(1)["inputs"]["question"] not in str(root.attributes)


def test_stages_of_another_process_are_spans_of_a_trace():
    stages = []

    def request(headers):
        with tracing.request_span(ticket := Ticket("mine"), headers):
            with tracing.stage_span(Ticket(stages=stages), "run", requests=3):
                pass
            tracing.past_spans(ticket, stages)

    found = spans_of(request)
    (name, begin, end, _), run = stages[0], found["run"]
    assert (name, run.start_time, run.end_time, run.attributes["dsr.requests"]) == ("run", begin, end, 3)
    assert run.parent.span_id == found["request"].context.span_id
    tracing.past_spans(Ticket(), stages)  # nobody traces


def test_what_batches_ran_is_counted_once_while_others_run():
    """The other thread appends at any moment: nothing is lost and nothing is told twice."""
    ran = Ran.__new__(Ran)
    ran._batches = deque()
    seen, interval = [], sys.getswitchinterval()
    writer = threading.Thread(target=lambda: [ran.ran("ask", number, 0.0) for number in range(20_000)])
    sys.setswitchinterval(1e-6)
    try:
        writer.start()
        while writer.is_alive():
            seen += [requests for _, requests, _ in tuple(ran.take())]
        seen += [requests for _, requests, _ in ran.take()]
    finally:
        sys.setswitchinterval(interval)
    assert seen == list(range(20_000))


def test_the_page_of_documents_needs_no_internet(client):
    page = client.get("/docs").text
    assert "<script" not in page and "http://" not in page and "https://" not in page
    for name in (*client.app.state.queue.handler.tasks, "too_large", "max_new_tokens", "/v1/chat/completions"):
        assert name in page


# ---- streams -----------------------------------------------------------------------------


def events(reply) -> list:
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("kind", ["ask", "cad", "cad_recode", "segment_answer", "scene"])
def test_answers_stream_in_pieces_that_are_the_answer(client, served, kind):
    request = samples.GOOD[kind](1)
    *pieces, last = events(client.post("/", json=request | {"stream": True}, headers={"X-API-Key": "secret-1"}))
    expected = served(request)
    text = expected["programs"][0] if "programs" in expected else expected["answer"]
    assert "".join(piece["text"] for piece in pieces) == text and len(pieces) > 1
    assert last["answer"].keys() == expected.keys()


def test_what_is_wrong_with_a_stream_is_an_error_and_no_stream(client):
    key = {"X-API-Key": "secret-1"}
    reply = client.post("/", json=samples.broken()["truncated png"][0] | {"stream": True}, headers=key)
    assert reply.status_code == 415 and reply.json()["error"]["code"] == "unreadable_media"
    for request in (samples.ask(1) | {"stream": "yes"}, samples.reconstruct() | {"stream": True}):
        assert client.post("/", json=request, headers=key).json()["error"]["code"] == "bad_request"


@pytest.mark.parametrize(
    "texts, stops, pieces, whole",
    [
        (["a", "a b", "a b c"], (), ["a", " b", " c"], "a b c"),
        (["a", "a ", "a b"], (), ["a", "", " b"], "a b"),  # white space may be the end, which is cut off
        (["ä"[:0] + "\ufffd", "ä"], (), ["", "ä"], "ä"),
        (["x", "xS", "xST", "xSTo"], ("STOP",), ["x", "", "", "STo"], "xSTo"),
        (["x", "xS", "xST", "x"], ("STOP",), ["x", "", "", ""], "x"),
    ],
)
def test_pieces_of_text_are_sent_when_they_are_certain(texts, stops, pieces, whole):
    stream = TextStream(lambda tokens: texts[len(tokens) - 1], stops)
    sent = [stream.feed(token) for token in range(len(texts))]
    assert sent == pieces and "".join(sent) + stream.rest(whole) == whole


def test_answers_are_written_as_json():
    value = {
        "a": [1, 2.5, None, "ä\n"],
        "b": {},
        "c": [],
        "d": [{"e": [[1], []]}, True],
        "f": ({"g": "h"},),
        "i": {"j": 1e-9},
    }
    assert json.loads("".join(pieces(value))) == json.loads(json.dumps(value))


# ---- settings and models -----------------------------------------------------------------


def test_an_application_is_built_of_plain_settings(repository):
    """As another process may send them."""
    settings = json.loads(
        json.dumps({"model": str(repository), "limits": {"new_tokens": 4}, "preload": ["cad_recode"]})
    )
    with TestClient(build(settings)) as client:
        assert client.post("/", json=samples.ask(1)).json()["error"]["code"] == "too_large"
        for _ in range(1000):
            if (ready := client.get("/ready")).status_code == 200:
                break
        assert ready.json() == {"status": "ready", "loaded": 1}
    for wrong in ({"modle": "x"}, {"preload": ["gpt"]}, {"limits": {"pixels": 0}}, {"time_limit": 0}):
        with pytest.raises(ValueError, match="modle|gpt|pixels|time_limit"):
            build({"model": str(repository), **wrong})


def test_models_that_were_used_longest_ago_are_given_up():
    residents = handler_module().residents
    sizes = {"a": 10, "b": 20, "c": 30}
    held = residents.Residents(lambda name: torch.nn.Linear(sizes[name], 1, bias=False), 2, None)
    a = held.get("a")
    held.get("b"), held.get("a"), held.get("c")
    assert list(held.loaded) == ["a", "c"] and held.get("a") is a
    with held.using("c"):
        held.get("b")
        assert list(held.loaded) == ["c", "b"]
    small = residents.Residents(lambda name: torch.nn.Linear(sizes[name], 1, bias=False), None, 4 * 45)
    for name in "abc":
        small.get(name)
    assert list(small.loaded) == ["c"]  # 20 and 30 numbers are more than 45
    with pytest.raises(ValueError, match="max_models"):
        residents.Residents(None, 0, None)


def test_a_server_of_one_model_answers_for_all(repository):
    endpoint = handler_module().EndpointHandler(str(repository), max_models=1)
    with BatchingQueue(endpoint) as queue:
        requests = [samples.ask(1), samples.cad_recode(), samples.ask(3)]
        assert all(future.result(60) for future in [queue.submit(request) for request in requests])
        assert endpoint.loaded == 1
