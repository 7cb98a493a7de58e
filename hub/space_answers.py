"""Answers of the page while they are written: the model in a thread of its own, its tokens on their way to the page."""

import queue
import threading
from collections.abc import Iterator
from types import GeneratorType


class Written:
    """Listens to an answer; `cancelled` ends it at the next token."""

    def __init__(self):
        self.cancelled = False
        self._tokens: queue.Queue[int | None] = queue.Queue()

    def token(self, row: int, token: int) -> None:
        if row == 0:
            self._tokens.put(token)

    def end(self) -> None:
        self._tokens.put(None)

    def until(self, run: "Running") -> Iterator[list[int]]:
        """The tokens so far, whenever there are more, until the run has ended."""
        run.start(self.end)
        tokens = []
        while (token := self._tokens.get()) is not None:
            tokens.append(token)
            if self._tokens.empty():
                yield tokens


class Running:
    """A job at the model, which is for one of them at a time."""

    def __init__(self, endpoint, job, busy: threading.Lock):
        self.endpoint, self.job, self.busy = endpoint, job, busy
        self._result = self._error = None

    def start(self, then) -> None:
        self._thread = threading.Thread(target=self._run, args=[then], daemon=True)
        self._thread.start()

    def _run(self, then) -> None:
        try:
            with self.busy:
                if not self.job.listener.cancelled:
                    (self._result,) = self.endpoint.run([self.job])
        except BaseException as error:
            self._error = error
        finally:
            then()

    def result(self):
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result


def each(results) -> Iterator:
    """Results of a function, or of one that yields them bit by bit."""
    if isinstance(results, GeneratorType):
        yield from results
    else:
        yield results
