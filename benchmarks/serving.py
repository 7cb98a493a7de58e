"""A server on a port of this machine, for benchmarks of what its clients see."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from contextlib import contextmanager

from dsr_toolkit.serving.application import create_app
from dsr_toolkit.serving.front import open_sockets
from dsr_toolkit.serving.protocol import make_server


@contextmanager
def address(queue):
    """The address of a server around a queue, which ends with it; as `dsr serve` makes it."""
    sockets = open_sockets("127.0.0.1", 0)
    server = make_server(create_app(queue), sockets)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def post(url: str, request: dict):
    """The open reply to a JSON request."""
    asked = urllib.request.Request(url, json.dumps(request).encode(), {"Content-Type": "application/json"})
    return urllib.request.urlopen(asked, timeout=600)
