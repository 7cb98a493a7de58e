"""What clients may do to a server: large, slow, half-sent and abandoned requests, and long ones before short ones."""

import io
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from dsr_toolkit.serving import handler_module
from tests.hub import samples
from tests.hub.compare import different

for library in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(library, reason="needs the extra [serve]")
from dsr_toolkit.serving import bodies  # noqa: E402
from dsr_toolkit.serving.batching import BatchingQueue  # noqa: E402
from dsr_toolkit.serving.turns import Turns  # noqa: E402
from tests.dsr_toolkit.running_server import RunningServer, head, until  # noqa: E402
from tests.dsr_toolkit.test_serving import Server  # noqa: E402


@pytest.fixture(scope="module")
def server(served):
    with RunningServer(served, read_timeout=1.0, queue={"max_requests": 8}) as server:
        yield server


# ---- bodies ------------------------------------------------------------------------------


def test_large_bodies_are_parsed_in_another_process_to_the_same(served):
    """Points as JSON, and a file in base64 whose bytes come back as they are."""
    points = np.random.default_rng(0).uniform(-1, 1, (5000, 3)).round(5).tolist()
    file = samples.encoded(bytes(range(256)) * 400)
    request = {
        "task": "cad",
        "inputs": {"points": points, "video": file, "text": "ä\n", "images": [f"data:x;base64,{file}"]},
    }
    readers = bodies.Readers(1)
    try:
        parsed = readers.parse(bytearray(json.dumps(request).encode()))
        assert parsed["inputs"]["points"].tolist() == points and parsed["inputs"]["text"] == "ä\n"
        assert bytes(parsed["inputs"]["video"]) == bytes(parsed["inputs"]["images"][0]) == bytes(range(256)) * 400
        for broken in (b'{"points": [', b"[" * 100_000, b"\xff", b"[" + b"1" * 10_000 + b"]"):
            with pytest.raises(handler_module().RequestError, match="not JSON"):
                readers.parse(bytearray(broken))
        (reader,) = readers._all
        reader.process.kill()
        with pytest.raises(handler_module().RequestError, match="to parse"):
            readers.parse(bytearray(b"[]"))
        assert readers.parse(bytearray(b"[1]")) == [1]  # another one takes its place
    finally:
        readers.close()


@pytest.mark.parametrize(
    "changed",
    [
        {"tools": [[1, 2]] * 400}, {"stream": [[1, 2]] * 400}, {"stream_options": [[1, 2]] * 400, "stream": "yes"},
        {"temperature": [[1, 2]] * 400}, {"model": "b" * 80_000}, {"messages": [[1, 2]] * 400},
        {"messages": [{"role": "user", "content": "abcd" * 20_000}]}, {"\ud800": 1}, {"stop": ["\udfff" * 5] * 9},
        {"messages": [{"role": "user", "content": "What?", "\ud800": 1}]},
    ],
)  # fmt: skip
def test_large_and_odd_requests_are_refused_in_words(server, changed):
    """What is large is parsed elsewhere, and comes back in other types only where files and clouds may stand."""
    padding = {"metadata": {"a": "?" * 300_000}}
    chat = {"model": "dsr", "messages": [{"role": "user", "content": "What?"}], "max_tokens": 2, **padding}
    status, answer, _ = server.post(chat | changed, "/v1/chat/completions")
    assert status in (400, 404, 413) and answer["error"]["message"], answer
    own = {"task": "ask", "inputs": {"question": "abcd" * 80_000}}
    status, answer, _ = server.post(own)
    assert status == 413 and "characters" in answer["error"]["message"]


def test_a_large_request_is_answered_as_a_small_one(served, server):
    request = samples.cad_recode()
    request["inputs"]["points"] = request["inputs"]["points"] * 15
    status, answer, _ = server.post(request)
    assert status == 200 and different(answer, served(request)) == []
    assert server.app.state.door.bodies.readers._all, "it was parsed by the server itself"


def test_numbers_are_counted_while_a_body_is_read(server):
    """Refused before the rest of it has come, or was kept."""
    door = server.app.state.door
    with server.socket() as client:
        client.sendall(head(door.bodies.most_bytes - 1))
        client.sendall(b"[0" + b",0" * door.bodies.most_parts)
        reply = client.recv(4096)
        while b"\r\n\r\n" not in reply or b"}" not in reply:
            reply += client.recv(4096)
    assert b" 413 " in reply and b"numbers and names" in reply
    until(lambda: door.bodies.budget.used == 0)


