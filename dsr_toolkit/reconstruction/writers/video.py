"""depth.mp4 and dynamic.mp4."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_dsr.pictures import heat_colours

from ..views import View
from .base import About

STILL_RATE = 10  # of images that are no video, frames per second
CLOCK = 90_000  # ticks per second in which frames are timed


class VideoWriter:
    """
    depth.mp4, and dynamic.mp4 where the model tells what moves: colours, near or moving is light. H.264.

    Frames come when they come in the video that they were taken from.
    """

    def __init__(self, folder: Path, max_points: int, about: About):
        self.folder, self.streams, self.range, self.count = folder, {}, None, 0
        self.seconds, self.first, self.last = about.seconds, None, -1

    def add(self, view: View) -> None:
        nearness = np.where(view.depth > 0, 1 / np.maximum(view.depth, 1e-6), 0)
        if self.range is None:  # one scale for the whole video
            seen = nearness[view.mask] if view.mask.any() else nearness
            self.range = np.percentile(seen, [2, 98])
            self.first = view.time
        low, high = self.range
        moment = view.time - self.first if self.seconds else self.count / STILL_RATE
        # Two frames never share a tick, whatever their clock says.
        self.last = max(round(moment * CLOCK), self.last + 1)
        self.count += 1
        self._write("depth", np.clip((nearness - low) / max(high - low, 1e-12), 0, 1))
        if view.dynamic is not None:
            self._write("dynamic", view.dynamic)

    def _write(self, name: str, level: np.ndarray) -> None:
        import av

        height, width = (side + side % 2 for side in level.shape)  # H.264 halves the resolution of colour
        if name not in self.streams:
            container = av.open(str(self.folder / f"{name}.mp4"), "w")
            stream = container.add_stream("libx264", rate=STILL_RATE, options={"crf": "18", "bf": "0"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = Fraction(1, CLOCK)
            self.streams[name] = container, stream
        container, stream = self.streams[name]
        picture = Image.fromarray(heat_colours(level).astype(np.uint8)).resize((stream.width, stream.height))
        frame = av.VideoFrame.from_image(picture)
        frame.pts, frame.time_base = self.last, Fraction(1, CLOCK)
        for packet in stream.encode(frame):
            container.mux(packet)

    def finish(self) -> list[Path]:
        for container, stream in self.streams.values():
            for packet in stream.encode():
                container.mux(packet)
            container.close()
        return [self.folder / f"{name}.mp4" for name in self.streams]
