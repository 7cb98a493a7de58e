"""Processors of every model in the library.

This file is the same, byte for byte, in the source tree and in the Hub repository, and stands alone: it imports torch,
transformers, numpy, pillow and the standard library.
"""

import functools
import importlib
import inspect
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import load_image
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.video_utils import VideoMetadata, make_batched_videos

try:
    import av
except ImportError:  # a program that decodes its own videos does without
    av = None

try:
    from .configuration_dsr import SCENE_CAMERAS, intrinsics_problem, page4d_image_size, pi3_image_size, pose_problem
except ImportError:  # in the source tree both files lie at the root
    from configuration_dsr import SCENE_CAMERAS, intrinsics_problem, page4d_image_size, pi3_image_size, pose_problem


def refuses_unreadable(call):
    """
    A processor's `__call__` whose arguments of a wrong type or shape end in a ValueError that names them.

    What libraries raise deep inside for such arguments (TypeError, KeyError, …) is its cause.
    """

    @functools.wraps(call)
    def checked(self, *args, **kwargs):
        given = inspect.signature(call).bind(self, *args, **kwargs).arguments
        try:
            return call(self, *args, **kwargs)
        except (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
            found = [
                f"`{name}` {_describe(value)}" for name, value in given.items() if name != "self" and value is not None
            ]
            raise ValueError(
                f"{type(self).__name__} cannot read {', '.join(found) or 'nothing at all'} ({type(error).__name__}: {error}). Its "
                "documentation says what each argument must be."
            ) from error

    return checked


def _describe(value) -> str:
    """Type and size of an argument, for a message."""
    if isinstance(value, (list, tuple)):
        return f"({type(value).__name__} of {len(value)}{f', first {_describe(value[0])}' if value else ''})"
    shape = getattr(value, "shape", None)
    return f"({type(value).__name__}{f' {list(shape)}' if shape is not None else ''})"


# --------------------------------------------------------------------------------------
# Video
# --------------------------------------------------------------------------------------


def sample_frame_indices(total_frames: int, num_frames: int = 32, rule: str = "inference") -> np.ndarray:
    """
    Which frames of a video DSR sees, spread evenly from the first to the last.

    Args:
        total_frames: frames in the video.
        num_frames: frames wanted.
        rule: `"inference"`: rounded positions, an even number of them (the published evaluation); `"training"`: truncated
            positions without repeats (the published training data).

    Returns:
        Increasing int64 indices; fewer than `num_frames` when the video is shorter.
    """
    if total_frames < 1:
        raise ValueError(
            f"The video has {total_frames} frames; at least one is needed. Check the file with a video player."
        )
    if num_frames < 1:
        raise ValueError(f"`num_frames` must be at least 1, got {num_frames}.")
    if rule == "training":
        return np.unique(np.linspace(0, total_frames - 1, num_frames).astype(np.int64))
    if rule != "inference":
        raise ValueError(f'`rule` must be "inference" or "training", got {rule!r}.')
    count = num_frames if num_frames <= total_frames else max(total_frames // 2 * 2, 1)
    return np.linspace(0, total_frames - 1, count).round().astype(np.int64)


def decode_video(
    path: str | os.PathLike, num_frames: int = 32, rule: str = "inference"
) -> tuple[np.ndarray, VideoMetadata]:
    """
    Decode evenly spread frames of a video file (PyAV), turned as the file says it was held.

    Args:
        path: a file, or a URL that FFmpeg can open. num_frames, rule: as in [`sample_frame_indices`].

    Returns:
        uint8 RGB frames `[T, H, W, 3]` and their metadata (fps, duration in seconds, indices).

    Raises:
        ValueError: no such file, not a video, no video track, no frames, or cut short.
    """
    if av is None:
        raise ImportError("Decoding a video needs PyAV: `pip install av`.")
    path = os.fspath(path)
    if "://" not in path and not Path(path).is_file():
        raise ValueError(f"There is no video file at {path!r}.")
    try:
        total, fps = count_video_frames(path)
        indices = sample_frame_indices(total, num_frames, rule)
        frames, decoded = _decode_frames(path, indices)
        if 0.9 * total <= decoded <= indices[-1]:  # containers may announce some frames that an edit list hides
            total, indices = decoded, sample_frame_indices(decoded, num_frames, rule)
            frames, decoded = _decode_frames(path, indices)
    except av.FFmpegError as error:
        raise ValueError(
            f"{path!r} cannot be decoded as a video ({error.strerror or error}). It may be cut short or not be a video; fetch "
            "it again or re-encode it, for example to H.264 in mp4."
        ) from error
    if len(frames) < len(indices):
        raise ValueError(
            f"{path!r} is cut short: {decoded} of its {total} frames can be decoded. Fetch it again, or re-encode what is left."
        )
    frames = np.stack(frames)
    metadata = VideoMetadata(
        total_num_frames=total,
        fps=fps,
        duration=total / fps,
        height=frames.shape[1],
        width=frames.shape[2],
        video_backend="pyav",
        frames_indices=indices,
    )
    return frames, metadata


def count_video_frames(path: str) -> tuple[int, float]:
    """Number of frames of the first video track, and frames per second (1 where the file does not say)."""
    with av.open(path) as container:
        if not container.streams.video:
            raise ValueError(f"{path!r} has no video track. Pass a file with moving pictures.")
        stream = container.streams.video[0]
        # Matroska and WebM do not announce a number; their packets are counted, without decoding.
        total = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
        fps = float(stream.average_rate or stream.guessed_rate or 1)
    if total < 1:
        raise ValueError(f"{path!r} holds zero frames. Re-encode it, for example to H.264 in mp4.")
    return total, fps


def _decode_frames(path: str, indices: np.ndarray) -> tuple[list[np.ndarray], int]:
    """The frames at `indices` that exist, each `[H, W, 3]`, and how many were decoded up to the last of them."""
    decoded = dict(_decode_each(path, indices.tolist()))
    return [frame for frame in decoded.values() if frame is not None], max(decoded, default=-1) + 1


def _decode_each(path: str, indices: list[int]) -> Iterator[tuple[int, np.ndarray | None]]:
    """(index, frame `[H, W, 3]` if it is one of `indices`, else None) of every frame up to the last of them."""
    wanted = set(indices)
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                # `rotation` is the angle, counter-clockwise, that brings the picture upright.
                yield index, np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90))
            else:
                yield index, None
            if index >= indices[-1]:
                break


# --------------------------------------------------------------------------------------
# DSR
# --------------------------------------------------------------------------------------


class DSRProcessor(Qwen2_5_VLProcessor):
    r"""
    Text, images and videos to the inputs of [`DSRForConditionalGeneration`], and its geometry attentions to heat maps.

    A Qwen2.5-VL processor that adds the placeholders of the geometry tokens behind the videos, decodes video files with
    PyAV and samples their frames as DSR was trained to see them.

    Args:
        num_geometry_tokens, geometry_tokens_per, geometry_for_images:
            As in [`DSRConfig`]; processor and model must agree.
        num_frames (`int`, *optional*, defaults to 32):
            Frames sampled from a video file.
        fixed_second_per_grid_ts (`float`, *optional*):
            Time between two temporal grid steps that the model is told. None: the real one, as in training. The published
            evaluation always says 1.0.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        chat_template=None,
        num_geometry_tokens: int = 32,
        geometry_tokens_per: str = "sample",
        geometry_for_images: bool = False,
        num_frames: int = 32,
        fixed_second_per_grid_ts: float | None = None,
        **kwargs,
    ):
        if geometry_tokens_per not in ("sample", "video"):
            raise ValueError(f'`geometry_tokens_per` must be "sample" or "video", got {geometry_tokens_per!r}.')
        self.num_geometry_tokens = num_geometry_tokens
        self.geometry_tokens_per = geometry_tokens_per
        self.geometry_for_images = geometry_for_images
        self.num_frames = num_frames
        self.fixed_second_per_grid_ts = fixed_second_per_grid_ts
        super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template, **kwargs)

    @refuses_unreadable
    def __call__(
        self,
        images=None,
        text=None,
        videos=None,
        audio=None,
        video_grid_thw=None,
        second_per_grid_ts=None,
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: images or (nested) lists of them.
            text: prompts, with one `<|image_pad|>` or `<|video_pad|>` per image or video.
            videos: file paths, or frames `[T, H, W, 3]` uint8, or (nested) lists of them.
            video_grid_thw, second_per_grid_ts: instead of `videos`, the grid `[n, 3]` (and timing `[n]`) of videos that are
                encoded already, one per `<|video_pad|>` of the text; see [`DSRVisionFeatures`].

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids`; with videos `pixel_values_videos` `[P, 1176]`,
            `video_grid_thw` `[n, 3]`, `second_per_grid_ts` `[n]`; with images `pixel_values`, `image_grid_thw`.
        """
        self._check_question(text, videos is not None or video_grid_thw is not None)
        if video_grid_thw is None:
            return super().__call__(images=images, text=text, videos=videos, audio=audio, **kwargs)
        if videos is not None or images is not None:
            raise ValueError(
                "`video_grid_thw` stands for videos that are encoded already; pass no `videos` or `images` with it."
            )
        return self._encoded_videos_call(text, video_grid_thw, second_per_grid_ts, **kwargs)

    def _encoded_videos_call(self, text, video_grid_thw, second_per_grid_ts, return_tensors=None, **kwargs):
        prompts = [text] if isinstance(text, str) else list(text)
        grid = torch.as_tensor(video_grid_thw)
        wanted = sum(prompt.count(self.video_token) for prompt in prompts)
        if grid.ndim != 2 or grid.shape[1] != 3 or len(grid) != wanted:
            raise ValueError(
                f"`video_grid_thw` must be [{wanted}, 3], one row per {self.video_token} of the text, got {tuple(grid.shape)}."
            )
        replacements = [self.replace_video_token({"video_grid_thw": grid}, i) for i in range(len(grid))]
        prompts, _ = self.get_text_with_replacements(prompts, videos_replacements=replacements)
        encoded = self.tokenizer(prompts, **kwargs)
        data = {
            **encoded,
            "mm_token_type_ids": self.create_mm_token_type_ids(encoded["input_ids"]),
            "video_grid_thw": grid.tolist(),
        }
        if second_per_grid_ts is not None:
            data["second_per_grid_ts"] = torch.as_tensor(second_per_grid_ts).tolist()
        return BatchFeature(data, tensor_type=return_tensors)

    def _check_question(self, text, has_videos: bool) -> None:
        """Refuse prompts that show a video and ask nothing: the queries of the geometry tokens would have no text."""
        if not has_videos or text is None:
            return
        markers = [token for token in self.tokenizer.all_special_tokens if token]
        for number, prompt in enumerate([text] if isinstance(text, str) else text):
            if not isinstance(prompt, str) or self.video_token not in prompt:
                continue
            for marker in markers:
                prompt = prompt.replace(marker, " ")
            if not prompt.strip():
                raise ValueError(
                    f"Prompt {number} of `text` shows a video but holds no text. Write a question next to it."
                )

    # ---- placeholders --------------------------------------------------------------------

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self._num_vision_tokens(
            image_inputs["image_grid_thw"][image_idx], self.image_processor
        )

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        return self.video_token * self._num_vision_tokens(
            video_inputs["video_grid_thw"][video_idx], self.video_processor
        )

    @staticmethod
    def _num_vision_tokens(grid, processor) -> int:
        return int(np.prod([int(n) for n in grid])) // processor.merge_size**2

    def get_text_with_replacements(self, text, images_replacements=(), videos_replacements=(), audio_replacements=()):
        """Expand placeholders, with those of the geometry tokens behind each video or behind a prompt's last one."""
        replacements = {"image": list(images_replacements), "video": list(videos_replacements)}
        token_of = {"image": self.image_token, "video": self.video_token}
        taken = {"image": 0, "video": 0}
        for prompt in text:
            media = sorted(
                (position, kind)
                for kind, token in token_of.items()
                if replacements[kind]
                for position in _occurrences(prompt, token)
            )
            numbered = []
            for _, kind in media:
                numbered.append((kind, taken[kind]))
                taken[kind] += 1
            wanted = [medium for medium in numbered if medium[0] == "video" or self.geometry_for_images]
            for kind, index in wanted if self.geometry_tokens_per == "video" else wanted[-1:]:
                replacements[kind][index] += token_of[kind] * self.num_geometry_tokens
        return super().get_text_with_replacements(
            text, replacements["image"], replacements["video"], list(audio_replacements)
        )

    # ---- videos --------------------------------------------------------------------------

    def _process_videos(self, videos, **kwargs):
        videos = make_batched_videos(videos)
        num_frames = kwargs.pop("num_frames", None) or self.num_frames
        if kwargs.pop("fps", None) is not None:
            raise ValueError("DSR samples by number of frames: pass `num_frames`, not `fps`.")
        metadata = kwargs.pop("video_metadata", None)
        timed = metadata is not None or isinstance(videos[0], str)
        if isinstance(videos[0], str):
            decoded = [decode_video(path, num_frames) for path in videos]
            videos, metadata = [frames for frames, _ in decoded], [one for _, one in decoded]
        elif any(len(video) == 0 for video in videos):
            raise ValueError("`videos` holds a video of zero frames; at least one is needed.")
        kwargs["do_sample_frames"] = False
        if "cap_pixels_per_frame" in getattr(self.video_processor.valid_kwargs, "__annotations__", {}):
            # DSR bounds each frame, not the sum of all.
            kwargs["cap_pixels_per_frame"] = bool(kwargs.get("cap_pixels_per_frame"))
        data, replacements = super()._process_videos(videos, video_metadata=metadata, **kwargs)
        if self.fixed_second_per_grid_ts is not None or not timed:
            # Frames without timing, or the published evaluation.
            data["second_per_grid_ts"] = [self.fixed_second_per_grid_ts or 1.0] * len(data["video_grid_thw"])
        return data, replacements

    # ---- back ----------------------------------------------------------------------------

    def post_process_geometry_attentions(
        self,
        geometry_attentions,
        target_sizes=None,
        num_frames=None,
        per_token: bool = False,
    ) -> list[torch.Tensor]:
        """
        Probabilities of the geometry tokens as heat maps over the frames.

        Each probability belongs to a cell of two frames and 28×28 processed pixels. It is spread evenly over the pixels
        of the cell at the size asked for, so every sum over pixels and frames equals the sum of the probabilities.

        Args:
            geometry_attentions: of the model's output; per medium `[heads, Q, t, h/2, w/2]`.
            target_sizes: per medium (height, width) in pixels; default 28 pixels per cell.
            num_frames: per medium the real number of frames, when the last one was repeated to make it even.
            per_token: return `[Q, frames, H, W]` instead of the mean over tokens `[frames, H, W]`. Heads are averaged.

        Returns:
            One float32 tensor per medium.
        """
        maps = []
        for i, probabilities in enumerate(geometry_attentions):
            cells = probabilities.float().mean(0)  # [Q, t, h/2, w/2]
            if not per_token:
                cells = cells.mean(0, keepdim=True)
            _, t, rows, columns = cells.shape
            height, width = target_sizes[i] if target_sizes is not None else (28 * rows, 28 * columns)
            frames = num_frames[i] if num_frames is not None else 2 * t
            if not 2 * t - 1 <= frames <= 2 * t:
                raise ValueError(
                    f"`num_frames` of medium {i} must be {2 * t - 1} or {2 * t} ({t} steps of two), got {frames}."
                )
            spread = _overlap(2 * t, t)
            if frames < 2 * t:  # what the repeated frame got belongs to the frame it repeats
                spread = torch.cat([spread[: frames - 1], spread[frames - 1 :].sum(0, keepdim=True)])
            device = cells.device
            heat = torch.einsum(
                "qthw,ft,yh,xw->qfyx",
                cells,
                spread.to(device),
                _overlap(height, rows).to(device),
                _overlap(width, columns).to(device),
            )
            maps.append(heat if per_token else heat[0])
        return maps


