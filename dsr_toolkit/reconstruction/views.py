"""One frame with its geometry, and how π³ and PAGE-4D fill it."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class View:
    """
    A frame and what a model says of it. Camera axes are OpenCV's: x right, y down, z forward; the first pixel centre is
    (0, 0).

    Args:
        image: uint8 `[H, W, 3]`.
        points: float32 `[H, W, 3]` in the world frame.
        depth: float32 `[H, W]`, z in the camera's frame; unit of `points`.
        confidence: float32 `[H, W]` in 0 … 1.
        mask: bool `[H, W]`, pixels whose point is to be trusted.
        camera_to_world: float64 `[4, 4]`, rigid.
        intrinsics: float64 `[3, 3]` in pixels of `image`.
        dynamic: float32 `[H, W]` in 0 … 1, 1 where things move by themselves, or None if the model does not tell.
        name: of the image, in files that list images.
        time: seconds from the start of the video, or the number of the image.
        descriptor: float32 `[C]`, what the model's encoder says of the whole image (the mean of its patches), or None.
            Images of one place have alike ones.
    """

    image: np.ndarray
    points: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray
    mask: np.ndarray
    camera_to_world: np.ndarray
    intrinsics: np.ndarray
    dynamic: np.ndarray | None = None
    name: str = ""
    time: float = 0.0
    descriptor: np.ndarray | None = None

    def moved(self, similarity) -> View:
        """In another world frame, see [`Similarity`]."""
        camera = np.eye(4)
        camera[:3, :3] = similarity.rotation @ self.camera_to_world[:3, :3]
        camera[:3, 3] = similarity.apply(self.camera_to_world[:3, 3])
        points, depth = similarity.apply(self.points).astype(np.float32), self.depth * np.float32(similarity.scale)
        return replace(self, points=points, depth=depth, camera_to_world=camera)

    def finite(self) -> View:
        """
        With nothing that is not a finite number: such pixels are left out, and 0. No file format can break on them.
        """
        good = np.isfinite(self.points).all(-1) & np.isfinite(self.depth) & np.isfinite(self.confidence)
        if self.dynamic is not None:
            good &= np.isfinite(self.dynamic)
        if good.all():
            return self
        cut = lambda values: np.where(good if values.ndim == 2 else good[..., None], values, 0).astype(values.dtype)  # noqa: E731
        return replace(
            self,
            points=cut(self.points),
            depth=cut(self.depth),
            confidence=cut(self.confidence),
            mask=self.mask & good,
            dynamic=None if self.dynamic is None else cut(self.dynamic),
        )

    def save(self, path) -> None:
        """As an .npz file, lightly compressed: stronger compression takes much longer and hardly less space."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for field in fields(self):
                if (value := getattr(self, field.name)) is not None:
                    with archive.open(f"{field.name}.npy", "w") as file:
                        np.lib.format.write_array(file, np.asarray(value))

    @classmethod
    def load(cls, path) -> View:
        with np.load(path) as file:
            values = {name: file[name] for name in file.files}
        return cls(**values | {"name": str(values["name"]), "time": float(values["time"])})


def predict(
    model,
    processor,
    images: Sequence[Image.Image],
    names: Sequence[str] | None = None,
    times: Sequence[float] | None = None,
    confidence: float = 0.1,
    edge_tolerance: float | None = 0.03,
    original_size: bool = False,
    point_source: str = "depth",
    num_views: int | None = None,
    conditions=None,
) -> list[View]:
    """
    Run π³ or PAGE-4D once over the frames of a scene.

    Args:
        images: frames of one scene. names, times: of each; default: the numbers of the frames.
        confidence, edge_tolerance: see `GeometryProcessor.post_process_geometry`; they make `mask`.
        original_size: maps at the size of `images`. Default: at the size at which the model saw them, never enlarged;
            what a crop left out is masked out.
        point_source: PAGE-4D: "depth" or "points".
        num_views: the images are this many synchronised views of one time after another; default: one sequence.
        conditions: Pi3X: what is known of some of the images, see [`Conditions`].
    """
    images, masks, given = list(images), {}, {}
    if conditions is not None:
        from .conditions import model_inputs

        given, masks = model_inputs(conditions)
    inputs = processor(images, **given)
    boxes, sizes = inputs["image_boxes"], inputs["original_sizes"]
    if not original_size:
        seen = (boxes[..., 2:] - boxes[..., :2]).flip(-1).round().to(sizes.dtype)
        sizes = sizes.minimum(seen.clamp_min(1))
    names = [f"{number:06d}.png" for number in range(len(images))] if names is None else names
    times = range(len(images)) if times is None else times
    if num_views is not None:
        inputs["pixel_values"] = inputs["pixel_values"].unflatten(1, (-1, num_views))
    masks |= {name: inputs[name] for name in ("depths", "intrinsics", "poses") if name in inputs}
    decoding = dict(confidence_threshold=confidence, edge_tolerance=edge_tolerance, point_source=point_source)
    decoding |= dict(original_sizes=sizes, image_boxes=boxes)
    return run_model(model, processor, images, names, times, inputs["pixel_values"], decoding, masks)


def run_model(
    model, processor, images, names, times, pixel_values, decoding: dict, conditions: dict | None = None
) -> list[View]:
    """
    Views of `pixel_values` `[1, N, 3, H, W]` or `[1, T, V, 3, H, W]`.

    Args:
        images, names, times: of the views. decoding: arguments of the processor's `post_process_geometry`. conditions:
            more arguments of the model.
    """
    import torch

    from modeling_dsr.frames import resize_image

    with torch.inference_mode(), _described(model) as descriptors:
        outputs = model(
            pixel_values.to(model.device),
            **{name: value.to(model.device) for name, value in (conditions or {}).items()},
        )
    (scene,) = processor.post_process_geometry(outputs, **decoding)
    views = []
    for number, image in enumerate(images):
        height, width = scene.depth[number].shape
        maps = {name: getattr(scene, name)[number].cpu().numpy() for name in ("points", "depth", "confidence", "mask")}
        dynamic = None if scene.dynamic_mask is None else scene.dynamic_mask[number].cpu().numpy()
        pixels = np.asarray(resize_image(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS))
        camera, intrinsics = (x[number].double().cpu().numpy() for x in (scene.camera_poses, scene.intrinsics))
        if not (np.isfinite(camera).all() and np.isfinite(intrinsics).all()):
            raise ValueError(
                f"the model gives {names[number]} a camera that is not finite. Try --dtype float32, or leave "
                "the image out."
            )
        views.append(
            View(
                pixels, **maps, camera_to_world=camera, intrinsics=intrinsics, dynamic=dynamic,
                name=names[number], time=float(times[number]), descriptor=descriptors[number],
            )
        )  # fmt: skip
    return views


@contextmanager
def _described(model):
    """While it runs, a list fills with the mean of the patches of each frame that the model's encoder sees."""
    found, skip = [], 1 + model.config.encoder_config.num_register_tokens

    def keep(module, inputs, output) -> None:
        found.extend(output.last_hidden_state[:, skip:].float().mean(1).cpu().numpy())

    handle = model.encoder.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()
