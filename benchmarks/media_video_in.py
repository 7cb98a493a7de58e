"""From a 720p video file to the patches of 32 frames, against decoding every frame and processing the chosen ones
whole."""

import tempfile
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor, smart_resize

from benchmarks.harness import alternate, assert_agreement, peak_memory, row
from modeling_dsr.dsr_video_patches import patch_videos
from modeling_dsr.frames import choose_video_frames, sample_frame_indices

NAME = "media.video_in"
TARGET = 3.0
FRAMES = 32
SIZE = (720, 1280)
SHORT, LONG = 300, 1800  # frames of a clip: ten seconds, a minute
KEYS = 60  # a key picture every two seconds, as cameras and streams have at least
OPTIONS = {"do_sample_frames": False, "cap_pixels_per_frame": False}


def write_clip(path: Path, count: int) -> str:
    """A camera that drifts over a patterned wall, in H.264 with x264's own choice of B-frames."""
    height, width = SIZE
    cells = np.random.default_rng(0).integers(0, 255, (120, 400, 3), dtype=np.uint8)
    wall = cells.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "g": str(KEYS)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(count):
            top, left = int(60 + 60 * np.sin(number / 30)), number % (wall.shape[1] - width)
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(wall[top : top + height, left : left + width]), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def plain(path: str) -> torch.Tensor:
    """As published for Qwen2.5-VL: the whole video is decoded, the chosen frames are resized and made float32, and the
    processor cuts them."""
    with av.open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    chosen = np.stack([frames[index] for index in sample_frame_indices(len(frames), FRAMES)])
    processor = Qwen2VLVideoProcessor()
    limits = {"min_pixels": processor.size["shortest_edge"], "max_pixels": processor.size["longest_edge"]}
    size = smart_resize(*SIZE, factor=processor.patch_size * processor.merge_size, **limits)
    video = torch.from_numpy(chosen).permute(0, 3, 1, 2)
    video = transforms.resize(video, size, transforms.InterpolationMode.BICUBIC, antialias=True).float()
    return processor([video], do_resize=False, **OPTIONS)["pixel_values_videos"]


def ours(path: str) -> torch.Tensor:
    """What `DSRProcessor` does of a path."""
    frames, metadata = choose_video_frames(path, FRAMES)
    return patch_videos(Qwen2VLVideoProcessor(), [frames], [metadata], **OPTIONS)[0]


def prepare(side: str, path: str):
    return partial({"plain": plain, "ours": ours}[side], path)


def run() -> list[dict]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for metric, count in (("", SHORT), ("_long", LONG)):
            path = write_clip(Path(folder) / f"{count}.mp4", count)
            assert_agreement(ours(path), plain(path), atol=0)
            times = alternate(partial(plain, path), partial(ours, path), warmup=0)
            rows.append(row(NAME, f"time{metric}", *times, TARGET if count == LONG else None))
            if count == SHORT:
                memory = [peak_memory(f"{__name__}:prepare", side, path) for side in ("plain", "ours")]
                rows.append(row(NAME, "memory", *memory, TARGET))
    return rows
