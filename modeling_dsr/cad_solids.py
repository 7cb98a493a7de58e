"""Solids as the CAD models see them: meshes, points on them, and their place in the model's frame."""

import os
import warnings
from dataclasses import dataclass

import numpy as np
import torch

# Scaling by more than this to fit a part into the model's frame smells of metres taken for millimetres.
UNUSUAL_SCALE = 100.0
ROWS_TOGETHER = 8  # clouds whose farthest points are looked for in step; more leave the processor's cache
DROPPING_STEPS, SHRINKING = 64, 0.7  # of squared distances; a surface that is sampled evenly keeps about 0.9


@dataclass
class TriangleMesh:
    """Vertices `[V, 3]` float64 and faces `[F, 3]` int64, counter-clockwise seen from outside."""

    vertices: np.ndarray
    faces: np.ndarray

    def __post_init__(self):
        self.vertices = np.ascontiguousarray(self.vertices, np.float64)
        self.faces = np.ascontiguousarray(self.faces, np.int64)
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 3 or self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise ValueError(
                f"A mesh needs `vertices` [V, 3] and `faces` [F, 3], got {self.vertices.shape} and {self.faces.shape}."
            )
        if not len(self.vertices) or not len(self.faces):
            raise ValueError(
                f"The mesh is empty: {len(self.vertices)} vertices, {len(self.faces)} faces. Check the file in a "
                "viewer."
            )
        if not np.isfinite(self.vertices).all():
            raise ValueError("The mesh has NaN or infinite vertices. Export it again.")
        if self.faces.min() < 0 or self.faces.max() >= len(self.vertices):
            raise ValueError(
                f"`faces` refer to vertices {self.faces.min()} … {self.faces.max()}, the mesh has {len(self.vertices)}."
            )

    @property
    def bounds(self) -> np.ndarray:
        """`[2, 3]`: lowest and highest corner of the bounding box of the surface; vertices of no face do not count."""
        corners = self.vertices[self.faces].reshape(-1, 3)
        return np.stack([corners.min(0), corners.max(0)])

    def face_normals(self) -> tuple[np.ndarray, np.ndarray]:
        """Unit normals `[F, 3]` (0 for degenerate faces) and areas `[F]`."""
        a, b, c = self.vertices[self.faces].swapaxes(0, 1)
        cross = np.cross(b - a, c - a)
        length = np.linalg.norm(cross, axis=1)
        return cross / np.maximum(length, 1e-300)[:, None], length / 2

    def moved(self, scale: float, offset) -> "TriangleMesh":
        """Vertices times `scale` plus `offset`."""
        return TriangleMesh(self.vertices * scale + np.asarray(offset), self.faces)


@dataclass
class Placement:
    """Where the model's frame lies in the file's: file = center + model / scale, with model units in [-1, 1]."""

    center: np.ndarray
    scale: float


def fit_placement(low: np.ndarray, high: np.ndarray) -> Placement:
    """The placement that moves a bounding box to the origin and its longest side to [-1, 1]; warns if that is far
    off."""
    extent = float((high - low).max())
    if not extent > 0:
        raise ValueError("The part has no extent: all its points are the same. Check the units and the export.")
    placement = Placement((low + high) / 2, 2 / extent)
    if placement.scale > UNUSUAL_SCALE or placement.scale < 1 / UNUSUAL_SCALE:
        sizes = " × ".join(f"{size:g}" for size in high - low)
        warnings.warn(
            f"The part measures {sizes} millimetres, the unit taken for granted in CAD files, which is unusually "
            f"{'small' if placement.scale > 1 else 'large'}. If the file is in metres, micrometres or inches, scale it "
            "before, or read the numbers of the solid in that unit: they are the file's.",
            stacklevel=2,
        )
    return placement


