"""The one reader of parts: meshes (STL, PLY, OBJ), solids (STEP) and point clouds (PLY, text, .npy)."""

import importlib
import os
import re
import warnings
from pathlib import Path

import numpy as np

from .cad_solids import TriangleMesh
from .image_reader import TooLarge
from .optional_libraries import needs

MESH_SUFFIXES = (".stl", ".ply", ".obj")
STEP_SUFFIXES = (".step", ".stp")
CLOUD_SUFFIXES = (".npy", ".xyz", ".txt", ".csv", ".asc", ".pts", ".ply")
STL_FACE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


class NoFaces(ValueError):
    """A file of points where a mesh was expected."""


def load_mesh(path: str | os.PathLike) -> TriangleMesh:
    """
    Triangles of an STL, PLY or OBJ file (trimesh) or of the solid of a STEP file (cadquery).

    Faces with corners that are not finite are left out, with a warning that says how many.

    Raises:
        ValueError: no such file, another kind, damaged, or without faces (of a PLY of points see [`load_cloud`]).
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ValueError(f"There is no mesh file at {str(path)!r}.")
    if suffix not in MESH_SUFFIXES + STEP_SUFFIXES:
        raise ValueError(f"{path.name!r} is no mesh file: expected one of {', '.join(MESH_SUFFIXES + STEP_SUFFIXES)}.")
    try:
        if suffix == ".stl":
            vertices, faces = read_stl(path.read_bytes(), repr(path.name))
        elif suffix in STEP_SUFFIXES:
            vertices, faces = _tessellate(path)
        else:
            vertices, faces = _with_trimesh(path)
    except ImportError:
        raise
    except Exception as error:  # every reader raises its own classes, all of them mean an unreadable file
        if suffix == ".stl":
            raise
        raise ValueError(
            f"{path.name!r} cannot be read as {suffix[1:].upper()} ({type(error).__name__}: {error}). Open it in a CAD "
            "program and export it again."
        ) from error
    if len(vertices) and not len(faces):
        raise NoFaces(f"{path.name!r} holds {len(vertices)} points and no faces: it is a cloud, not a mesh.")
    if not len(vertices):
        raise ValueError(f"{path.name!r} holds an empty mesh: {len(vertices)} vertices, {len(faces)} faces.")
    return TriangleMesh(*_finite_faces(np.asarray(vertices, np.float64), np.asarray(faces), repr(path.name)))


def _tessellate(path: Path):
    needs("cad", f"Reading {path.name!r}", "cadquery")
    importers = importlib.import_module("cadquery").importers
    shape = importers.importStep(str(path)).combine().val()
    vertices, faces = shape.tessellate(1e-5 * shape.BoundingBox().DiagonalLength, 0.1)
    return [vertex.toTuple() for vertex in vertices], faces


def _with_trimesh(path: Path):
    needs(None, f"Reading {path.name!r}", "trimesh")
    trimesh = importlib.import_module("trimesh")
    # As it is: what cannot be used is left out here, where it is said.
    loaded = trimesh.load(path, process=False)
    if isinstance(loaded, trimesh.Scene):
        loaded = loaded.to_mesh()
    return loaded.vertices, getattr(loaded, "faces", ())


def _finite_faces(vertices: np.ndarray, faces: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    finite = np.isfinite(vertices).all(1)
    if finite.all():
        return vertices, faces
    kept = finite[faces].all(1)
    if not kept.any():
        raise ValueError(f"{name} has no face whose corners are finite numbers. Export it again.")
    if lost := int((~kept).sum()):
        warnings.warn(
            f"{name}: {lost} of {len(faces)} faces have corners that are not finite numbers and are left out.",
            stacklevel=3,
        )
    return np.where(finite[:, None], vertices, 0.0), faces[kept]


def read_stl(content: bytes, name: str = "the STL file", max_faces: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """
    Vertices `[3·F, 3]` float64 and faces `[F, 3]` of an STL file, binary or ASCII, whatever its header says.

    Args:
        max_faces: more are refused before memory is taken for them.

    Raises:
        ValueError: neither, cut short, without faces, or with more than allowed.
    """
    count = int.from_bytes(content[80:84], "little") if len(content) >= 84 else 0
    text = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(b"solid")
    binary = count > 0 and len(content) >= 84 + STL_FACE.itemsize * count  # what follows the last face is ignored
    if binary and not (text and b"vertex" in content[84:]):
        _check_faces(count, max_faces, name)
        corners = np.frombuffer(content, STL_FACE, count, 84)["corners"].astype(np.float64)
    elif text or b"facet" in content[:4096].lower():
        numbers = re.findall(rb"(?i)\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", content)
        _check_faces(len(numbers) // 3, max_faces, name)
        try:
            corners = np.array(numbers, dtype="S32").astype(np.float64)
        except ValueError as error:
            raise ValueError(f"{name} is an ASCII STL with a vertex that is no three numbers ({error}).") from error
        if not len(corners) or len(corners) % 3:
            raise ValueError(
                f"{name} is an ASCII STL with {len(corners)} vertices, which are no whole number of faces."
            )
    elif count:
        complete = max(len(content) - 84, 0) // STL_FACE.itemsize
        raise ValueError(
            f"{name} is no complete binary STL file: it announces {count} faces and holds {complete}. It may be cut "
            "short; export it again."
        )
    else:
        raise ValueError(f"{name} is no STL file of at least one face.")
    vertices = corners.reshape(-1, 3)
    return vertices, np.arange(len(vertices)).reshape(-1, 3)


def _check_faces(count: int, limit: int | None, name: str) -> None:
    if limit is not None and count > limit:
        raise TooLarge(f"{name} has {count} faces; at most {limit} are read.")


def load_cloud(path: str | os.PathLike) -> np.ndarray:
    """
    A point cloud `[P, 3 or more]` float64: PLY, .npy, or text with a point per line.

    Numbers of a line stand between spaces, tabs, commas or semicolons; single commas inside what spaces or semicolons
    separate ("1,5 2,0 0,25") are decimal marks. Lines of comments (#, //, ;), a header of column names and a first line
    with the number of points are passed over. Points that are not finite are left out, with a warning.

    Raises:
        ValueError: no such file, another kind, a line that is no point, or no finite point.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no point cloud at {str(path)!r}.")
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            cloud = _load_npy(path)
        elif suffix == ".ply":
            cloud = np.asarray(_with_trimesh(path)[0])
        else:
            cloud = _text_cloud(path.read_text(encoding="utf-8-sig", errors="replace"), path.name)
    except (ValueError, ImportError):
        raise
    except Exception as error:  # every reader raises its own classes, all of them mean an unreadable file
        raise ValueError(f"{path.name!r} cannot be read as a point cloud ({type(error).__name__}: {error}).") from error
    cloud = np.asarray(cloud)
    if cloud.ndim != 2 or cloud.shape[1] < 3 or not len(cloud) or cloud.dtype.kind not in "fiu":
        raise ValueError(f"{path.name!r} must hold points [P, 3 or more], got {cloud.dtype} {cloud.shape}.")
    cloud = cloud.astype(np.float64)
    finite = np.isfinite(cloud[:, :3]).all(1)
    if not finite.any():
        raise ValueError(f"{path.name!r} holds no point of finite numbers, only NaN or infinity. Export it again.")
    if lost := int((~finite).sum()):
        warnings.warn(
            f"{path.name!r}: {lost} of {len(cloud)} points are not finite numbers and are left out.", stacklevel=2
        )
    return cloud[finite]


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path.name!r} is no array of numbers ({error}). Save it with `numpy.save`.") from error


