"""What comes of a program, and how the sandbox's answers are read: anything may be wrong with them."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..console import printable
from .messages import MAX_HEADER

CODES = (
    "ok", "syntax", "policy", "runtime", "timeout", "memory", "no_result", "empty_mesh", "invalid_solid", "crash"
)  # fmt: skip
MAX_VERTICES, MAX_FACES = 2_000_000, 4_000_000
MAX_MESSAGE = 500
CHANNEL_LOST = 71
STEP_START = b"ISO-10303-21"


@dataclass
class Execution:
    """
    What came of a program.

    Args:
        code: one of `CODES`.
        message: why, in words, as printable text in one line; for "crash" with the signal.
        seconds: wall clock. signal: that ended it, 0 if none.
        vertices: `[V, 3]` float64 in the program's units. faces: `[F, 3]` int32.
        solids: `[F]` int32, the number of the solid that a face belongs to.
        solids_volume: of the exact solids, added; see `volume`.
        brep: the exact solid, in the geometry kernel's binary format; `Sandbox.step` makes a STEP file of it.
        notes: what a person should know of a result that is right, such as several solids that were not combined.
    """

    code: str
    message: str = ""
    seconds: float = 0.0
    signal: int = 0
    vertices: np.ndarray | None = None
    faces: np.ndarray | None = None
    solids: np.ndarray | None = None
    solids_volume: float | None = None
    brep: bytes | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        self.message = printable(self.message[:MAX_MESSAGE])

    @property
    def ok(self) -> bool:
        return self.code == "ok"

    @cached_property
    def volume(self) -> float | None:
        """
        Of the body that the solids make together: exact, less what solids share, which their meshes tell. Where these
        cannot be combined it is the sum.
        """
        if self.solids_volume is None:
            return None
        from modeling_dsr.cad_solids import TriangleMesh  # torch, which the server does without

        from .metrics import shared_volume

        try:
            shared = shared_volume(TriangleMesh(self.vertices, self.faces), self.solids)
        except (ValueError, ImportError):
            shared = 0.0
        return self.solids_volume - shared


# What a damaged answer can make go wrong while it is read.
DAMAGE = (
    ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError, MemoryError,
    struct.error
)  # fmt: skip


def judge(seen: dict, payload: bytes, seconds: float) -> Execution:
    """
    Execution of a program.

    Args:
        seen: by the keeper: how the last child ended and whose answer `payload` is.
        payload: answer of a child that failed, or of the checker.
        seconds: that it was given.
    """
    return _judged(seen, payload, seconds, _solid)


def judge_step(seen: dict, payload: bytes, seconds: float) -> tuple[Execution, bytes | None]:
    """Execution of the export of a solid, and the STEP file."""
    files = []

    def read(header, body, seen, facts):
        if not body.startswith(STEP_START):
            raise ValueError("the STEP file does not begin like one")
        files.append(body)
        return Execution("ok", "", **facts)

    done = _judged(seen, payload, seconds, read)
    return done, files[0] if done.ok else None


def _judged(seen: dict, payload: bytes, seconds: float, read) -> Execution:
    facts = {"seconds": seen["seconds"], "signal": seen["signal"]}
    where = " while its solid was measured" if seen["stage"] == "check" else ""
    if seen["timeout"]:
        return Execution("timeout", f"it was stopped after {seconds:g} s{where}", **facts)
    if seen["oversize"]:
        return Execution("memory", "its answer is larger than any solid may be", **facts)
    if not payload:
        return _without_answer(seen, where, facts)
    try:
        header, body = _unpacked(payload, seen)
        code, message = header["code"], header["message"] if header["code"] != "ok" else ""
        if code not in CODES or not isinstance(message, str):
            raise ValueError(f"no code {printable(str(code))[:40]!r} with its message")
        if code != "ok":
            return Execution(code, message, **facts)
        if seen["stage"] != "check":
            raise ValueError("a program's own word is not enough")
        return read(header, body, seen, facts)
    except DAMAGE as error:
        if seen["signal"]:
            return Execution("crash", f"it was ended by signal {seen['signal']}{where}", **facts)
        return Execution("crash", f"its answer is damaged: {error}", **facts)


def _without_answer(seen: dict, where: str, facts: dict) -> Execution:
    if seen["signal"]:
        return Execution("crash", f"it was ended by signal {seen['signal']}{where}", **facts)
    if seen["status"] == CHANNEL_LOST:
        return Execution("crash", "it closed the channel of its answer", **facts)
    if seen["status"] or where:
        return Execution("crash", f"it ended with status {seen['status']} and no answer{where}", **facts)
    return Execution("no_result", "it ended its process without an answer", **facts)


def _unpacked(payload: bytes, seen: dict) -> tuple[dict, bytes]:
    kept = int(seen.get("brep", 0))
    length, size = struct.unpack_from("<IQ", payload)
    if length > MAX_HEADER or len(payload) != 12 + length + size + kept:
        raise ValueError(f"{len(payload)} bytes where {12 + length + size + kept} were announced")
    return json.loads(payload[12 : 12 + length].decode()), payload[12 + length :]


def _solid(header: dict, body: bytes, seen: dict, facts: dict) -> Execution:
    count, total = int(header["vertices"]), int(header["faces"])
    if not (0 < count <= MAX_VERTICES and 0 < total <= MAX_FACES):
        raise ValueError(f"{count:.3g} vertices, {total:.3g} faces")
    volume = float(header["volume"])
    sizes = (24 * count, 12 * total, 4 * total, int(seen["brep"]))
    if len(body) != sum(sizes) or not math.isfinite(volume):
        raise ValueError(f"{len(body)} bytes where {sum(sizes)} were announced")
    view, parts = memoryview(body), []
    for size in sizes:
        parts.append(view[:size])
        view = view[size:]
    vertices = np.frombuffer(parts[0], np.float64).reshape(count, 3).copy()
    faces = np.frombuffer(parts[1], np.int32).reshape(total, 3).copy()
    solids = np.frombuffer(parts[2], np.int32).copy()
    if faces.min() < 0 or faces.max() >= count or solids.min() < 0:
        raise ValueError("faces refer to vertices that are not there")
    if not np.isfinite(vertices).all() or np.abs(vertices).max() > 1e30:
        return Execution("invalid_solid", "its mesh has vertices that are not finite", **facts)
    corners = vertices[faces]
    if not np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).any():
        return Execution("empty_mesh", "its mesh has no area", **facts)
    return Execution(
        "ok", vertices=vertices, faces=faces, solids=solids, solids_volume=volume, brep=bytes(parts[3]),
        notes=_notes(seen.get("notes"), solids), **facts,
    )  # fmt: skip


def _notes(given, solids: np.ndarray) -> tuple[str, ...]:
    """The program's, of whatever it sent, and what the mesh says."""
    notes = (
        [printable(note)[:MAX_MESSAGE] for note in given[:4] if isinstance(note, str)]
        if isinstance(given, list)
        else []
    )
    several = int(solids.max()) + 1
    return (*notes, *([f"the result consists of {several} separate solids"] if several > 1 else []))