def test_bodies_share_a_memory(server):
    held = server.app.state.door.bodies.budget.hold(server.app.state.door.bodies.budget.total)
    try:
        status, answer, headers = server.post(samples.cad_recode())
    finally:
        held.release()
    assert status == 503 and answer["error"]["code"] == "overloaded" and headers["retry-after"]


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nHost: te"], ids=["nothing", "half a head"])
def test_heads_that_do_not_come_are_not_waited_for(server, sent):
    with server.socket() as client:
        client.sendall(sent)
        assert client.recv(4096) == b""  # closed


def test_bodies_that_do_not_come_are_not_waited_for(server):
    with server.socket() as client:
        client.sendall(head(1000) + b'{"task":')
        reply = b"".join(iter(lambda: client.recv(4096), b""))  # head and body may come apart
    assert b" 408 " in reply and b"too_slow" in reply
    assert server.queue.pending == 0


def test_requests_beyond_the_most_are_refused_before_their_bodies(server, served):
    """A head alone gets its answer: nothing of the body is awaited."""
    run, go = served.run, threading.Event()
    served.run = lambda jobs: (go.wait(60), run(jobs))[1]
    try:
        futures = [server.queue.submit(samples.cad_recode()) for _ in range(8)]
        with server.socket() as client:
            client.sendall(head(1000))
            assert b" 503 " in client.recv(4096)
    finally:
        go.set()
        del served.run
    assert all(future.result(60) for future in futures)


def test_a_server_ends_while_a_client_holds_half_a_body(served):
    with RunningServer(served, read_timeout=600, stop_limit=20) as server:
        with server.socket() as client:
            client.sendall(head(1000) + b"{")
            until(lambda: len(server.server.server_state.tasks) == 1)
            server.stop()
            reply = client.recv(4096)
            server.thread.join(60)
            assert not server.thread.is_alive()
    assert b" 503 " in reply and server.app.state.ended


def test_a_server_that_may_wait_no_longer_gives_up_what_is_under_way(served):
    with RunningServer(served, stop_limit=1) as server:
        with server.socket() as client:
            body = json.dumps(samples.ask(1, tokens=1000) | {"stream": True}).encode()
            client.sendall(head(len(body)) + body)
            client.recv(64)  # it writes
            server.stop()
            server.thread.join(60)
            assert not server.thread.is_alive()
    assert server.queue.pending == 0


# ---- media -------------------------------------------------------------------------------


