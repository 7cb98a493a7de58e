"""Rows of images, depth and cameras to the training inputs of π³ and PAGE-4D."""

import numpy as np
import torch

from .pose import invert_rigid, to_homogeneous, transform_points, unproject_depth
from .training_collator import TrainingCollator

CONDITIONS = {"depths": "depth_mask", "intrinsics": "ray_mask", "poses": "pose_mask"}


class GeometryCollator(TrainingCollator):
    """
    See [`TrainingCollator`]. Scenes of a batch have the same number of images.

    Rows: "images" (as the processor reads them; or T lists of V synchronised views), "depths" [N, h, w] (0 or NaN where
    unknown), "intrinsics" [N, 3, 3] in pixels of the images, and "poses" [N, 4, 4] camera-to-world or "extrinsics" [N,
    3 or 4, 4] camera-from-world. For π³ also "sky" [N, h, w] and "normals" (whether the depth is good enough for them);
    for PAGE-4D of several views also "dynamic_masks" [T, V, h, w]. With T, V views the other arrays are [T, V, …], too.

    Args:
        processor: a [`GeometryProcessor`].
        targets: "pi3": `target_points`, `target_camera_poses`, `target_valid`; "page4d": `depths`, `extrinsics`,
            `intrinsics`. Default: by the processor's resize rule.
        condition_probability: Pi3X: how often each of depths, intrinsics and poses is also given as a condition, per
            scene. 0: never.
    """

    def __init__(self, processor, targets: str | None = None, condition_probability: float = 0.0):
        super().__init__(processor)
        if targets not in (None, "pi3", "page4d"):
            raise ValueError(f'`targets` must be "pi3", "page4d" or None, got {targets!r}.')
        self.targets = targets or ("page4d" if processor.resize_rule.startswith("page4d") else "pi3")
        self.condition_probability = condition_probability
        self.label_names = ("depths",) if self.targets == "page4d" else ("target_points",)

    def collate(self, rows: list[dict], seeds: list[int]) -> dict:
        self.need(rows, "images", "depths", "intrinsics")
        views = [_views(row["images"]) for row in rows]
        if len(set(views)) > 1:
            raise ValueError(f"Rows of one batch must have the same number of views, got {views}.")
        flat = [_flattened(row, views[0]) for row in rows]
        data = self.processor(
            [row["images"] for row in flat],
            depths=[row["depths"] for row in flat],
            intrinsics=[row["intrinsics"] for row in flat],
            poses=[_poses(row, number) for number, row in enumerate(flat)],
        )
        depths, intrinsics, poses = (data[name] for name in ("depths", "intrinsics", "poses"))
        if not (depths > 0).flatten(1).any(1).all():
            empty = int((~(depths > 0).flatten(1).any(1)).nonzero()[0])
            raise ValueError(f"Row {empty} of the batch has no known depth, so it teaches nothing.")
        batch = {"pixel_values": data["pixel_values"]}
        if self.targets == "pi3":
            batch |= self._pi3(flat, depths, intrinsics, poses, seeds)
        else:
            extrinsics = invert_rigid(poses[..., :3, :])
            batch |= {"depths": depths, "extrinsics": extrinsics[..., :3, :], "intrinsics": intrinsics}
        if views[0]:
            batch = {name: value.unflatten(1, (-1, views[0])) for name, value in batch.items()}
            if "dynamic_masks" in rows[0]:
                masks = [np.asarray(row["dynamic_masks"], np.float32) for row in rows]
                batch["mask_labels"] = self._resized(torch.from_numpy(np.stack(masks)), depths.shape[-2:])
        return batch

    def _pi3(self, rows, depths, intrinsics, poses, seeds) -> dict:
        batch = {
            "target_points": transform_points(poses[..., :3, :], unproject_depth(depths, intrinsics)),
            "target_camera_poses": poses,
            "target_valid": depths > 0,
        }
        if "sky" in rows[0]:
            sky = torch.from_numpy(np.stack([np.asarray(row["sky"], np.float32) for row in rows]))
            batch["target_sky"] = self._resized(sky, depths.shape[-2:]) > 0.5
        if "normals" in rows[0]:
            batch["target_normals"] = torch.tensor([bool(row["normals"]) for row in rows])
        if self.condition_probability:
            chosen = [
                np.random.default_rng(seed).random(len(CONDITIONS)) < self.condition_probability for seed in seeds
            ]
            for given, (name, mask) in zip(torch.from_numpy(np.stack(chosen)).T, CONDITIONS.items()):
                batch[name] = {"depths": depths, "intrinsics": intrinsics, "poses": poses}[name]
                batch[mask] = given[:, None].expand(-1, depths.shape[1])
        return batch

    @staticmethod
    def _resized(maps: torch.Tensor, size) -> torch.Tensor:
        """Maps `[..., h, w]` at the size of the frames, nearest; the frame shows the whole image."""
        flat = maps.flatten(0, -3)[:, None]
        return torch.nn.functional.interpolate(flat, size=tuple(size), mode="nearest-exact")[:, 0].unflatten(
            0, maps.shape[:-2]
        )


def _views(images) -> int:
    """Views per time, 0 for one video."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return images.shape[1] if images.ndim == 5 else 0
    first = images[0] if isinstance(images, (list, tuple)) and len(images) else None
    return len(first) if isinstance(first, (list, tuple)) else 0


def _flattened(row: dict, views: int) -> dict:
    """A row of T·V images, one after another."""
    if not views:
        return row
    images = row["images"]
    if isinstance(images, (list, tuple)):
        images = [image for time in images for image in time]
    else:
        images = images.reshape(-1, *images.shape[2:])
    arrays = {name: np.asarray(row[name]) for name in ("depths", "intrinsics", "poses", "extrinsics") if name in row}
    return {**row, "images": images, **{name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}}


def _poses(row: dict, number: int) -> torch.Tensor:
    """Camera-to-world `[N, 4, 4]`, inverted where the row says it the other way round."""
    if ("poses" in row) == ("extrinsics" in row):
        raise ValueError(
            f'Row {number} must have either "poses" (camera-to-world) or "extrinsics" (camera-from-world), '
            f"got {sorted(row)}."
        )
    if "poses" in row:
        return torch.as_tensor(np.asarray(row["poses"], np.float32))
    return to_homogeneous(invert_rigid(torch.as_tensor(np.asarray(row["extrinsics"], np.float32))[:, :3]))
