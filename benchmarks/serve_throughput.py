"""Sixteen clients at once: a queue that batches their requests against answering them one at a time.

Baseline: the same handler behind a lock, as a server without a queue has it. Both sides read, answer and write the same
requests about videos and images with the tiny DSR model; a client sends its next request when it has its answer. Once
more through OpenAI's route, where our side pays for HTTP and its JSON besides.
"""

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor

from benchmarks.harness import alternate, row
from benchmarks.serving import address, post
from dsr_toolkit.demo.clip import CLIP
from dsr_toolkit.serving import handler_module
from dsr_toolkit.serving.batching import BatchingQueue
from dsr_toolkit.tiny import hub_folder

NAME = "serve.throughput"
CLIENTS, REQUESTS, TOKENS = 16, 64, 32
QUESTIONS = (
    "Which way does the ball move?",
    "Does the box come nearer?",
    "What is left of the camera?",
    "Where is the ball?",
)


def requests() -> list[dict]:
    """About one video of 4 frames, each with a seed of its own; every fourth one samples."""
    video = CLIP.read_bytes()
    return [
        {
            "task": "ask",
            "inputs": {"question": f"{QUESTIONS[number % 4]} ({number})", "video": video},
            "parameters": {
                "max_new_tokens": TOKENS, "num_frames": 4, "seed": number, "temperature": 0.0 if number % 4 else 1.0,
            },
        }
        for number in range(REQUESTS)
    ]  # fmt: skip


def chat(request: dict) -> dict:
    """A request as OpenAI's clients send it."""
    inputs, parameters = request["inputs"], request["parameters"]
    video = f"data:video/mp4;base64,{base64.b64encode(inputs['video']).decode()}"
    content = [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": inputs["question"]}]
    options = {name: parameters[name] for name in ("seed", "temperature")}
    return {
        "model": "dsr", "messages": [{"role": "user", "content": content}], **options,
        "max_tokens": parameters["max_new_tokens"],
    }  # fmt: skip


def run() -> list[dict]:
    handler, asked = handler_module().EndpointHandler(str(hub_folder("dsr"))), requests()
    one_at_a_time, answers = threading.Lock(), {}

    def locked(request: dict) -> dict:
        with one_at_a_time:
            return handler(request)

    with ThreadPoolExecutor(CLIENTS) as clients:

        def baseline():
            answers["lone"] = list(clients.map(locked, asked))

        with BatchingQueue(handler, max_batch=CLIENTS) as queue:

            def ours():
                answers["batched"] = list(clients.map(lambda request: queue.submit(request).result(), asked))

            baseline(), ours()
            tokens = {side: [answer["tokens"] for answer in given] for side, given in answers.items()}
            assert tokens["lone"] == tokens["batched"], "batches answer otherwise than lone requests"
            rows = [row(NAME, "time", *alternate(baseline, ours), target=2.0)]

        for request in asked:  # what that route cannot say
            del request["parameters"]["num_frames"]
        chats = [chat(request) for request in asked]
        with address(BatchingQueue(handler, max_batch=CLIENTS)) as url:

            def complete(request: dict) -> str:
                with post(f"{url}/v1/chat/completions", request) as reply:
                    return json.load(reply)["choices"][0]["message"]["content"]

            def openai():
                answers["chat"] = list(clients.map(complete, chats))

            baseline(), openai()
            texts = [answer["answer"] for answer in answers["lone"]]
            assert texts == answers["chat"], "the route answers otherwise than lone requests"
            rows.append(row(f"{NAME}_openai", "time", *alternate(baseline, openai), target=2.0))
    return rows