def test_unpacked_media_wait_for_each_other():
    budget = handler_module().budget.Budget(100)
    first, order = budget.reserve(60), []

    def wait(count: int) -> None:
        reservation = budget.reserve(count)
        order.append(budget.used)
        reservation.release()

    threads = [threading.Thread(target=wait, args=[count]) for count in (90, 1000)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert order == [] and budget.used == 60
    first.resize(5)
    until(lambda: order == [95])  # what is larger than all waits until it is alone
    first.release()
    for thread in threads:
        thread.join(60)
    assert order == [95, 1000] and budget.used == 0


def test_who_waits_for_memory_may_be_given_up():
    budget, given_up = handler_module().budget.Budget(10), threading.Event()
    held = budget.reserve(10)

    def check() -> None:
        if given_up.is_set():
            raise KeyError("given up")

    given_up.set()
    with pytest.raises(KeyError):
        budget.reserve(1, check)
    held.release()
    assert budget.reserve(1).count == 1


def test_full_size_images_are_not_kept_until_the_answer(served):
    """Of 4 images of 1.2 megapixels no more is kept than what the model and the answer see."""
    request = samples.reconstruct()
    request["inputs"]["images"] = [samples.encoded(samples.picture(seed, (1200, 1000))) for seed in range(4)]
    before = served.prepared.used
    job = served.prepare(request)
    kept = [one.nbytes for one in job.media["colours"]]
    assert "images" not in job.media and max(kept) <= 3 * job.inputs["pixel_values"][0, 0, 0].numel()
    assert served.media_budget.used == 0 and served.prepared.used - before == sum(
        one.nbytes for one in job.inputs.values() if hasattr(one, "nbytes")
    )
    del job
    assert served.prepared.used == before


@pytest.mark.parametrize("size", [(72, 56), (300, 17), (3000, 20), (8, 9), (700, 500)])
def test_pictures_that_are_read_one_by_one_are_what_the_processor_makes_of_all(served, size):
    pictures = [samples.picture(0, size), samples.picture(1, size), samples.picture(2, (64, 80))]
    job = served.prepare({"task": "ask", "inputs": {"question": "What?", "images": pictures}})
    processor = served.processor(job.model)
    content = [{"type": "image"}] * 3 + [{"type": "text", "text": "What?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = [Image.open(io.BytesIO(one)) for one in pictures]
    expected = processor(text=[prompt], images=images, return_tensors="pt")
    assert set(job.inputs) == set(expected)
    assert all(torch.equal(job.inputs[name], torch.as_tensor(value)) for name, value in expected.items())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory of a process as Linux tells it")
def test_memory_does_not_grow_with_requests_of_large_pictures(repository):
    """Eight requests of four black pictures of 5790² pixels: 100 kB each on the wire, 134 MB unpacked."""
    psutil = pytest.importorskip("psutil")
    picture = samples.encoded(samples.picture(0, (5790, 5790), black=True))
    request = {"task": "ask", "inputs": {"question": "What?", "images": [picture] * 4}}
    request["parameters"] = {"max_new_tokens": 2}
    with Server(repository, "--time-limit", "3000") as server, ThreadPoolExecutor(8) as clients:
        server.timeout = 3000
        server.post(samples.ask(0, tokens=2))
        process, most, ended = psutil.Process(server.process.pid), [0], threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                most[0] = max(most[0], process.memory_info().rss)

        before = process.memory_info().rss
        watching = threading.Thread(target=watch)
        watching.start()
        replies = list(clients.map(server.post, [request] * 8))
        ended.set()
        watching.join()
    print(f"memory {before / 2**20:.0f} -> at most {most[0] / 2**20:.0f} MiB")
    assert [status for status, _ in replies] == [200] * 8
    assert most[0] - before < 1.2 * 2**30


@pytest.fixture(scope="module")
def alone(repository):
    """A server in a process of its own."""
    with Server(repository) as server:
        server.timeout = 600
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["short numbers", "long numbers", "text", "spaces"])
def test_a_body_of_80_megabytes_keeps_nobody_waiting(alone, kind):
    """How long others wait is some milliseconds; what is tested is that they do not wait for it to be read."""
    points = {"short numbers": b"0.25", "long numbers": b"0." + b"123456789" * 14}
    if kind in points:
        row = b"[" + b",".join([points[kind]] * 3) + b"]"
        body = b'{"task":"cad","inputs":{"points":[' + b",".join([row] * (80_000_000 // len(row))) + b"]}}"
    else:
        filler = b"a" if kind == "text" else b" "
        body = b'{"task":"cad","inputs":{"text":"' + filler * 80_000_000 + b'"}}'
    alone.get("/tasks")
    waits, ended = [], threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            for path in ("/health", "/tasks"):
                start = time.perf_counter()
                try:
                    alone.get(path)
                finally:  # also of who gives up
                    waits.append(time.perf_counter() - start)

    looking = threading.Thread(target=look)
    looking.start()
    status, answer = alone.post(body)
    ended.set()
    looking.join()
    print(f"{kind}: {status}, others waited at most {max(waits):.3f} s")
    assert status in (400, 413, 422) and max(waits) < 3


def test_whoever_prepares_many_jobs_before_any_runs_does_not_wait(repository):
    """As batches of files do: jobs that nobody runs yet are counted, and not waited for."""
    handler = handler_module()
    alone = handler.EndpointHandler(str(repository), handler.Limits(in_flight=1000))
    jobs = [alone.prepare(samples.ask(seed)) for seed in (1, 3, 5)]
    assert alone.prepared.full and len(jobs) == 3


def test_videos_do_not_keep_others_waiting(served):
    """Five videos that decode for ever, and a question about an image."""
    prepare, go = served.prepare, threading.Event()

    def slow(data, listener):
        if "video" in data["inputs"]:
            go.wait(60)
        return prepare(data, listener)

    served.prepare = slow
    try:
        with BatchingQueue(served, workers=2) as queue:
            videos = [queue.submit(samples.ask(0, tokens=1)) for _ in range(5)]
            assert queue.submit(samples.ask(1, tokens=1)).result(60)["tokens"]
            assert not any(video.done() for video in videos)
            go.set()
            assert all(video.result(60) for video in videos)
    finally:
        go.set()
        del served.prepare


def test_pictures_that_wait_for_memory_do_not_keep_others_waiting(served):
    turn = {"role": "user", "content": [{"type": "image", "image": samples.encoded(samples.picture())}]}
    turn["content"].append({"type": "text", "text": "What?"})
    pictures = [samples.ask(1, tokens=1), {**samples.ask(1, tokens=1), "inputs": {"messages": [turn]}}] * 2
    text = {"task": "ask", "inputs": {"messages": [{"role": "user", "content": "What?"}]}}
    held = served.media_budget.reserve(served.limits.in_flight)
    try:
        with BatchingQueue(served, workers=2) as queue:
            waiting = [queue.submit(request) for request in pictures]
            assert queue.submit(text | {"parameters": {"max_new_tokens": 1}}).result(60)["tokens"]
            assert not any(one.done() for one in waiting)
            held.release()
            assert all(one.result(60) for one in waiting)
    finally:
        held.release()


def test_a_video_of_somebody_who_left_is_not_decoded_on(served):
    class Gone:
        cancelled = True

    with pytest.raises(handler_module().RequestError) as caught:
        served.prepare(samples.ask(0), Gone())
    assert caught.value.code == "cancelled"


# ---- long and short ----------------------------------------------------------------------


def test_threads_take_turns():
    turns, order, all_there = Turns(), [], threading.Barrier(3)

    def work(name: str) -> None:
        all_there.wait(60)
        with turns:
            for _ in range(3):
                order.append(name)
                while len(turns._line) < 3 and len(order) < 3:
                    time.sleep(0.001)
                turns.pass_on()

    threads = [threading.Thread(target=work, args=[name]) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert order == order[:3] * 3 and set(order) == set("abc")


def test_a_short_answer_does_not_wait_for_a_long_one(served):
    """Both are what they are alone: the model remembers positions of one of them at a time."""
    long, short = samples.ask(0, tokens=200), samples.ask(3, tokens=2)
    alone = [served(long), served(short)]
    assert len(alone[0]["tokens"]) > 100, "the long answer is too short for this test"
    with BatchingQueue(served, max_wait=0) as queue:
        written = threading.Event()
        ticket = handler_ticket(lambda row, token: written.set())
        first = queue.enter(long, ticket).future
        assert written.wait(60)
        second = queue.submit(short)
        assert different(second.result(60), alone[1]) == [] and not first.done()
        assert different(first.result(60), alone[0]) == []


def test_equally_long_answers_share_batches_and_do_not_run_beside_each_other(served):
    with BatchingQueue(served, max_wait=0.5) as queue:
        written = threading.Event()
        first = queue.enter(samples.ask(1, tokens=60), handler_ticket(lambda row, token: written.set())).future
        assert written.wait(60)
        others = [queue.submit(samples.ask(seed, tokens=60)) for seed in (3, 5, 7)]
        assert all(future.result(60) for future in (first, *others))
        assert queue.metrics.value("dsr_model_calls_total", task="ask") <= 3


@pytest.mark.parametrize("kind", ["ask", "cad", "segment_answer", "scene"])
def test_an_answer_that_nobody_wants_ends_at_the_next_token(served, kind):
    request = samples.GOOD[kind](1)
    request["parameters"]["max_new_tokens"] = 1000
    with BatchingQueue(served) as queue:
        tokens = []

        def heard(row: int, token: int) -> None:
            tokens.append(token)
            if len(tokens) == 3:
                ticket.cancel()

        ticket = handler_ticket(heard)
        error = queue.enter(request, ticket).future.exception(60)
        assert error.code == "cancelled" and len(tokens) <= 4 and queue.pending == 0


def test_an_answer_to_somebody_who_hung_up_is_not_written_on(server):
    before = server.queue.metrics.value("dsr_requests_total", task="ask", code="cancelled")
    body = json.dumps(samples.ask(1, tokens=1000)).encode()
    with server.socket() as client:
        client.sendall(head(len(body)) + body)
        until(lambda: server.queue._lanes)
    until(lambda: server.queue.pending == 0)
    assert server.queue.metrics.value("dsr_requests_total", task="ask", code="cancelled") == before + 1


def test_health_and_ready_answer_during_a_long_generation(server):
    """How fast they are is measured by `serve.stream`; here, that they answer at all before it has ended."""
    future = server.queue.submit(samples.ask(1, tokens=400))
    until(lambda: server.queue._lanes)
    assert json.loads(server.get("/health"))["status"] == "ok" and json.loads(server.get("/ready"))["status"] == "ready"
    assert not future.done()
    assert future.result(60)


def handler_ticket(on_token):
    from dsr_toolkit.serving.tickets import Ticket

    return Ticket(on_token=on_token)
