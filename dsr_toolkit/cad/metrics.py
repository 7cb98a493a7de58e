"""How close a solid is to the one it should be: chamfer distance and intersection over union."""

from __future__ import annotations

import numpy as np

from modeling_dsr.cad_solids import TriangleMesh, sample_surface

from ..extras import needs

SURFACE_SAMPLES = 8192
MOST_SOLIDS = 1000  # of which every pair is looked at
MERGE_TOLERANCE = 1e-7  # of the largest extent: corners closer than this are one


def normalize_prediction(mesh: TriangleMesh) -> TriangleMesh:
    """Bounding box centred, longest side 1, moved to [0, 1]³: the published evaluation of Cadrille."""
    low, high = mesh.bounds
    extent = float((high - low).max())
    scale = 1 / extent if extent > 1e-7 else 1.0
    return mesh.moved(scale, 0.5 - (low + high) / 2 * scale)


def chamfer_distance(points: np.ndarray, others) -> float:
    """
    Mean squared distance from each of `points` `[P, 3]` to the nearest of `others`, and the other way, added.

    Args:
        others: `[Q, 3]`, or a `scipy.spatial.cKDTree` of them, which is made once for many comparisons.
    """
    from scipy.spatial import cKDTree

    tree = others if isinstance(others, cKDTree) else cKDTree(others)
    forth = tree.query(points)[0]
    back = cKDTree(points).query(tree.data)[0]
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
    return overlap(solid_body(mesh, solids), solid_body(other, other_solids))


def overlap(first, second) -> float:
    """Intersection over union of two bodies from `solid_body`."""
    shared = (first ^ second).volume()
    union = first.volume() + second.volume() - shared
    if not union > 0:
        raise ValueError("the two bodies together have no volume")
    # Rounding alone could lead out of [0, 1].
    return float(min(max(shared / union, 0.0), 1.0))


def published_iou(truth: TriangleMesh, mesh: TriangleMesh) -> float | None:
    """
    Intersection over union by the rule of Cadrille's published evaluation: of the parts of both meshes that are closed,
    the volumes that any two of them share, over the sum of their volumes less what is shared.

    A mesh without a closed part has volume 0 there, hence an open prediction the score 0, and so any prediction for an
    open truth. None where that rule leaves a pair out: both are open, or a boolean fails, as with cavities.
    """
    import trimesh

    # As it is after a binary STL file, which the published evaluation writes: rounded, corners joined.
    first, second = (trimesh.Trimesh(one.vertices.astype(np.float32), one.faces, process=True) for one in (truth, mesh))
    try:
        parts, others = first.split(only_watertight=True), second.split(only_watertight=True)
        shared = sum(part.intersection(other).volume for part in parts for other in others)
        union = sum(part.volume for part in parts) + sum(other.volume for other in others) - shared
        return float(shared / union) if union > 0 else None
    except Exception:  # the published evaluation leaves out whatever raises
        return None


def solid_body(mesh: TriangleMesh, solids: np.ndarray | None = None):
    """
    The body that a mesh bounds, as a `manifold3d.Manifold`.

    Raises:
        ValueError: the mesh is not closed, or encloses nothing.
    """
    needs("cad", "An exact boolean of solids", "manifold3d")
    import manifold3d

    vertices, faces, kept = _merged(mesh)
    if not len(faces):
        raise ValueError("the mesh has no area")
    groups = _connected(vertices, faces) if solids is None else np.asarray(solids)[kept]
    bodies = []
    for group in np.unique(groups):
        own = faces[groups == group]
        parts = _connected(vertices, own)
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


def shared_volume(mesh: TriangleMesh, solids: np.ndarray) -> float:
    """
    By how much the volumes of the solids of a mesh, added, exceed that of all together. `solids` as in `solid_body`.

    Raises:
        ValueError: a solid whose box meets another's is not closed, or there are too many to look at every pair.
    """
    numbers, counts = np.unique(solids, return_counts=True)
    if len(numbers) > MOST_SOLIDS:
        raise ValueError(f"the mesh has {len(numbers)} solids, and {MOST_SOLIDS} at most are compared")
    # Each with its own vertices: those of all others would be looked through for every one.
    parts = [_compact(mesh, own) for own in np.split(np.argsort(solids, kind="stable"), np.cumsum(counts)[:-1])]
    low, high = (np.stack([getattr(part.vertices, end)(0) for part in parts]) for end in ("min", "max"))
    slack = MERGE_TOLERANCE * (high.max(0) - low.min(0)).max()
    meet = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low) > slack).all(-1)
    meeting = np.flatnonzero(meet.sum(1) > 1)  # each meets itself
    if not len(meeting):
        return 0.0
    own = np.flatnonzero(np.isin(solids, numbers[meeting]))
    alone = sum(solid_body(parts[number]).volume() for number in meeting)
    return max(alone - solid_body(_compact(mesh, own), solids[own]).volume(), 0.0)


