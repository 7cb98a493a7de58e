"""Run generated programs where they can do no harm: `Sandbox`."""

from __future__ import annotations

import json
import math
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .confinement import CONFINEMENTS
from .policy import PolicyViolation, check_program
from .server import receive_message, send_message

ROOT = Path(__file__).resolve().parents[2]
CODES = (
    "ok", "syntax", "policy", "runtime", "timeout", "memory", "no_result", "empty_mesh", "invalid_solid", "crash"
)  # fmt: skip
MAX_VERTICES, MAX_FACES, MAX_STEP, MAX_HEADER = 2_000_000, 4_000_000, 32 * 2**20, 64 * 1024
STARTUP_SECONDS, GRACE_SECONDS = 180, 30


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


@dataclass
class Execution:
    """
    What came of a program.

    Args:
        code: one of `CODES`.
        message: why, in words; for "crash" with the signal.
        seconds: wall clock.
        signal: that ended it, 0 if none.
        vertices: `[V, 3]` float64 in the program's units. faces: `[F, 3]` int32.
        solids: `[F]` int32, the number of the solid that a face belongs to.
        volume: of the exact solid.
        step: STEP file, if it was asked for.
    """

    code: str
    message: str = ""
    seconds: float = 0.0
    signal: int = 0
    vertices: np.ndarray | None = None
    faces: np.ndarray | None = None
    solids: np.ndarray | None = None
    volume: float | None = None
    step: bytes | None = None

    @property
    def ok(self) -> bool:
        return self.code == "ok"


class Sandbox:
    """
    A warm fork server for generated CadQuery programs.

        with Sandbox() as sandbox:
            for execution in sandbox.map(programs):
                ...

    A program is first held against `check_program`. It then runs in a confined process of its own: no files but a private
    folder, no network, no other process, limited time and memory, and everything that it started ends with it.

    Args:
        workers: programs at a time; default one per core.
        limits: of each program.
        policy: check the syntax tree and give programs a short list of builtins. Without it any Python is run, in the same
            confinement.
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
        self._lock = threading.Lock()
        self._start()

    # ---- programs ------------------------------------------------------------------------

    def run(
        self,
        program: str,
        step: bool = False,
        scale: float = 1.0,
        offset=(0.0, 0.0, 0.0),
        check_solid: bool = True,
    ) -> Execution:
        """
        Run one program; safe to call from several threads.

        Args:
            program: source text; the result is what it leaves in `r`.
            step: also return the solid as a STEP file, times `scale` plus `offset`.
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
        request = {
            "program": program,
            "limited": self.policy,
            "confined": self.confined,
            "seconds": self.limits.seconds,
            "memory": self.limits.memory,
            "step": step,
            "scale": float(scale),
            "offset": [float(value) for value in offset],
            "check_solid": check_solid,
        }
        keeper = self._idle.get()
        try:
            seen, payload = self._exchange(keeper, request)
        except (OSError, ValueError) as error:
            keeper = self._restart(keeper)
            return Execution("crash", f"the server failed and was restarted ({error})")
        finally:
            if keeper is not None:
                self._idle.put(keeper)
        return _judge(seen, payload, self.limits)

    def map(self, programs: Iterable[str], **options) -> Iterator[Execution]:
        """`run` of many programs, `workers` at a time, in their order."""
        with ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox") as pool:
            yield from pool.map(lambda program: self.run(program, **options), programs)

    def _exchange(self, keeper: socket.socket, request: dict) -> tuple[dict, bytes]:
        send_message(keeper, request)
        seen, payload = receive_message(keeper)
        if seen is None:
            raise OSError("its process is gone")
        return seen, payload

    # ---- server --------------------------------------------------------------------------

    def _start(self) -> None:
        pairs = [socket.socketpair() for _ in range(self.workers + 1)]
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        settings = {
            "control": theirs[0].fileno(), "keepers": [end.fileno() for end in theirs[1:]], "skip": self.skip
        }  # fmt: skip
        code = (
            f"import json, sys; sys.path.insert(0, {str(ROOT)!r}); from dsr_toolkit.cad.server import main; "
            "main(json.loads(sys.argv[1]))"
        )
        # Nothing of this process's environment; one thread, which forks and namespaces need.
        environment = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "NUMBA")}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", code, json.dumps(settings)],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            pass_fds=[end.fileno() for end in theirs], cwd="/",
        )  # fmt: skip
        for end in theirs:
            end.close()
        self._control, self._keepers = ours[0], ours[1:]
        self._control.settimeout(STARTUP_SECONDS)
        hello, _ = receive_message(self._control)
        if hello is None or "error" in hello:
            reason = hello["error"] if hello else self._process.stderr.read().decode(errors="replace")[-2000:]
            self.close()
            raise ImportError(reason) if hello else RuntimeError(f"the sandbox server did not start: {reason}")
        self.missing = {name: reason for name, reason in hello["missing"]}
        refused = {name: reason for name, reason in self.missing.items() if name not in self.allow_missing}
        if refused:
            self.close()
            raise ConfinementError(refused)
        send_message(self._control, {"go": True})
        receive_message(self._control)
        self._idle: queue.Queue[socket.socket] = queue.Queue()
        for keeper in self._keepers:
            keeper.settimeout(self.limits.seconds + GRACE_SECONDS)
            self._idle.put(keeper)

    def _restart(self, keeper: socket.socket) -> socket.socket | None:
        """A new server in place of a broken one; the other keepers fail in turn and take theirs from it."""
        with self._lock:
            if keeper in self._keepers:
                self.close()
                self._start()
        return None

    def close(self) -> None:
        """End the server and everything that it runs."""
        for end in (self._control, *self._keepers):
            end.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stderr.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