def _occurrences(text: str, token: str) -> list[int]:
    positions, start = [], text.find(token)
    while start >= 0:
        positions.append(start)
        start = text.find(token, start + len(token))
    return positions


def _overlap(pixels: int, cells: int) -> torch.Tensor:
    """`[pixels, cells]`: the share of each cell that falls on each pixel of the same line; columns sum to 1."""
    edges = torch.arange(pixels + 1, dtype=torch.float64) * cells / pixels
    left, right = edges[:-1, None], edges[1:, None]
    cell = torch.arange(cells, dtype=torch.float64)
    return (torch.minimum(right, cell + 1) - torch.maximum(left, cell)).clamp_min(0).float()


# --------------------------------------------------------------------------------------
# Geometry: π³
# --------------------------------------------------------------------------------------

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
VIDEO_INTERVAL = 10  # of the published demonstration: every tenth frame of a video, every image of a folder


@dataclass
class Frame:
    """A frame of a scene: its image; what to call it; seconds from the start of the video, or the number of the image."""

    image: Image.Image
    name: str
    time: float


def read_frames(
    source,
    interval: int | None = None,
    fps: float | None = None,
    num_frames: int | None = None,
) -> Iterator[Frame]:
    """
    The frames of one scene, one at a time; a folder's in the order of their names.

    Args:
        source: a folder of .png, .jpg or .jpeg files, a video file, or a list of images: files, pillow images, arrays
            `[H, W, 3]` uint8 or tensors `[3, H, W]` (uint8, or float in [0, 1]).
        interval: take every so many frames. Default: 10 of a video, 1 else.
        fps: take so many frames per second of a video instead.
        num_frames: take so many frames, evenly spread from the first to the last, instead.

    Raises:
        ValueError: nothing there, an image or a frame that cannot be read, or contradictory wishes.
    """
    chosen = [
        name for name, value in (("interval", interval), ("fps", fps), ("num_frames", num_frames)) if value is not None
    ]
    if len(chosen) > 1:
        raise ValueError(
            f"`{chosen[0]}` and `{chosen[1]}` say different things about which frames to take; pass one of them."
        )
    for name, value in (("interval", interval), ("fps", fps), ("num_frames", num_frames)):
        if value is not None and not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")
    if isinstance(source, (str, os.PathLike)) and not os.path.isdir(source):
        if str(source).lower().endswith(IMAGE_SUFFIXES):
            source = [source]
        else:
            yield from _video_frames(os.fspath(source), interval, fps, num_frames)
            return
    if fps is not None:
        raise ValueError("`fps` is for video files; images have no time. Use `interval` or `num_frames`.")
    if isinstance(source, (str, os.PathLike)):
        folder = Path(source)
        source = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not source:
            raise ValueError(
                f"The folder {str(folder)!r} holds no image; expected files ending in {', '.join(IMAGE_SUFFIXES)}."
            )
    for index in choose_frames(len(source), interval or 1, num_frames):
        item = source[index]
        name = Path(item).name if isinstance(item, (str, os.PathLike)) else f"{index:06d}.png"
        yield Frame(_as_image(item), name, float(index))


def choose_frames(total: int, step: float, num_frames: int | None) -> list[int]:
    """Every `step`-th of `total` frames, or `num_frames` evenly spread ones."""
    if total < 1:
        raise ValueError("`images` holds no image; at least one is needed.")
    if num_frames is not None:
        return np.unique(np.linspace(0, total - 1, num_frames).round().astype(int)).tolist()
    return [index for k in range(total) if (index := int(k * step)) < total]


def _video_frames(path: str, interval: int | None, fps: float | None, num_frames: int | None) -> Iterator[Frame]:
    if av is None:
        raise ImportError("Decoding a video needs PyAV: `pip install av`.")
    if "://" not in path and not Path(path).is_file():
        raise ValueError(f"There is no folder, image or video at {path!r}.")
    decoded = 0
    try:
        total, rate = count_video_frames(path)
        # A video cannot give more frames per second than it has.
        step = interval or (max(1.0, rate / fps) if fps else VIDEO_INTERVAL)
        wanted = choose_frames(total, step, num_frames)
        for index, frame in _decode_each(path, wanted):
            decoded = index + 1
            if frame is not None:
                yield Frame(Image.fromarray(frame), f"{index:06d}.png", index / rate if rate else float(index))
    except av.FFmpegError as error:
        raise ValueError(
            f"A frame of {path!r} after number {decoded} cannot be read ({error.strerror or error}). The file is damaged or no "
            "video; fetch it again or re-encode it, for example to H.264 in mp4."
        ) from error
    # Containers may announce some frames that an edit list hides.
    if decoded <= wanted[-1] and decoded < 0.9 * total:
        raise ValueError(
            f"{path!r} is cut short: no frame after number {decoded} of {total} can be read. Fetch it again, or re-encode what is "
            "left."
        )


def _as_image(image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (str, os.PathLike)):
        try:
            with Image.open(image) as opened:
                opened.load()
                return opened
        except (OSError, SyntaxError, ValueError) as error:  # pillow's decoders raise each of them
            raise ValueError(
                f"The image {os.fspath(image)!r} cannot be read ({error}). Fetch it again or leave it out."
            ) from error
    array = image.detach().cpu().numpy().transpose(1, 2, 0) if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        raise ValueError(
            f"an image must be a file, a pillow image, an array [H, W, 3] or a tensor [3, H, W], got {type(image).__name__} of "
            f"shape {tuple(image.shape) if hasattr(image, 'shape') else '?'}."
        )
    if array.dtype.kind == "f":
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def resize_image(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    """
    `Image.resize` of an RGB image to (width, height), the same to the last bit with every Pillow.

    A resize is two passes that each round to bytes, so their order shows. Pillow 13 runs the vertical pass first where the
    height shrinks by more than twice as many pixels as the width (pull request 9549), earlier ones never do: the passes
    are asked for one by one, in the order of Pillow 13.
    """
    width, height = size
    rows_first = image.height > height and image.height - height > 2 * (image.width - width)
    between = (image.width, height) if rows_first else (width, image.height)
    return image.resize(between, method).resize(size, method)


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
    """PAGE-4D's rule: every image to the width `image_size`; of a taller one the middle. Returns as [`fit_pi3`] does."""
    side, frames, boxes = processor.image_size, [], []
    for image in images:
        image = _on_white(image)
        width, height = page4d_image_size(*image.size, side, processor.patch_size)
        frame = np.asarray(resize_image(image, (width, height), Image.Resampling.BICUBIC))
        top = max(0, (height - side) // 2)
        frames.append(frame[top : top + side])
        boxes.append((0, -top, width, height - top))
    return _pad_alike(frames, boxes)


def fit_page4d_pad(
    images: Iterable[Image.Image], processor: "GeometryProcessor"
) -> tuple[list[np.ndarray], list[tuple]]:
    """PAGE-4D's other rule: the longer side to `image_size`, the shorter one padded with white. Returns as [`fit_pi3`]."""
    side, frames, boxes = processor.image_size, [], []
    for image in images:
        image = _on_white(image)
        size = page4d_image_size(*image.size, side, processor.patch_size, mode="pad")
        frames.append(np.asarray(resize_image(image, size, Image.Resampling.BICUBIC)))
        boxes.append((0, 0, *size))
    return _pad_alike(frames, boxes, side)


def fit_page4d_square(
    images: Iterable[Image.Image], processor: "GeometryProcessor"
) -> tuple[list[np.ndarray], list[tuple]]:
    """PAGE-4D's rule for high resolution: padded with black to a square, then to `image_size`. Returns as [`fit_pi3`]."""
    side, frames, boxes = processor.image_size, [], []
    for image in images:
        image = _on_white(image)
        width, height = image.size
        longest = max(width, height)
        left, top = (longest - width) // 2, (longest - height) // 2
        square = Image.new("RGB", (longest, longest))
        square.paste(image, (left, top))
        frames.append(np.asarray(resize_image(square, (side, side), Image.Resampling.BICUBIC)))
        scale = side / longest
        boxes.append((left * scale, top * scale, (left + width) * scale, (top + height) * scale))
    return frames, boxes


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; what is transparent lies on white."""
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


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
            `"page4d"`: width `image_size`, of tall images the middle; `"page4d_pad"`: longer side `image_size`, padded with
            white to a square; `"page4d_square"`: padded with black to a square, then resized.
        pixel_limit (`int`, *optional*, defaults to 255000):
            `"pi3"`: the largest number of pixels of a frame; smaller images are enlarged to it.
        patch_size (`int`, *optional*, defaults to 14): sides of frames are multiples of it.
        image_size (`int`, *optional*, defaults to 518): PAGE-4D's rules: side of the frames, a multiple of `patch_size`.
    """

    # Trainer asks every processor for its tokenizer's special tokens; images have none.
    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=None, pad_token_id=None)

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
            depths: of every image of the scene(s) `[N, h, w]` (an array, tensor or list); what is not finite and positive
                counts as unknown. Pi3X reads it.
            intrinsics: `[N, 3, 3]` in pixels of the original images. poses: `[N, 4, 4]` camera-to-world. Pi3X reads them.
            interval, fps, num_frames: which frames to take, see [`read_frames`]; conditions follow.

        Returns:
            `pixel_values` `[B, N, 3, H, W]` in [0, 1]; `original_sizes` `[B, N, 2]` (height, width) and `image_boxes`
            `[B, N, 4]`, where the original image lies in the frame (left, top, right, bottom), both for
            `post_process_geometry`; with conditions `depths` `[B, N, H, W]`, `intrinsics` `[B, N, 3, 3]` in pixels of the
            frames, `poses` `[B, N, 4, 4]`.
        """
        if return_tensors != "pt":
            raise ValueError(f'`return_tensors` must be "pt", got {return_tensors!r}.')
        many = isinstance(images, (list, tuple)) and len(images) > 0 and all(_is_scene(scene) for scene in images)
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
                f"`images` holds scenes that do not stack: [N, 3, H, W] are {[list(shape) for shape in shapes]}. Scenes of one "
                "batch need the same number of frames and first images of one shape; process the others in calls of their own."
            )
        return BatchFeature({name: torch.stack([scene[name] for scene in prepared]) for name in prepared[0]})

    def _prepare_scene(self, scene, given: dict, interval, fps, num_frames) -> dict[str, torch.Tensor]:
        sizes = []

        def measured(images):
            for image in images:
                sizes.append((image.height, image.width))
                yield image

        images = (frame.image for frame in read_frames(scene, interval, fps, num_frames))
        frames, boxes = RESIZE_RULES[self.resize_rule](measured(images), self)
        stacked = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
        data = {
            "pixel_values": stacked,
            "original_sizes": torch.tensor(sizes),
            "image_boxes": torch.tensor(boxes, dtype=torch.float32),
        }
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
        problem = (intrinsics_problem if name == "intrinsics" else pose_problem)(matrices.tolist())
        if problem:
            raise ValueError(f"`{name}` {problem}")
        if name == "intrinsics":
            scale, offset = _frame_from_original(data["original_sizes"], data["image_boxes"])
            matrices[:, :2] *= scale.unsqueeze(-1)
            matrices[:, :2, 2] += offset
        return matrices

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
    ) -> list[SceneGeometry]:
        """
        A model's output at the size of the original images, one [`SceneGeometry`] per scene.

        Args:
            outputs: of the model. T times of V views count as T·V frames, time by time.
            original_sizes, image_boxes: of `__call__`; default: frames are the originals.
            confidence_threshold: pixels below it are masked out.
            edge_tolerance: pixels at steps of more than this part of their depth, where normals bend by more than 5° too, are
                masked out: between two surfaces lies nothing. None: keep them.
            center_principal_point: π³: recover intrinsics with the principal point in the middle of the frame.
            first_camera: express world coordinates in the first camera's frame.
            point_source: PAGE-4D: `"depth"` takes depth, points and confidence from the depth head, `"points"` from the point
                head.
            focal_estimate: how rays give the focal length where the model does not tell it, see [`recover_intrinsics`].

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
            poses = invert_poses(poses[:1]) @ poses
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
        return SceneGeometry(depth, points, confidence, mask, intrinsics, poses, invert_poses(poses), *dynamic_mask)


def _is_scene(item) -> bool:
    """Whether an element of `images` is a scene and not an image."""
    if isinstance(item, (str, os.PathLike)):
        return not str(item).lower().endswith(IMAGE_SUFFIXES)
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return item.ndim == 4
    return isinstance(item, (list, tuple))


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
        local_points = unproject(values.squeeze(-1), intrinsics)
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
        "camera_poses": invert_poses(torch.cat([extrinsics, bottom], -2)),
    }
    if "dynamic_mask" in outputs:
        found["dynamic_mask"] = torch.nn.functional.interpolate(
            outputs["dynamic_mask"].float(), size=values.shape[2:4], mode="bilinear"
        )
    return found


