"""A solid that comes as B-rep: read back, checked, measured and meshed, in a confined process that has run no
program."""

import io
import math
import os

import numpy as np
from cadquery import Vector
from cadquery.occ_impl.shapes import Shape
from OCP.BinTools import BinTools
from OCP.BRep import BRep_Tool
from OCP.BRepTools import BRepTools
from OCP.ShapeAnalysis import ShapeAnalysis_ShapeTolerance
from OCP.TopAbs import TopAbs_Orientation, TopAbs_ShapeEnum
from OCP.TopExp import TopExp_Explorer
from OCP.TopLoc import TopLoc_Location
from OCP.TopoDS import TopoDS_Shape

from .program import Refused, failure

MAX_VERTICES, MAX_FACES = 2_000_000, 4_000_000
LINEAR_TOLERANCE, ANGULAR_TOLERANCE = 0.001, 0.1  # of the published tessellation
MAX_TOLERANCE = 0.01  # of the longest side; of CadQuery's own examples the coarsest has 0.0002
MIN_FACES = 3  # fewer enclose nothing; the published rule


def answer(request: dict, what: str, brep: bytes, channel) -> None:
    """Measure a solid ("measure"), or write it as STEP ("step"), and send what was found."""
    try:
        shape = read_shape(brep)
        if what == "step":
            header, buffers = {}, [step_bytes(shape, request["scale"], request["offset"], request["most"])]
        else:
            header, buffers = measure(shape, request["check_solid"])
    except Refused as error:
        return channel.send({"code": error.code, "message": str(error)[:500]})
    except MemoryError:
        return channel.send({"code": "memory", "message": "its solid needs more memory than there may be"})
    except Exception as error:
        return channel.send(failure(error))
    channel.send({"code": "ok", "message": "", **header}, *buffers)


def read_shape(brep: bytes) -> Shape:
    shape = TopoDS_Shape()
    try:
        BinTools.Read_s(shape, io.BytesIO(brep))
        if shape.IsNull():
            raise ValueError("it is empty")
        shape = Shape.cast(shape)
    except Exception as error:
        raise Refused("invalid_solid", f"the result cannot be read back as a solid: {error}") from error
    return shape


def measure(shape: Shape, check: bool) -> tuple[dict, list[bytes]]:
    """
    Header and buffers of the answer: vertices float64 `[V, 3]`, faces int32 `[F, 3]`, number of its solid for every
    face int32 `[F]`.
    """
    # A mesh that came along would be taken for the shape's own.
    BRepTools.Clean_s(shape.wrapped, True)
    if any(BRep_Tool.Surface_s(face.wrapped) is None for face in shape.Faces()):
        raise Refused("invalid_solid", "the result has a face without a surface")
    shape.mesh(LINEAR_TOLERANCE, ANGULAR_TOLERANCE)  # once for all solids: a second time would refine it
    pieces = shape.Solids()
    vertices, faces, owners, count, total = [], [], [], 0, 0
    for number, piece in enumerate(pieces or [shape]):
        for face in piece.Faces():
            points, triangles = _triangles(face)
            vertices.append(points)
            faces.append(triangles + count)
            owners.append(np.full(len(triangles), number, np.int32))
            count, total = count + len(points), total + len(triangles)
            if count > MAX_VERTICES or total > MAX_FACES:
                raise Refused("memory", f"its mesh has more than {MAX_VERTICES} vertices or {MAX_FACES} faces")
    if total < MIN_FACES:
        raise Refused("empty_mesh", f"the result encloses nothing: its mesh has {total} faces")
    if not pieces and check:
        raise Refused("invalid_solid", f"the result is a {type(shape).__name__} without a solid in it")
    # Of what is meshed: the kernel also counts faces of no solid, as if they closed one, and a solid as often as it is
    # there.
    volumes = [float(piece.Volume()) for piece in pieces or [shape]]
    volume = sum(volumes)
    arrays = [np.concatenate(parts) for parts in (vertices, faces, owners)]
    if check:
        _check_solid(shape, volumes, float(np.ptp(arrays[0], axis=0).max()))
    header = {"vertices": count, "faces": total, "volume": volume if math.isfinite(volume) else 0.0}
    return header, [array.tobytes() for array in arrays]


def _check_solid(shape: Shape, volumes: list[float], extent: float) -> None:
    # One by one: beside a larger solid, one that is inside out would not show in their sum.
    if not shape.isValid() or not all(0 < volume < math.inf for volume in volumes):
        listed = ", ".join(f"{volume:g}" for volume in sorted(volumes)[:3])
        raise Refused("invalid_solid", f"the geometry kernel calls the result invalid (volume {listed})")
    if TopExp_Explorer(shape.wrapped, TopAbs_ShapeEnum.TopAbs_FACE, TopAbs_ShapeEnum.TopAbs_SOLID).More():
        raise Refused("invalid_solid", "the result has faces that belong to no solid")
    # The kernel lets parts be as far from each other as their own tolerances say, which a program can set.
    tolerance = ShapeAnalysis_ShapeTolerance().Tolerance(shape.wrapped, 1)
    if not tolerance <= MAX_TOLERANCE * extent:
        raise Refused("invalid_solid", f"the result holds together only within a tolerance of {tolerance:g}")


def _triangles(face) -> tuple[np.ndarray, np.ndarray]:
    """Nodes `[n, 3]` and outward triangles `[m, 3]` of a meshed face."""
    location = TopLoc_Location()
    mesh = BRep_Tool.Triangulation_s(face.wrapped, location)
    if mesh is None:
        return np.empty((0, 3)), np.empty((0, 3), np.int32)
    motion = location.Transformation()
    nodes = [mesh.Node(i).Transformed(motion) for i in range(1, mesh.NbNodes() + 1)]
    points = np.array([(node.X(), node.Y(), node.Z()) for node in nodes], np.float64)
    triangles = np.array([triangle.Get() for triangle in mesh.Triangles()], np.int32) - 1
    reversed_face = face.wrapped.Orientation() == TopAbs_Orientation.TopAbs_REVERSED
    return points, triangles[:, ::-1] if reversed_face else triangles


def step_bytes(shape: Shape, scale: float, offset, most: int) -> bytes:
    """A STEP file in millimetres, of `most` bytes, of the shape times `scale` plus `offset`."""
    placed = shape.scale(scale) if scale != 1 else shape
    placed.translate(Vector(*offset)).exportStep("part.step")
    with open("part.step", "rb") as file:
        content = file.read(most + 1)
    os.unlink("part.step")
    if len(content) > most:
        raise Refused("memory", f"its STEP file is larger than {most} bytes")
    return content
