"""Frames of a video or image file, with errors that say what to do."""

from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.video_utils import VideoMetadata

COMPLETE = 0.9  # of the frames that the file announces; fewer and it is called truncated


def read_video(path: str | Path, num_frames: int = 32) -> tuple[np.ndarray, VideoMetadata]:
    """
    Up to `num_frames` frames spread evenly over the file, first and last included.

    Shorter videos give all their frames, less one if their number is odd, as DSR's evaluation does; frame indices are
    `round(linspace(0, n - 1, num_frames))`. A rotation recorded in the file is applied.

    Returns:
        uint8 RGB `[T, H, W, 3]`, and transformers' metadata: `fps` and `duration` of the file, `frames_indices` taken.

    Raises:
        ValueError: `num_frames` below 1; a missing, unreadable or truncated file; no video track; no frames.
    """
    if num_frames < 1:
        raise ValueError(f"`num_frames` must be at least 1, got {num_frames}.")
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"No video at {path}: expected the path of a file such as an mp4.")
    try:
        total, fps = _probe(path)
        indices = sample_indices(total, num_frames)
        frames, decoded = _decode(path, indices)
        if COMPLETE * total <= decoded < total:  # containers often announce a few frames that an edit list hides
            total, indices = decoded, sample_indices(decoded, num_frames)
            frames, decoded = _decode(path, indices)
    except av.FFmpegError as error:
        raise ValueError(
            f"{path} cannot be decoded ({error.strerror or error}): expected a complete video file. "
            "If a player opens it, rewrite it with `ffmpeg -i IN -c:v libx264 OUT.mp4`."
        ) from error
    if len(frames) < len(indices):
        raise ValueError(
            f"{path} is truncated: {decoded} of {total} frames can be decoded. Fetch the file again, or cut off the "
            "damaged end with `ffmpeg -err_detect ignore_err -i IN OUT.mp4`."
        )
    frames = np.stack(frames)
    metadata = VideoMetadata(
        total_num_frames=total,
        fps=fps,
        height=frames.shape[1],
        width=frames.shape[2],
        duration=total / fps,
        video_backend="pyav",
        frames_indices=indices,
    )
    return frames, metadata


def read_image(path: str | Path) -> Image.Image:
    """An RGB image, turned as its EXIF record says."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"No image at {path}: expected the path of a file such as a jpg or png.")
    try:
        return ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): expected a complete jpg, png or the like.") from error


def sample_indices(total: int, num_frames: int) -> np.ndarray:
    """Indices of `num_frames` of `total` frames; of shorter videos all, less one where their number is odd."""
    if num_frames > total:
        num_frames = max(total - total % 2, 1)
    return np.round(np.linspace(0, total - 1, num_frames)).astype(int)


def _probe(path: Path) -> tuple[int, float]:
    """Number of frames and frames per second."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path} has no video track: expected a file with moving pictures.")
        stream = container.streams.video[0]
        total = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))  # mkv, webm: count packets
        fps = float(stream.average_rate or stream.guessed_rate or 0)
    if total < 1:
        raise ValueError(f"{path} has a video track without frames (zero frames): expected at least one.")
    return total, fps or 1.0  # a still with no rate is one frame per second


def _decode(path: Path, indices: np.ndarray) -> tuple[list[np.ndarray], int]:
    """The frames at `indices` that exist, and how many frames were decoded on the way."""
    wanted = set(indices.tolist())
    frames, decoded = [], 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if decoded in wanted:
                picture = frame.to_ndarray(format="rgb24")
                frames.append(np.rot90(picture, k=getattr(frame, "rotation", 0) // 90))
            decoded += 1
            if decoded > indices[-1]:
                break
    return frames, decoded