def _compact(mesh: TriangleMesh, faces: np.ndarray) -> TriangleMesh:
    """Some faces of a mesh, by their numbers, and the vertices that they use."""
    used, corners = np.unique(mesh.faces[faces], return_inverse=True)
    return TriangleMesh(mesh.vertices[used], corners.reshape(-1, 3).astype(mesh.faces.dtype))


def _merged(mesh: TriangleMesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Vertices with duplicates joined, faces on them without degenerate ones and without second copies, and the numbers
    of the faces that are left.
    """
    low, high = mesh.bounds
    grid = max(float((high - low).max()) * MERGE_TOLERANCE, 1e-300)
    _, first, number = np.unique(
        np.round((mesh.vertices - low) / grid).astype(np.int64), axis=0, return_index=True, return_inverse=True
    )
    faces = number.reshape(-1)[mesh.faces]
    a, b, c = faces.T
    kept = np.flatnonzero((a != b) & (b != c) & (c != a))
    faces = faces[kept]
    # The same corners in the same turn, whichever comes first: a body that is there twice.
    turned = np.take_along_axis(faces, (faces.argmin(1)[:, None] + np.arange(3)) % 3, axis=1)
    once = np.sort(np.unique(turned, axis=0, return_index=True)[1])
    return mesh.vertices[first], faces[once], kept[once]


def _connected(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """
    Number of the closed surface that every face belongs to.

    Faces go together where they share an edge, not where they share a corner, at which bodies may touch. At an edge of
    more than two faces, along which bodies touch, those are paired that belong together elsewhere, and then those that
    have the body between them.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(faces)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    owner = np.tile(np.arange(count), 3)
    forward = edges[:, 0] < edges[:, 1]
    key = np.sort(edges, axis=1)
    order = np.lexsort((key[:, 1], key[:, 0]))
    starts = np.flatnonzero(np.r_[True, (np.diff(key[order], axis=0) != 0).any(1)])
    sizes = np.diff(np.r_[starts, len(order)])

    def label(pairs: np.ndarray) -> np.ndarray:
        graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
        return connected_components(graph, directed=False)[1]

    plain = starts[sizes == 2]
    pairs = np.stack([owner[order[plain]], owner[order[plain + 1]]], axis=1)
    crowded = [order[start : start + size] for start, size in zip(starts[sizes > 2], sizes[sizes > 2])]
    if not crowded:
        return label(pairs)
    labels, joined = label(pairs), []
    for sides in crowded:
        joined += _pairs_at_edge(vertices, faces, key[sides[0]], owner[sides], forward[sides], labels)
    return label(np.concatenate([pairs, np.array(joined, int).reshape(-1, 2)]))


def _pairs_at_edge(vertices, faces, edge, owners, forward, labels) -> list[tuple[int, int]]:
    """Pairs of the faces around one edge, seen along it: each opens or closes a body as one turns."""
    start, end = vertices[edge]
    axis = (end - start) / max(np.linalg.norm(end - start), 1e-300)
    third = faces[owners].sum(1) - edge.sum()
    across = vertices[third] - start
    across -= np.outer(across @ axis, axis)
    side = across[0] / max(np.linalg.norm(across[0]), 1e-300)
    turn = np.arctan2(across @ np.cross(axis, side), across @ side)
    turn = np.where(turn < -1e-9, turn + 2 * np.pi, turn)
    # Corners run anticlockwise seen from outside, so behind a face that runs along the edge the body is ahead.
    opening = [(float(turn[i]), i) for i in range(len(owners)) if not forward[i]]
    closing = [(float(turn[i]), i) for i in range(len(owners)) if forward[i]]
    pairs = []
    for same_label in (True, False):
        for angle, i in sorted(opening):
            ahead = sorted(
                ((other - angle + 1e-7) % (2 * np.pi), j)
                for other, j in closing
                if not same_label or labels[owners[j]] == labels[owners[i]]
            )
            ahead = [found for found in ahead if found[0] > 1e-6] or ahead
            if not ahead:
                continue
            j = ahead[0][1]
            pairs.append((owners[i], owners[j]))
            opening = [found for found in opening if found[1] != i]
            closing = [found for found in closing if found[1] != j]
    return pairs


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