# ---- pure functions ------------------------------------------------------------------


def unproject(depth: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """Camera-frame points `[..., H, W, 3]` of depths `[..., H, W]`; pixel centres lie at whole numbers."""
    height, width = depth.shape[-2:]
    u = torch.arange(width, device=depth.device)
    v = torch.arange(height, device=depth.device).unsqueeze(-1)
    fx, fy, cx, cy = (intrinsics[..., i, j, None, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return torch.stack([(u - cx) * depth / fx, (v - cy) * depth / fy, depth], -1)


def invert_poses(poses: torch.Tensor) -> torch.Tensor:
    """Rigid inverse of `[..., 4, 4]`: camera-to-world poses to world-to-camera extrinsics, and back."""
    rotation = poses[..., :3, :3].mT
    top = torch.cat([rotation, -rotation @ poses[..., :3, 3:]], -1)
    return torch.cat([top, poses[..., 3:, :]], -2)


FOCAL_ESTIMATES = ("median", "regression")


def recover_intrinsics(
    rays: torch.Tensor,
    center_principal_point: bool = False,
    ndc: bool = False,
    method: str = "median",
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Pinhole intrinsics that explain rays best, each axis on its own.

    A ray's x/z is (u - cx) / fx. Pixels are exact and rays are not, so the slope of x/z over u is estimated, and its inverse
    is the focal length.

    Args:
        rays: `[..., H, W, 3]` directions or camera-frame points.
        center_principal_point: hold the principal point in the middle of the pixel centres.
        ndc: in units in which the pixel centres span -1 … 1, not in pixels.
        method: `"median"`: least absolute error of x/z (the weighted median of (x/z) / (u - cx); with a free principal point
            the median slope between pixels half an image apart, after H. Theil and P. K. Sen), which neither noise nor single
            rays of any length move. `"regression"`: least squares of u over x/z as published for π³, which a few large rays
            pull down; it knows no mask and is not finite where a ray is not.
        mask: `[..., H, W]`, pixels to trust; of a frame without any, all finite rays that look ahead count.

    Returns:
        `[..., 3, 3]`; pixel centres lie at whole numbers. With `"median"` always finite: rays that explain no camera (none
        finite, or a focal length that is not positive) get the focal length max(H, W), about 53° of view.
    """
    if method not in FOCAL_ESTIMATES:
        raise ValueError(f"`method` must be one of {FOCAL_ESTIMATES}, got {method!r}.")
    height, width = rays.shape[-3:-1]
    z = rays[..., 2].abs() + 1e-10
    columns, rows = (torch.arange(n, device=rays.device, dtype=rays.dtype) for n in (width, height))
    units = [1.0, 1.0]
    if ndc:
        units = [2 / max(n - 1, 1) for n in (width, height)]
        columns, rows = columns * units[0] - 1, rows * units[1] - 1
    known = None
    if method == "median":
        known = rays.isfinite().all(-1) & (rays[..., 2] > 0)
        trusted = known if mask is None else known & mask
        known = torch.where(trusted.any(-1, keepdim=True).any(-2, keepdim=True), trusted, known)
    found = []
    # Each axis as one along which pixels run in the last dimension.
    for ray, pixel, valid, unit in (
        (rays[..., 0] / z, columns, known, units[0]),
        ((rays[..., 1] / z).mT, rows, None if known is None else known.mT, units[1]),
    ):
        if method == "regression":
            found.append(_regressed_axis(ray, pixel, center_principal_point))
        else:
            found.append(_median_axis(ray, pixel, valid, center_principal_point, max(height, width) * unit))
    (fx, cx), (fy, cy) = found
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [torch.stack(row, -1) for row in ((fx, zero, cx), (zero, fy, cy), (zero, zero, one))]
    return torch.stack(rows, -2)


def _regressed_axis(ray: torch.Tensor, pixel: torch.Tensor, centered: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Focal length and principal point of `ray` `[..., m, n]` over `pixel` `[n]`: pixel = f · ray + c, least squares in pixels."""
    pixel = pixel.expand(ray.shape[-2:]).flatten()
    ray = ray.flatten(-2)
    if centered:
        center = (pixel.min() + pixel.max()) / 2
        focal = (ray * (pixel - center)).sum(-1) / ray.square().sum(-1)
        return focal, center.expand_as(focal)
    offset = ray - ray.mean(-1, keepdim=True)
    focal = (offset * (pixel - pixel.mean())).sum(-1) / offset.square().sum(-1)
    return focal, pixel.mean() - focal * ray.mean(-1)


def _median_axis(
    ray: torch.Tensor, pixel: torch.Tensor, valid: torch.Tensor, centered: bool, default: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As [`_regressed_axis`], ray = (pixel - c) / f with the least absolute error in rays over `valid` `[..., m, n]`."""
    center = (pixel[0] + pixel[-1]) / 2
    ray = torch.where(valid, ray, torch.nan)
    if centered:
        offset = (pixel - center).expand_as(ray)
        slope = _weighted_median((ray / offset).flatten(-2), (offset.abs() * valid).flatten(-2))
    else:
        half = len(pixel) // 2
        step = (pixel[half] - pixel[0]) if half else torch.ones_like(center)
        slope = ((ray[..., half:] - ray[..., : len(pixel) - half]) / step).flatten(-2).nanmedian(-1).values
    usable = slope.isfinite() & (slope > 1e-6 / default)
    focal = torch.where(usable, 1 / slope, default)
    if centered:
        return focal, center.expand_as(focal)
    shift = (ray - pixel / focal[..., None, None]).flatten(-2).nanmedian(-1).values
    return focal, torch.where(usable, -shift * focal, center)


def _weighted_median(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Median along the last axis where each value counts `weights` ≥ 0 times; NaN without any weight."""
    values = torch.where(weights > 0, values, torch.inf)
    values, order = values.sort(-1)
    total = weights.gather(-1, order).double().cumsum(-1)
    at = (total < total[..., -1:] / 2).sum(-1, keepdim=True).clamp_max(values.shape[-1] - 1)
    median = values.gather(-1, at).squeeze(-1)
    return torch.where(total[..., -1] > 0, median, torch.nan)


def depth_edge(depth: torch.Tensor, tolerance: float = 0.03, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Pixels of `[..., H, W]` whose valid 3×3 neighbourhood spans more than `tolerance` of their depth."""
    mask = torch.ones_like(depth, dtype=torch.bool) if mask is None else mask
    highest = _max_pool(torch.where(mask, depth, -torch.inf))
    lowest = -_max_pool(torch.where(mask, -depth, -torch.inf))
    return ((highest - lowest) / depth).nan_to_num() > tolerance


def points_to_normals(points: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Unit normals of point maps, from the four pairs of neighbours around each pixel.

    Args:
        points: `[..., H, W, 3]`. mask: `[..., H, W]`, valid pixels.

    Returns:
        Normals `[..., H, W, 3]`, zero where there are none, and where there are some `[..., H, W]`.
    """
    valid = points.isfinite().all(-1)
    valid = valid if mask is None else valid & mask
    points = torch.where(valid.unsqueeze(-1), points, 0.0)
    padded = torch.nn.functional.pad(points, (0, 0, 1, 1, 1, 1))
    known = torch.nn.functional.pad(valid, (1, 1, 1, 1))
    height, width = valid.shape[-2:]
    steps = ((0, 1), (1, 0), (2, 1), (1, 2))  # up, left, down, right
    edges = [padded[..., y : y + height, x : x + width, :] - points for y, x in steps]
    there = [known[..., y : y + height, x : x + width] for y, x in steps]
    total, any_valid = torch.zeros_like(points), torch.zeros_like(valid)
    for i in range(4):
        both = valid & there[i] & there[(i + 1) % 4]
        normal = torch.nn.functional.normalize(torch.linalg.cross(edges[i], edges[(i + 1) % 4]), dim=-1)
        total = total + normal * both.unsqueeze(-1)
        any_valid = any_valid | both
    return torch.nn.functional.normalize(total, dim=-1), any_valid


def normal_edge(normals: torch.Tensor, tolerance: float = 5.0, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Pixels of `[..., H, W, 3]` near a bend: somewhere in 3×3, normals of neighbours differ by more than `tolerance` degrees."""
    height, width = normals.shape[-3:-1]
    mask = torch.ones(normals.shape[:-1], dtype=torch.bool, device=normals.device) if mask is None else mask
    flat = normals.reshape(-1, height, width, 3).permute(0, 3, 1, 2)
    padded = torch.nn.functional.pad(flat, (1, 1, 1, 1), mode="replicate")
    known = torch.nn.functional.pad(mask.reshape(-1, 1, height, width).float(), (1, 1, 1, 1), mode="replicate") > 0.5
    largest = flat.new_zeros(len(flat), height, width)
    for y in range(3):
        for x in range(3):
            cosine = (flat * padded[..., y : y + height, x : x + width]).sum(1)
            angle = cosine.clamp(-1, 1).acos()
            largest = torch.maximum(largest, torch.where(known[:, 0, y : y + height, x : x + width], angle, 0.0))
    return (_max_pool(largest.view(normals.shape[:-1])).rad2deg() > tolerance) & mask


def depth_normal_edge(points: torch.Tensor, tolerance: float = 0.03, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Pixels of camera-frame point maps `[..., H, W, 3]` where both depth and normals jump: see the two functions above."""
    valid = points.isfinite().all(-1) & (points[..., 2] > 0)
    valid = valid if mask is None else valid & mask
    normals, known = points_to_normals(points, valid)
    return depth_edge(points[..., 2], tolerance, valid) & normal_edge(normals, mask=known)


def _max_pool(maps: torch.Tensor) -> torch.Tensor:
    """Largest value in the 3×3 window of each pixel of `[..., H, W]`."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return torch.nn.functional.max_pool2d(flat, 3, stride=1, padding=1).view(maps.shape)


# --------------------------------------------------------------------------------------
# Scene Q-Former
# --------------------------------------------------------------------------------------

# How people look at the six images: left to right, ahead above, behind below.
SCENE_LAYOUT = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
MAP_INSTRUCTION = (
    "You perceive the surroundings of a car. Its six cameras look, in this order, to the front, front right, front left, "
    "back, back left and back right. Find the map elements around it: 0 divider, 1 pedestrian crossing, 2 boundary. Give "
    "each one's class and 20 points (x, y) in -1 … 1, x to the right within 15 m, y forward within 30 m."
)


class _SceneSubProcessors:
    """`get_attributes` of a processor whose tokenizer is optional: a Q-Former without language model has none."""

    def __get__(self, processor, owner):
        without = processor is not None and processor.tokenizer is None
        return lambda: [] if without else ["tokenizer"]


class SceneQFormerProcessor(ProcessorMixin):
    r"""
    Six camera images, their calibration and prompts to the inputs of [`SceneQFormerModel`] and
    [`SceneQFormerForConditionalGeneration`]; attentions and map detections back to pictures and metres.

    Args:
        tokenizer (*optional*): of the language model; without one only images are prepared.
        image_size (`tuple[int, int]`, *optional*, defaults to `(336, 336)`):
            Height and width of the network's input. Images are resized to it, not cropped: every camera keeps its view.
        image_mean, image_std (`tuple[float]`, *optional*): normalisation; ImageNet's, as the ResNet was trained.
        num_scene_tokens (`int`, *optional*, defaults to 512): queries of the model, hence placeholders per scene.
        needs_calibration (`bool`, *optional*, defaults to `False`): whether the model's position encoding reads it.
        camera_names (`list[str]`, *optional*): names and order of the cameras.
        image_token (`str`, *optional*, defaults to `"<image>"`): what stands for a scene in a prompt.
        image_token_index (`int`, *optional*, defaults to -200):
            Written once per scene where the tokenizer has no `image_token`; the model makes room for it.
    """

    get_attributes = _SceneSubProcessors()

    def __init__(
        self,
        tokenizer=None,
        chat_template=None,
        image_size=(336, 336),
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
        num_scene_tokens: int = 512,
        needs_calibration: bool = False,
        camera_names=SCENE_CAMERAS,
        image_token: str = "<image>",
        image_token_index: int = -200,
        **kwargs,
    ):
        self.tokenizer = tokenizer
        self.image_size = tuple(image_size)
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.num_scene_tokens = num_scene_tokens
        self.needs_calibration = needs_calibration
        self.camera_names = tuple(camera_names)
        self.image_token = image_token
        self.image_token_index = image_token_index
        if tokenizer is None:
            super().__init__(chat_template=chat_template)
        else:
            super().__init__(tokenizer, chat_template=chat_template)

    def to_dict(self):
        return {**super().to_dict(), "has_tokenizer": self.tokenizer is not None}

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        if processor_dict is not None and not processor_dict.get("has_tokenizer", True):
            return [None]
        return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)

    @property
    def model_input_names(self):
        names = ["pixel_values", "cam_intrinsics", "cam_extrinsics"]
        return names + (list(self.tokenizer.model_input_names) if self.tokenizer is not None else [])

    @refuses_unreadable
    def __call__(
        self,
        images=None,
        text=None,
        cam_intrinsics=None,
        cam_extrinsics=None,
        camera_names=None,
        return_tensors="pt",
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: a scene or a list of scenes. A scene is a dictionary of images by camera name, in any order, or a list
                of images in the order of `self.camera_names`. An image is a PIL image, an array `[H, W, 3]` uint8 or a path.
            text: a prompt or a list of prompts, with an `image_token` per scene.
            cam_intrinsics: per scene `[N, 3, 3]` in pixels of the given images, or a dictionary by camera name.
            cam_extrinsics: per scene `[N, 4, 4]` camera → vehicle in metres, or a dictionary by camera name.
            camera_names: the order in which listed images come, to be checked.

        Returns:
            `pixel_values` `[B, N, 3, H, W]`; with calibration `cam_intrinsics` `[B, N, 3, 3]` in pixels of `pixel_values`
            and `cam_extrinsics` `[B, N, 4, 4]`; with text `input_ids` and `attention_mask` `[B, L]`, padded on the
            tokenizer's side.
        """
        if kwargs:
            raise ValueError(f"SceneQFormerProcessor knows no arguments {sorted(kwargs)}.")
        if images is None and text is None:
            raise ValueError("Pass `images`, `text` or both.")
        data = {}
        num_scenes = 0
        if images is not None:
            scenes = self._scenes(images, camera_names)
            num_scenes = len(scenes)
            data["pixel_values"] = np.stack([np.stack([self._pixels(image) for image in scene]) for scene in scenes])
            data |= self._calibration(scenes, images, cam_intrinsics, cam_extrinsics)
        elif cam_intrinsics is not None or cam_extrinsics is not None:
            raise ValueError("`cam_intrinsics` and `cam_extrinsics` belong to `images`, which are not given.")
        if text is not None:
            data |= self._encode([text] if isinstance(text, str) else list(text), num_scenes)
        return BatchFeature(data, tensor_type=return_tensors)

    # ---- images --------------------------------------------------------------------------

    def _scenes(self, images, camera_names) -> list[list[Image.Image]]:
        """Per scene the images in the order of `self.camera_names`."""
        if camera_names is not None and tuple(camera_names) != self.camera_names:
            raise ValueError(
                f"`camera_names` must be {list(self.camera_names)}, in this order, got {list(camera_names)}. Pass the images as "
                "a dictionary by name and they are put in order."
            )
        scenes = images if _is_batch(images) else [images]
        return [self._ordered(scene, "images", number) for number, scene in enumerate(scenes)]

    def _ordered(self, scene, argument: str, number: int) -> list:
        if isinstance(scene, dict):
            if set(scene) != set(self.camera_names):
                missing = [name for name in self.camera_names if name not in scene]
                unknown = [name for name in scene if name not in self.camera_names]
                raise ValueError(
                    f"`{argument}` of scene {number} must be named {list(self.camera_names)}; missing {missing}, unknown {unknown}."
                )
            scene = [scene[name] for name in self.camera_names]
        if len(scene) != len(self.camera_names):
            raise ValueError(
                f"`{argument}` of scene {number} must hold {len(self.camera_names)} entries, one per camera in the order "
                f"{list(self.camera_names)}, got {len(scene)}."
            )
        return [_open_image(image) for image in scene] if argument == "images" else list(scene)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        height, width = self.image_size
        pixels = np.asarray(resize_image(image, (width, height), Image.Resampling.BILINEAR), dtype=np.float32) / 255.0
        pixels = (pixels - np.float32(self.image_mean)) / np.float32(self.image_std)
        return pixels.transpose(2, 0, 1)

    # ---- calibration ---------------------------------------------------------------------

    def _calibration(self, scenes, images, cam_intrinsics, cam_extrinsics) -> dict[str, np.ndarray]:
        given = {"cam_intrinsics": cam_intrinsics, "cam_extrinsics": cam_extrinsics}
        missing = [name for name, value in given.items() if value is None]
        if missing and (self.needs_calibration or len(missing) == 1):
            raise ValueError(
                f"{' and '.join(f'`{name}`' for name in missing)} missing: this model reads the calibration of its cameras, "
                "intrinsics [N, 3, 3] in pixels and extrinsics [N, 4, 4] camera → vehicle."
            )
        if missing:
            return {}
        matrices = {
            name: self._matrices(value, name, size, len(scenes), _is_batch(images))
            for (name, value), size in zip(given.items(), (3, 4))
        }
        sizes = np.array([[image.size for image in scene] for scene in scenes], dtype=np.float32)  # (width, height)
        self._check_intrinsics(matrices["cam_intrinsics"], sizes)
        self._check_extrinsics(matrices["cam_extrinsics"])
        scale = np.float32(self.image_size[::-1]) / sizes  # [B, N, (x, y)]
        matrices["cam_intrinsics"] = matrices["cam_intrinsics"].copy()
        matrices["cam_intrinsics"][:, :, :2] *= scale[..., None]
        return matrices

    def _matrices(self, value, name: str, size: int, num_scenes: int, batched: bool) -> np.ndarray:
        scenes = value if batched else [value]
        if len(scenes) != num_scenes:
            raise ValueError(f"`{name}` must hold one entry per scene ({num_scenes}), got {len(scenes)}.")
        rows = [
            [np.asarray(matrix, dtype=np.float32) for matrix in self._ordered(scene, name, number)]
            for number, scene in enumerate(scenes)
        ]
        for number, row in enumerate(rows):
            for camera, matrix in zip(self.camera_names, row):
                if matrix.shape != (size, size) or not np.isfinite(matrix).all():
                    raise ValueError(
                        f"`{name}` of {camera} in scene {number} must be a finite {size}×{size} matrix, got shape "
                        f"{matrix.shape}: {matrix.tolist()}."
                    )
        return np.array(rows)

    def _check_intrinsics(self, intrinsics: np.ndarray, sizes: np.ndarray) -> None:
        focal = np.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], -1)
        centre = intrinsics[..., :2, 2]
        problems = (
            ((np.abs(intrinsics[..., 2, :] - np.float32([0, 0, 1])) > 1e-6).any(-1), "has no last row (0, 0, 1)"),
            (~(np.linalg.cond(intrinsics) < 1e8), "is singular"),
            ((focal <= 0).any(-1), "has a focal length that is not positive"),
            (((centre < 0) | (centre > sizes)).any(-1), "has its principal point outside of the image"),
        )
        for wrong, what in problems:
            if wrong.any():
                scene, camera = np.argwhere(wrong)[0]
                width, height = sizes[scene, camera].astype(int)
                raise ValueError(
                    f"`cam_intrinsics` of {self.camera_names[camera]} in scene {scene} {what}: "
                    f"{intrinsics[scene, camera].tolist()} for an image of {width}×{height} pixels. Pass the matrix that belongs "
                    "to the image as given; the processor scales both."
                )

    def _check_extrinsics(self, extrinsics: np.ndarray) -> None:
        rotation = extrinsics[..., :3, :3]
        crooked = np.abs(rotation @ rotation.swapaxes(-1, -2) - np.eye(3)).max((-1, -2)) > 1e-3
        mirrored = np.linalg.det(rotation) < 0
        affine = (np.abs(extrinsics[..., 3, :] - np.float32([0, 0, 0, 1])) > 1e-6).any(-1)
        wrong = np.argwhere(crooked | mirrored | affine)
        if len(wrong):
            scene, camera = wrong[0]
            raise ValueError(
                f"`cam_extrinsics` of {self.camera_names[camera]} in scene {scene} must be a rotation and a translation with "
                f"last row (0, 0, 0, 1), camera → vehicle, got {extrinsics[scene, camera].tolist()}."
            )

    # ---- text ----------------------------------------------------------------------------

    def map_prompt(self) -> str:
        """The prompt of the map task."""
        return f"{self.image_token}\n{MAP_INSTRUCTION}"

    def _encode(self, prompts: list[str], num_scenes: int) -> dict[str, np.ndarray]:
        """Token ids; chunks between placeholders are tokenised on their own, the first one with special tokens (LLaVA)."""
        if self.tokenizer is None:
            raise ValueError("`text` needs a tokenizer, and this processor has none.")
        counts = [prompt.count(self.image_token) for prompt in prompts]
        if num_scenes and sum(counts) != num_scenes:
            raise ValueError(
                f"`text` holds {sum(counts)} {self.image_token} for {num_scenes} scenes; write one per scene."
            )
        known = self.tokenizer.get_vocab().get(self.image_token)
        place = [self.image_token_index] if known is None else [known] * self.num_scene_tokens
        rows = []
        for prompt in prompts:
            first, *others = prompt.split(self.image_token)
            row = list(self.tokenizer(first)["input_ids"])
            for chunk in others:
                row += place + (list(self.tokenizer(chunk, add_special_tokens=False)["input_ids"]) if chunk else [])
            rows.append(row)
        padding = (
            self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        )
        length = max(len(row) for row in rows)
        left = self.tokenizer.padding_side == "left"
        ids = np.full((len(rows), length), padding or 0, dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=np.int64)
        for number, row in enumerate(rows):
            where = slice(length - len(row), length) if left else slice(0, len(row))
            ids[number, where], mask[number, where] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    # ---- back ----------------------------------------------------------------------------

    def post_process_attentions(self, attentions, layer: int = -1, queries=None, target_size=None) -> torch.Tensor:
        """
        Where queries look, as heat maps over the images.

        Each cell's probability is spread evenly over its pixels, so the sum over all pixels of all cameras is that over
        the cells: 1 with full attention.

        Args:
            attentions: of the model's output. layer: which decoder layer. queries: indices; default all, averaged.
            target_size: height and width of the maps; default the network's input.

        Returns:
            `[B, cameras, H, W]` float32, mean over heads and queries.
        """
        cells = attentions[layer].float().mean(1)  # [B, Q, N, h, w]
        cells = (cells if queries is None else cells[:, queries].flatten(1, -4)).mean(1)
        height, width = target_size or self.image_size
        rows, columns = (
            _overlap(pixels, count).to(cells.device) for pixels, count in zip((height, width), cells.shape[-2:])
        )
        return torch.einsum("bnhw,yh,xw->bnyx", cells, rows, columns)

    def paint_attentions(self, images, heat: torch.Tensor, title: str = "") -> Image.Image:
        """
        The six images of one scene with a heat map over each, arranged as they surround the car.

        Args:
            images: one scene, as for `__call__`. heat: `[cameras, H, W]`, one scene of `post_process_attentions`.
        """
        scene = dict(zip(self.camera_names, self._ordered(images, "images", 0)))
        heat = heat.detach().float().cpu().numpy()
        # One scale for all cameras; its top is exceeded by one pixel in a thousand, so that a spark does not hide the rest.
        top = max(float(np.quantile(heat, 0.999)), 1e-12)
        layout = SCENE_LAYOUT if set(self.camera_names) == set(SCENE_CAMERAS) else (self.camera_names,)
        height, width, head, gap = *heat.shape[-2:], 18, 4
        rows, columns = len(layout), max(len(row) for row in layout)
        top_margin = 24 if title else gap
        sheet = Image.new(
            "RGB", (columns * (width + gap) + gap, top_margin + rows * (height + head + gap) + 26), "white"
        )
        pen = ImageDraw.Draw(sheet)
        pen.text((gap, 6), title, fill="black")
        for i, row in enumerate(layout):
            for j, name in enumerate(row):
                number = self.camera_names.index(name)
                share = heat[number].sum() / max(heat.sum(), 1e-12)
                left, upper = gap + j * (width + gap), top_margin + i * (height + head + gap)
                pen.text((left, upper + 2), f"{name}   {share:.0%} of the attention", fill="black")
                picture = scene[name].resize((width, height), Image.Resampling.BILINEAR)
                sheet.paste(_overlay(picture, heat[number] / top), (left, upper + head))
        bar = np.tile(np.linspace(0, 1, 120), (10, 1))
        lower = sheet.height - 20
        sheet.paste(Image.fromarray(_heat_colors(bar)), (gap, lower))
        pen.text((gap + 126, lower - 2), f"0 to {top * heat.size:.2g} times the even share of a pixel", fill="black")
        return sheet

    def post_process_map_detection(
        self, outputs, threshold: float = 0.3, point_range=(-15.0, -30.0, 15.0, 30.0)
    ) -> list[dict]:
        """
        Map elements in metres.

        Args:
            outputs: of the model with `output_map=True`. threshold: least sigmoid score of an element's best class.
            point_range: (x min, y min, x max, y max) as in the model's `map_config`; LiDAR frame, x right, y forward.

        Returns:
            Per scene `{"scores": [n], "labels": [n], "points": [n, P, 2] metres}`.
        """
        scores, labels = outputs.class_logits.float().sigmoid().max(-1)
        low, high = (torch.tensor(point_range[i : i + 2], device=scores.device) for i in (0, 2))
        points = low + (outputs.points.float() + 1) / 2 * (high - low)
        return [
            {"scores": s[s > threshold], "labels": c[s > threshold], "points": p[s > threshold]}
            for s, c, p in zip(scores, labels, points)
        ]


def _is_batch(scenes) -> bool:
    """Whether this is a list of scenes, and not one scene: a dictionary or a list of images or matrices."""
    return isinstance(scenes, (list, tuple)) and len(scenes) > 0 and isinstance(scenes[0], (dict, list, tuple))


def _open_image(image) -> Image.Image:
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        try:
            image = Image.open(path)
            image.load()
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} is no readable image: {error}") from error
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"An image must be a PIL image, a path or a uint8 array [H, W, 3], got {array.dtype} {array.shape}."
        )
    return Image.fromarray(array)


def _heat_colors(heat: np.ndarray) -> np.ndarray:
    """Black, red, yellow, white for 0 … 1, uint8 `[..., 3]`."""
    level = np.clip(heat, 0, 1)[..., None] * 3 - np.arange(3)
    return (np.clip(level, 0, 1) * 255).astype(np.uint8)


def _overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """The picture in grey, coloured where heat is."""
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    weight = np.clip(heat, 0, 1)[..., None] ** 0.5 * 0.8
    return Image.fromarray((grey * (1 - weight) + _heat_colors(heat) * weight).astype(np.uint8))


# --------------------------------------------------------------------------------------
# Solids: meshes, points, views
# --------------------------------------------------------------------------------------

MESH_SUFFIXES = (".stl", ".ply", ".obj")
STEP_SUFFIXES = (".step", ".stp")
# Scaling by more than this to fit a part into the model's frame smells of metres taken for millimetres.
UNUSUAL_SCALE = 100.0


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
                f"The mesh is empty: {len(self.vertices)} vertices, {len(self.faces)} faces. Check the file in a viewer."
            )
        if not np.isfinite(self.vertices).all():
            raise ValueError("The mesh has NaN or infinite vertices. Export it again.")
        if self.faces.min() < 0 or self.faces.max() >= len(self.vertices):
            raise ValueError(
                f"`faces` refer to vertices {self.faces.min()} … {self.faces.max()}, the mesh has {len(self.vertices)}."
            )

    @property
    def bounds(self) -> np.ndarray:
        """`[2, 3]`: lowest and highest corner of the bounding box."""
        return np.stack([self.vertices.min(0), self.vertices.max(0)])

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


def load_mesh(path: str | os.PathLike) -> TriangleMesh:
    """Triangles of an STL, PLY or OBJ file (trimesh) or of the solid of a STEP file (cadquery)."""
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ValueError(f"There is no mesh file at {str(path)!r}.")
    if suffix not in MESH_SUFFIXES + STEP_SUFFIXES:
        raise ValueError(f"{path.name!r} is no mesh file: expected one of {', '.join(MESH_SUFFIXES + STEP_SUFFIXES)}.")
    library = _optional_library("cadquery" if suffix in STEP_SUFFIXES else "trimesh")
    try:
        if suffix in STEP_SUFFIXES:
            shape = library.importers.importStep(str(path)).combine().val()
            size = shape.BoundingBox().DiagonalLength
            vertices, faces = shape.tessellate(1e-5 * size, 0.1)
            vertices = [vertex.toTuple() for vertex in vertices]
        else:
            loaded = library.load(path, force="mesh")
            vertices, faces = loaded.vertices, loaded.faces
    except Exception as error:  # every reader raises its own classes, all of them mean an unreadable file
        raise ValueError(
            f"{path.name!r} cannot be read as {suffix[1:].upper()} ({type(error).__name__}: {error}). Open it in a CAD "
            "program and export it again."
        ) from error
    if not len(vertices) or not len(faces):
        raise ValueError(f"{path.name!r} holds an empty mesh: {len(vertices)} vertices, {len(faces)} faces.")
    return TriangleMesh(np.asarray(vertices), np.asarray(faces))


def _optional_library(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"Reading this file needs {name}: install the extra `[cad]`.") from error


def fit_placement(low: np.ndarray, high: np.ndarray) -> Placement:
    """The placement that moves a bounding box to the origin and its longest side to [-1, 1]; warns if that is far off."""
    extent = float((high - low).max())
    if not extent > 0:
        raise ValueError("The part has no extent: all its points are the same. Check the units and the export.")
    placement = Placement((low + high) / 2, 2 / extent)
    if placement.scale > UNUSUAL_SCALE or placement.scale < 1 / UNUSUAL_SCALE:
        warnings.warn(
            f"The part measures {extent:g} units and had to be scaled by {placement.scale:.3g} to fit the model's frame. If "
            "the file is in metres or micrometres, its coordinates may not be what they seem.",
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
    a, b, c = mesh.vertices[mesh.faces[chosen]].swapaxes(0, 1)
    u, v = generator.random((2, count, 1))
    outside = u + v > 1  # the other half of the parallelogram, folded back
    u, v = np.where(outside, 1 - u, u), np.where(outside, 1 - v, v)
    return a + u * (b - a) + v * (c - a), normals[chosen]


def farthest_point_sample(points: torch.Tensor, num_points: int) -> torch.LongTensor:
    """
    Indices of `num_points` points, each the farthest from those chosen before; the first is point 0, ties go to the lower
    index (the rule of PyTorch3D).

    Args:
        points: `[B, P, 3]`, P ≥ num_points.

    Returns:
        `[B, num_points]`.
    """
    batch, count, _ = points.shape
    if not 1 <= num_points <= count:
        raise ValueError(f"`num_points` must be between 1 and the {count} points there are, got {num_points}.")
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


# Published cameras: 500 × 500 pixels, 60°, target (0.5, 0.5, 0.5) of the unit cube, 0.9·√3 away, in these directions.
VIEW_DIRECTIONS = ((1, 1, 1), (-1, -1, -1), (-1, 1, -1), (1, -1, 1))
VIEW_DISTANCE = 0.9
VIEW_FOCAL_LENGTH = 433.0127  # of 500 pixels
VIEW_COLOR = (255, 255, 136)
VIEW_PIXELS, VIEW_BORDER = 128, 3
VIEW_PIXEL_LIMITS = (256 * 28 * 28, 1280 * 28 * 28)  # of the picture of all views, as the vision tower sees it
PIXELS_PER_PASS = 1 << 21  # pixels of triangles drawn at a time: about 300 MB


def render_mesh(
    mesh: TriangleMesh,
    direction=(1, 1, 1),
    pixels: int = VIEW_PIXELS,
    color: tuple[int, int, int] = VIEW_COLOR,
    smooth: bool = True,
    oversampling: int = 4,
) -> np.ndarray:
    """
    One view of a part in the unit cube: a z-buffer in numpy, which needs no display, driver or window system.

    The camera is that of the published training views. Their lighting (Open3D's) is only approximated: a light at the
    camera and one above it, white background.

    Args:
        mesh: in [0, 1]³.
        direction: in which the camera looks, from `VIEW_DISTANCE` times this before the centre. World +y points down.
        smooth: shade with vertex normals, as the published views do; else with face normals, which shows edges.
        oversampling: rays per pixel along either side.

    Returns:
        `[pixels, pixels, 3]` uint8.
    """
    front = np.asarray(direction, np.float64)
    eye = 0.5 - VIEW_DISTANCE * front
    right = np.cross((0.0, 1.0, 0.0), front)
    down = np.cross(front, right)
    axes = np.stack([axis / np.linalg.norm(axis) for axis in (right, down, front)])
    size = pixels * oversampling
    camera = (mesh.vertices - eye) @ axes.T  # [V, 3] right, down, forward
    depth = np.maximum(camera[:, 2], 1e-6)
    screen = camera[:, :2] / depth[:, None] * (VIEW_FOCAL_LENGTH / 500 * size) + (size - 1) / 2
    visible = (camera[mesh.faces, 2] > 1e-3).all(1)
    face, weights = _rasterize(screen, 1 / depth, mesh.faces[visible], size)
    face_normals, areas = mesh.face_normals()
    if smooth:
        vertex_normals = np.zeros_like(mesh.vertices)
        for corner in range(3):
            np.add.at(vertex_normals, mesh.faces[:, corner], face_normals * areas[:, None])
        normals = np.einsum("pc,pcd->pd", weights, vertex_normals[mesh.faces[visible][face]])
    else:
        normals = face_normals[visible][face]
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    facing = np.abs(normals @ axes[2])
    above = np.clip(-(normals @ axes[1]), 0, None)
    shade = np.where(face >= 0, 0.25 + 0.6 * facing + 0.15 * above, 1.0)[:, None]
    image = np.where((face >= 0)[:, None], shade * np.asarray(color, np.float64), 255.0)
    image = image.reshape(pixels, oversampling, pixels, oversampling, 3).mean((1, 3))
    return image.astype(np.uint8)


def _rasterize(screen: np.ndarray, inverse_depth: np.ndarray, faces: np.ndarray, size: int):
    """
    Nearest face of every pixel.

    Args:
        screen: `[V, 2]` pixels. inverse_depth: `[V]`. faces: `[F, 3]`.

    Returns:
        Face of each pixel `[size²]`, -1 for none, and its perspective-correct corner weights `[size², 3]`.
    """
    a, b, c = screen[faces].swapaxes(0, 1)
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    top = np.ceil(screen[faces, 1].min(1)).clip(0, size).astype(np.int64)
    bottom = np.floor(screen[faces, 1].max(1)).clip(-1, size - 1).astype(np.int64)
    heights = np.where(np.abs(area) > 1e-12, bottom - top + 1, 0).clip(0)

    # One entry per face and row. A corner's weight is linear along the row: slope · x + start; where all three are
    # positive the face covers it.
    face = np.repeat(np.arange(len(faces)), heights)
    y = top[face] + _count_within(heights)
    ax, ay, doubled = a[face, 0], a[face, 1], area[face]
    slope_b = (c[face, 1] - ay) / doubled
    slope_c = (ay - b[face, 1]) / doubled
    start_b = -slope_b * ax - (y - ay) * (c[face, 0] - ax) / doubled
    start_c = -slope_c * ax + (y - ay) * (b[face, 0] - ax) / doubled
    left, right = np.zeros(len(face)), np.full(len(face), size - 1.0)
    for slope, start in ((slope_b, start_b), (slope_c, start_c), (-slope_b - slope_c, 1 - start_b - start_c)):
        with np.errstate(divide="ignore", invalid="ignore"):
            root = -start / slope
        left = np.where(slope > 0, np.maximum(left, root), left)
        right = np.where(slope < 0, np.minimum(right, root), right)
        right = np.where((slope == 0) & (start < 0), -1.0, right)
    first = np.ceil(left - 1e-9).astype(np.int64)
    widths = (np.floor(right + 1e-9).astype(np.int64) - first + 1).clip(0)

    buffer = np.zeros(size * size)
    nearest = np.full(size * size, -1, np.int64)
    corner_weights = np.zeros((size * size, 3))
    for begin, end in _passes(widths.cumsum()):
        span = np.repeat(np.arange(begin, end), widths[begin:end])
        x = first[span] + _count_within(widths[begin:end])
        weight_b = slope_b[span] * x + start_b[span]
        weight_c = slope_c[span] * x + start_c[span]
        pixel, index = y[span] * size + x, face[span]
        corners = np.stack([1 - weight_b - weight_c, weight_b, weight_c], 1) * inverse_depth[faces[index]]
        nearness = corners.sum(1)
        np.maximum.at(buffer, pixel, nearness)
        won = nearness == buffer[pixel]
        nearest[pixel[won]] = index[won]
        corner_weights[pixel[won]] = corners[won] / nearness[won, None]
    return nearest, corner_weights


def _count_within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, … within each of consecutive groups: lengths [2, 3] → [0, 1, 0, 1, 2]."""
    starts = lengths.cumsum() - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)


def _passes(ends: np.ndarray):
    """Ranges of spans whose pixels fit one pass, each at least one span."""
    start, done = 0, 0
    while start < len(ends):
        stop = max(int(np.searchsorted(ends, done + PIXELS_PER_PASS, side="right")), start + 1)
        yield start, stop
        start, done = stop, int(ends[stop - 1])


def compose_views(views) -> Image.Image:
    """One, two (side by side) or four (2 × 2) views as one picture, each with a black border of 3 pixels."""
    views = [np.asarray(view.convert("RGB") if isinstance(view, Image.Image) else view, np.uint8) for view in views]
    if len(views) not in (1, 2, 4) or any(view.ndim != 3 or view.shape != views[0].shape for view in views):
        raise ValueError(
            f"A part is shown by 1, 2 or 4 RGB views of one size, got {len(views)}: {[view.shape for view in views]}."
        )
    framed = [np.pad(view, ((VIEW_BORDER, VIEW_BORDER), (VIEW_BORDER, VIEW_BORDER), (0, 0))) for view in views]
    rows = [np.concatenate(framed[i : i + 2], axis=1) for i in range(0, len(framed), 2)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def resize_to_multiple(
    picture: Image.Image, multiple: int, min_pixels: int = 0, max_pixels: int = 1 << 62
) -> Image.Image:
    """Bicubic resize to sides that are multiples, with an area within the limits."""
    height, width = smart_resize(picture.height, picture.width, multiple, min_pixels, max_pixels)
    return resize_image(picture, (width, height), Image.Resampling.BICUBIC)


def encode_views(picture: Image.Image, image_processor) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """
    A picture of views as Cadrille reads it: a video of two equal frames, resized twice with Pillow, as published.

    Returns:
        Patches `[L, 1176]` and grid (time, rows, columns): 1 × 32 × 32 for the published 268 × 268 pixels.
    """
    multiple = image_processor.patch_size * image_processor.merge_size
    picture = resize_to_multiple(resize_to_multiple(picture, multiple), multiple, *VIEW_PIXEL_LIMITS)
    encoded = image_processor(images=[picture], do_resize=False, return_tensors="pt")
    return encoded["pixel_values"], tuple(encoded["image_grid_thw"][0].tolist())


class _SolidProcessor(ProcessorMixin):
    """What the processors of Cadrille and CAD-Recode share: parts as clouds in the model's frame."""

    def _cloud(
        self, part, normalization: str, generator: np.random.Generator, noise_std: float, noise_probability: float
    ):
        """`[num_points, point_channels]` float32 of a mesh (file or object) or a cloud `[P, 3 or more]`."""
        if isinstance(part, (str, os.PathLike, TriangleMesh)):
            mesh = part if isinstance(part, TriangleMesh) else load_mesh(part)
            mesh = self.place_mesh(mesh, normalization)
            points, normals = sample_surface(mesh, self.num_surface_samples, generator)
            cloud = np.concatenate([points, normals], axis=1)[:, : self.point_channels].astype(np.float32)
        else:
            cloud = np.array(part, np.float32)
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
            cloud[:, :3] = (cloud[:, :3] - placement.center) * placement.scale
        if self.point_sampling == "farthest":
            chosen = farthest_point_sample(torch.from_numpy(cloud[None, :, :3]), self.num_points)[0].numpy()
            cloud = cloud[chosen]
        else:  # a random choice in the order z, y, x
            cloud = cloud[generator.permutation(len(cloud))[: self.num_points]]
            cloud = cloud[np.lexsort((cloud[:, 0], cloud[:, 1], cloud[:, 2]))]
        if noise_std and generator.random() < noise_probability:
            cloud[:, :3] += noise_std * generator.standard_normal((len(cloud), 3)).astype(np.float32)
        return torch.from_numpy(cloud)

    def place_mesh(self, mesh: TriangleMesh, normalization: str = "fit") -> TriangleMesh:
        """The mesh in the model's frame, about [-1, 1]³; see `__call__` for `normalization`."""
        placement = self._placement(*mesh.bounds, normalization)
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


def _per_sample(value, is_single, count: int | None, name: str) -> list:
    """One entry per sample of an argument that may be a single sample, a list or None."""
    if value is None:
        return [None] * (count or 0)
    entries = [value] if is_single(value) else list(value)
    if count is not None and len(entries) != count:
        raise ValueError(
            f"`{name}` has {len(entries)} entries, the batch has {count}; write None where a sample has none."
        )
    return entries


def _is_mesh(value) -> bool:
    return isinstance(value, (str, os.PathLike, TriangleMesh))


def _is_cloud(value) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 2


def _is_image(value) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 3)


def _pad_tokens(rows: list[list[int]], value: int, side: str) -> torch.LongTensor:
    length = max(len(row) for row in rows)
    if side == "left":
        return torch.tensor([[value] * (length - len(row)) + list(row) for row in rows])
    return torch.tensor([list(row) + [value] * (length - len(row)) for row in rows])


def answer_labels(input_ids: list[int], im_start: int, header: list[int], im_end: int) -> list[int]:
    """
    Labels of a chat: each assistant turn from behind its header to its `<|im_end|>`, -100 elsewhere.

    Args:
        input_ids: one row. header: the tokens of the word "assistant". A turn without an end is not supervised.
    """
    labels = [-100] * len(input_ids)
    for start in range(len(input_ids)):
        first = start + 1 + len(header)
        if input_ids[start] == im_start and list(input_ids[start + 1 : first]) == list(header):
            if im_end in input_ids[first:]:
                stop = input_ids.index(im_end, first) + 1
                labels[first:stop] = input_ids[first:stop]
    return labels


# --------------------------------------------------------------------------------------
# Cadrille
# --------------------------------------------------------------------------------------


class CadrilleProcessor(_SolidProcessor):
    r"""
    Meshes, point clouds, views or texts to the inputs of [`CadrilleForConditionalGeneration`], and its answers to programs.

    Args:
        num_points (`int`, *optional*, defaults to 256): Points of a cloud, as in [`CadrilleConfig`].
        num_surface_samples (`int`, *optional*, defaults to 8192): Points on a mesh among which they are chosen.
        num_views (`int`, *optional*, defaults to 4): Views of a mesh when it is shown instead of sampled.
        prompt (`str`, *optional*): What is asked when a sample has no text.
        program_range (`float`, *optional*, defaults to 100): Half the range of a program's coordinates.
    """

    point_channels = 3
    point_sampling = "farthest"

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        num_points: int = 256,
        num_surface_samples: int = 8192,
        num_views: int = 4,
        prompt: str = "Generate cadquery code",
        program_range: float = 100.0,
        **kwargs,
    ):
        if num_views not in (1, 2, 4):
            raise ValueError(f"`num_views` must be 1, 2 or 4, got {num_views}.")
        if num_surface_samples < num_points:
            raise ValueError(
                f"`num_surface_samples` ({num_surface_samples}) must be at least `num_points` ({num_points})."
            )
        self.num_points = num_points
        self.num_surface_samples = num_surface_samples
        self.num_views = num_views
        self.prompt = prompt
        self.program_range = program_range
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        self.point_token, self.video_token = "<|endoftext|>", "<|video_pad|>"

    @property
    def model_input_names(self):
        return [
            "input_ids", "attention_mask", "point_clouds", "is_pc", "pixel_values_videos", "video_grid_thw", "is_img"
        ]  # fmt: skip

    @refuses_unreadable
    def __call__(
        self,
        images=None,
        text=None,
        point_clouds=None,
        meshes=None,
        programs=None,
        modality: str = "points",
        normalization: str = "fit",
        noise_std: float = 0.0,
        noise_probability: float = 0.5,
        seed: int | None = 0,
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """
        Every argument holds one entry per sample (None where it has none) or a single sample. A sample has a mesh, a
        cloud, views or nothing but text.

        Args:
            images: a picture of composed views, or a list of 1, 2 or 4 views, per sample.
            text: what is asked; `self.prompt` by default.
            point_clouds: arrays `[P, 3]`, P ≥ `num_points`.
            meshes: files (stl, ply, obj, step) or [`TriangleMesh`]es.
            programs: answers to learn; adds `labels`.
            modality: "points" or "views": how meshes are shown.
            normalization: how meshes and clouds get into the model's frame [-1, 1]³. "fit": bounding box to the origin,
                longest side to [-1, 1]. "unit_cube": they lie in [0, 1]³ (published test meshes). "program": they have
                the coordinates of a program (published training meshes). "none": they are in the frame already.
            noise_std, noise_probability: Gaussian noise on clouds in units of the model's frame, for training.
            seed: of surface sampling and noise; None for a new one each time.
            padding_side: "left" (default, for generation) or "right".

        Returns:
            `input_ids`, `attention_mask` `[B, S]`, `is_pc`, `is_img` `[B]`; `point_clouds` `[B, num_points, 3]` if a
            sample has points; `pixel_values_videos` `[B, L, 1176]` and `video_grid_thw` `[B, 3]` if one has views;
            `labels` `[B, S]` with programs.
        """
        given = {
            "images": (images, _is_image), "text": (text, lambda v: isinstance(v, str)),
            "point_clouds": (point_clouds, _is_cloud), "meshes": (meshes, _is_mesh),
            "programs": (programs, lambda v: isinstance(v, str)),
        }  # fmt: skip
        first = next(((n, v, single) for n, (v, single) in given.items() if v is not None), None)
        if first is None:
            raise ValueError("Nothing was given: pass `meshes`, `point_clouds`, `images` or `text`.")
        if modality not in ("points", "views"):
            raise ValueError(f'`modality` must be "points" or "views", got {modality!r}.')
        count = len(_per_sample(first[1], first[2], None, first[0]))
        images, text, point_clouds, meshes, programs = (
            _per_sample(value, single, count, name) for name, (value, single) in given.items()
        )
        generator = np.random.default_rng(seed)

        clouds, pictures = [None] * count, [None] * count
        for i in range(count):
            shown = [
                name for name, entries in (("images", images), ("point_clouds", point_clouds), ("meshes", meshes))
                if entries[i] is not None
            ]  # fmt: skip
            if len(shown) > 1:
                raise ValueError(f"Sample {i} has {' and '.join(shown)}; Cadrille reads one of them at a time.")
            if images[i] is not None:
                pictures[i] = (
                    compose_views(images[i]) if isinstance(images[i], (list, tuple)) else _as_picture(images[i])
                )
            elif meshes[i] is not None and modality == "views":
                pictures[i] = self.render_views(meshes[i], normalization)
            elif shown:
                part = meshes[i] if meshes[i] is not None else point_clouds[i]
                clouds[i] = self._cloud(part, normalization, generator, noise_std, noise_probability)

        data, views = {}, self._encode_views(pictures)
        rows = [
            self._tokenize(text[i] or self.prompt, clouds[i] is not None, views[i], programs[i]) for i in range(count)
        ]
        side = padding_side or "left"
        data["input_ids"] = _pad_tokens(rows, self.tokenizer.convert_tokens_to_ids(self.point_token), side)
        data["attention_mask"] = _pad_tokens([[1] * len(row) for row in rows], 0, side)
        data["is_pc"] = torch.tensor([cloud is not None for cloud in clouds])
        data["is_img"] = torch.tensor([view is not None for view in views])
        if data["is_pc"].any():
            data["point_clouds"] = torch.stack(
                [torch.zeros(self.num_points, 3) if cloud is None else cloud for cloud in clouds]
            )
        if data["is_img"].any():
            data["pixel_values_videos"], data["video_grid_thw"] = _stack_views(views)
        if any(program is not None for program in programs):
            ids = self.tokenizer.convert_tokens_to_ids
            header = self.tokenizer.encode("assistant", add_special_tokens=False)
            labels = [answer_labels(row, ids("<|im_start|>"), header, ids("<|im_end|>")) for row in rows]
            data["labels"] = _pad_tokens(labels, -100, side)
        return BatchFeature(data, tensor_type=return_tensors)

    def _tokenize(self, question: str, has_points: bool, view: tuple | None, program: str | None) -> list[int]:
        media = ""
        if view is not None:
            pads = int(np.prod(view[1])) // self.image_processor.merge_size**2
            media = "<|vision_start|>" + self.video_token * pads + "<|vision_end|>"
        prompt = (
            f"{self.point_token * self.num_points if has_points else ''}<|im_start|>system\nYou are a helpful assistant."
            f"<|im_end|>\n<|im_start|>user\n{media}{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        if program is not None:
            prompt += f"{program}<|im_end|>\n"
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def apply_chat_template(self, conversation, *args, tokenize: bool = False, **kwargs):
        """
        As of every processor. With `tokenize`, a conversation is one user turn that shows a part's views and may say what is
        asked, and what is returned are the inputs that `__call__` makes of them: the published prompt has no other turns.
        """
        if not tokenize:
            return super().apply_chat_template(conversation, *args, tokenize=False, **kwargs)
        single = isinstance(conversation[0], dict)
        images, texts = [], []
        for turns in [conversation] if single else [getattr(turns, "messages", turns) for turns in conversation]:
            content = turns[-1]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else None
            if content is None:
                roles = [turn["role"] for turn in turns]
                raise ValueError(
                    f"Cadrille answers one turn of the user, with no other before or behind it, got {roles}."
                )
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            views = [_image_of_part(part) for part in parts if part["type"] in ("image", "image_url")]
            images.append(None if not views else views[0] if len(views) == 1 else views)
            texts.append(" ".join(part["text"] for part in parts if part["type"] == "text") or None)
        return self(images=images, text=texts, return_tensors=kwargs.get("return_tensors", "pt"))

    # ---- views ---------------------------------------------------------------------------

    def render_views(self, mesh, normalization: str = "fit") -> Image.Image:
        """The views of a mesh (file or object) as one picture: 268 × 268 pixels for four of them."""
        mesh = mesh if isinstance(mesh, TriangleMesh) else load_mesh(mesh)
        mesh = self.place_mesh(mesh, normalization).moved(0.5, 0.5)
        return compose_views([render_mesh(mesh, direction) for direction in VIEW_DIRECTIONS[: self.num_views]])

    def _encode_views(self, pictures: list) -> list:
        return [None if picture is None else encode_views(picture, self.image_processor) for picture in pictures]

    # ---- back ----------------------------------------------------------------------------

    def decode_programs(self, sequences: torch.Tensor, prompt_length: int = 0) -> list[str]:
        """Programs of generated `sequences` `[B, S]` that begin with a prompt of `prompt_length` tokens."""
        return [
            text.strip("\n")
            for text in self.tokenizer.batch_decode(sequences[:, prompt_length:], skip_special_tokens=True)
        ]


def _image_of_part(part: dict) -> Image.Image:
    """The image of a part of a message, however it is given there."""
    given = next(
        (part[name] for name in ("image", "url", "path", "base64", "image_url") if part.get(name) is not None), None
    )
    if given is None:
        raise ValueError(f"A part of the conversation announces an image and has none: {sorted(part)}.")
    return load_image(given["url"] if isinstance(given, dict) else given).convert("RGB")


def _as_picture(image) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image, np.uint8))


def _stack_views(views: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches `[B, L, 1176]` and grids `[B, 3]` of a batch, zeros in rows without views."""
    grids = {grid for grid in (view[1] for view in views if view is not None)}
    if len(grids) > 1:
        raise ValueError(f"The pictures of a batch must have one size, got grids {sorted(grids)}. Resize them alike.")
    pattern = next(patches for patches, _ in (view for view in views if view is not None))
    patches = torch.stack([torch.zeros_like(pattern) if view is None else view[0] for view in views])
    return patches, torch.tensor([[0, 0, 0] if view is None else list(view[1]) for view in views])


# --------------------------------------------------------------------------------------
# CAD-Recode
# --------------------------------------------------------------------------------------


class CADRecodeProcessor(_SolidProcessor):
    r"""
    Meshes or point clouds to the inputs of [`CADRecodeForCausalLM`], and its answers to programs.

    Args:
        num_points, num_surface_samples: As in [`CadrilleProcessor`].
        point_channels (`int`, *optional*, defaults to 3): As in [`CADRecodeConfig`]; 6 adds normals.
        point_sampling (`str`, *optional*, defaults to `"farthest"`): `"random_sorted"` is the first published version's:
            a random choice in the order z, y, x.
        program_range (`float`, *optional*, defaults to 100): Half the range of a program's coordinates; 50 in the first
            published version.
    """

    def __init__(
        self,
        tokenizer=None,
        num_points: int = 256,
        num_surface_samples: int = 8192,
        point_channels: int = 3,
        point_sampling: str = "farthest",
        program_range: float = 100.0,
        **kwargs,
    ):
        if point_sampling not in ("farthest", "random_sorted"):
            raise ValueError(f'`point_sampling` must be "farthest" or "random_sorted", got {point_sampling!r}.')
        if num_surface_samples < num_points:
            raise ValueError(
                f"`num_surface_samples` ({num_surface_samples}) must be at least `num_points` ({num_points})."
            )
        self.num_points = num_points
        self.num_surface_samples = num_surface_samples
        self.point_channels = point_channels
        self.point_sampling = point_sampling
        self.program_range = program_range
        super().__init__(tokenizer, **kwargs)

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "point_token_mask", "point_cloud"]

    @refuses_unreadable
    def __call__(
        self,
        meshes=None,
        point_clouds=None,
        programs=None,
        normalization: str = "fit",
        noise_std: float = 0.0,
        noise_probability: float = 0.5,
        seed: int | None = 0,
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """
        Args:
            meshes, point_clouds: one of them, a single part or a list; see [`CadrilleProcessor`] for these and the rest.
            programs: answers to learn; adds `labels`, which cover the program and `<|endoftext|>`.

        Returns:
            `input_ids`, `attention_mask`, `point_token_mask` `[B, S]`, `point_cloud` `[B, num_points, point_channels]`.
        """
        if (meshes is None) == (point_clouds is None):
            raise ValueError("Pass either `meshes` or `point_clouds`.")
        name, value, single = (
            ("meshes", meshes, _is_mesh) if meshes is not None else ("point_clouds", point_clouds, _is_cloud)
        )
        parts = _per_sample(value, single, None, name)
        programs = _per_sample(programs, lambda v: isinstance(v, str), len(parts), "programs")
        generator = np.random.default_rng(seed)
        clouds = [self._cloud(part, normalization, generator, noise_std, noise_probability) for part in parts]

        ids = self.tokenizer.convert_tokens_to_ids
        rows, labels = [], []
        for program in programs:
            row = [ids("<|im_end|>")] * self.num_points + [ids("<|im_start|>")]
            answer = []
            if program is not None:
                answer = self.tokenizer(program + "<|endoftext|>", add_special_tokens=False)["input_ids"]
            rows.append(row + answer)
            labels.append([-100] * len(row) + answer)
        side = padding_side or "left"
        data = {
            "input_ids": _pad_tokens(rows, ids("<|im_end|>"), side),
            "attention_mask": _pad_tokens([[1] * len(row) for row in rows], 0, side),
            "point_token_mask": _pad_tokens(
                [[1] * self.num_points + [0] * (len(row) - self.num_points) for row in rows], 0, side
            ).bool(),
            "point_cloud": torch.stack(clouds),
        }
        if any(program is not None for program in programs):
            data["labels"] = _pad_tokens(labels, -100, side)
        return BatchFeature(data, tensor_type=return_tensors)

    def decode_programs(self, sequences: torch.Tensor, prompt_length: int = 0) -> list[str]:
        """Programs of generated `sequences` `[B, S]`: what stands between `<|im_start|>` and `<|endoftext|>`."""
        texts = self.tokenizer.batch_decode(sequences[:, prompt_length:], skip_special_tokens=False)
        texts = [text.split("<|im_start|>", 1)[-1].split("<|endoftext|>", 1)[0] for text in texts]
        return [text.replace("<|im_end|>", "").strip("\n") for text in texts]


# --------------------------------------------------------------------------------------
# FrozenQwenSAM
# --------------------------------------------------------------------------------------

DESCRIPTION_INSTRUCTION = "Please give me a description of the image."
FIND_PHRASES = (
    "Here is a description of a picture:\n{text}\n"
    "List the noun phrases in it that name visible things, word for word, as a JSON array of strings and nothing else."
)
# What the published training on referring expressions puts between image and caption: its instruction template, itself
# wrapped into the chat template. Checkpoints of that training have seen no other.
PUBLISHED_REFERRING_INSTRUCTION = "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant"
MASK_COLOURS = (
    (230, 60, 60),
    (60, 120, 235),
    (50, 175, 90),
    (245, 160, 30),
    (160, 80, 220),
    (30, 180, 190),
    (225, 90, 170),
)


class FrozenQwenSAMProcessor(ProcessorMixin):
    r"""
    Images, conversations and phrases to the inputs of [`FrozenQwenSAMModel`], and its outputs to masks, run lengths,
    scores and pictures.

    Args:
        image_processor: that of the Qwen-VL model. Always run on PIL, whose resampling the published weights have seen.
        tokenizer: that of the Qwen-VL model; a fast one, since phrases are found by its offsets.
        instruction (`str`, *optional*): what the user says next to the image where no conversation is given.
        sam_image_size (`int`, *optional*, defaults to 1024): side of SAM's square input.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        instruction: str = DESCRIPTION_INSTRUCTION,
        sam_image_size: int = 1024,
        **kwargs,
    ):
        if image_processor is not None and not isinstance(image_processor, Qwen2VLImageProcessorPil):
            image_processor = Qwen2VLImageProcessorPil.from_dict(image_processor.to_dict())
        self.instruction = instruction
        self.sam_image_size = sam_image_size
        self.image_token = getattr(tokenizer, "image_token", None) or "<|image_pad|>"
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        if tokenizer is not None:
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids", "attention_mask", "mm_token_type_ids", "mask_ids", "caption_ids", "pixel_values", "image_grid_thw",
            "sam_pixel_values", "original_sizes", "reshaped_input_sizes", "meta_data",
        ]  # fmt: skip

    # ---- to the model --------------------------------------------------------------------

    @refuses_unreadable
    def __call__(
        self,
        images=None,
        text=None,
        phrases=None,
        captions=None,
        pieces=None,
        add_generation_prompt: bool = True,
        return_tensors: str = "pt",
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: one image, or one per row: PIL, arrays, paths or URLs.
            text: per row the instruction, or a conversation (list of messages with one image). A conversation that ends with
                the assistant's turn has the phrases in it; otherwise see `captions`. Default: `self.instruction`.
            phrases: per row the phrases to find: strings, or (start, end) character ranges of the caption. A string that is
                listed k times stands for its first k occurrences.
            captions: per row a text that contains the phrases, or None: each phrase is then a caption of its own, and
                phrases do not influence each other.
            pieces: instead of phrases and captions, per row a list of captions, each a list of (text, phrase or -1), whose
                texts are tokenised one by one; the published training sets are made so.
            kwargs: for the image processor, such as `max_pixels`.

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids`, `mask_ids` (phrase of each token, -1 outside), `caption_ids`
            (0: prompt), all `[B, S]`, padded on the right; `pixel_values` `[P, 1176]`, `image_grid_thw` `[B, 3]`;
            `sam_pixel_values` `[B, 3, 1024, 1024]`, `original_sizes`, `reshaped_input_sizes` `[B, 2]`; `meta_data`, a list.
            Without phrases: the prompt for `answer`, without `mask_ids` and `caption_ids`.

        Raises:
            ValueError: no image; a phrase that is not in its caption (the nearest words are named); phrases that share their
                only token.
        """
        if return_tensors != "pt":
            raise ValueError(f'`return_tensors` must be "pt", got {return_tensors!r}.')
        if images is None or (isinstance(images, (list, tuple)) and not images):
            raise ValueError("`images` is missing: phrases are looked up in an image. Pass one image per row.")
        batched = isinstance(images, (list, tuple))
        images = [_load_rgb(image) for image in (images if batched else [images])]
        rows = len(images)
        text, phrases, captions, pieces = (
            _per_row(value, rows, batched, name)
            for name, value in (("text", text), ("phrases", phrases), ("captions", captions), ("pieces", pieces))
        )
        vision = self.image_processor(images, return_tensors="pt", **kwargs)
        data = {"pixel_values": vision["pixel_values"], "image_grid_thw": vision["image_grid_thw"]}

        encoded = []
        for row in range(rows):
            prompt, answer = self._prompt(text[row], add_generation_prompt)
            tokens = int(data["image_grid_thw"][row].prod()) // self.image_processor.merge_size**2
            prompt_ids = self._prompt_ids(prompt, tokens, row)
            found = pieces[row]
            if found is None and phrases[row] is not None:
                caption = captions[row] if captions[row] is not None else answer
                found = [self._caption_tokens(c, p, n) for c, p, n in _captions_of_phrases(caption, phrases[row])]
            elif found is not None:
                found = [self._piece_tokens(caption) for caption in found]
            elif answer is not None or captions[row] is not None:
                raise ValueError(f"Row {row} has a caption but no `phrases` in it.")
            encoded.append((prompt_ids, found))
        if len({found is None for _, found in encoded}) > 1:
            raise ValueError("Either all rows have phrases or none.")
        data |= self._pad(encoded)

        sam = self._sam_processor()(images, return_tensors="pt")
        data["sam_pixel_values"] = sam["pixel_values"]
        data["original_sizes"] = torch.as_tensor(sam["original_sizes"])
        data["reshaped_input_sizes"] = torch.as_tensor(sam["reshaped_input_sizes"])
        data["meta_data"] = [
            self._meta_data(grid, image.size) for grid, image in zip(data["image_grid_thw"].tolist(), images)
        ]
        return BatchFeature(data)

    def _sam_processor(self):
        side = self.sam_image_size
        return SamImageProcessorPil(size={"longest_edge": side}, pad_size={"height": side, "width": side})

    def _prompt(self, text, add_generation_prompt: bool) -> tuple[str, str | None]:
        """The rendered prompt of a row, and the text of the assistant's last turn if the conversation ends with one."""
        answer = None
        if text is None or isinstance(text, str):
            instruction = (
                (self.instruction if text is None else text).replace("<image>", "").replace(self.image_token, "")
            )
            content = [{"type": "image"}, {"type": "text", "text": instruction.strip() or "Describe this image."}]
            conversation = [{"role": "user", "content": content}]
        else:
            conversation = list(text)
            if conversation and conversation[-1]["role"] == "assistant":
                content = conversation.pop()["content"]
                answer = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        template = self.chat_template or self.tokenizer.chat_template
        return self.tokenizer.apply_chat_template(
            conversation, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        ), answer

    def _prompt_ids(self, prompt: str, image_tokens: int, row: int) -> list[int]:
        shown = prompt.count(self.image_token)
        if shown != 1:
            raise ValueError(
                f"The conversation of row {row} shows {shown} images; phrases are looked up in exactly one, so it must hold one "
                '{"type": "image"}.'
            )
        prompt = prompt.replace(self.image_token, self.image_token * image_tokens)
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def _caption_tokens(self, caption: str, spans: list[tuple[int, int]], numbers: list[int]):
        """Token ids of a caption and the phrase of each, by the tokenizer's offsets."""
        encoded = self.tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], _phrases_of_tokens(encoded["offset_mapping"], caption, spans, numbers)

    def _piece_tokens(self, caption):
        ids, mask_ids = [], []
        for text, phrase in caption:
            piece = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += piece
            mask_ids += [phrase] * len(piece)
        return ids, mask_ids

    def _pad(self, encoded) -> dict[str, torch.Tensor]:
        rows = {"input_ids": [], "mask_ids": [], "caption_ids": []}
        for prompt_ids, captions in encoded:
            captions = captions or []
            rows["input_ids"].append(prompt_ids + [token for ids, _ in captions for token in ids])
            rows["mask_ids"].append([-1] * len(prompt_ids) + [phrase for _, ids in captions for phrase in ids])
            numbers = [number for number, (ids, _) in enumerate(captions, 1) for _ in ids]
            rows["caption_ids"].append([0] * len(prompt_ids) + numbers)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        fill = {"input_ids": pad, "mask_ids": -1, "caption_ids": 0}
        padded = {
            name: torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in lists], True, fill[name])
            for name, lists in rows.items()
        }
        lengths = torch.tensor([len(row) for row in rows["input_ids"]])
        padded["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        padded["mm_token_type_ids"] = (padded["input_ids"] == self.image_token_id).int()
        if encoded[0][1] is None:
            del padded["mask_ids"], padded["caption_ids"]
        return padded

    def _meta_data(self, grid, size: tuple[int, int]) -> dict:
        height, width = (n * self.image_processor.patch_size for n in grid[1:])
        return {
            "image_shape": {"height": height, "width": width},
            "padded_shape": {"height": height, "width": width},
            "padding": {"before_height": 0, "after_height": 0, "before_width": 0, "after_width": 0},
            "scale_factor": (height / size[1], width / size[0]),
            "original_shape": {"height": size[1], "width": size[0]},
        }

    def infer_image_grid(self, meta_data, num_image_tokens=None) -> torch.Tensor:
        """
        `image_grid_thw` `[B, 3]` from the sizes in `meta_data`, where it got lost.

        Args:
            meta_data: per row, or one, with `padded_shape` or `image_shape`.
            num_image_tokens: per row, or one: image placeholders of the prompt; what they contradict is refused.
        """
        meta_data = [meta_data] if isinstance(meta_data, dict) else list(meta_data or [])
        if not meta_data:
            raise ValueError(
                "`image_grid_thw` and `meta_data` are both missing; one of them must tell the grid of the image."
            )
        counts = [num_image_tokens] * len(meta_data) if np.ndim(num_image_tokens) == 0 else num_image_tokens
        patch, merge = self.image_processor.patch_size, self.image_processor.merge_size
        grids = []
        for row, (meta, count) in enumerate(zip(meta_data, counts)):
            shape = meta.get("padded_shape") or meta.get("image_shape")
            if not shape:
                raise ValueError(
                    f"`meta_data[{row}]` has neither `padded_shape` nor `image_shape`: the grid cannot be inferred."
                )
            height, width = int(shape["height"]), int(shape["width"])
            if height % (patch * merge) or width % (patch * merge):
                raise ValueError(
                    f"`meta_data[{row}]` says {height}×{width} pixels, which are no multiples of {patch * merge}: it does not "
                    "describe a processed image."
                )
            grid = (1, height // patch, width // patch)
            expected = grid[1] * grid[2] // merge**2
            if count is not None and int(count) != expected:
                raise ValueError(
                    f"Image token count {int(count)} of row {row} does not match its `meta_data`: {height}×{width} pixels "
                    f"make {expected} tokens."
                )
            grids.append(grid)
        return torch.tensor(grids)

    # ---- answers -------------------------------------------------------------------------

    def token_spans(self, output_ids, phrases) -> list[tuple[int, int]]:
        """
        Where phrases stand in generated tokens, as half-open ranges for `FrozenQwenSAMModel.ground`.

        Works on the tokens themselves: tokenising the decoded text again need not give the same ones.
        """
        ids = torch.as_tensor(output_ids).tolist()
        text, offsets = self._decode_with_offsets(ids)
        spans = find_phrases(text, phrases)
        mask_ids = _phrases_of_tokens(offsets, text, spans, list(range(len(spans))))
        return [(mask_ids.index(number), len(mask_ids) - mask_ids[::-1].index(number)) for number in range(len(spans))]

    def _decode_with_offsets(self, ids: list[int]) -> tuple[str, list[tuple[int, int]]]:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        text = self.tokenizer.decode(ids, **options)
        ends = [0]
        for prefix in self.tokenizer.batch_decode([ids[: k + 1] for k in range(len(ids))], **options):
            # A prefix may end inside a character, of which decoding makes something else.
            ends.append(max(len(os.path.commonprefix([prefix, text])), ends[-1]))
        return text, [(start, max(end, min(start + 1, len(text)))) for start, end in zip(ends, ends[1:])]

    def region_prompt(self, question: str, num_tokens: int) -> torch.Tensor:
        """Prompt ids `[1, S]` that show a region of `num_tokens` vision tokens and ask again."""
        conversation = [
            {
                "role": "user",
                "content": [
                    {"type": "image"},
                    {
                        "type": "text",
                        "text": f"{question}\nThis is the relevant part of the image. Answer with its help.",
                    },
                ],
            }
        ]
        prompt, _ = self._prompt(conversation, True)
        return torch.tensor([self._prompt_ids(prompt, num_tokens, 0)])

    def noun_phrase_prompt(self, text: str) -> BatchFeature:
        """`input_ids` and `attention_mask` `[1, S]` that ask the language model which noun phrases a text has."""
        conversation = [{"role": "user", "content": [{"type": "text", "text": FIND_PHRASES.format(text=text.strip())}]}]
        prompt = self.tokenizer.apply_chat_template(
            conversation, chat_template=self.chat_template, tokenize=False, add_generation_prompt=True
        )
        return self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")

    @staticmethod
    def noun_phrases(reply: str, text: str) -> list[str]:
        """
        The phrases of a reply, a JSON array or lines, that stand in `text`: in its spelling and order, without overlaps.

        What lies within a longer phrase is left out, as is what the text does not hold.
        """
        array = re.search(r"\[.*?\]", reply, re.DOTALL)
        try:
            listed = json.loads(array[0]) if array else []
        except ValueError:
            listed = []
        listed = listed or [line.strip(" \t-*•0123456789.\"',[]") for line in reply.splitlines()]
        spans: list[tuple[int, int]] = []
        wanted = {phrase.strip() for phrase in listed if isinstance(phrase, str) and phrase.strip()}
        for phrase in sorted(wanted, key=lambda phrase: (-len(phrase), phrase)):
            found = re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE)
            if found and not any(start < found.end() and found.start() < end for start, end in spans):
                spans.append(found.span())
        return [text[start:end] for start, end in sorted(spans)]

    # ---- back ----------------------------------------------------------------------------

    def post_process_masks(self, outputs, phrases=None, threshold: float = 0.5, return_rle: bool = False) -> list[dict]:
        """
        Args:
            outputs: of the model.
            phrases: per image the words, passed through to the result.
            threshold: probability from which a pixel is foreground.
            return_rle: also give COCO run lengths (uncompressed; `pycocotools.mask.frPyObjects` reads them).

        Returns:
            Per image a dict: `masks` bool `[n, H, W]` at the original size, `scores` `[n]` (mean probability inside the
            mask, 0 for an empty one), `boxes` `[n, 4]` x0, y0, x1, y1 around the masks (zeros for an empty one),
            `phrases`, and with `return_rle` the list `rle`.
        """
        if outputs.sam_pred_masks is None:
            raise ValueError("`outputs` holds coarse masks only; run the model with `use_sam=True`.")
        results = []
        for number, logits in enumerate(outputs.sam_pred_masks):
            probabilities = logits.detach().float().sigmoid()
            masks = probabilities > threshold
            area = masks.sum((1, 2))
            scores = (probabilities * masks).sum((1, 2)) / area.clamp_min(1)
            rows, columns = masks.any(2).to(torch.int8), masks.any(1).to(torch.int8)
            height, width = masks.shape[1:]
            boxes = (
                torch.stack(
                    [
                        columns.argmax(1),
                        rows.argmax(1),
                        width - columns.flip(1).argmax(1),
                        height - rows.flip(1).argmax(1),
                    ],
                    1,
                )
                * (area > 0)[:, None]
            )
            result = {"masks": masks.cpu(), "scores": scores.cpu(), "boxes": boxes.cpu()}
            if phrases is not None:
                result["phrases"] = list(phrases[number])
            if return_rle:
                result["rle"] = [mask_to_rle(mask) for mask in result["masks"].numpy()]
            results.append(result)
        return results

    def resize_attention_maps(self, mask_attentions: torch.Tensor, pred_masks: torch.Tensor) -> torch.Tensor:
        """Attention maps `[n, C, h, w]` of one image at the size of its coarse masks `[n, h', w']`, to look at."""
        size = tuple(pred_masks.shape[-2:])
        return torch.nn.functional.interpolate(mask_attentions.float(), size=size, mode="bilinear", align_corners=False)

    def draw_masks(self, image, result: dict) -> Image.Image:
        """The image with its masks in colour, outlined, and a legend of phrases and scores below it."""
        picture = np.asarray(_load_rgb(image)).astype(np.float32)
        labels = [str(phrase) for phrase in result.get("phrases", [])] or [
            f"mask {i}" for i in range(len(result["masks"]))
        ]
        for number, mask in enumerate(result["masks"].numpy()):
            colour = np.array(MASK_COLOURS[number % len(MASK_COLOURS)], np.float32)
            edge = mask & ~(_shifted(mask, 0, 1) & _shifted(mask, 0, -1) & _shifted(mask, 1, 1) & _shifted(mask, 1, -1))
            picture[mask] = 0.5 * picture[mask] + 0.5 * colour
            picture[edge] = colour
        size = max(14, picture.shape[1] // 45)
        sheet = Image.new("RGB", (picture.shape[1], picture.shape[0] + round(1.6 * size) * len(labels)), "white")
        sheet.paste(Image.fromarray(picture.round().astype(np.uint8)), (0, 0))
        draw = ImageDraw.Draw(sheet)
        for number, (label, score) in enumerate(zip(labels, result["scores"].tolist())):
            top = picture.shape[0] + round(1.6 * size) * number
            colour = MASK_COLOURS[number % len(MASK_COLOURS)]
            draw.rectangle((4, top + 4, 4 + size, top + 4 + size), fill=colour)
            line = f"{label}  {score:.2f}"
            draw.text((10 + size, top + 2), line, fill=(20, 20, 20), font=_label_font(size, line))
        return sheet


def find_phrases(text: str, phrases) -> list[tuple[int, int]]:
    """
    Character ranges of phrases in a text: exact matches, else without regard to case.

    Args:
        phrases: strings, or (start, end) ranges, which are checked and kept. A string listed again stands for its next
            occurrence.

    Raises:
        ValueError: a phrase is empty or not there; names the most similar words of the text.
    """
    spans, seen = [], {}
    for number, phrase in enumerate(phrases):
        if not isinstance(phrase, str):
            start, end = phrase
            if not 0 <= start < end <= len(text):
                raise ValueError(f"Phrase {number} is the range {(start, end)} of a text of {len(text)} characters.")
            spans.append((start, end))
            continue
        if not phrase.strip():
            raise ValueError(f"Phrase {number} is empty.")
        places = [match.start() for match in re.finditer(re.escape(phrase), text)]
        places = places or [match.start() for match in re.finditer(re.escape(phrase), text, re.IGNORECASE)]
        turn = seen[phrase] = seen.get(phrase, -1) + 1
        if turn >= len(places):
            if places:
                raise ValueError(
                    f"Phrase {number}, {phrase!r}, is listed {turn + 1} times but occurs {len(places)} times in {text!r}."
                )
            raise ValueError(
                f"Phrase {number}, {phrase!r}, is not in the text {text!r}; the nearest is {_nearest(text, phrase)!r}."
            )
        spans.append((places[turn], places[turn] + len(phrase)))
    return spans


def _nearest(text: str, phrase: str) -> str:
    """The piece of the text that looks most like the phrase: whole words where there are spaces, else characters."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    count = max(min(len(phrase.split()), len(words)), 1)
    pieces = {text[words[i][0] : words[i + count - 1][1]] for i in range(len(words) - count + 1)}
    if len(words) < 2:
        pieces |= {text[i : i + len(phrase)] for i in range(max(len(text) - len(phrase), 0) + 1)}
    return max(
        sorted(pieces), key=lambda piece: SequenceMatcher(None, piece.lower(), phrase.lower()).ratio(), default=""
    )


def _captions_of_phrases(caption: str | None, phrases) -> list[tuple[str, list, list]]:
    """(caption, character ranges, phrase numbers) of each caption of a row."""
    phrases = [phrases] if isinstance(phrases, str) else list(phrases)
    if not phrases:
        raise ValueError("`phrases` is empty; name at least one phrase.")
    if caption is not None:
        return [(caption, find_phrases(caption, phrases), list(range(len(phrases))))]
    return [(phrase, find_phrases(phrase, [phrase]), [number]) for number, phrase in enumerate(phrases)]


def _phrases_of_tokens(offsets, text: str, spans, numbers) -> list[int]:
    """Phrase of each token, -1 outside: a token belongs to the first phrase that it shares a character with."""
    mask_ids = [-1] * len(offsets)
    for number, (start, end) in zip(numbers, spans):
        touched = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        free = [i for i in touched if mask_ids[i] < 0]
        if not free:
            raise ValueError(
                f"Phrase {number}, {text[start:end]!r}, has no token of its own in {text!r}: other phrases hold them. Give "
                "overlapping phrases as captions of their own (pass no caption)."
            )
        for i in free:
            mask_ids[i] = number
    return mask_ids


def mask_to_rle(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths of a boolean mask `[H, W]`: column by column, beginning with background."""
    flat = np.asarray(mask, bool).flatten(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(flat)]])
    counts = np.diff(edges).tolist()
    return {"size": list(mask.shape), "counts": ([0] + counts) if len(flat) and flat[0] else counts}


def rle_to_mask(rle: dict) -> np.ndarray:
    """The boolean mask `[H, W]` of uncompressed run lengths."""
    counts = rle["counts"]
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(rle["size"], order="F")


def _shifted(mask: np.ndarray, axis: int, step: int) -> np.ndarray:
    """`mask` moved by one pixel; what comes in from outside counts as inside, so that borders get no outline."""
    moved = np.roll(mask, step, axis)
    edge = [slice(None)] * 2
    edge[axis] = 0 if step > 0 else -1
    moved[tuple(edge)] = True
    return moved


def _label_font(size: int, text: str):
    """Pillow's own font, which knows Latin letters; for other text the first common font that the system has."""
    if not text.isascii():
        for name in ("NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf", "wqy-zenhei.ttc", "Arial Unicode.ttf"):
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def _load_rgb(image) -> Image.Image:
    if isinstance(image, (str, os.PathLike)):
        image = load_image(os.fspath(image))
    elif not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    return image.convert("RGB")


def _per_row(value, rows: int, batched: bool, name: str) -> list:
    if value is None:
        return [None] * rows
    if not batched:
        return [value]
    if name == "text" and isinstance(value, str):
        return [value] * rows
    if len(value) != rows:
        raise ValueError(
            f"`{name}` has {len(value)} entries for {rows} images; with a list of images it needs one per image."
        )
    return list(value)


for _processor_class in (
    DSRProcessor,
    GeometryProcessor,
    SceneQFormerProcessor,
    CadrilleProcessor,
    CADRecodeProcessor,
    FrozenQwenSAMProcessor,
):
    _processor_class.register_for_auto_class()
