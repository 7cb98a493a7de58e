"""Processor of π³ and PAGE-4D: images of a scene in, cameras, depth and points out."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from .frame_sizes import page4d_image_size, pi3_image_size
from .frames import choose_frames, read_frames, resize_image
from .geometry_collator import GeometryCollator
from .image_reader import flatten, is_image_file
from .media import Media
from .point_maps import depth_normal_edge, recover_intrinsics
from .pose import intrinsics_problem, invert_rigid, pose_problem, unproject_depth
from .processing_arguments import refuses_unreadable


def fit_pi3(images: Iterable[Image.Image], processor: "GeometryProcessor") -> tuple[list[np.ndarray], list[tuple]]:
    """
    π³'s rule: every image is stretched to the size that the first one asks for.

    Returns:
        uint8 frames `[H, W, 3]`, and where each whole image lies in its frame: (left, top, right, bottom) in pixels.
    """
    size, frames, boxes = None, [], []
    for image in images:
        size = size or pi3_image_size(*image.size, processor.pixel_limit, processor.patch_size)
        frames.append(np.asarray(resize_image(image.convert("RGB"), size, Image.Resampling.LANCZOS)))
        boxes.append((0, 0, *size))
    return frames, boxes


def fit_page4d_crop(
    images: Iterable[Image.Image], processor: "GeometryProcessor"
) -> tuple[list[np.ndarray], list[tuple]]:
    """PAGE-4D's rule: every image to the width `image_size`; of a taller one the middle. Returns as [`fit_pi3`]
    does."""
    side, frames, boxes = processor.image_size, [], []
    for image in images:
        image = flatten(image)
        width, height = page4d_image_size(*image.size, side, processor.patch_size)
        frame = np.asarray(resize_image(image, (width, height), Image.Resampling.BICUBIC))
        top = max(0, (height - side) // 2)
        frames.append(frame[top : top + side])
        boxes.append((0, -top, width, height - top))
    return _pad_alike(frames, boxes)


def fit_page4d_pad(
    images: Iterable[Image.Image], processor: "GeometryProcessor"
) -> tuple[list[np.ndarray], list[tuple]]:
    """PAGE-4D's other rule: the longer side to `image_size`, the shorter one padded with white. Returns as
    [`fit_pi3`]."""
    side, frames, boxes = processor.image_size, [], []
    for image in images:
        image = flatten(image)
        size = page4d_image_size(*image.size, side, processor.patch_size, mode="pad")
        frames.append(np.asarray(resize_image(image, size, Image.Resampling.BICUBIC)))
        boxes.append((0, 0, *size))
    return _pad_alike(frames, boxes, side)


def fit_page4d_square(
    images: Iterable[Image.Image], processor: "GeometryProcessor"
) -> tuple[list[np.ndarray], list[tuple]]:
    """PAGE-4D's rule for high resolution: padded with black to a square, then to `image_size`. Returns as
    [`fit_pi3`]."""
    side, frames, boxes = processor.image_size, [], []
    for image in images:
        image = flatten(image)
        width, height = image.size
        longest = max(width, height)
        left, top = (longest - width) // 2, (longest - height) // 2
        square = Image.new("RGB", (longest, longest))
        square.paste(image, (left, top))
        frames.append(np.asarray(resize_image(square, (side, side), Image.Resampling.BICUBIC)))
        scale = side / longest
        boxes.append((left * scale, top * scale, (left + width) * scale, (top + height) * scale))
    return frames, boxes


def _pad_alike(frames: list[np.ndarray], boxes: list[tuple], side: int = 0) -> tuple[list[np.ndarray], list[tuple]]:
    """Pad frames with white to the largest height and width among them, at least `side`; images stay in the middle."""
    height, width = (max(side, *(frame.shape[axis] for frame in frames)) for axis in (0, 1))
    padded, moved = [], []
    for frame, (x1, y1, x2, y2) in zip(frames, boxes):
        down, right = height - frame.shape[0], width - frame.shape[1]
        top, left = down // 2, right // 2
        padding = ((top, down - top), (left, right - left), (0, 0))
        padded.append(np.pad(frame, padding, constant_values=255))
        moved.append((x1 + left, y1 + top, x2 + left, y2 + top))
    return padded, moved


RESIZE_RULES = {
    "pi3": fit_pi3,
    "page4d": fit_page4d_crop,
    "page4d_pad": fit_page4d_pad,
    "page4d_square": fit_page4d_square,
}


@dataclass
class SceneGeometry:
    """
    What a model says of one scene, per frame at the size of the original image.

    Every field is a tensor of the shape given, or a list of one tensor per frame where the originals differ in size.
    Camera axes are OpenCV's: x right, y down, z forward. Pixel centres lie at whole numbers: the first is (0, 0).

    Args:
        depth: `[N, H, W]`, z in the camera's frame; 0 where the model did not see the pixel, or gave no finite number.
        points: `[N, H, W, 3]` in the world frame.
        confidence: `[N, H, W]`; of π³ a probability.
        mask: bool `[N, H, W]`, confident enough and not at an edge.
        intrinsics: `[N, 3, 3]` in pixels of the original images.
        camera_poses: `[N, 4, 4]` camera-to-world. extrinsics: `[N, 4, 4]` world-to-camera.
        dynamic_mask: `[N, H, W]`, 0 … 1, 1 where things move by themselves; of PAGE-4D with its mask on, else None.
    """

    depth: torch.Tensor | list[torch.Tensor]
    points: torch.Tensor | list[torch.Tensor]
    confidence: torch.Tensor | list[torch.Tensor]
    mask: torch.Tensor | list[torch.Tensor]
    intrinsics: torch.Tensor
    camera_poses: torch.Tensor
    extrinsics: torch.Tensor
    dynamic_mask: torch.Tensor | list[torch.Tensor] | None = None


class GeometryProcessor(ProcessorMixin):
    r"""
    Images, folders and videos to the inputs of [`Pi3Model`] and [`Page4DModel`], and their outputs back to the original
    images.

    Args:
        resize_rule (`str`, *optional*, defaults to `"pi3"`):
            Which model's published rule brings images to size. `"pi3"`: all to the size that the first image asks for.
            `"page4d"`: width `image_size`, of tall images the middle; `"page4d_pad"`: longer side `image_size`, padded
            with white to a square; `"page4d_square"`: padded with black to a square, then resized.
        pixel_limit (`int`, *optional*, defaults to 255000):
            `"pi3"`: the largest number of pixels of a frame; smaller images are enlarged to it.
        patch_size (`int`, *optional*, defaults to 14): sides of frames are multiples of it.
        image_size (`int`, *optional*, defaults to 518): PAGE-4D's rules: side of the frames, a multiple of
        `patch_size`.
    """

    # Trainer asks every processor for its tokenizer's special tokens; images have none.
    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=None, pad_token_id=None)

    choose_frames = staticmethod(choose_frames)
    resize_image = staticmethod(resize_image)

    media = Media

    def __init__(
        self, resize_rule: str = "pi3", pixel_limit: int = 255000, patch_size: int = 14, image_size: int = 518, **kwargs
    ):
        if resize_rule not in RESIZE_RULES:
            raise ValueError(f"`resize_rule` must be one of {tuple(RESIZE_RULES)}, got {resize_rule!r}.")
        if pixel_limit < patch_size**2:
            raise ValueError(
                f"`pixel_limit` must allow one patch of {patch_size}×{patch_size} pixels, got {pixel_limit}."
            )
        if image_size < patch_size or image_size % patch_size:
            raise ValueError(f"`image_size` must be a multiple of `patch_size` {patch_size}, got {image_size}.")
        self.resize_rule = resize_rule
        self.image_size = image_size
        self.pixel_limit = pixel_limit
        self.patch_size = patch_size
        super().__init__(**kwargs)

    @refuses_unreadable
    def __call__(
        self,
        images,
        depths=None,
        intrinsics=None,
        poses=None,
        interval: int | None = None,
        fps: float | None = None,
        num_frames: int | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """
        Args:
            images: one scene, as in [`read_frames`], or a list of scenes (lists of images, folders, videos).
            depths: of every image of the scene(s) `[N, h, w]` (an array, tensor or list); what is not finite and
                positive counts as unknown. Pi3X reads it.
            intrinsics: `[N, 3, 3]` in pixels of the original images. poses: `[N, 4, 4]` camera-to-world. Pi3X reads
            them.
            interval, fps, num_frames: which frames to take, see [`read_frames`]; conditions follow.

        Returns:
            `pixel_values` `[B, N, 3, H, W]` in [0, 1]; `original_sizes` `[B, N, 2]` (height, width) and `image_boxes`
            `[B, N, 4]`, where the original image lies in the frame (left, top, right, bottom), both for
            `post_process_geometry`; `opaque` bool `[B, N, H, W]`, False where an image is transparent, if any is; with
            conditions `depths` `[B, N, H, W]`, `intrinsics` `[B, N, 3, 3]` in pixels of the
            frames, `poses` `[B, N, 4, 4]`.
        """
        if return_tensors != "pt":
            raise ValueError(f'`return_tensors` must be "pt", got {return_tensors!r}.')
        many = self.are_scenes(images)
        scenes = list(images) if many else [images]
        if not many and isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim not in (3, 4):
            raise ValueError(
                f"`images` must be one image or one scene [N, …], got an array of shape {tuple(images.shape)}."
            )
        prepared = []
        for number, scene in enumerate(scenes):
            given = {"depths": depths, "intrinsics": intrinsics, "poses": poses}
            given = {name: value[number] if many else value for name, value in given.items() if value is not None}
            prepared.append(self._prepare_scene(_as_scene(scene), given, interval, fps, num_frames))
        shapes = [tuple(scene["pixel_values"].shape) for scene in prepared]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"`images` holds scenes that do not stack: [N, 3, H, W] are {[list(shape) for shape in shapes]}. "
                "Scenes of one batch need the same number of frames and first images of one shape; process the others "
                "in calls of their own."
            )
        if any("opaque" in scene for scene in prepared):
            for scene in prepared:
                scene.setdefault("opaque", torch.ones_like(scene["pixel_values"][:, 0], dtype=torch.bool))
        if len(prepared) == 1:
            return BatchFeature({name: value[None] for name, value in prepared[0].items()})
        return BatchFeature({name: torch.stack([scene[name] for scene in prepared]) for name in prepared[0]})

    @staticmethod
    def are_scenes(images) -> bool:
        """Whether `images` of `__call__` are a list of scenes, and not one."""
        return isinstance(images, (list, tuple)) and len(images) > 0 and all(_is_scene(scene) for scene in images)

    def _prepare_scene(self, scene, given: dict, interval, fps, num_frames) -> dict[str, torch.Tensor]:
        sizes, opaque = [], []

        def images():
            for frame in read_frames(scene, interval, fps, num_frames):
                sizes.append((frame.image.height, frame.image.width))
                opaque.append(frame.opaque)
                yield frame.image

        frames, boxes = RESIZE_RULES[self.resize_rule](images(), self)
        data = {
            "pixel_values": _pixel_values(frames),
            "original_sizes": torch.tensor(sizes),
            "image_boxes": torch.tensor(boxes, dtype=torch.float32),
        }
        if any(mask is not None for mask in opaque):
            size = frames[0].shape[:2]
            data["opaque"] = torch.stack([_fit_mask(mask, box, size) for mask, box in zip(opaque, boxes)])
        for name, value in given.items():
            value = [torch.as_tensor(np.asarray(one)) for one in value]
            if len(value) != len(sizes):
                if fps is not None:
                    raise ValueError(
                        f"`{name}` must hold one entry per chosen frame with `fps` ({len(sizes)}), got {len(value)}."
                    )
                value = [value[i] for i in choose_frames(len(value), interval or 1, num_frames)]
            if len(value) != len(sizes):
                raise ValueError(f"`{name}` must hold one entry per image ({len(sizes)} were taken), got {len(value)}.")
            data[name] = self._prepare_condition(name, value, data)
        return data

    def _prepare_condition(self, name: str, value: list[torch.Tensor], data: dict) -> torch.Tensor:
        height, width = data["pixel_values"].shape[-2:]
        if name == "depths":
            return torch.stack([_resize_depth(depth, height, width) for depth in value])
        side = 3 if name == "intrinsics" else 4
        wrong = [tuple(matrix.shape) for matrix in value if tuple(matrix.shape) != (side, side)]
        if wrong:
            raise ValueError(f"`{name}` must be [N, {side}, {side}], got matrices of {wrong[0]}.")
        matrices = torch.stack(value).float()
        problem = (intrinsics_problem if name == "intrinsics" else pose_problem)(matrices)
        if problem:
            raise ValueError(f"`{name}` {problem}")
        if name == "intrinsics":
            scale, offset = _frame_from_original(data["original_sizes"], data["image_boxes"])
            matrices[:, :2] *= scale.unsqueeze(-1)
            matrices[:, :2, 2] += offset
        return matrices

    def training_collator(self, **options) -> GeometryCollator:
        """
        A `data_collator` for `Trainer`: rows to inputs with labels; see [`GeometryCollator`] for rows and options.
        """
        return GeometryCollator(self, **options)

    # ---- back ----------------------------------------------------------------------------

    def post_process_geometry(
        self,
        outputs,
        original_sizes=None,
        image_boxes=None,
        confidence_threshold: float = 0.1,
        edge_tolerance: float | None = 0.03,
        center_principal_point: bool = True,
        first_camera: bool = False,
        point_source: str = "depth",
        focal_estimate: str = "median",
        opaque: torch.Tensor | None = None,
    ) -> list[SceneGeometry]:
        """
        A model's output at the size of the original images, one [`SceneGeometry`] per scene.

        Args:
            outputs: of the model. T times of V views count as T·V frames, time by time.
            original_sizes, image_boxes: of `__call__`; default: frames are the originals.
            confidence_threshold: pixels below it are masked out.
            edge_tolerance: pixels at steps of more than this part of their depth, where normals bend by more than 5°
                too, are masked out: between two surfaces lies nothing. None: keep them.
            center_principal_point: π³: recover intrinsics with the principal point in the middle of the frame.
            first_camera: express world coordinates in the first camera's frame.
            point_source: PAGE-4D: `"depth"` takes depth, points and confidence from the depth head, `"points"` from the
                point head.
            focal_estimate: how rays give the focal length where the model does not tell it, see [`recover_intrinsics`].
            opaque: of `__call__`; what is transparent is masked out.

        Values that are not finite are masked out and given as 0, so that no file that is made of them can break.
        """
        with torch.no_grad():
            if "pose_enc" in outputs:
                outputs = _as_frames(outputs, self.patch_size)
                found = _decode_page4d_output(
                    outputs, confidence_threshold, edge_tolerance, point_source, focal_estimate
                )
            else:
                found = _decode_pi3_output(
                    outputs, confidence_threshold, edge_tolerance, center_principal_point, focal_estimate
                )
            batch, frames, height, width = found["local_points"].shape[:4]
            if opaque is not None:
                found["mask"] = found["mask"] & opaque.to(found["mask"].device)
            if original_sizes is None:
                original_sizes = torch.tensor([height, width]).expand(batch, frames, 2)
            if image_boxes is None:
                image_boxes = torch.tensor([0.0, 0.0, width, height]).expand(batch, frames, 4)
            return [
                self._scene_geometry(
                    {name: value[i] for name, value in found.items()},
                    original_sizes[i].cpu(),
                    image_boxes[i].cpu(),
                    first_camera,
                )
                for i in range(batch)
            ]

    @staticmethod
    def _scene_geometry(found: dict, sizes: torch.Tensor, boxes: torch.Tensor, first_camera: bool) -> SceneGeometry:
        poses = found["camera_poses"]
        if first_camera:
            poses = invert_rigid(poses[:1]) @ poses
        names = ["confidence"] + (["dynamic_mask"] if "dynamic_mask" in found else [])
        maps = torch.cat([found["local_points"], *(found[name].unsqueeze(-1) for name in names)], -1)
        finite = maps.isfinite().all(-1, keepdim=True)
        masks = (found["mask"].unsqueeze(-1) & finite).float()
        maps = torch.cat([torch.where(finite, maps, 0.0), (~finite).float()], -1)
        frames = []
        for size, box, values, mask, pose in zip(sizes.tolist(), boxes.tolist(), maps, masks, poses):
            values, seen = _resample(values, size, box, "bilinear")
            mask = _resample(mask, size, box, "nearest")[0][..., 0] > 0.5
            # A pixel that interpolates between known and unknown ones is unknown.
            seen = seen & (values[..., -1] == 0)
            values = torch.where(seen.unsqueeze(-1), values[..., :-1], 0.0)
            points = values[..., :3] @ pose[:3, :3].mT + pose[:3, 3]
            frames.append((values[..., 2], points, mask & seen, *values[..., 3:].unbind(-1)))
        depth, points, mask, confidence, *dynamic_mask = (
            torch.stack(maps) if len({one.shape for one in maps}) == 1 else list(maps) for maps in zip(*frames)
        )
        scale, offset = (x.to(poses.device) for x in _frame_from_original(sizes, boxes))
        intrinsics = found["intrinsics"].clone()
        # From frame to original; both count pixel centres from 0, and lengths from the pixels' outer edge.
        intrinsics[:, :2, :2] /= scale.unsqueeze(-1)
        intrinsics[:, :2, 2] = (intrinsics[:, :2, 2] + 0.5 - offset) / scale - 0.5
        return SceneGeometry(depth, points, confidence, mask, intrinsics, poses, invert_rigid(poses), *dynamic_mask)


def _fit_mask(mask: np.ndarray | None, box, size: tuple[int, int]) -> torch.Tensor:
    """A mask of an image `[h, w]` as one of its frame, `size` (height, width); True around it, and where it is None."""
    fitted = Image.new("1", size[::-1], 1)
    if mask is not None:
        left, top, right, bottom = (round(float(edge)) for edge in box)
        fitted.paste(Image.fromarray(mask).resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
    return torch.from_numpy(np.array(fitted))


def _is_scene(item) -> bool:
    """Whether an element of `images` is a scene and not an image."""
    if isinstance(item, (str, os.PathLike)):
        return not is_image_file(item)
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return item.ndim == 4
    return isinstance(item, (list, tuple))


def _pixel_values(frames: list[np.ndarray]) -> torch.Tensor:
    """float32 `[N, 3, H, W]` in [0, 1] of bytes `[H, W, 3]`, with no second copy on the way."""
    values = np.empty((len(frames), 3, *frames[0].shape[:2]), np.float32)
    for place, frame in zip(values, frames):
        place[:] = frame.transpose(2, 0, 1)
    return torch.from_numpy(values).div_(255)


def _as_scene(scene):
    """A scene as [`read_frames`] takes it: a single image becomes a list of one."""
    single = isinstance(scene, Image.Image) or (isinstance(scene, (np.ndarray, torch.Tensor)) and scene.ndim == 3)
    return [scene] if single else scene


def _frame_from_original(sizes: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset `[N, 2]` (x, y) that take lengths in an original image to its frame."""
    return (boxes[..., 2:] - boxes[..., :2]) / sizes.flip(-1), boxes[..., :2]


