"""Time to the first token of a streamed answer, and of `/health` during a long one.

Baseline: the same request made ready and run to its first token by a lone `generate`, without a server. Our side is
what a client sees: from sending the request to its first event. It may take 1.2 times as long. `/health` has 100 ms.
"""

import base64
import subprocess
import sys
import threading
import time

from benchmarks.harness import alternate, row
from benchmarks.serving import address, post
from dsr_toolkit.demo.clip import CLIP
from dsr_toolkit.serving import handler_module
from dsr_toolkit.serving.batching import BatchingQueue
from dsr_toolkit.tiny import hub_folder

NAME = "serve.stream"
HEALTH_SECONDS, LOOKS = 0.1, 100
# In a process of its own, as whoever watches a server is: in the server's it would wait for the interpreter itself.
LOOK = """
import sys, time, urllib.request
slowest = 0.0
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    urllib.request.urlopen(sys.argv[1], timeout=60).read()
    slowest = max(slowest, time.perf_counter() - start)
    time.sleep(0.02)
print(slowest)
"""


def request(tokens: int) -> dict:
    video = base64.b64encode(CLIP.read_bytes()).decode()
    inputs = {"question": "Which way does the ball move?", "video": video}
    return {"task": "ask", "inputs": inputs, "parameters": {"max_new_tokens": tokens, "num_frames": 4}}


def first_event(url: str, asked: dict) -> str:
    """The first event of a stream, which is given up then."""
    with post(url, asked | {"stream": True}) as reply:
        return reply.readline().decode()


def run() -> list[dict]:
    handler = handler_module().EndpointHandler(str(hub_folder("dsr")))
    lone, long = request(1), request(64)
    queue = BatchingQueue(handler)
    with address(queue) as url:
        answer = handler(lone)["answer"]
        event = first_event(url, long)
        assert event.startswith("data: ") and answer[:1] in event, f"{event!r} does not begin with {answer!r}"

        def settled() -> None:
            """What was given up has noticed: it is not ours to pay for in the next round."""
            while queue.pending:
                time.sleep(0.001)

        def timed(call) -> float:
            settled()
            start = time.perf_counter()
            call()
            return time.perf_counter() - start

        times = alternate(lambda: handler(lone), lambda: first_event(url, long), measure=timed)
        return [row(NAME, "time", *times, target=1 / 1.2), health(url, queue)]


def health(url: str, queue) -> dict:
    """The slowest of many looks during long generations, against what it may take."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            queue.submit(request(200)).result()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        looking = [sys.executable, "-c", LOOK, f"{url}/health", str(LOOKS)]
        slowest = float(subprocess.run(looking, check=True, capture_output=True, text=True).stdout)
    finally:
        stop.set()
        writer.join()
    return row("serve.health", "time", HEALTH_SECONDS, slowest, target=1.0)
