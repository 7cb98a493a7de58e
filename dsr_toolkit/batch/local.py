"""Workers on this machine: processes that are started again when they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from ..console import say
from .attempts import Attempts
from .store import Chunk, Finished

STARTS = 3  # failed starts in a row before it is the model's fault, and not an accident's


class WorkerFailed(ValueError):
    """A worker cannot begin: what it says is about the settings."""


@dataclass
class Process:
    """A worker's process, this end of its pipes, and what it is at."""

    number: int
    process: subprocess.Popen
    pipe: Connection
    ends: int
    ready: bool = False
    chunk: Chunk | None = None


def run_local(settings: dict, chunks: Iterator[Chunk], workers: int, gpus: float) -> Iterator[Finished]:
    """
    Answers of chunks, as they are finished.

    Args:
        gpus: of each worker; below 1 several share one.

    Raises:
        WorkerFailed: the settings are wrong.
    """
    running = [_start(settings, number, workers, gpus) for number in range(workers)]
    attempts, again, failures = Attempts(), deque(), 0
    try:
        while True:
            for one in [one for one in running if one.ready and one.chunk is None]:
                one.chunk = again.popleft() if again else next(chunks, None)
                if one.chunk is None:
                    _stop([one])
                    running.remove(one)
                else:
                    _tell(one, one.chunk, *attempts.begin(one.chunk.number))
            if not running:
                return
            for pipe in wait([one.pipe for one in running]):
                one = next(one for one in running if one.pipe is pipe)
                try:
                    kind, content = pipe.recv()
                except (EOFError, OSError):  # it ended
                    failures = 0 if one.ready else failures + 1
                    if failures == STARTS:
                        raise WorkerFailed("workers end while they load the model; is there enough memory?") from None
                    say(f"Worker {one.number} ended ({_why(one.process)}); another one takes its place.")
                    if one.chunk is not None:
                        again.append(one.chunk)
                    one.pipe.close()
                    os.close(one.ends)
                    running[running.index(one)] = _start(settings, one.number, workers, gpus)
                    continue
                if kind == "ready":
                    one.ready, failures = True, 0
                elif kind == "failed":
                    raise WorkerFailed(content)
                elif kind == "item":
                    attempts.item(one.chunk.number, content)
                else:
                    attempts.done(one.chunk.number)
                    one.chunk = None
                    yield content
    finally:
        _stop(running)


def _tell(one: Process, *what) -> None:
    try:
        one.pipe.send(what)
    except OSError:
        pass  # it has ended; that is noticed where answers are read


def _why(process: subprocess.Popen) -> str:
    code = process.wait()
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def _start(settings: dict, number: int, workers: int, gpus: float) -> Process:
    ours, theirs = multiprocessing.Pipe()
    alive, ends = os.pipe()  # ends when this process does, however that is
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | environment_of(number, workers, gpus)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), environment.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", CODE, str(theirs.fileno()), str(alive)],
        pass_fds=(theirs.fileno(), alive), env=environment, stdin=subprocess.DEVNULL, stdout=2,
    )  # fmt: skip
    theirs.close()
    os.close(alive)
    one = Process(number, process, ours, ends)
    _tell(one, settings)
    return one


def environment_of(number: int, workers: int, gpus: float) -> dict[str, str]:
    """Of a worker: its GPUs, and its share of the processor's cores."""
    environment = {}
    if gpus:
        first, count = int(number * gpus) if gpus < 1 else number * int(gpus), max(1, int(gpus))
        known = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        wanted = range(first, first + count)
        named = [known[one] if one < len(known) and known[one] else str(one) for one in wanted]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(named)
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    return environment


def _stop(running: list[Process]) -> None:
    for one in running:
        one.pipe.close()
        if one.chunk is not None or not one.ready:
            one.process.kill()
    for one in running:
        try:
            one.process.wait(10)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        os.close(one.ends)


# ---- in the worker's process -------------------------------------------------------------

CODE = "import sys; from dsr_toolkit.batch.local import work; work(*map(int, sys.argv[1:]))"


def work(pipe: int, alive: int) -> None:
    """Answer the chunks that come through a pipe, until it or the process at its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who drives
    threading.Thread(target=lambda: (os.read(alive, 1), os._exit(1)), daemon=True).start()
    connection = Connection(pipe)
    (settings,) = connection.recv()
    from .answering import finished
    from .worker import Worker

    try:
        worker = Worker(settings)
    except Exception as error:
        known = isinstance(error, (ValueError, OSError, ImportError))
        connection.send(("failed", str(error) if known else f"{type(error).__name__}: {error}"))
        return
    connection.send(("ready", None))
    while True:
        try:
            chunk, alone, given_up = connection.recv()
        except EOFError:
            break
        began = lambda number: connection.send(("item", number))  # noqa: E731
        connection.send(("done", finished(worker, chunk, alone, given_up, began)))
    worker.close()
    sys.stderr.flush()
    os._exit(0)  # taking torch down in order takes seconds
