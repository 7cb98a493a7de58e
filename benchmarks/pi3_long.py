"""Peak memory of `dsr reconstruct --window` on 100 frames against 400: windows must not care how long a video is.

The whole command runs: a video is decoded, π³ sees it window by window, windows are joined, loops are looked for, every
file is written.
"""

import json
import shutil
import tempfile
from pathlib import Path

import av
import numpy as np

from benchmarks.harness import peak_memory, row
from dsr_toolkit.cli import main
from dsr_toolkit.tiny import hub_folder

NAME = "pi3.long"
SHORT, LONG = 100, 400  # frames
WINDOW, OVERLAP = 20, 5
WIDTH, HEIGHT = 224, 168


def write_video(path: Path, frames: int) -> None:
    """A window that wanders over a large random picture."""
    generator = np.random.default_rng(0)
    world = generator.integers(0, 255, (60, 80, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(frames):
            top, left = int(150 + 140 * np.sin(number / 37)), int(200 + 190 * np.sin(number / 53))
            picture = np.ascontiguousarray(world[top : top + HEIGHT, left : left + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def prepare(frames: int):
    folder = tempfile.TemporaryDirectory()
    video, output = Path(folder.name) / "video.mp4", Path(folder.name) / "out"
    write_video(video, frames)
    model = Path(folder.name) / "model"
    shutil.copytree(hub_folder("pi3"), model)
    settings = json.loads((model / "processor_config.json").read_text())
    settings["pixel_limit"] = WIDTH * HEIGHT  # frames as large as the video: time goes into windows, not into enlarging
    (model / "processor_config.json").write_text(json.dumps(settings))
    common = ["--model", str(model), "--interval", "1", "--device", "cpu"]
    common += ["--window", str(WINDOW), "--overlap", str(OVERLAP)]

    def reconstruct(*arguments) -> None:
        if main(["reconstruct", str(video), *arguments, *common]):
            raise RuntimeError("dsr reconstruct failed")

    # Libraries make their threads and work spaces in the first call.
    write_video(Path(folder.name) / "first.mp4", 2 * WINDOW)
    if main(["reconstruct", str(Path(folder.name) / "first.mp4"), "-o", str(Path(folder.name) / "first"), *common]):
        raise RuntimeError("dsr reconstruct failed")

    def call():
        reconstruct("-o", str(output), "--format", "all")
        folder.cleanup()

    return call


def run() -> list[dict]:
    short, long = (peak_memory(f"{__name__}:prepare", frames) for frames in (SHORT, LONG))
    return [row(NAME, "memory", short, long, 0.9)]
