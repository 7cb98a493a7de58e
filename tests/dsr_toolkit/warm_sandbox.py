"""Sandboxes of one test process that take over each other's server.

Reading CadQuery costs a server seconds, and a sandbox starts one. Where the sandbox itself is not what a test is about,
its server, which has run no program, is kept when the sandbox is closed, for the next one that asks for the same
confinements. Keepers, limits, policy and refusals are each sandbox's own, as ever.
"""

import contextlib

from dsr_toolkit.cad.sandbox import ConfinementError, Sandbox

start, close = Sandbox._start, Sandbox.close
parked: dict[tuple, list] = {}  # confinements that were left out: servers


def take_over(self) -> None:
    servers = parked.get(self.skip, [])
    while servers:
        self._process, self._control, self.missing = servers.pop()
        refused = {name: reason for name, reason in self.missing.items() if name not in self.allow_missing}
        if self._process.poll() is not None:
            self._stop()
        elif refused:
            servers.append((self._process, self._control, self.missing))
            raise ConfinementError(refused)
        else:
            for worker in range(self.workers):
                self._add_keeper(worker)
            return
    start(self)


def park(self) -> None:
    if self._closed or self._process.poll() is not None:
        return close(self)
    self._closed = True
    with self._lock:
        for end in self._ends:  # a keeper ends with its socket, and its program with it
            end.close()
        parked.setdefault(self.skip, []).append((self._process, self._control, self.missing))


@contextlib.contextmanager
def warm():
    """Sandboxes that start in here may have a kept server; those that are closed in here leave theirs."""
    Sandbox._start, Sandbox.close = take_over, park
    try:
        yield
    finally:
        Sandbox._start, Sandbox.close = start, close


def end_all() -> None:
    """End what is kept."""
    for process, control, _ in sum(parked.values(), []):
        control.close()
        process.wait()
        process.stderr.close()
    parked.clear()
