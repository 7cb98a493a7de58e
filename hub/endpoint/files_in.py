"""Files of a request, as base64 or bytes: images, videos, arrays and meshes, checked before they are decoded."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from .budget import Budget, Reservation, give_memory_back
from .request import Limits, RequestError

IMAGE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP")
# Demuxers that read one self-contained file: none that opens others, as playlists do.
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv"
LARGE = 2**26  # bytes that were unpacked, from which on the system gets them back at once
BYTES_PER_PIXEL = 4  # of an unpacked image
WORK_PER_PIXEL = BYTES_PER_PIXEL + 2 * 3  # and of the arrays that a processor makes of it on the way to its own size
# Base64 is decoded so many letters at a time: the interpreter answers other threads in between.
PIECE = 2**20
NAMES_PLACE = ("http:", "https:", "ftp:", "file:", "s3:", "hf:", "/", "./", "../", "~", "\\\\")


class _Seen(Exception):
    """Ends the reading of an image once its size is known."""


def _decode(text: str) -> bytes:
    """Bytes of base64 text, which may be broken into lines."""
    if len(text.split(None, 1)) > 1 or text[:1].isspace() or text[-1:].isspace():
        text = "".join(text.split())
    return b"".join(
        base64.b64decode(text[start : start + PIECE], validate=True) for start in range(0, len(text), PIECE)
    )


class Files:
    """
    Reads the files of one request and keeps count of their bytes and pixels.

    Args:
        media: the library's readers, which a processor carries (`processor.media`).
        budget: of bytes that unpacked images and frames of all requests may take.
        check: called between frames and while the budget is waited for; raises when the request was given up.
    """

    def __init__(self, limits: Limits, media, budget: Budget | None = None, check=lambda: None):
        self.limits, self.media, self.check = limits, media, check
        self.budget = budget or Budget(limits.in_flight)
        self.bytes = self.pixels = self.images = 0
        self.reserved: list[Reservation] = []

    def release(self) -> None:
        """What was unpacked is not needed any more."""
        large = sum(one.count for one in self.reserved) > LARGE
        for one in self.reserved:
            one.release()
        self.reserved.clear()
        if large:
            give_memory_back()

    def _reserve(self, count: int) -> None:
        """Once per request: two requests that hold one part each and want another would wait for ever."""
        if self.reserved:
            self.reserved[0].resize(self.reserved[0].count + count)
        else:
            self.reserved.append(self.budget.reserve(count, self.check))

    def content(self, name: str, value: str | bytes) -> bytes:
        """Bytes of base64 text, `data:` prefix or not."""
        if isinstance(value, str):
            if value[:100].lower().startswith("data:"):
                header, comma, value = value.partition(",")
                if not comma or not header.endswith(";base64"):
                    raise RequestError("bad_request", f"`{name}` is a data URL that is not base64.")
            self._count_bytes(name, len(value) // 4 * 3)
            try:
                content = _decode(value)
            except (binascii.Error, ValueError) as error:
                place = value[:100].lower().lstrip().startswith(NAMES_PLACE)
                hint = " Addresses and paths are not opened: send the file itself." if place else ""
                raise RequestError("bad_request", f"`{name}` is not base64 ({error}).{hint}") from error
        else:
            self._count_bytes(name, len(value))
            content = value if isinstance(value, bytes) else bytes(value)
        if not content:
            raise RequestError("unreadable_media", f"`{name}` is empty.")
        return content

    def _count_bytes(self, name: str, count: int) -> None:
        self.bytes += count
        if self.bytes > self.limits.bytes:
            raise RequestError(
                "too_large", f"the files up to `{name}` have {self.bytes} bytes; at most {self.limits.bytes} are read."
            )

    def _count_pixels(self, name: str, width: int, height: int, times: int = 1) -> None:
        if width * height > self.limits.pixels:
            raise RequestError(
                "too_large",
                f"`{name}` has {width}×{height} pixels; at most {self.limits.pixels} are read. Scale it down.",
            )
        self.pixels += width * height * times
        if self.pixels > self.limits.total_pixels:
            raise RequestError(
                "too_large",
                f"the images up to `{name}` have more than {self.limits.total_pixels} pixels. Send fewer or smaller.",
            )

    def image(self, name: str, value: str | bytes, alpha: bool = False) -> Image.Image:
        """
        An RGB image, read as everywhere in the library. Its size is checked before anything is unpacked.

        Args:
            alpha: keep where it is transparent: RGBA then, if anywhere.
        """
        return self.named_images({name: value}, alpha)[name]

    def named_images(self, values: dict[str, str | bytes], alpha: bool = False) -> dict[str, Image.Image]:
        """Several images by what errors call them; all sizes are known, and have room, before the first is unpacked."""
        contents, sizes = self._contents(values)
        self._reserve(sum(BYTES_PER_PIXEL * size for size in sizes))
        return {name: self._unpack(name, contents.pop(name), alpha) for name in values}

    def one_by_one(self, values: dict[str, str | bytes]) -> Iterator[Image.Image]:
        """As [`named_images`] for who keeps none of them: room is taken for one, and for what is made of it."""
        contents, sizes = self._contents(values)
        self._reserve(WORK_PER_PIXEL * max(sizes))
        for name in values:
            yield self._unpack(name, contents.pop(name), False)

    def _contents(self, values: dict[str, str | bytes]) -> tuple[dict[str, bytes], list[int]]:
        """Of images: their bytes, and pixels of each; nothing is unpacked."""
        self.images += len(values)
        if self.images > self.limits.images:
            raise RequestError("too_large", f"there are more than {self.limits.images} images.")
        contents = {name: self.content(name, value) for name, value in values.items()}
        sizes = {name: self._size(name, content) for name, content in contents.items()}
        for name, size in sizes.items():
            self._count_pixels(name, *size)
        return contents, [width * height for width, height in sizes.values()]

    def _size(self, name: str, content: bytes) -> tuple[int, int]:
        """(width, height) from the head of a file."""

        def stop(width: int, height: int) -> None:
            raise _Seen(width, height)

        with self._errors(name):
            try:
                self.media.read_with_alpha(content, f"`{name}`", formats=IMAGE_FORMATS, check=stop)
            except _Seen as seen:
                return seen.args
        raise RequestError("unreadable_media", f"`{name}` does not say how large it is.")

    def _unpack(self, name: str, content: bytes, alpha: bool) -> Image.Image:
        self.check()
        with self._errors(name):
            image, opaque = self.media.read_with_alpha(content, f"`{name}`", formats=IMAGE_FORMATS)
        if alpha and opaque is not None:
            image.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
        return image

    @contextmanager
    def _errors(self, name: str):
        """What a reader says of a file, as an answer to a request."""
        try:
            yield
        except RequestError:
            raise
        except self.media.TooLarge as error:
            raise RequestError("too_large", str(error)) from error
        except ImportError as error:
            raise RequestError("not_available", f"{error} on the server; send images instead.") from error
        except (ValueError, TypeError) as error:
            raise RequestError("unreadable_media", str(error)) from error

    def images_of(self, name: str, values: list, alpha: bool = False) -> list[Image.Image]:
        if not values:
            raise RequestError("bad_request", f"`{name}` holds no image.")
        if len(values) > self.limits.images:
            raise RequestError(
                "too_large", f"`{name}` holds {len(values)} images; at most {self.limits.images} are read."
            )
        named = {f"{name}[{number}]": value for number, value in enumerate(values)}
        return list(self.named_images(named, alpha).values())

    def video(self, name: str, value: str | bytes, choose) -> tuple[np.ndarray, dict]:
        """
        Frames of a video.

        Args:
            choose: number of frames in the file -> increasing indices of those wanted.

        Returns:
            uint8 RGB `[T, H, W, 3]`, and `fps`, `total` frames, `indices`.
        """
        content = self.content(name, value)
        # No demuxer that follows references, and no protocol to follow them with.
        options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": ""}
        limits = self.media.VideoLimits(self.limits.pixels, self.limits.video_frames, 1, options, self.check)
        with self._errors(name):
            video = self.media.Video(content, f"`{name}`", limits)
            indices = self._choose_frames(name, choose, len(video), video.size)
            self._count_pixels(name, *video.size, times=len(indices))
            self._reserve(3 * video.size[0] * video.size[1] * (len(indices) + 1))  # the one that is being decoded, too
            frames = video.read(indices)
        times = [float(video.times[index]) for index in indices]
        return frames, {"fps": video.fps, "total": len(video), "indices": indices, "times": times}

    def _choose_frames(self, name: str, choose, total: int, size: tuple[int, int]) -> list[int]:
        indices = [int(index) for index in choose(total)]
        if len(indices) > self.limits.frames:
            raise RequestError(
                "too_large", f"`{name}`: {len(indices)} frames are wanted; at most {self.limits.frames} are read."
            )
        if (indices[-1] + 1) * size[0] * size[1] > self.limits.video_pixels:
            raise RequestError(
                "too_large",
                f"`{name}`: {indices[-1] + 1} frames of {size[0]}×{size[1]} pixels are too much to decode. Cut it, "
                "scale it down, or send chosen frames as images.",
            )
        return indices

    def array(self, name: str, value, columns: int, limit: int, kind: str = "f") -> np.ndarray:
        """`[n, columns]` of nested lists, or of a .npy file; float64, or int64 with `kind="i"`."""
        if isinstance(value, (str, bytes, bytearray)):
            array = self._npy(name, self.content(name, value), limit)
        else:
            if len(value) > limit:
                raise RequestError("too_large", f"`{name}` has {len(value)} rows; at most {limit} are read.")
            try:
                array = np.array(value, np.float64)
            except (ValueError, TypeError, OverflowError) as error:
                raise RequestError("bad_request", f"`{name}` must hold rows of {columns} numbers.") from error
        if array.ndim != 2 or array.shape[1] != columns or not len(array):
            raise RequestError("invalid_input", f"`{name}` must be [n, {columns}], got {list(array.shape)}.")
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise RequestError("invalid_input", f"`{name}` holds NaN or infinite numbers, the first in row {row}.")
        if np.abs(array).max() > 1e9:
            raise RequestError("invalid_input", f"`{name}` holds numbers beyond ±1e9, which no part has.")
        if kind == "i" and (array != np.round(array)).any():
            raise RequestError("invalid_input", f"`{name}` must hold whole numbers.")
        return array.astype(np.int64 if kind == "i" else np.float64)

    def _npy(self, name: str, content: bytes, limit: int) -> np.ndarray:
        """A .npy file; what its header promises is checked before memory is taken for it."""
        stream = io.BytesIO(content)
        try:
            version = np.lib.format.read_magic(stream)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
                version
            ]
            shape, fortran, dtype = read_header(stream, max_header_size=4096)
        except Exception as error:  # the header is text that numpy evaluates: many ways to be wrong
            raise RequestError("unreadable_media", f"`{name}` is no .npy file ({type(error).__name__}).") from error
        if dtype.kind not in "fiu" or fortran or len(shape) != 2:
            raise RequestError(
                "unreadable_media", f"`{name}` must hold numbers [n, columns] in C order, got {dtype} {shape}."
            )
        if shape[0] > limit:
            raise RequestError("too_large", f"`{name}` has {shape[0]} rows; at most {limit} are read.")
        body = content[stream.tell() :]
        if shape[0] * shape[1] * dtype.itemsize != len(body):
            raise RequestError(
                "unreadable_media", f"`{name}` has {len(body)} bytes of numbers, and announces {shape} of {dtype}."
            )
        return np.frombuffer(body, dtype).reshape(shape).astype(np.float64)

    def stl(self, name: str, value: str | bytes) -> tuple[np.ndarray, np.ndarray]:
        """Vertices `[3·F, 3]` and faces `[F, 3]` of an STL file, binary or ASCII."""
        content = self.content(name, value)
        with self._errors(name):
            vertices, faces = self.media.read_stl(content, f"`{name}`", max_faces=self.limits.points)
        return self.array(name, vertices, 3, 3 * self.limits.points), faces
