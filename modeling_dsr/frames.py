"""Frames of a scene or a clip, from images, folders and videos; how files are read stands in the two readers."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from .image_reader import is_image_file, list_images, read_image, read_with_alpha
from .video_reader import Video


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


@dataclass
class ChosenFrames:
    """
    Frames of a video that are decoded when they are asked for, one after the other.

    Args:
        video: their file. indices: of each among all frames.
    """

    video: Video
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 RGB `[H, W, 3]`, upright."""
        return (frame for _, frame in self.video.frames(self.indices))


def choose_video_frames(source, num_frames: int = 32, rule: str = "inference") -> tuple[ChosenFrames, VideoMetadata]:
    """As [`decode_video`], with nothing decoded yet: height and width are not known."""
    video = source if isinstance(source, Video) else Video(source)
    indices = sample_frame_indices(len(video), num_frames, rule)
    metadata = VideoMetadata(
        total_num_frames=len(video),
        fps=video.fps,
        duration=video.duration,
        video_backend="pyav",
        frames_indices=indices,  # type: ignore[arg-type]  # an array, as transformers itself fills it
    )
    return ChosenFrames(video, indices), metadata


def decode_video(source, num_frames: int = 32, rule: str = "inference") -> tuple[np.ndarray, VideoMetadata]:
    """
    Evenly spread frames of a video file, upright.

    Args:
        source: as [`Video`] takes it, or a [`Video`]. num_frames, rule: as in [`sample_frame_indices`].

    Returns:
        uint8 RGB frames `[T, H, W, 3]` and their metadata (fps, duration in seconds, indices).

    Raises:
        ValueError: no such file, not a video, no video track, no frames, or cut short.
    """
    chosen, metadata = choose_video_frames(source, num_frames, rule)
    frames = chosen.video.read(chosen.indices)
    metadata.height, metadata.width = frames.shape[1:3]
    return frames, metadata


VIDEO_INTERVAL = 10  # of the published demonstration: every tenth frame of a video, every image of a folder


@dataclass
class Frame:
    """
    A frame of a scene.

    Args:
        image: RGB, upright. name: what to call it.
        time: seconds from the start of the video, or the number of the image.
        opaque: `[H, W]` bool, False where the image is transparent and nothing is to be seen; None: everywhere True.
    """

    image: Image.Image
    name: str
    time: float
    opaque: np.ndarray | None = None


@dataclass
class FrameSource:
    """
    The frames of one scene, chosen but not read yet.

    Attributes:
        items: the images chosen, or None of a video. names, times: of each frame. indices: of each among all there are.
        video: or None of images. left_out: files of a folder that are no images.
    """

    indices: list[int]
    names: list[str]
    times: list[float]
    items: list | None = None
    video: Video | None = None
    left_out: tuple = ()

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Frame]:
        if self.video is not None:
            for (_, pixels), name, time in zip(self.video.frames(self.indices), self.names, self.times):
                yield Frame(Image.fromarray(pixels), name, time)
            return
        for item, name, time in zip(self.items or (), self.names, self.times):
            image, opaque = read_with_alpha(item, None if isinstance(item, (str, os.PathLike)) else name)
            yield Frame(image, name, time, opaque)


def find_frames(
    source,
    interval: int | None = None,
    fps: float | None = None,
    num_frames: int | None = None,
) -> FrameSource:
    """
    Choose the frames of one scene; a folder's in natural order (1, 2, 10). Nothing is decoded yet.

    Args:
        source: a folder of images, a video file, an image file, or a list of images as [`read_image`] takes them.
        interval: take every so many frames. Default: 10 of a video, 1 else.
        fps: take so many frames per second of a video instead, by its own timestamps.
        num_frames: take so many frames, evenly spread from the first to the last, instead.

    Raises:
        ValueError: nothing there, a video that cannot be read, or contradictory wishes.
    """
    wishes = {"interval": interval, "fps": fps, "num_frames": num_frames}
    chosen = {name: value for name, value in wishes.items() if value is not None}
    if len(chosen) > 1:
        raise ValueError(
            f"{' and '.join(f'`{name}`' for name in chosen)} say different things about which frames to take; pass one "
            "of them."
        )
    for name, value in chosen.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")
    left_out: list = []
    is_path = isinstance(source, (str, os.PathLike))
    if is_path and os.path.isdir(source):
        folder = os.fspath(source)
        source, left_out = list_images(folder)
        if not source:
            found = f" but {', '.join(path.name for path in left_out[:5])}" if left_out else ""
            raise ValueError(
                f"The folder {folder!r} holds no image{found}; expected jpg, png, webp, tif, bmp or the like."
            )
    elif is_path and is_image_file(source):
        source = [source]
    elif is_path or isinstance(source, Video):
        video = source if isinstance(source, Video) else Video(source)
        if fps is not None:
            indices = video.nearest(np.arange(0, video.times[-1] + 1e-9, 1 / fps))
        else:
            indices = choose_frames(len(video), interval or VIDEO_INTERVAL, num_frames)
        times = [float(video.times[index]) for index in indices]
        return FrameSource(indices, [f"{index:06d}.png" for index in indices], times, video=video)
    if fps is not None:
        raise ValueError("`fps` is for video files; images have no time. Use `interval` or `num_frames`.")
    source = list(source)
    indices = choose_frames(len(source), interval or 1, num_frames)
    items = [source[index] for index in indices]
    names = [
        os.path.basename(item) if isinstance(item, (str, os.PathLike)) else f"{index:06d}.png"
        for index, item in zip(indices, items)
    ]
    return FrameSource(indices, names, [float(index) for index in indices], items, left_out=tuple(left_out))


def read_frames(
    source,
    interval: int | None = None,
    fps: float | None = None,
    num_frames: int | None = None,
) -> Iterator[Frame]:
    """The frames of one scene, one at a time; see [`find_frames`]. Warns of files of a folder that are no images."""
    found = find_frames(source, interval, fps, num_frames)
    if found.left_out:
        names = ", ".join(path.name for path in found.left_out[:5])
        more = f" and {len(found.left_out) - 5} more" if len(found.left_out) > 5 else ""
        warnings.warn(f"left out, since they are no images: {names}{more}", stacklevel=2)
    yield from found


def count_video_frames(path) -> tuple[int, float]:
    """Number of visible frames of the first video track, and frames per second."""
    video = Video(path)
    return len(video), video.fps


def choose_frames(total: int, step: float, num_frames: int | None) -> list[int]:
    """Every `step`-th of `total` frames, or `num_frames` evenly spread ones."""
    if total < 1:
        raise ValueError("`images` holds no image; at least one is needed.")
    if num_frames is not None:
        return np.unique(np.linspace(0, total - 1, num_frames).round().astype(int)).tolist()
    return [index for k in range(total) if (index := int(k * step)) < total]


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


def is_image(value) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim in (2, 3))


def image_of_part(part: dict) -> Image.Image:
    """The image of a part of a message, however it is given there."""
    given = next(
        (part[name] for name in ("image", "url", "path", "base64", "image_url") if part.get(name) is not None), None
    )
    if given is None:
        raise ValueError(f"A part of the conversation announces an image and has none: {sorted(part)}.")
    given = given["url"] if isinstance(given, dict) else given
    if "base64" in part and given is part["base64"] and not str(given).startswith("data:"):
        given = f"data:;base64,{given}"
    return read_image(given)
