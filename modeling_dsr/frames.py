"""The reader of images and videos."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import load_image
from transformers.video_utils import VideoMetadata

from .optional_libraries import needs

try:
    import av
except ImportError:  # a program that decodes its own videos does without
    av = None


def sample_frame_indices(total_frames: int, num_frames: int = 32, rule: str = "inference") -> np.ndarray:
    """
    Which frames of a video DSR sees, spread evenly from the first to the last.

    Args:
        total_frames: frames in the video.
        num_frames: frames wanted.
        rule: `"inference"`: rounded positions, an even number of them (the published evaluation); `"training"`:
            truncated positions without repeats (the published training data).

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
    needs(None, "Decoding a video", "av")
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
            f"{path!r} cannot be decoded as a video ({error.strerror or error}). It may be cut short or not be a "
            "video; fetch it again or re-encode it, for example to H.264 in mp4."
        ) from error
    if len(frames) < len(indices):
        raise ValueError(
            f"{path!r} is cut short: {decoded} of its {total} frames can be decoded. Fetch it again, or re-encode what "
            "is left."
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


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
VIDEO_INTERVAL = 10  # of the published demonstration: every tenth frame of a video, every image of a folder


@dataclass
class Frame:
    """A frame of a scene: its image; what to call it; seconds from the start of the video, or the number of the
    image."""

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
    needs(None, "Decoding a video", "av")
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
            f"A frame of {path!r} after number {decoded} cannot be read ({error.strerror or error}). The file is "
            "damaged or no video; fetch it again or re-encode it, for example to H.264 in mp4."
        ) from error
    # Containers may announce some frames that an edit list hides.
    if decoded <= wanted[-1] and decoded < 0.9 * total:
        raise ValueError(
            f"{path!r} is cut short: no frame after number {decoded} of {total} can be read. Fetch it again, or "
            "re-encode what is left."
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
            "an image must be a file, a pillow image, an array [H, W, 3] or a tensor [3, H, W], got "
            f"{type(image).__name__} of shape {tuple(image.shape) if hasattr(image, 'shape') else '?'}."
        )
    if array.dtype.kind == "f":
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def resize_image(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    """
    `Image.resize` of an RGB image to (width, height), the same to the last bit with every Pillow.

    A resize is two passes that each round to bytes, so their order shows. Pillow 13 runs the vertical pass first where
    the height shrinks by more than twice as many pixels as the width (pull request 9549), earlier ones never do: the
    passes are asked for one by one, in the order of Pillow 13.
    """
    width, height = size
    rows_first = image.height > height and image.height - height > 2 * (image.width - width)
    between = (image.width, height) if rows_first else (width, image.height)
    return image.resize(between, method).resize(size, method)


def open_image(image) -> Image.Image:
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


def is_image(value) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 3)


def image_of_part(part: dict) -> Image.Image:
    """The image of a part of a message, however it is given there."""
    given = next(
        (part[name] for name in ("image", "url", "path", "base64", "image_url") if part.get(name) is not None), None
    )
    if given is None:
        raise ValueError(f"A part of the conversation announces an image and has none: {sorted(part)}.")
    return load_image(given["url"] if isinstance(given, dict) else given).convert("RGB")


def as_picture(image) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image, np.uint8))


def load_rgb(image) -> Image.Image:
    if isinstance(image, (str, os.PathLike)):
        image = load_image(os.fspath(image))
    elif not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    return image.convert("RGB")
