"""What the processors of the CAD models share."""

import os

import numpy as np
import torch
from transformers import ProcessorMixin

from .cad_files import as_triangles, load_part, read_stl
from .cad_solids import Placement, TriangleMesh, farthest_point_sample, fit_placement, is_mesh, sample_surface
from .cad_views import VIEW_DIRECTIONS, render_mesh
from .media import Media


class CadMedia(Media):
    """The readers of files, and of parts; see [`read_stl`]."""

    read_stl = staticmethod(read_stl)


class SolidProcessor(ProcessorMixin):
    """What the processors of Cadrille and CAD-Recode share: parts as clouds in the model's frame."""

    num_points: int
    num_surface_samples: int
    point_channels: int
    point_sampling: str
    program_range: float
    as_mesh = TriangleMesh

    media = CadMedia

    @staticmethod
    def draw_mesh(mesh: TriangleMesh, direction: int = 0, **options) -> np.ndarray:
        """A picture `[pixels, pixels, 3]` uint8 from one of the published view directions; see [`render_mesh`]."""
        return render_mesh(mesh, VIEW_DIRECTIONS[direction], **options)

    def _clouds(
        self, parts: list, normalization: str, generators: list, noise_std: float, noise_probability: float
    ) -> list[torch.Tensor | None]:
        """
        `[num_points, point_channels]` float32 of each mesh (file or object) or cloud `[P, 3 or more]`; None of None.
        Random numbers are drawn part by part: of a part all, before those of the next.
        """
        clouds: list[np.ndarray | None] = [None] * len(parts)
        noises: list[np.ndarray | None] = [None] * len(parts)
        for i, (part, generator) in enumerate(zip(parts, generators)):
            if part is None:
                continue
            cloud = self._dense_cloud(part, normalization, generator)
            if self.point_sampling != "farthest":  # a random choice in the order z, y, x
                cloud = cloud[generator.permutation(len(cloud))[: self.num_points]]
                cloud = cloud[np.lexsort((cloud[:, 0], cloud[:, 1], cloud[:, 2]))]
            if noise_std and generator.random() < noise_probability:
                noises[i] = noise_std * generator.standard_normal((self.num_points, 3)).astype(np.float32)
            clouds[i] = cloud
        if self.point_sampling == "farthest":
            self._keep_farthest(clouds)
        for points, noise in zip(clouds, noises):
            if noise is not None and points is not None:
                points[:, :3] += noise
        return [None if cloud is None else torch.from_numpy(cloud) for cloud in clouds]

    def _dense_cloud(self, part, normalization: str, generator: np.random.Generator) -> np.ndarray:
        """`[P, point_channels]` float32 in the model's frame."""
        if isinstance(part, (str, os.PathLike)):
            part = load_part(part)
        if is_mesh(part):
            mesh = self.place_mesh(as_triangles(part), normalization)
            points, normals = sample_surface(mesh, self.num_surface_samples, generator)
            if self.point_channels > 3:
                points = np.concatenate([points, normals], axis=1)[:, : self.point_channels]
            return points.astype(np.float32)
        cloud = np.array(part, np.float64)
        if cloud.ndim != 2 or cloud.shape[1] < self.point_channels:
            raise ValueError(f"A point cloud must be [points, {self.point_channels}], got {list(cloud.shape)}.")
        if not np.isfinite(cloud).all():
            raise ValueError("The point cloud holds NaN or infinite coordinates. Remove those points.")
        if len(cloud) < self.num_points:
            raise ValueError(
                f"The cloud has fewer points than placeholders: {len(cloud)}, but `num_points` is {self.num_points}. "
                "Sample the surface more densely."
            )
        placement = self._placement(cloud[:, :3].min(0), cloud[:, :3].max(0), normalization)
        cloud = cloud[:, : self.point_channels].copy()
        # In double precision: far from the origin, as in maps, float32 has no digits left for the part.
        cloud[:, :3] = (cloud[:, :3] - placement.center) * placement.scale
        return cloud.astype(np.float32)

    def _keep_farthest(self, clouds: list) -> None:
        """Replace clouds (or None) by their farthest points; those of one length are looked through together."""
        by_length: dict[int, list[int]] = {}
        for i, cloud in enumerate(clouds):
            if cloud is not None:
                by_length.setdefault(len(cloud), []).append(i)
        for members in by_length.values():
            together = torch.from_numpy(np.stack([clouds[i][:, :3] for i in members]))
            for i, chosen in zip(members, farthest_point_sample(together, self.num_points).numpy()):
                clouds[i] = clouds[i][chosen]

    @staticmethod
    def _generators(seed, count: int) -> list[np.random.Generator]:
        """Random numbers of each sample: of one sequence for them all, or, of several seeds, each its own."""
        if seed is None or isinstance(seed, int):
            return [np.random.default_rng(seed)] * count
        if len(seed) != count:
            raise ValueError(f"`seed` must be a number, None, or one number per sample ({count}), got {len(seed)}.")
        return [np.random.default_rng(one) for one in seed]

    def place_mesh(self, mesh: TriangleMesh, normalization: str = "fit") -> TriangleMesh:
        """The mesh in the model's frame, about [-1, 1]³; see `__call__` for `normalization`."""
        low, high = mesh.bounds
        placement = self._placement(low, high, normalization)
        return mesh.moved(placement.scale, -placement.center * placement.scale)

    def _placement(self, low: np.ndarray, high: np.ndarray, normalization: str) -> Placement:
        if normalization == "fit":
            return fit_placement(low, high)
        fixed = {
            "unit_cube": Placement(np.full(3, 0.5), 2.0),
            "program": Placement(np.zeros(3), 1 / self.program_range),
            "none": Placement(np.zeros(3), 1.0),
        }
        if normalization not in fixed:
            raise ValueError(f"`normalization` must be one of {('fit', *fixed)}, got {normalization!r}.")
        return fixed[normalization]