# --------------------------------------------------------------------------------------
# Answers
# --------------------------------------------------------------------------------------


def _judge(seen: dict, payload: bytes, limits: SandboxLimits) -> Execution:
    """What the keeper saw and the child said, checked: the child may be lying."""
    facts = {"seconds": seen["seconds"], "signal": seen["signal"]}
    if seen["timeout"]:
        return Execution("timeout", f"it was stopped after {limits.seconds:g} s", **facts)
    if seen["oversize"]:
        return Execution("memory", "its answer is larger than any mesh may be", **facts)
    if not seen["genuine"]:
        if seen["signal"]:
            return Execution("crash", f"it was ended by signal {seen['signal']}", **facts)
        return Execution("no_result", "it ended its process without an answer", **facts)
    try:
        return _parse(payload, facts)
    except (ValueError, KeyError, TypeError, struct.error, UnicodeDecodeError, RecursionError) as error:
        return Execution("crash", f"its answer is damaged: {error}", **facts)


def _parse(payload: bytes, facts: dict) -> Execution:
    (length,) = struct.unpack_from("<I", payload)
    if length > MAX_HEADER:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(payload[4 : 4 + length].decode())
    code, message = header["code"], str(header["message"])[:500]
    if code not in CODES:
        raise ValueError(f"no code {code!r}")
    if code != "ok":
        return Execution(code, message, **facts)
    count, total, step_size = (int(header[name]) for name in ("vertices", "faces", "step"))
    if not (0 < count <= MAX_VERTICES and 0 < total <= MAX_FACES and 0 <= step_size <= MAX_STEP):
        raise ValueError(f"{count} vertices, {total} faces, {step_size} bytes of STEP")
    volume = float(header["volume"])
    sizes = (24 * count, 12 * total, 4 * total, step_size)
    body = memoryview(payload)[4 + length :]
    if len(body) != sum(sizes) or not math.isfinite(volume):
        raise ValueError(f"{len(body)} bytes where {sum(sizes)} were announced")
    vertices, faces, solids, step = (body[start : start + size] for start, size in zip(_starts(sizes), sizes))
    vertices = np.frombuffer(vertices, np.float64).reshape(count, 3).copy()
    faces = np.frombuffer(faces, np.int32).reshape(total, 3).copy()
    solids = np.frombuffer(solids, np.int32).copy()
    if not np.isfinite(vertices).all():
        return Execution("invalid_solid", "its mesh has vertices that are not finite", **facts)
    if faces.min() < 0 or faces.max() >= count or solids.min() < 0:
        raise ValueError("faces refer to vertices that are not there")
    step = bytes(step)
    if step and not step.startswith(b"ISO-10303-21"):
        raise ValueError("the STEP file does not begin like one")
    return Execution("ok", "", vertices=vertices, faces=faces, solids=solids, volume=volume, step=step or None, **facts)


def _starts(sizes: tuple[int, ...]) -> list[int]:
    starts = [0]
    for size in sizes[:-1]:
        starts.append(starts[-1] + size)
    return starts