def load_part(path: str | os.PathLike) -> TriangleMesh | np.ndarray:
    """A mesh, or the cloud of a file that has points and no faces, by what the file holds."""
    suffix = Path(path).suffix.lower()
    if suffix not in MESH_SUFFIXES + STEP_SUFFIXES + CLOUD_SUFFIXES:
        expected = ", ".join(dict.fromkeys(MESH_SUFFIXES + STEP_SUFFIXES + CLOUD_SUFFIXES))
        raise ValueError(f"{Path(path).name!r} is neither a mesh nor a cloud: expected one of {expected}.")
    if suffix != ".ply":
        return load_cloud(path) if suffix in CLOUD_SUFFIXES else load_mesh(path)
    try:
        return load_mesh(path)
    except NoFaces:
        return load_cloud(path)


def _words(line: str) -> list[str]:
    """What stands between the separators of a line of numbers."""
    line = line.strip(",; \t")
    words = re.split(r"[\s;]+", line)
    if len(words) > 2 and "." not in line and all(re.fullmatch(r"[^,]+(,[^,]+)?", word) for word in words):
        return [word.replace(",", ".") for word in words]
    return re.split(r"[\s,;]+", line)


def _text_cloud(text: str, name: str) -> np.ndarray:
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#")[0].split("//")[0].strip()
        if not line or line.startswith(";"):
            continue
        try:
            row = [float(word) for word in _words(line)]
        except ValueError:
            if not rows:  # names of columns
                continue
            raise ValueError(f"{name!r}, line {number}: {line[:60]!r} is no point; expected numbers.") from None
        if len(row) == 1 and not rows:  # the number of points
            continue
        if rows and len(row) != len(rows[0]):
            raise ValueError(f"{name!r}, line {number}: {len(row)} numbers where the lines before have {len(rows[0])}.")
        rows.append(row)
    if not rows:
        raise ValueError(f"{name!r} holds no point; expected a line of three numbers for each.")
    return np.array(rows)


def as_triangles(part) -> TriangleMesh:
    """
    The mesh of a file, or of an object with vertices and faces (of this library, of the Hub's code, of trimesh, …).
    """
    if isinstance(part, (str, os.PathLike)):
        return load_mesh(part)
    return part if isinstance(part, TriangleMesh) else TriangleMesh(np.asarray(part.vertices), np.asarray(part.faces))