def _resize_depth(depth: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Nearest-neighbour depth `[height, width]`; what is not finite and positive becomes 0."""
    if depth.ndim != 2:
        raise ValueError(f"`depths` must be [N, h, w], got maps of shape {tuple(depth.shape)}.")
    rows = torch.arange(height, dtype=torch.float64) * (depth.shape[0] / height)
    columns = torch.arange(width, dtype=torch.float64) * (depth.shape[1] / width)
    depth = depth.float()[rows.long()][:, columns.long()]
    return torch.where(depth.isfinite() & (depth > 0), depth, 0.0)


def _resample(values: torch.Tensor, size, box, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Values `[H, W, C]` of a frame at the pixels of the original image.

    Args:
        size: (height, width) of the original. box: where it lies in the frame.

    Returns:
        `[height, width, C]`, and which of the pixels lie inside the frame.
    """
    (frame_height, frame_width), (height, width), (left, top, right, bottom) = values.shape[:2], size, box
    x = left + (torch.arange(width, device=values.device) + 0.5) * ((right - left) / width)
    y = top + (torch.arange(height, device=values.device) + 0.5) * ((bottom - top) / height)
    inside = ((y >= 0) & (y <= frame_height)).unsqueeze(1) & ((x >= 0) & (x <= frame_width))
    y, x = torch.meshgrid(2 * y / frame_height - 1, 2 * x / frame_width - 1, indexing="ij")
    sampled = torch.nn.functional.grid_sample(
        values.float().permute(2, 0, 1)[None], torch.stack([x, y], -1)[None], mode, "border", align_corners=False
    )
    return sampled[0].permute(1, 2, 0), inside


def _decode_pi3_output(
    outputs, threshold: float, edge_tolerance: float | None, center: bool, focal_estimate: str
) -> dict[str, torch.Tensor]:
    """Maps and cameras of π³ at the size of its frames, `[B, N, …]`."""
    local_points = outputs["local_points"].float()
    confidence = outputs["conf"].float().sigmoid().squeeze(-1)
    mask = (confidence > threshold) & local_points.isfinite().all(-1)
    if edge_tolerance is not None:
        mask = mask & ~depth_normal_edge(local_points, edge_tolerance, mask=mask)
    return {
        "local_points": local_points,
        "confidence": confidence,
        "mask": mask,
        "intrinsics": recover_intrinsics(local_points, center, method=focal_estimate, mask=mask),
        "camera_poses": outputs["camera_poses"].float(),
    }


def _as_frames(outputs, patch_size: int) -> dict[str, torch.Tensor]:
    """PAGE-4D's output with T·V frames for the axes of times and views, and its mask of patches as a map."""
    names = ("depth", "depth_conf", "world_points", "world_points_conf", "extrinsics", "intrinsics", "dynamic_mask")
    found = {name: outputs[name] for name in names if name in outputs}
    if outputs["pose_enc"].ndim == 3:
        return found
    found = {name: value.flatten(1, 2) for name, value in found.items()}
    if "dynamic_mask" in found:
        maps = found["depth_conf"] if "depth_conf" in found else found["world_points_conf"]
        found["dynamic_mask"] = found["dynamic_mask"].unflatten(
            2, tuple(side // patch_size for side in maps.shape[-2:])
        )
        found["dynamic_mask"] = found["dynamic_mask"].squeeze(-1)
    return found


def _decode_page4d_output(
    outputs, threshold: float, edge_tolerance: float | None, source: str, focal_estimate: str
) -> dict[str, torch.Tensor]:
    """Maps and cameras of PAGE-4D at the size of its frames, `[B, N, …]`."""
    heads = {"depth": ("depth", "depth_conf"), "points": ("world_points", "world_points_conf")}
    if source not in heads:
        raise ValueError(f"`point_source` must be one of {tuple(heads)}, got {source!r}.")
    if any(name not in outputs for name in heads[source]):
        raise ValueError(f'`point_source="{source}"` needs `{heads[source][0]}` of the model, which has no such head.')
    values, confidence = (outputs[name].float() for name in heads[source])
    extrinsics = outputs["extrinsics"].float()
    if source == "depth":
        if "intrinsics" not in outputs:
            raise ValueError(
                'This camera head tells no field of view, so that depth has no points; `point_source="points"` does.'
            )
        intrinsics = outputs["intrinsics"].float()
        local_points = unproject_depth(values.squeeze(-1), intrinsics)
    else:
        rotation, translation = extrinsics[..., None, :3, :3], extrinsics[..., None, None, :3, 3]
        local_points = values @ rotation.mT + translation
        known = outputs.get("intrinsics")
        intrinsics = known if known is None else known.float()
    # 1 + exp(x) to the probability with the same x as logit, so that one scale serves all models.
    confidence = 1 - 1 / confidence
    mask = (confidence > threshold) & local_points.isfinite().all(-1) & (local_points[..., 2] > 0)
    if edge_tolerance is not None:
        mask = mask & ~depth_normal_edge(local_points, edge_tolerance, mask=mask)
    if intrinsics is None:
        intrinsics = recover_intrinsics(local_points, method=focal_estimate, mask=mask)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], device=extrinsics.device).expand(*extrinsics.shape[:-2], 1, 4)
    found = {
        "local_points": local_points,
        "confidence": confidence,
        "mask": mask,
        "intrinsics": intrinsics,
        "camera_poses": invert_rigid(torch.cat([extrinsics, bottom], -2)),
    }
    if "dynamic_mask" in outputs:
        found["dynamic_mask"] = torch.nn.functional.interpolate(
            outputs["dynamic_mask"].float(), size=values.shape[2:4], mode="bilinear"
        )
    return found


GeometryProcessor.register_for_auto_class()
