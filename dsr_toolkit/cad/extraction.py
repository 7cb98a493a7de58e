"""From the result of a program to arrays, inside its own process.

Everything used here is taken hold of when the fork server starts, before any program can put something in its place.
"""

import builtins
import json
import math
import os
import struct
import sys

import cadquery
import numpy as np
from cadquery.occ_impl import shapes
from OCP.BRep import BRep_Tool
from OCP.TopAbs import TopAbs_Orientation
from OCP.TopLoc import TopLoc_Location

MAX_VERTICES, MAX_FACES, MAX_STEP = 2_000_000, 4_000_000, 32 * 2**20
LINEAR_TOLERANCE, ANGULAR_TOLERANCE = 0.001, 0.1  # of the published tessellation
MIN_FACES = 3  # fewer enclose nothing; the published rule

_Workplane, _Assembly, _Vector = cadquery.Workplane, cadquery.Assembly, cadquery.Vector
_first_object, _to_compound = cadquery.Workplane.val, cadquery.Assembly.toCompound
_SHAPES = frozenset(
    value for value in vars(shapes).values() if isinstance(value, type) and issubclass(value, shapes.Shape)
)
_solids, _faces, _mesh = shapes.Shape.Solids, shapes.Shape.Faces, shapes.Shape.mesh
_is_valid, _volume = shapes.Shape.isValid, shapes.Shape.Volume
_triangulation, _reversed = BRep_Tool.Triangulation_s, TopAbs_Orientation.TopAbs_REVERSED
_scale, _translate, _export_step = shapes.Shape.scale, shapes.Shape.translate, shapes.Shape.exportStep

# What a program may use of Python itself.
BUILTIN_NAMES = (
    "abs all any bool dict divmod enumerate filter float int isinstance len list map max min pow print range reversed round set "
    "slice sorted str sum tuple zip True False None ArithmeticError Exception ValueError TypeError ZeroDivisionError"
).split()
_modules = {"cadquery": cadquery, "math": math}


