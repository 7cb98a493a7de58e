"""Processors of every model in the library.

This file is the same, byte for byte, in the source tree and in the Hub repository, and stands alone: it imports torch,
transformers, numpy, pillow and the standard library.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import BatchFeature, ProcessorMixin
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.video_utils import VideoMetadata, make_batched_videos

try:
    import av
except ImportError:  # a program that decodes its own videos does without
    av = None

try:
    from .configuration_dsr import SCENE_CAMERAS, intrinsics_problem, page4d_image_size, pi3_image_size, pose_problem
except ImportError:  # in the source tree both files lie at the root
    from configuration_dsr import SCENE_CAMERAS, intrinsics_problem, page4d_image_size, pi3_image_size, pose_problem


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
        raise ValueError(f"The video has {total_frames} frames; at least one is needed. Check the file with a video player.")
    if num_frames < 1:
        raise ValueError(f"`num_frames` must be at least 1, got {num_frames}.")
    if rule == "training":
        return np.unique(np.linspace(0, total_frames - 1, num_frames).astype(np.int64))
    if rule != "inference":
        raise ValueError(f'`rule` must be "inference" or "training", got {rule!r}.')
    count = num_frames if num_frames <= total_frames else max(total_frames // 2 * 2, 1)
    return np.linspace(0, total_frames - 1, count).round().astype(np.int64)


def decode_video(path: str | os.PathLike, num_frames: int = 32, rule: str = "inference") -> tuple[np.ndarray, VideoMetadata]:
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
        total, fps = _count_frames(path)
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


def _count_frames(path: str) -> tuple[int, float]:
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
            raise ValueError("`video_grid_thw` stands for videos that are encoded already; pass no `videos` or `images` with it.")
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
                raise ValueError(f"Prompt {number} of `text` shows a video but holds no text. Write a question next to it.")

    # ---- placeholders --------------------------------------------------------------------

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self._num_vision_tokens(image_inputs["image_grid_thw"][image_idx], self.image_processor)

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        return self.video_token * self._num_vision_tokens(video_inputs["video_grid_thw"][video_idx], self.video_processor)

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
                raise ValueError(f"`num_frames` of medium {i} must be {2 * t - 1} or {2 * t} ({t} steps of two), got {frames}.")
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


def read_frames(
    source,
    interval: int | None = None,
    fps: float | None = None,
    num_frames: int | None = None,
) -> Iterator[Image.Image]:
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
    chosen = [name for name, value in (("interval", interval), ("fps", fps), ("num_frames", num_frames)) if value is not None]
    if len(chosen) > 1:
        raise ValueError(f"`{chosen[0]}` and `{chosen[1]}` say different things about which frames to take; pass one of them.")
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
            raise ValueError(f"The folder {str(folder)!r} holds no image; expected files ending in {', '.join(IMAGE_SUFFIXES)}.")
    for index in _frame_indices(len(source), interval or 1, num_frames):
        yield _as_image(source[index])


def _frame_indices(total: int, step: float, num_frames: int | None) -> list[int]:
    if total < 1:
        raise ValueError("`images` holds no image; at least one is needed.")
    if num_frames is not None:
        return np.unique(np.linspace(0, total - 1, num_frames).round().astype(int)).tolist()
    return [index for k in range(total) if (index := int(k * step)) < total]


def _video_frames(path: str, interval: int | None, fps: float | None, num_frames: int | None) -> Iterator[Image.Image]:
    if av is None:
        raise ImportError("Decoding a video needs PyAV: `pip install av`.")
    if "://" not in path and not Path(path).is_file():
        raise ValueError(f"There is no folder, image or video at {path!r}.")
    decoded = 0
    try:
        total, rate = _count_frames(path)
        # A video cannot give more frames per second than it has.
        step = interval or (max(1.0, rate / fps) if fps else VIDEO_INTERVAL)
        wanted = _frame_indices(total, step, num_frames)
        for index, frame in _decode_each(path, wanted):
            decoded = index + 1
            if frame is not None:
                yield Image.fromarray(frame)
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
            raise ValueError(f"The image {os.fspath(image)!r} cannot be read ({error}). Fetch it again or leave it out.") from error
    array = image.detach().cpu().numpy().transpose(1, 2, 0) if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        raise ValueError(
            f"an image must be a file, a pillow image, an array [H, W, 3] or a tensor [3, H, W], got {type(image).__name__} of "
            f"shape {tuple(image.shape) if hasattr(image, 'shape') else '?'}."
        )
    if array.dtype.kind == "f":
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def fit_pi3(images: Iterable[Image.Image], processor: "GeometryProcessor") -> tuple[list[np.ndarray], list[tuple]]:
    """
    π³'s rule: every image is stretched to the size that the first one asks for.

    Returns:
        uint8 frames `[H, W, 3]`, and where each whole image lies in its frame: (left, top, right, bottom) in pixels.
    """
    size, frames, boxes = None, [], []
    for image in images:
        size = size or pi3_image_size(*image.size, processor.pixel_limit, processor.patch_size)
        frames.append(np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS)))
        boxes.append((0, 0, *size))
    return frames, boxes


def fit_page4d_crop(images: Iterable[Image.Image], processor: "GeometryProcessor") -> tuple[list[np.ndarray], list[tuple]]:
    """PAGE-4D's rule: every image to the width `image_size`; of a taller one the middle. Returns as [`fit_pi3`] does."""
    side, frames, boxes = processor.image_size, [], []
    for image in images:
        image = _on_white(image)
        width, height = page4d_image_size(*image.size, side, processor.patch_size)
        frame = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        top = max(0, (height - side) // 2)
        frames.append(frame[top : top + side])
        boxes.append((0, -top, width, height - top))
    return _pad_alike(frames, boxes)


def fit_page4d_pad(images: Iterable[Image.Image], processor: "GeometryProcessor") -> tuple[list[np.ndarray], list[tuple]]:
    """PAGE-4D's other rule: the longer side to `image_size`, the shorter one padded with white. Returns as [`fit_pi3`]."""
    side, frames, boxes = processor.image_size, [], []
    for image in images:
        image = _on_white(image)
        size = page4d_image_size(*image.size, side, processor.patch_size, mode="pad")
        frames.append(np.asarray(image.resize(size, Image.Resampling.BICUBIC)))
        boxes.append((0, 0, *size))
    return _pad_alike(frames, boxes, side)


def fit_page4d_square(images: Iterable[Image.Image], processor: "GeometryProcessor") -> tuple[list[np.ndarray], list[tuple]]:
    """PAGE-4D's rule for high resolution: padded with black to a square, then to `image_size`. Returns as [`fit_pi3`]."""
    side, frames, boxes = processor.image_size, [], []
    for image in images:
        image = _on_white(image)
        width, height = image.size
        longest = max(width, height)
        left, top = (longest - width) // 2, (longest - height) // 2
        square = Image.new("RGB", (longest, longest))
        square.paste(image, (left, top))
        frames.append(np.asarray(square.resize((side, side), Image.Resampling.BICUBIC)))
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
        depth: `[N, H, W]`, z in the camera's frame; 0 where the model did not see the pixel.
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

    def __init__(
        self, resize_rule: str = "pi3", pixel_limit: int = 255000, patch_size: int = 14, image_size: int = 518, **kwargs
    ):
        if resize_rule not in RESIZE_RULES:
            raise ValueError(f"`resize_rule` must be one of {tuple(RESIZE_RULES)}, got {resize_rule!r}.")
        if pixel_limit < patch_size**2:
            raise ValueError(f"`pixel_limit` must allow one patch of {patch_size}×{patch_size} pixels, got {pixel_limit}.")
        if image_size < patch_size or image_size % patch_size:
            raise ValueError(f"`image_size` must be a multiple of `patch_size` {patch_size}, got {image_size}.")
        self.resize_rule = resize_rule
        self.image_size = image_size
        self.pixel_limit = pixel_limit
        self.patch_size = patch_size
        super().__init__(**kwargs)

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
            raise ValueError(f"`images` must be one image or one scene [N, …], got an array of shape {tuple(images.shape)}.")
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

        frames, boxes = RESIZE_RULES[self.resize_rule](measured(read_frames(scene, interval, fps, num_frames)), self)
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
                    raise ValueError(f"`{name}` must hold one entry per chosen frame with `fps` ({len(sizes)}), got {len(value)}.")
                value = [value[i] for i in _frame_indices(len(value), interval or 1, num_frames)]
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
    ) -> list[SceneGeometry]:
        """
        A model's output at the size of the original images, one [`SceneGeometry`] per scene.

        Args:
            outputs: of the model.
            original_sizes, image_boxes: of `__call__`; default: frames are the originals.
            confidence_threshold: pixels below it are masked out.
            edge_tolerance: pixels at steps of more than this part of their depth, where normals bend by more than 5° too, are
                masked out: between two surfaces lies nothing. None: keep them.
            center_principal_point: π³: recover intrinsics with the principal point in the middle of the frame.
            first_camera: express world coordinates in the first camera's frame.
            point_source: PAGE-4D: `"depth"` takes depth, points and confidence from the depth head, `"points"` from the point
                head.
        """
        with torch.no_grad():
            if "pose_enc" in outputs:
                found = _decode_page4d_output(outputs, confidence_threshold, edge_tolerance, point_source)
            else:
                found = _decode_pi3_output(outputs, confidence_threshold, edge_tolerance, center_principal_point)
            batch, frames, height, width = found["local_points"].shape[:4]
            if original_sizes is None:
                original_sizes = torch.tensor([height, width]).expand(batch, frames, 2)
            if image_boxes is None:
                image_boxes = torch.tensor([0.0, 0.0, width, height]).expand(batch, frames, 4)
            return [
                self._scene_geometry(
                    {name: value[i] for name, value in found.items()}, original_sizes[i].cpu(), image_boxes[i].cpu(), first_camera
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
        masks = found["mask"].unsqueeze(-1).float()
        frames = []
        for size, box, values, mask, pose in zip(sizes.tolist(), boxes.tolist(), maps, masks, poses):
            values, seen = _resample(values, size, box, "bilinear")
            mask = _resample(mask, size, box, "nearest")[0][..., 0] > 0.5
            values = torch.where(seen.unsqueeze(-1), values, 0.0)
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


def _decode_pi3_output(outputs, threshold: float, edge_tolerance: float | None, center: bool) -> dict[str, torch.Tensor]:
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
        "intrinsics": recover_intrinsics(local_points, center_principal_point=center),
        "camera_poses": outputs["camera_poses"].float(),
    }


def _decode_page4d_output(outputs, threshold: float, edge_tolerance: float | None, source: str) -> dict[str, torch.Tensor]:
    """Maps and cameras of PAGE-4D at the size of its frames, `[B, N, …]`."""
    heads = {"depth": ("depth", "depth_conf"), "points": ("world_points", "world_points_conf")}
    if source not in heads:
        raise ValueError(f"`point_source` must be one of {tuple(heads)}, got {source!r}.")
    if any(name not in outputs for name in heads[source]):
        raise ValueError(f'`point_source="{source}"` needs `{heads[source][0]}` of the model, which has no such head.')
    values, confidence = (outputs[name].float() for name in heads[source])
    extrinsics, intrinsics = outputs["extrinsics"].float(), outputs["intrinsics"].float()
    if source == "depth":
        local_points = unproject(values.squeeze(-1), intrinsics)
    else:
        rotation, translation = extrinsics[..., None, :3, :3], extrinsics[..., None, None, :3, 3]
        local_points = values @ rotation.mT + translation
    # 1 + exp(x) to the probability with the same x as logit, so that one scale serves all models.
    confidence = 1 - 1 / confidence
    mask = (confidence > threshold) & local_points.isfinite().all(-1) & (local_points[..., 2] > 0)
    if edge_tolerance is not None:
        mask = mask & ~depth_normal_edge(local_points, edge_tolerance, mask=mask)
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


def recover_intrinsics(rays: torch.Tensor, center_principal_point: bool = False, ndc: bool = False) -> torch.Tensor:
    """
    Pinhole intrinsics that explain rays best (least squares, each axis on its own).

    Args:
        rays: `[..., H, W, 3]` directions or camera-frame points.
        center_principal_point: hold the principal point in the middle of the pixel centres.
        ndc: in units in which the pixel centres span -1 … 1, not in pixels.

    Returns:
        `[..., 3, 3]`; pixel centres lie at whole numbers.
    """
    height, width = rays.shape[-3:-1]
    z = rays[..., 2].abs() + 1e-10
    columns, rows = (torch.arange(n, device=rays.device, dtype=rays.dtype) for n in (width, height))
    if ndc:
        columns, rows = (2 * x / max(len(x) - 1, 1) - 1 for x in (columns, rows))
    found = []
    for ray, pixel in ((rays[..., 0] / z, columns.expand(height, width)), (rays[..., 1] / z, rows.unsqueeze(1).expand(height, width))):
        ray, pixel = ray.flatten(-2), pixel.flatten()
        if center_principal_point:
            center = (pixel.min() + pixel.max()) / 2
            focal = (ray * (pixel - center)).sum(-1) / ray.square().sum(-1)
            found.append((focal, center.expand_as(focal)))
        else:
            centered = ray - ray.mean(-1, keepdim=True)
            focal = (centered * (pixel - pixel.mean())).sum(-1) / centered.square().sum(-1)
            found.append((focal, pixel.mean() - focal * ray.mean(-1)))
    (fx, cx), (fy, cy) = found
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [torch.stack(row, -1) for row in ((fx, zero, cx), (zero, fy, cy), (zero, zero, one))]
    return torch.stack(rows, -2)


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
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32) / 255.0
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
            raise ValueError(f"`text` holds {sum(counts)} {self.image_token} for {num_scenes} scenes; write one per scene.")
        known = self.tokenizer.get_vocab().get(self.image_token)
        place = [self.image_token_index] if known is None else [known] * self.num_scene_tokens
        rows = []
        for prompt in prompts:
            first, *others = prompt.split(self.image_token)
            row = list(self.tokenizer(first)["input_ids"])
            for chunk in others:
                row += place + (list(self.tokenizer(chunk, add_special_tokens=False)["input_ids"]) if chunk else [])
            rows.append(row)
        padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
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
        sheet = Image.new("RGB", (columns * (width + gap) + gap, top_margin + rows * (height + head + gap) + 26), "white")
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
        pen.text((gap + 126, lower - 2), f"0 … {top * height * width:.2g} × the even share of one image", fill="black")
        return sheet

    def post_process_map_detection(self, outputs, threshold: float = 0.3, point_range=(-15.0, -30.0, 15.0, 30.0)) -> list[dict]:
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
        try:
            image = Image.open(image)
            image.load()
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{os.fspath(image) if not isinstance(image, Image.Image) else image} is no readable image: {error}") from error
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(f"An image must be a PIL image, a path or a uint8 array [H, W, 3], got {array.dtype} {array.shape}.")
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


for _processor_class in (DSRProcessor, GeometryProcessor, SceneQFormerProcessor):
    _processor_class.register_for_auto_class()
