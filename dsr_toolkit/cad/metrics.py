"""How close a solid is to the one it should be: chamfer distance and intersection over union."""

from __future__ import annotations

import numpy as np

from modeling_dsr.cad_solids import TriangleMesh, sample_surface

from ..extras import needs

SURFACE_SAMPLES = 8192
MERGE_TOLERANCE = 1e-7  # of the largest extent: corners closer than this are one


def normalize_prediction(mesh: TriangleMesh) -> TriangleMesh:
    """Bounding box centred, longest side 1, moved to [0, 1]³: the published evaluation of Cadrille."""
    low, high = mesh.bounds
    extent = float((high - low).max())
    scale = 1 / extent if extent > 1e-7 else 1.0
    return mesh.moved(scale, 0.5 - (low + high) / 2 * scale)


def chamfer_distance(points: np.ndarray, others: np.ndarray) -> float:
    """Mean squared distance from each of `points` `[P, 3]` to the nearest of `others` `[Q, 3]`, and the other way,
    added."""
    from scipy.spatial import cKDTree

    forth = cKDTree(others).query(points)[0]
    back = cKDTree(points).query(others)[0]
    return float(np.square(forth).mean() + np.square(back).mean())


def mesh_chamfer_distance(
    mesh: TriangleMesh, other: TriangleMesh, samples: int = SURFACE_SAMPLES, seed: int | None = 0
) -> float:
    """
    `chamfer_distance` of random points of two surfaces.

    Not 0 for equal meshes: between two samples of one surface it is about the mean area per sample.
    """
    generator = np.random.default_rng(seed)
    return chamfer_distance(sample_surface(mesh, samples, generator)[0], sample_surface(other, samples, generator)[0])


def intersection_over_union(
    mesh: TriangleMesh,
    other: TriangleMesh,
    solids: np.ndarray | None = None,
    other_solids: np.ndarray | None = None,
) -> float:
    """
    Volume shared by two bodies over the volume of both together, by exact booleans (manifold3d).

    Each body is first made one: its solids are united, so that overlapping ones count once, and cavities taken out of
    the solid around them.

    Args:
        solids: `[F]` number of the solid of each face of `mesh`, if known; else its connected parts are told apart.

    Raises:
        ValueError: a mesh is not closed.
    """
    first, second = solid_body(mesh, solids), solid_body(other, other_solids)
    shared = (first ^ second).volume()
    union = first.volume() + second.volume() - shared
    # Rounding alone could lead out of [0, 1].
    return float(min(max(shared / union, 0.0), 1.0))


def solid_body(mesh: TriangleMesh, solids: np.ndarray | None = None):
    """
    The body that a mesh bounds, as a `manifold3d.Manifold`.

    Raises:
        ValueError: the mesh is not closed, or encloses nothing.
    """
    needs("cad", "An exact boolean of solids", "manifold3d")
    import manifold3d

    vertices, faces, kept = _merged(mesh)
    groups = _connected(faces, len(vertices)) if solids is None else np.asarray(solids)[kept]
    bodies = []
    for group in np.unique(groups):
        own = faces[groups == group]
        parts = _connected(own, len(vertices))
        shells = [_shell(manifold3d, vertices, own[parts == part]) for part in np.unique(parts)]
        bodies += [(manifold, sign) for manifold, sign in shells]
    outer = [body for body, sign in bodies if sign > 0]
    cavities = [body for body, sign in bodies if sign < 0]
    if not outer:
        raise ValueError("the mesh encloses no volume: its faces point inwards, or there are too few of them")
    hollowed = list(outer)
    for cavity in cavities:
        home = _smallest_around(cavity, outer)
        if home is None:
            raise ValueError("the mesh has a part that is inside out and lies in no other part")
        hollowed[home] = hollowed[home] - cavity
    body = manifold3d.Manifold.batch_boolean(hollowed, manifold3d.OpType.Add) if len(hollowed) > 1 else hollowed[0]
    if not body.volume() > 0:
        raise ValueError("the mesh encloses no volume")
    return body


def _merged(mesh: TriangleMesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices with duplicates joined, faces on them without degenerate ones, and which faces are left."""
    low, high = mesh.bounds
    grid = max(float((high - low).max()) * MERGE_TOLERANCE, 1e-300)
    _, first, number = np.unique(
        np.round((mesh.vertices - low) / grid).astype(np.int64), axis=0, return_index=True, return_inverse=True
    )
    faces = number.reshape(-1)[mesh.faces]
    a, b, c = faces.T
    kept = (a != b) & (b != c) & (c != a)
    return mesh.vertices[first], faces[kept], kept


def _connected(faces: np.ndarray, count: int) -> np.ndarray:
    """Number of the connected part of every face."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_matrix((np.ones(len(pairs), bool), pairs.T), shape=(count, count))
    return connected_components(graph, directed=False)[1][faces[:, 0]]


def _shell(manifold3d, vertices: np.ndarray, faces: np.ndarray):
    """The body inside a closed surface, and 1, or -1 if the surface faces inwards."""
    used, faces = np.unique(faces, return_inverse=True)
    faces, vertices = faces.reshape(-1, 3), vertices[used]
    corners = (vertices - vertices.mean(0))[faces]
    sign = 1 if np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) >= 0 else -1
    oriented = faces if sign > 0 else faces[:, ::-1]
    mesh = manifold3d.Mesh64(np.ascontiguousarray(vertices, np.float64), np.ascontiguousarray(oriented, np.uint64))
    manifold = manifold3d.Manifold(mesh)
    if manifold.status() != manifold3d.Error.NoError:
        mesh.merge()  # closes gaps below its own tolerance
        manifold = manifold3d.Manifold(mesh)
    if manifold.status() != manifold3d.Error.NoError:
        raise ValueError(f"a part of the mesh is not closed ({manifold.status()}): {len(faces)} faces")
    return manifold, sign


def _smallest_around(cavity, bodies: list) -> int | None:
    """The smallest body whose bounding box holds that of the cavity."""
    box = np.array(cavity.bounding_box()).reshape(2, 3)
    around = []
    for index, body in enumerate(bodies):
        other = np.array(body.bounding_box()).reshape(2, 3)
        slack = 1e-6 * float((other[1] - other[0]).max())
        if (box[0] >= other[0] - slack).all() and (box[1] <= other[1] + slack).all():
            around.append((body.volume(), index))
    return min(around)[1] if around else None