class Refused(Exception):
    """The program ran, but its result is none; `code` says in what way."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def program_globals(limited: bool) -> dict:
    """A fresh namespace; `limited` gives the whitelisted builtins and the two modules that programs import."""
    if not limited:
        return {"__name__": "__program__", "__builtins__": builtins}
    names = {name: getattr(builtins, name) for name in BUILTIN_NAMES}

    def import_known(name, globals=None, locals=None, fromlist=(), level=0):
        if name not in _modules:
            raise ImportError(f"programs import cadquery and math, not {name}")
        return _modules[name]

    return {"__name__": "__program__", "__builtins__": {**names, "__import__": import_known}}


def shape_of(result):
    """The shape that a program left in `r`: of a workplane its first object, as published."""
    if type(result) is _Workplane:
        result = _first_object(result)
    elif type(result) is _Assembly:
        result = _to_compound(result)
    if type(result) not in _SHAPES:
        raise Refused("no_result", f"`r` is no CadQuery solid but {type(result).__module__}.{type(result).__name__}")
    return result


def measure(result, request: dict) -> tuple[dict, list[bytes]]:
    """
    Header and buffers of the answer: vertices float64 `[V, 3]`, faces int32 `[F, 3]`, number of its solid for every face
    int32 `[F]`, and the STEP file if it was asked for.
    """
    shape = shape_of(result)
    _mesh(shape, LINEAR_TOLERANCE, ANGULAR_TOLERANCE)  # once for all solids: a second time would refine it
    pieces = _solids(shape)
    check = request.get("check_solid", True)
    vertices, faces, owners, count, total = [], [], [], 0, 0
    for number, piece in enumerate(pieces or [shape]):
        for face in _faces(piece):
            points, triangles = _triangles(face)
            vertices.append(points)
            faces.append(triangles + count)
            owners.append(np.full(len(triangles), number, np.int32))
            count, total = count + len(points), total + len(triangles)
            if count > MAX_VERTICES or total > MAX_FACES:
                raise Refused("memory", f"its mesh has more than {MAX_VERTICES} vertices or {MAX_FACES} faces")
    if total < MIN_FACES:
        raise Refused("empty_mesh", f"`r` encloses nothing: its mesh has {total} faces")
    if not pieces and check:
        raise Refused("invalid_solid", f"`r` is a {type(shape).__name__} without a solid in it")
    volume = float(_volume(shape))
    if check and (not _is_valid(shape) or not volume > 0):
        raise Refused("invalid_solid", f"the geometry kernel calls `r` invalid (volume {volume:g})")
    step = (
        _step_bytes(shape, request.get("scale", 1.0), request.get("offset", (0, 0, 0))) if request.get("step") else b""
    )
    header = {"vertices": count, "faces": total, "step": len(step), "volume": volume if math.isfinite(volume) else 0.0}
    arrays = [np.concatenate(parts) for parts in (vertices, faces, owners)]
    return header, [*(array.tobytes() for array in arrays), step]


def _triangles(face) -> tuple[np.ndarray, np.ndarray]:
    """Nodes `[n, 3]` and outward triangles `[m, 3]` of a meshed face."""
    location = TopLoc_Location()
    mesh = _triangulation(face.wrapped, location)
    if mesh is None:
        return np.empty((0, 3)), np.empty((0, 3), np.int32)
    motion = location.Transformation()
    nodes = [mesh.Node(i).Transformed(motion) for i in range(1, mesh.NbNodes() + 1)]
    points = np.array([(node.X(), node.Y(), node.Z()) for node in nodes], np.float64)
    triangles = np.array([triangle.Get() for triangle in mesh.Triangles()], np.int32) - 1
    return points, triangles[:, ::-1] if face.wrapped.Orientation() == _reversed else triangles


def _step_bytes(shape, scale: float, offset) -> bytes:
    placed = _scale(shape, scale) if scale != 1 else shape
    placed = _translate(placed, _Vector(*offset))
    _export_step(placed, "part.step")
    with open("part.step", "rb") as file:
        content = file.read(MAX_STEP + 1)
    os.unlink("part.step")
    if len(content) > MAX_STEP:
        raise Refused("memory", f"its STEP file is larger than {MAX_STEP} bytes")
    return content


def answer(request: dict, channel: int, nonce: bytes) -> None:
    """Run the program of `request` and write what came of it to `channel`."""
    # Taken before the program runs: nothing it does to modules reaches these names.
    write, pack, encode, run = os.write, struct.pack, json.dumps, measure
    missing, run_code, compile_code, own_number, number, leave = (
        object(),
        exec,
        compile,
        os.getpid(),
        os.getpid,
        os._exit,
    )

    def send(header: dict, buffers=()):
        if number() != own_number:  # a fork of the program has come back here
            leave(0)
        text = encode(header).encode()
        for buffer in (nonce + pack("<I", len(text)) + text, *buffers):
            view = memoryview(buffer)
            while view:
                view = view[write(channel, view[: 1 << 20]) :]

    try:
        sys.setrecursionlimit(1000)
        try:
            code = compile_code(request["program"], "<program>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            return send({"code": "syntax", "message": str(error)[:500]})
        namespace = program_globals(request["limited"])
        run_code(code, namespace)
        result = namespace.get("r", missing)
        if result is missing:
            return send({"code": "no_result", "message": "the program leaves nothing in `r`"})
        header, buffers = run(result, request)
        send({"code": "ok", "message": "", **header}, buffers)
    except Refused as error:
        send({"code": error.code, "message": str(error)[:500]})
    except MemoryError:
        send({"code": "memory", "message": "the program needs more memory than it may have"})
    except BaseException as error:  # SystemExit and whatever else a program raises
        name, text = type(error).__name__, str(error)
        out_of_memory = "OutOfMemory" in name or "bad_alloc" in text
        send({"code": "memory" if out_of_memory else "runtime", "message": f"{name}: {text}"[:500]})
