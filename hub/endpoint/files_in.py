"""Files of a request, as base64 or bytes: images, videos, arrays and meshes, checked before they are decoded."""

from __future__ import annotations

import base64
import binascii
import io
import struct

import numpy as np
from PIL import Image, ImageOps

from .request import Limits, RequestError

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
# Demuxers that read one self-contained file: none that opens others, as playlists do.
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv"
NAMES_PLACE = ("http:", "https:", "ftp:", "file:", "s3:", "hf:", "/", "./", "../", "~", "\\\\")


class Files:
    """Reads the files of one request and keeps count of their bytes and pixels."""

    def __init__(self, limits: Limits):
        self.limits, self.bytes, self.pixels, self.images = limits, 0, 0, 0

    def content(self, name: str, value: str | bytes) -> bytes:
        """Bytes of base64 text, `data:` prefix or not."""
        if isinstance(value, str):
            if value[:100].lower().startswith("data:"):
                header, comma, value = value.partition(",")
                if not comma or not header.endswith(";base64"):
                    raise RequestError("bad_request", f"`{name}` is a data URL that is not base64.")
            self._count_bytes(name, len(value) // 4 * 3)
            try:
                content = base64.b64decode(
                    "".join(value.split()) if len(value.split(None, 1)) > 1 else value, validate=True
                )
            except (binascii.Error, ValueError) as error:
                place = value[:100].lower().lstrip().startswith(NAMES_PLACE)
                hint = " Addresses and paths are not opened: send the file itself." if place else ""
                raise RequestError("bad_request", f"`{name}` is not base64 ({error}).{hint}") from error
        else:
            self._count_bytes(name, len(value))
            content = bytes(value)
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

    def image(self, name: str, value: str | bytes) -> Image.Image:
        """An RGB image, turned as its camera was held. Its size is known, and checked, before anything is unpacked."""
        self.images += 1
        if self.images > self.limits.images:
            raise RequestError("too_large", f"there are more than {self.limits.images} images.")
        content = self.content(name, value)
        try:
            image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
            animated = getattr(image, "is_animated", False)
            self._count_pixels(name, *image.size)
            if not animated:
                return ImageOps.exif_transpose(image).convert("RGB")
        except RequestError:
            raise
        except Image.DecompressionBombError as error:
            raise RequestError("too_large", f"`{name}`: {error}") from error
        except Exception as error:  # pillow's decoders raise nearly anything
            raise RequestError(
                "unreadable_media",
                f"`{name}` cannot be read as an image ({type(error).__name__}); expected a complete "
                f"{', '.join(IMAGE_FORMATS)} file.",
            ) from error
        raise RequestError("unreadable_media", f"`{name}` is an animation; send a still image, or a video.")

    def images_of(self, name: str, values: list) -> list[Image.Image]:
        if not values:
            raise RequestError("bad_request", f"`{name}` holds no image.")
        if len(values) > self.limits.images:
            raise RequestError(
                "too_large", f"`{name}` holds {len(values)} images; at most {self.limits.images} are read."
            )
        return [self.image(f"{name}[{number}]", value) for number, value in enumerate(values)]

    def video(self, name: str, value: str | bytes, choose) -> tuple[np.ndarray, dict]:
        """
        Frames of a video.

        Args:
            choose: number of frames in the file -> increasing indices of those wanted.

        Returns:
            uint8 RGB `[T, H, W, 3]`, and `fps`, `total` frames, `indices`.
        """
        try:
            import av
        except ImportError as error:
            raise RequestError("not_available", "videos need PyAV on the server; send images instead.") from error
        content = self.content(name, value)
        try:
            return self._decode(av, name, content, choose)
        except RequestError:
            raise
        except (av.FFmpegError, ValueError, TypeError, OverflowError) as error:
            raise RequestError(
                "unreadable_media",
                f"`{name}` cannot be decoded as a video ({getattr(error, 'strerror', None) or type(error).__name__}); "
                "expected a complete file such as mp4, webm or avi.",
            ) from error

    def _decode(self, av, name: str, content: bytes, choose) -> tuple[np.ndarray, dict]:
        # No demuxer that follows references, and no protocol to follow them with.
        options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": ""}
        total, fps, size = self._measure(av, name, content, options)
        indices = self._choose_frames(name, choose, total, size)
        self._count_pixels(name, *size, times=len(indices))
        frames, decoded = self._decode_frames(av, name, content, options, indices)
        if 0.9 * total <= decoded <= indices[-1]:  # containers may announce some frames that an edit list hides
            total = decoded
            indices = self._choose_frames(name, choose, total, size)
            frames, decoded = self._decode_frames(av, name, content, options, indices)
        if len(frames) < len(indices):
            raise RequestError(
                "unreadable_media", f"`{name}` is cut short: {decoded} of its {total} frames can be decoded."
            )
        return np.stack(frames), {"fps": fps, "total": total, "indices": indices}

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

    def _decode_frames(
        self, av, name: str, content: bytes, options: dict, indices: list[int]
    ) -> tuple[list[np.ndarray], int]:
        """The frames at `indices` that exist, each `[H, W, 3]`, and how many were decoded up to the last of them."""
        wanted, frames, decoded = set(indices), [], 0
        with av.open(io.BytesIO(content), options=options) as container:
            stream = container.streams.video[0]
            stream.codec_context.options = {"max_pixels": str(self.limits.pixels)}
            stream.codec_context.thread_count = 1
            for index, frame in enumerate(container.decode(stream)):
                decoded = index + 1
                if index in wanted:
                    # `rotation` is the angle, counter-clockwise, that brings the picture upright.
                    turned = np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90)
                    if frames and turned.shape != frames[0].shape:
                        raise RequestError("unreadable_media", f"`{name}` changes its size at frame {index}.")
                    frames.append(np.ascontiguousarray(turned))
                if index >= indices[-1]:
                    break
        return frames, decoded

    def _measure(self, av, name: str, content: bytes, options: dict) -> tuple[int, float, tuple[int, int]]:
        """Number of frames, frames per second (1 where the file does not say), and (width, height)."""
        with av.open(io.BytesIO(content), options=options) as container:
            if not container.streams.video:
                raise RequestError("unreadable_media", f"`{name}` has no video track.")
            stream = container.streams.video[0]
            size = (stream.codec_context.width, stream.codec_context.height)
            if size[0] * size[1] > self.limits.pixels:
                self._count_pixels(name, *size)
            fps = float(stream.average_rate or stream.guessed_rate or 1)
            total = stream.frames
            if not total:  # Matroska and WebM do not announce a number
                for packet in container.demux(stream):
                    total += packet.size > 0
                    if total > self.limits.video_frames:
                        break
        if total > self.limits.video_frames:
            raise RequestError(
                "too_large",
                f"`{name}` has more than {self.limits.video_frames} frames. Cut it, or send chosen frames as images.",
            )
        if total < 1 or not size[0] or not size[1]:
            raise RequestError("unreadable_media", f"`{name}` holds no frame.")
        return total, fps, size

    def array(self, name: str, value, columns: int, limit: int, kind: str = "f") -> np.ndarray:
        """`[n, columns]` of nested lists, or of a .npy file; float64, or int64 with `kind="i"`."""
        if isinstance(value, (str, bytes)):
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
        """Vertices `[3·F, 3]` and faces `[F, 3]` of a binary STL file."""
        content = self.content(name, value)
        count = struct.unpack_from("<I", content, 80)[0] if len(content) >= 84 else 0
        if count > self.limits.points:
            raise RequestError("too_large", f"`{name}` has {count} faces; at most {self.limits.points} are read.")
        if not count or len(content) != 84 + 50 * count:
            raise RequestError("unreadable_media", f"`{name}` is no complete binary STL file of at least one face.")
        record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
        vertices = np.frombuffer(content, record, offset=84)["corners"].reshape(-1, 3)
        return self.array(name, vertices, 3, 3 * self.limits.points), np.arange(3 * count).reshape(-1, 3)
