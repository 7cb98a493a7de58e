"""
The one reader of videos: upright frames of 8-bit RGB with the stream's own times.

Used by processors, commands, endpoint and page alike; an endpoint passes limits, everybody else trusts their own files.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .image_reader import TooLarge
from .optional_libraries import needs

try:
    import av
except ImportError:  # a program that decodes its own videos does without
    av = None

FEWEST_JUMPED = 8  # frames: fewer are decoded sooner than jumped over
# Codecs whose pictures say whether any other needs them. HEVC's say it of their own temporal layer only.
SKIPPING = ("h264",)
REGULAR = 1e-3  # relative: by so much the mean rate of the timestamps may differ from the announced one


@dataclass(frozen=True)
class VideoLimits:
    """
    What a video of somebody else's may ask for; None: no limit.

    Args:
        pixels: of a frame. frames: in the file. threads: that decode, None: as many as FFmpeg likes.
        options: of the demuxer, such as a list of formats.
        check: called between packets and between frames; what it raises ends the reading.
    """

    pixels: int | None = None
    frames: int | None = None
    threads: int | None = None
    options: dict | None = None
    check: Callable[[], None] = lambda: None


class Video:
    """
    A video file, looked through without decoding: how many frames people see, and when.

    Frames that an edit list hides (a clip trimmed without re-encoding) do not count. Times come from the frames' own
    timestamps, so that variable rates are right.

    Args:
        source: a path, an address that FFmpeg can open, bytes, or an open binary file.
        name: what errors call it. limits: of somebody else's files.

    Attributes:
        times: `[N]` float64, seconds from the first visible frame.
        fps: frames per second: the announced rate, or where the timestamps say otherwise, their mean.
        size: (width, height) as stored.

    Raises:
        TooLarge: more than the limits allow.
        ValueError: no such file, no video, no frames, or cut short.
    """

    def __init__(self, source, name: str | None = None, limits: VideoLimits = VideoLimits()):
        needs(None, "Decoding a video", "av")
        self.source = os.fspath(source) if isinstance(source, os.PathLike) else source
        if isinstance(self.source, str):
            if "://" not in self.source and not Path(self.source).is_file():
                raise ValueError(f"There is no folder, image or video at {self.source!r}.")
        elif not isinstance(self.source, (bytes, bytearray, memoryview)):
            self.source = self.source.read()
        self.name = name or (repr(self.source) if isinstance(self.source, str) else "the video")
        self.limits = limits
        self._begin: int | None = None  # stamp of the first picture that needs no other
        self._stamps: np.ndarray | None = None  # of visible frames, where each has one of its own: they can be sought
        self._keys: np.ndarray | None = None  # of the pictures that need no other
        with self._errors():
            self._look_through()

    def __len__(self) -> int:
        return len(self.times)

    @property
    def duration(self) -> float:
        """Seconds, the last frame's included."""
        return len(self) / self.fps

    # ---- without decoding ----------------------------------------------------------------

    def _open(self):
        source = self.source if isinstance(self.source, str) else io.BytesIO(self.source)
        return av.open(source, options=dict(self.limits.options or {}))

    def _errors(self):
        return _Errors(self.name)

    def _look_through(self) -> None:
        with self._open() as container:
            stream = _video_track(container, self.name)
            self.size = (stream.codec_context.width, stream.codec_context.height)
            if self.limits.pixels is not None and self.size[0] * self.size[1] > self.limits.pixels:
                raise TooLarge(
                    f"{self.name} has {self.size[0]}×{self.size[1]} pixels; at most {self.limits.pixels} are read. "
                    "Scale it down."
                )
            stamps, early, hidden, corrupt, decodable, clock = [], [], 0, False, False, _Clock()
            keys, stamped = [], True
            for packet in container.demux(stream):
                self.limits.check()
                if packet.size == 0:
                    continue
                corrupt = packet.is_corrupt  # of the last one: a packet that the end of the file cuts
                stamp = clock(packet)
                stamped = stamped and packet.pts is not None
                if packet.is_keyframe:
                    keys.append(stamp)
                    if not decodable:
                        decodable, self._begin = True, packet.pts
                if packet.is_discard:
                    hidden += 1
                else:
                    (stamps if decodable else early).append(stamp)
                if self.limits.frames is not None and len(stamps) + len(early) + hidden > self.limits.frames:
                    raise TooLarge(
                        f"{self.name} has more than {self.limits.frames} frames. Cut it, or send chosen frames as "
                        "images."
                    )
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            base = float(stream.time_base or 0)
            count = stream.frames
            announced = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
        if not decodable:  # a stream that is refreshed bit by bit has no keyframe
            stamps, early = early, []
        if self._begin is not None:  # of a recording that began in the middle, nobody can see what came before
            early += [stamp for stamp in stamps if stamp is not None and stamp < self._begin]
            stamps = [stamp for stamp in stamps if stamp is None or stamp >= self._begin]
        if not stamps:
            raise ValueError(f"{self.name} holds zero frames. Re-encode it, for example to H.264 in mp4.")
        if stamped and keys and not clock.shift and len(set(stamps)) == len(stamps):
            self._stamps, self._keys = np.array(sorted(stamps)), np.array(sorted(keys))
        if None in stamps or not base:  # a raw stream: frames follow one another evenly
            self.times = np.arange(len(stamps)) / (rate or 1.0)
        else:
            ordered = np.sort(np.array(stamps, dtype=np.float64)) * base
            self.times = ordered - ordered[0]
        self.fps = self._rate(rate)
        seen = self.times[-1] + 1 / self.fps
        if clock.end is not None and None not in stamps + early:  # the last frame may be shown for long
            seen = max(seen, (clock.end - min(stamps)) * base) + (min(stamps) - min(stamps + early)) * base
        if corrupt or (announced and seen < 0.9 * announced):
            raise ValueError(
                f"{self.name} is cut short: {len(self.times)}"
                + (f" of its {count} frames" if count > len(self.times) else " frames")
                + f", up to second {self.times[-1]:.2f}"
                + (f" of {announced:.2f}" if announced else "")
                + ", can be read. Fetch it again, or re-encode what is left."
            )

    def _rate(self, announced: float) -> float:
        if len(self.times) < 2 or self.times[-1] <= 0:
            return announced or 1.0
        mean = (len(self.times) - 1) / self.times[-1]
        return announced if announced and abs(mean / announced - 1) < REGULAR else float(mean)

    # ---- frames --------------------------------------------------------------------------

    def frames(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """
        (index, upright uint8 RGB `[H, W, 3]`) of each frame wanted, in the order of time.

        All have the size of the first one; where the pixels of the file are not square, theirs are.

        Args:
            indices: of visible frames, increasing.

        Raises:
            ValueError: a frame cannot be decoded.
        """
        wanted = [int(index) for index in indices]
        size = None
        with self._errors():
            for index, frame, ratio in self._decoded(wanted):
                size = size or (frame.width, frame.height)
                yield index, _picture(frame, size, frame_ratio(frame, ratio))

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """As [`frames`], all in one array `[T, H, W, 3]`; `indices` must not be empty."""
        found = None
        for place, (_, pixels) in enumerate(self.frames(indices)):
            found = np.empty((len(indices), *pixels.shape), np.uint8) if found is None else found
            found[place] = pixels
        return found

    def _decoded(self, wanted: list[int]) -> Iterator[tuple]:
        """(index, frame, ratio of the stream's pixels) of each frame wanted."""
        if not wanted:
            return
        done = 0
        if self._stamps is not None:
            for found in self._sought(wanted):
                done += 1
                yield found
        if done < len(wanted):
            yield from self._in_order(wanted[done:])

    def _sought(self, wanted: list[int]) -> Iterator[tuple]:
        """The frames wanted, with jumps over what no wanted one needs; ends early where a jump lands elsewhere."""
        with self._open() as container:
            stream = self._stream(container)
            for key, indices in self._runs(wanted):
                if key is not None:
                    container.seek(key, stream=stream)
                left, stamps = iter(indices), {int(self._stamps[index]) for index in indices}
                index = next(left)
                for number, frame in enumerate(_pictures(container, stream, stamps)):
                    self.limits.check()
                    if frame.pts is None or (key is not None and number == 0 and not frame.key_frame):
                        return
                    position = int(np.searchsorted(self._stamps, frame.pts))
                    if position < index:
                        continue
                    if position > index or self._stamps[index] != frame.pts:
                        return
                    yield index, frame, stream.sample_aspect_ratio
                    index = next(left, len(self))
                if index < len(self):
                    return

    def _runs(self, wanted: list[int]) -> Iterator[tuple[int | None, list[int]]]:
        """(stamp of the key picture to jump to, frames wanted from there on); the first may need no jump: None."""
        keys = self._keys[(np.searchsorted(self._keys, self._stamps[wanted], side="right") - 1).clip(0)]
        place, run, position = None, [], -1
        for index, key, first in zip(wanted, keys.tolist(), np.searchsorted(self._stamps, keys)):
            if first > position + FEWEST_JUMPED:
                if run:
                    yield place, run
                place, run = key, []
            run.append(index)
            position = index
        yield place, run

    def _in_order(self, wanted: list[int]) -> Iterator[tuple]:
        """The frames wanted, all before them decoded."""
        index, left = -1, iter(wanted)
        following = next(left)
        with self._open() as container:
            stream = self._stream(container)
            for frame in container.decode(stream):
                self.limits.check()
                if index < 0 and None not in (self._begin, frame.pts) and frame.pts < self._begin:
                    continue
                index += 1
                if index == following:
                    yield index, frame, stream.sample_aspect_ratio
                    following = next(left, None)
                    if following is None:
                        return
        raise ValueError(
            f"{self.name} is cut short: {index + 1} of its {len(self)} frames can be decoded. Fetch it again, or "
            "re-encode what is left."
        )

    def _stream(self, container):
        stream = container.streams.video[0]
        if self.limits.threads is None:
            stream.thread_type = "AUTO"
        else:
            stream.codec_context.thread_count = self.limits.threads
        if self.limits.pixels is not None:
            stream.codec_context.options = {"max_pixels": str(self.limits.pixels)}
        return stream

    def nearest(self, times: Sequence[float] | np.ndarray) -> list[int]:
        """Frames that are shown at these seconds: increasing, without repeats."""
        shown = np.searchsorted(self.times, np.asarray(times) + 1e-6, side="right") - 1
        return np.unique(shown.clip(0)).tolist()


def check_video(path: str) -> None:
    """Refuse a file that is no video at all, as [`Video`] does, without looking through it."""
    needs(None, "Decoding a video", "av")
    with _Errors(repr(path)), av.open(path) as container:
        _video_track(container, repr(path))


def _video_track(container, name: str):
    if not container.streams.video:
        raise ValueError(f"{name} has no video track. Pass a file with moving pictures.")
    return container.streams.video[0]


def _pictures(container, stream, stamps: set[int]) -> Iterator:
    """Pictures from here to the last one of `stamps`; what neither is one of them nor needed by others may be left
    out."""
    context, missing = stream.codec_context, set(stamps)
    for packet in container.demux(stream):
        if context.name in SKIPPING:
            context.skip_frame = "DEFAULT" if packet.pts in missing else "NONREF"
        missing.discard(packet.pts)
        yield from packet.decode()
        if not missing:  # threads and the order of pictures hold some back, which no further packet must push out
            yield from context.decode(None)
            return


class _Clock:
    """Stamps of packets in the order of decoding; where they begin anew (recordings that were joined), they go on."""

    def __init__(self):
        self.shift, self.last, self.end = 0, None, None

    def __call__(self, packet) -> int | None:
        if packet.dts is not None:
            if self.last is not None and packet.dts + self.shift < self.last:
                self.shift = self.last + (packet.duration or 1) - packet.dts
            self.last = packet.dts + self.shift
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None:
            return None
        self.end = max(self.end or stamp, stamp + self.shift + (packet.duration or 0))
        return stamp + self.shift


class _Errors:
    """FFmpeg's errors as a ValueError that names the file."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None and issubclass(kind, (av.FFmpegError, OverflowError)):
            raise ValueError(
                f"{self.name} cannot be decoded as a video ({getattr(error, 'strerror', None) or error}). It may be "
                "cut short or not be a video; fetch it again or re-encode it, for example to H.264 in mp4."
            ) from error


def frame_ratio(frame, of_stream) -> float:
    """Width over height of a pixel."""
    ratio = getattr(frame, "sample_aspect_ratio", None) or of_stream
    return float(ratio) if ratio else 1.0


def _picture(frame, size: tuple[int, int], ratio: float) -> np.ndarray:
    width, height = size
    if ratio > 0 and abs(ratio - 1) > 1e-3:  # no detail is lost: the shorter side of a pixel is stretched
        width, height = (round(width * ratio), height) if ratio > 1 else (width, round(height / ratio))
    pixels = frame.reformat(width=max(width, 1), height=max(height, 1), format="rgb24").to_ndarray()
    return np.ascontiguousarray(orient(pixels, display_matrix(frame)))


def display_matrix(frame) -> tuple[int, int, int, int]:
    """
    How a frame is shown, as (a, b, c, d) of x' = a·x + c·y, y' = b·x + d·y in image axes, each -1, 0 or 1.

    Only quarter turns and mirrors are kept; a frame without a matrix, or with another one, is shown as it is stored.
    """
    data = next((one for one in frame.side_data if one.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return 1, 0, 0, 1
    values = np.frombuffer(bytes(data), dtype=np.int32)[[0, 1, 3, 4]] / 65536
    signs = tuple(int(round(value)) if abs(abs(value) - round(abs(value))) < 1e-2 else 2 for value in values)
    a, b, c, d = signs
    return signs if abs(a * d - b * c) == 1 and max(map(abs, signs)) == 1 else (1, 0, 0, 1)


def orient(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """`[H, W, 3]` turned and mirrored by a [`display_matrix`]."""
    a, b, c, d = matrix
    if a == 0:  # x and y change places
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
