"""Run generated programs where they can do no harm: `Sandbox`."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .answers import CODES, Execution, judge, judge_step
from .confinement import CONFINEMENTS
from .messages import receive_message, send_descriptor, send_message
from .policy import PolicyViolation, check_program

__all__ = ["CODES", "ConfinementError", "Execution", "Sandbox", "SandboxLimits"]

ROOT = Path(__file__).resolve().parents[2]
STARTUP_SECONDS, GRACE_SECONDS = 180, 30
ATTEMPTS = 5  # to find a process that takes a program
MAX_STEP = 32 * 2**20  # bytes of a STEP file


class ConfinementError(OSError):
    """This machine does not give a confinement that was not waived; `missing` maps names to reasons."""

    def __init__(self, missing: dict[str, str]):
        self.missing = missing
        listed = "; ".join(f"{name} ({reason})" for name, reason in missing.items())
        super().__init__(
            f"Generated programs are not run: this machine does not give {listed}. Where the programs can be trusted, "
            f"waive them by name: allow_missing={sorted(missing)} (command line: --allow-missing all)."
        )


@dataclass(frozen=True)
class SandboxLimits:
    """
    Of one program.

    Args:
        seconds: wall clock, from its fork to its answer.
        memory: bytes of address space, the about 1 GB of the imported libraries included.
    """

    seconds: float = 5.0
    memory: int = 4 * 2**30

    def __post_init__(self):
        if not 0 < self.seconds <= 3600:
            raise ValueError(f"`seconds` must be above 0 and at most 3600, got {self.seconds}.")
        if self.memory < 2**30:
            raise ValueError(f"`memory` must be at least 1 GiB, which the libraries take, got {self.memory}.")


class Sandbox:
    """
    A warm fork server for generated CadQuery programs.

        with Sandbox() as sandbox:
            for execution in sandbox.map(programs):
                ...

    A program is first held against `check_program`. It then runs in a confined process of its own: no files but a
    private folder, no network, no other process, limited time and memory, and everything that it started ends with it.
    Its solid is read back and measured by another confined process, which has run no program.

    Args:
        workers: programs at a time; default one per core.
        limits: of each program.
        policy: check the syntax tree and give programs a short list of builtins. Without it any Python is run, in the
            same confinement.
        allow_missing: confinements that this machine may lack; "all" for any.
        skip: confinements to leave out although they could be had.
        confined: False runs children as they are, for measuring what confinement costs.
    """

    def __init__(
        self,
        workers: int | None = None,
        limits: SandboxLimits = SandboxLimits(),
        policy: bool = True,
        allow_missing: Iterable[str] | str = (),
        skip: Iterable[str] = (),
        confined: bool = True,
    ):
        self.workers = (
            workers if workers is not None else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        )
        if self.workers < 1:
            raise ValueError(f"`workers` must be at least 1, got {self.workers}.")
        self.limits, self.policy, self.confined = limits, policy, confined
        self.skip = tuple(CONFINEMENTS if not confined else skip)
        self.allow_missing = set(CONFINEMENTS) if allow_missing == "all" else set(allow_missing)
        for name in {*self.skip, *self.allow_missing} - set(CONFINEMENTS):
            raise ValueError(f"there is no confinement {name!r}; there are {', '.join(CONFINEMENTS)}.")
        self.missing: dict[str, str] = {}
        self._lock = threading.RLock()
        self._idle: queue.Queue[int] = queue.Queue()  # numbers of workers that wait for a program
        self._ends: list[socket.socket | None] = [None] * self.workers
        self._process, self._control, self._closed = None, None, False
        self._start()
        for worker in range(self.workers):
            self._idle.put(worker)

    # ---- programs ------------------------------------------------------------------------

    def run(self, program: str, check_solid: bool = True) -> Execution:
        """
        Run one program; safe to call from several threads.

        Args:
            program: source text; the result is what it shows last with `show_object`, or else leaves in `r`.
            check_solid: "invalid_solid" unless the geometry kernel finds the solid valid. False is the published rule,
                for which more than two triangles are enough.
        """
        if self.policy:
            try:
                check_program(program)
            except SyntaxError as error:
                return Execution("syntax", str(error))
            except PolicyViolation as error:
                return Execution("policy", str(error))
        request = {"job": "program", "program": program, "limited": self.policy, "check_solid": check_solid}
        answer = self._ask(request)
        return answer if isinstance(answer, Execution) else judge(*answer, self.limits.seconds)

    def step(self, solid: Execution, scale: float = 1.0, offset=(0.0, 0.0, 0.0)) -> tuple[Execution, bytes | None]:
        """
        The solid of a program as a STEP file in millimetres, times `scale` plus `offset`, without running it again.

        Returns:
            How the export went, with a code as of a program, and the file, or None if it failed.
        """
        if solid.brep is None:
            raise ValueError(f"`solid` must be an execution that is ok, got one with {solid.code!r}.")
        place = {"scale": float(scale), "offset": [float(value) for value in offset]}
        request = {"job": "step", "most": MAX_STEP, **place}
        answer = self._ask(request, solid.brep)
        return (answer, None) if isinstance(answer, Execution) else judge_step(*answer, self.limits.seconds)

    def map(self, programs: Iterable[str], **options) -> Iterator[Execution]:
        """`run` of many programs, `workers` at a time, in their order. Whoever stops asking waits for none of the
        others."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox")
        try:
            yield from pool.map(lambda program: self.run(program, **options), programs)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, request: dict, payload: bytes = b"") -> tuple[dict, bytes] | Execution:
        """
        What the keeper says, or the execution of a program whose keeper ended.

        A keeper tells that it has the whole request before it starts anything. One that ended earlier, when no program
        can be at fault, is replaced and the request sent again.
        """
        limits = {"confined": self.confined, "seconds": self.limits.seconds, "memory": self.limits.memory}
        worker = self._idle.get()
        try:
            for _ in range(ATTEMPTS):
                end, begun = self._ends[worker], False
                try:
                    if self._closed:
                        raise RuntimeError("the sandbox is closed")
                    send_message(end, {**request, **limits}, payload)
                    begun = receive_message(end)[0] is not None
                    seen, answer = receive_message(end) if begun else (None, b"")
                    if seen is not None:
                        return seen, answer
                    reason = "its process is gone"
                except (OSError, ValueError) as error:
                    reason = str(error)
                if self._closed:
                    raise RuntimeError("the sandbox was closed while a program ran")
                self._replace(worker, end)
                if begun:
                    return Execution("crash", f"the server failed and was restarted ({reason})")
            raise RuntimeError(f"{ATTEMPTS} processes in a row ended before they began a program ({reason})")
        finally:
            self._idle.put(worker)

    # ---- server --------------------------------------------------------------------------

    def _start(self) -> None:
        """A zygote, and a keeper for every worker."""
        ours, theirs = socket.socketpair()
        settings = {"control": theirs.fileno(), "skip": self.skip}
        code = (
            f"import json, sys; sys.path.insert(0, {str(ROOT)!r}); from dsr_toolkit.cad.server import main; "
            "main(json.loads(sys.argv[1]))"
        )
        # Nothing of this process's environment; one thread, which forks and namespaces need.
        environment = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "NUMBA")}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", code, json.dumps(settings)],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()], cwd="/", start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._control = ours
        try:
            ours.settimeout(STARTUP_SECONDS)
            try:
                hello, _ = receive_message(ours)
            except TimeoutError as error:
                raise RuntimeError(
                    f"the sandbox server did not start within {STARTUP_SECONDS} s: it reads CadQuery, which takes so "
                    "long only on a machine that is very busy or from a slow disk. Try again when less is running, or "
                    "keep one sandbox for many programs instead of starting several"
                ) from error
            if hello is None or "error" in hello:
                reason = hello["error"] if hello else self._process.stderr.read().decode(errors="replace")[-2000:]
                raise ImportError(reason) if hello else RuntimeError(f"the sandbox server did not start: {reason}")
            self.missing = {name: reason for name, reason in hello["missing"]}
            refused = {name: reason for name, reason in self.missing.items() if name not in self.allow_missing}
            if refused:
                raise ConfinementError(refused)
            for worker in range(self.workers):
                self._add_keeper(worker)
        except BaseException:
            self._stop()
            raise

    def _add_keeper(self, worker: int) -> None:
        ours, theirs = socket.socketpair()
        send_descriptor(self._control, theirs.fileno())
        theirs.close()
        ours.settimeout(self.limits.seconds + GRACE_SECONDS)
        self._ends[worker] = ours

    def _replace(self, worker: int, broken: socket.socket) -> None:
        """A new keeper in place of a broken one, or a new server where that is gone as well."""
        with self._lock:
            if self._closed or self._ends[worker] is not broken:  # replaced with the server
                return
            try:
                if self._process.poll() is not None:
                    raise OSError("the server is gone")
                self._add_keeper(worker)
                broken.close()
            except OSError:
                self._stop()
                self._start()

    def _stop(self) -> None:
        for end in (self._control, *self._ends):
            if end is None:
                continue
            try:
                end.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for its answer
            except OSError:
                pass
            end.close()
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stderr.close()

    def close(self) -> None:
        """End the server and everything that it runs, at once."""
        self._closed = True
        with self._lock:
            self._stop()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exception) -> None:
        self.close()