def sample_surface(mesh: TriangleMesh, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` points spread evenly over the surface, `[count, 3]`, and the normals there."""
    normals, areas = mesh.face_normals()
    total = areas.sum()
    if not total > 0:
        raise ValueError("The mesh has no area: all its faces are degenerate.")
    chosen = np.searchsorted(areas.cumsum(), generator.random(count) * total, side="right").clip(max=len(areas) - 1)
    a, b, c = mesh.vertices[mesh.faces].swapaxes(0, 1)
    u, v = generator.random((2, count, 1))
    outside = u + v > 1  # the other half of the parallelogram, folded back
    u, v = np.where(outside, 1 - u, u), np.where(outside, 1 - v, v)
    points = a.take(chosen, 0) + u * (b - a).take(chosen, 0) + v * (c - a).take(chosen, 0)
    return points, normals.take(chosen, 0)


def farthest_point_sample(points: torch.Tensor, num_points: int) -> torch.Tensor:
    """
    Indices of `num_points` points, each the farthest from those chosen before; the first is point 0, ties go to the
    lower index (the rule of PyTorch3D).

    Args:
        points: `[B, P, 3]`, P ≥ num_points.

    Returns:
        int64 `[B, num_points]`.
    """
    batch, count, _ = points.shape
    if not 1 <= num_points <= count:
        raise ValueError(f"`num_points` must be between 1 and the {count} points there are, got {num_points}.")
    if points.device.type == "cpu" and points.dtype in (torch.float32, torch.float64):
        parts = points.detach().split(ROWS_TOGETHER)
        return torch.from_numpy(np.concatenate([_farthest_in_numpy(part.numpy(), num_points) for part in parts]))
    # Each coordinate in a row of its own is contiguous: three multiply-adds instead of a sum over a short last axis.
    x, y, z = points.movedim(-1, 0).contiguous()
    nearest = points.new_full((batch, count), float("inf"))
    chosen = torch.zeros(batch, num_points, dtype=torch.long, device=points.device)
    last = chosen[:, :1]
    step, total = torch.empty_like(nearest), torch.empty_like(nearest)
    for index in range(1, num_points):
        torch.sub(x, x.gather(1, last), out=total).square_()
        for axis in (y, z):
            torch.sub(axis, axis.gather(1, last), out=step)
            total.add_(step.square_())
        torch.minimum(nearest, total, out=nearest)
        last = nearest.argmax(1, keepdim=True)
        chosen[:, index : index + 1] = last
    return chosen


def _farthest_in_numpy(clouds: np.ndarray, num_points: int, dropping: bool = True) -> np.ndarray:
    """
    The same on the CPU, digit for digit: calls cost as much as the numbers, and numpy's are cheaper.

    The farthest distance shrinks with every point, as on a surface with the root of their number. Points nearer than
    what it will be at the end are never chosen: they are dropped now and then, and if it ends lower than was thought,
    all is done again without dropping.
    """
    x, y, z = np.ascontiguousarray(np.moveaxis(clouds, -1, 0))
    nearest = np.full(x.shape, np.inf, x.dtype)
    squares, others = np.empty_like(nearest), np.empty_like(nearest)
    chosen = np.zeros((len(clouds), num_points), np.int64)
    rows, last = np.arange(len(clouds)), chosen[:, 0]
    names: np.ndarray | None = None  # indices of the points that are left
    farthest = bound = np.zeros(len(clouds), x.dtype)
    for index in range(1, num_points):
        place = clouds[rows, last]
        np.subtract(x, place[:, :1], squares)
        np.multiply(squares, squares, squares)
        for coordinate, here in ((y, place[:, 1:2]), (z, place[:, 2:])):
            np.subtract(coordinate, here, others)
            np.multiply(others, others, others)
            np.add(squares, others, squares)
        np.minimum(nearest, squares, nearest)
        last = nearest.argmax(1)
        farthest = nearest[rows, last]
        chosen[:, index] = last = last if names is None else names[rows, last]
        if dropping and index % DROPPING_STEPS == 0:
            if (farthest < bound).any():
                break  # points may be missing already, of a cloud of few places all of them
            bound = np.maximum(bound, farthest * (SHRINKING * index / num_points))
            dropped = nearest < bound[:, None]
            left = np.argsort(dropped, axis=1, kind="stable")[:, : (~dropped).sum(1).max()]
            names = left if names is None else np.take_along_axis(names, left, 1)
            x, y, z, nearest = (np.take_along_axis(values, left, 1) for values in (x, y, z, nearest))
            squares, others = np.empty_like(nearest), np.empty_like(nearest)
    if (farthest < bound).any():
        return _farthest_in_numpy(clouds, num_points, dropping=False)
    return chosen


def is_mesh(value) -> bool:
    """A file, or an object with vertices and faces: the classes of a model from the Hub are others than these."""
    return isinstance(value, (str, os.PathLike)) or (hasattr(value, "vertices") and hasattr(value, "faces"))


def is_cloud(value) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 2
