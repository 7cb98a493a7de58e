"""
The repository behind an endpoint: JSON in, JSON out, for every model in it.

    handler = EndpointHandler("folder of the repository")
    handler({"task": "ask", "inputs": {"question": "…", "video": "<base64>"}, "parameters": {"max_new_tokens": 64}})

`task` chooses what to do, see `TASKS`: ask, reconstruct, segment, cad, scene. Files come as base64 text (or as bytes, from
Python); nothing is ever fetched from an address or read from a path that a request names. What is wrong with a request
is a [`RequestError`] with an HTTP status and a code; see `ERRORS`. Without `temperature` answers are greedy; with it
they follow from `seed` alone, whatever else is answered at the same time.

A server calls the three steps itself: `prepare` (any thread), `run` (one thread; takes all jobs of one `Job.key` at
once), `finish` (any thread).

This file stands alone: beside the repository's own code it needs torch, transformers, numpy, pillow and, for videos, av.
Running CAD programs (`execute`) needs this library's toolkit with its sandbox; where it is not installed, programs are
returned as text, and `execute` is refused.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import io
import json
import logging
import math
import os
import struct
import sys
import threading
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
from transformers.generation import LogitsProcessor, StoppingCriteria

logger = logging.getLogger(__name__)

# What can be wrong with a request: code -> (HTTP status, when).
ERRORS = {
    "bad_request": (400, "not the JSON that is asked for: a field is missing, unknown, or of the wrong type"),
    "unknown_task": (404, "no such task, or the repository holds no model for it"),
    "too_large": (413, "more bytes, pixels, frames, points, tokens than the limits allow"),
    "unreadable_media": (415, "an image, video or cloud that is cut short, damaged, or of a kind that is not read"),
    "invalid_input": (422, "well-formed, but nothing the model can work on"),
    "internal": (500, "a fault of the server, which its log tells about"),
    "not_available": (501, "needs something that is not installed or that this machine does not give"),
    "overloaded": (503, "too many requests are waiting, or the server is stopping; try again later"),
}


class RequestError(ValueError):
    """Why a request gets no answer. `code` is one of `ERRORS`, `status` its HTTP status."""

    def __init__(self, code: str, message: str):
        self.code, self.status, self.message = code, ERRORS[code][0], message
        super().__init__(message)

    def as_json(self) -> dict:
        return {"error": {"status": self.status, "code": self.code, "message": self.message}}


@dataclass(frozen=True)
class Limits:
    """
    What a request may ask for. Each can be set by an environment variable: `DSR_LIMIT_BYTES=1000000`.

    Args:
        bytes: of all files of a request, decoded from base64.
        pixels: of one image or video frame. total_pixels: of all images and chosen frames of a request.
        images: in a request. frames: taken of a video. video_frames: that a video may hold. video_pixels: that have to be
            decoded to get to the last chosen frame.
        points: of a cloud or a mesh (faces, too), and in the clouds that are sent back.
        text: characters of a question, caption or phrase. phrases: to look for.
        prompt_tokens: of a prompt with its image placeholders. new_tokens: written by a model.
        candidates: CAD programs for one part.
    """

    bytes: int = 64 * 2**20
    pixels: int = 2**25
    total_pixels: int = 2**27
    images: int = 64
    frames: int = 64
    video_frames: int = 20_000
    video_pixels: int = 2**34
    points: int = 200_000
    text: int = 4_096
    phrases: int = 32
    prompt_tokens: int = 16_384
    new_tokens: int = 1_024
    candidates: int = 16

    def __post_init__(self):
        for one in fields(self):
            value = getattr(self, one.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"the limit `{one.name}` must be a whole number of at least 1, got {value!r}.")

    @classmethod
    def from_environment(cls) -> Limits:
        found = {one.name: os.environ.get(f"DSR_LIMIT_{one.name.upper()}") for one in fields(cls)}
        try:
            return cls(**{name: int(value) for name, value in found.items() if value})
        except ValueError as error:
            raise ValueError(f"DSR_LIMIT_…: {error}") from error


# --------------------------------------------------------------------------------------
# Fields of a request
# --------------------------------------------------------------------------------------

KINDS = {  # of fields -> (Python types, JSON schema, in words)
    "text": (str, {"type": "string"}, "a text"),
    "file": ((str, bytes), {"type": "string", "format": "byte"}, "a file in base64"),
    "files": (list, {"type": "array", "items": {"type": "string", "format": "byte"}}, "a list of files in base64"),
    "texts": (list, {"type": "array", "items": {"type": "string"}}, "a list of texts"),
    "object": (dict, {"type": "object"}, "an object"),
    "cloud": (
        (list, str, bytes), {"anyOf": [{"type": "array"}, {"type": "string", "format": "byte"}]}, "a list of rows, or a .npy file in base64",
    ),
    "integer": (int, {"type": "integer"}, "a whole number"),
    "number": ((int, float), {"type": "number"}, "a number"),
    "flag": (bool, {"type": "boolean"}, "true or false"),
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """
    A field of `inputs` or `parameters`.

    Args:
        kind: one of `KINDS`. about: what it is, for people.
        default: where it is not given. low, high: of numbers; a text names one of [`Limits`].
        choices: of texts.
    """

    kind: str
    about: str
    default: object = None
    low: float | None = None
    high: float | str | None = None
    choices: tuple[str, ...] = ()

    def bound(self, limits: Limits) -> float | None:
        return getattr(limits, self.high) if isinstance(self.high, str) else self.high

    def schema(self, limits: Limits) -> dict:
        """As JSON schema."""
        schema = {**KINDS[self.kind][1], "description": self.about}
        extra = {"default": self.default, "minimum": self.low, "maximum": self.bound(limits)}
        if self.choices:
            choices = {"enum": list(self.choices)}
            extra |= {"items": {"type": "string", **choices}} if self.kind == "texts" else choices
        return schema | {name: value for name, value in extra.items() if value is not None}

    def read(self, name: str, value, limits: Limits):
        """The value, checked; None where it is missing and has no default."""
        if value is None:
            return self.default
        types = KINDS[self.kind][0]
        if not isinstance(value, types) or (isinstance(value, bool) and self.kind != "flag"):
            raise RequestError(
                "bad_request", f"`{name}` must be {KINDS[self.kind][2]}, got {_shown(value)}: {self.about}."
            )
        if self.kind in ("files", "texts"):
            item_types = (str, bytes) if self.kind == "files" else str
            wrong = next((item for item in value if not isinstance(item, item_types)), None)
            if wrong is not None:
                raise RequestError("bad_request", f"`{name}` must be {KINDS[self.kind][2]}, got {_shown(wrong)} in it.")
        if self.kind in ("integer", "number"):
            high = self.bound(limits)
            if value != value or (self.low is not None and value < self.low):
                raise RequestError(
                    "bad_request", f"`{name}` must be a number of at least {self.low}, got {_shown(value)}."
                )
            if high is not None and value > high:
                raise RequestError("too_large", f"`{name}` must be at most {high}, got {_shown(value)}.")
        texts = {"text": [value], "texts": value}.get(self.kind, [])
        if any(len(text) > limits.text for text in texts):
            raise RequestError("too_large", f"`{name}` has a text longer than {limits.text} characters.")
        wrong = next((text for text in texts if self.choices and text not in self.choices), None)
        if wrong is not None:
            raise RequestError("bad_request", f"`{name}` must be of {', '.join(self.choices)}, got {wrong[:80]!r}.")
        return value


def read_fields(name: str, given, known: dict[str, Field], limits: Limits) -> dict:
    """Every known field, checked; unknown ones are refused, so that no wish is silently ignored."""
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise RequestError("bad_request", f"`{name}` must be an object, got {_shown(given)}.")
    unknown = [str(key)[:80] for key in given if key not in known]
    if unknown:
        raise RequestError("bad_request", f"`{name}` has unknown fields {unknown[:5]}; there are {', '.join(known)}.")
    return {key: one.read(f"{name}.{key}", given.get(key), limits) for key, one in known.items()}


def _shown(value) -> str:
    """A value of a request, for a message."""
    if isinstance(value, int) and abs(value) > 10**30:  # Python refuses to write very long ones
        return "an enormous number"
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else "…"
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '…'}"


# --------------------------------------------------------------------------------------
# Files in
# --------------------------------------------------------------------------------------

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
                f"`{name}` cannot be decoded as a video ({getattr(error, 'strerror', None) or type(error).__name__}); expected a "
                "complete file such as mp4, webm or avi.",
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
                f"`{name}`: {indices[-1] + 1} frames of {size[0]}×{size[1]} pixels are too much to decode. Cut it, scale it "
                "down, or send chosen frames as images.",
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


# --------------------------------------------------------------------------------------
# Files out
# --------------------------------------------------------------------------------------


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def as_npy(array) -> str:
    """A tensor or array as .npy file in base64; `np.load(io.BytesIO(base64.b64decode(…)))` reads it."""
    array = array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return as_base64(stream.getvalue())


def as_png(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return as_base64(stream.getvalue())


def finite(value):
    """JSON without NaN and infinities: null in their places."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def points_glb(points: np.ndarray, colours: np.ndarray) -> bytes:
    """
    A binary glTF file of coloured points.

    Args:
        points: float32 `[n, 3]`, OpenCV axes (y down, z forward); the file's node turns them upright. colours: uint8 `[n, 3]`.
    """
    if not len(points):  # viewers refuse empty buffers
        points, colours = np.zeros((1, 3)), np.zeros((1, 3))
    points = np.ascontiguousarray(points, "<f4")
    rgba = np.concatenate([colours, np.full((len(colours), 1), 255)], 1).astype(np.uint8)
    binary = points.tobytes() + rgba.tobytes()
    views = [
        {"buffer": 0, "byteOffset": 0, "byteLength": points.nbytes, "target": 34962},
        {"buffer": 0, "byteOffset": points.nbytes, "byteLength": rgba.nbytes, "target": 34962},
    ]
    accessors = [
        {
            "bufferView": 0, "componentType": 5126, "count": len(points), "type": "VEC3",
            "min": points.min(0).tolist(), "max": points.max(0).tolist(),
        },
        {"bufferView": 1, "componentType": 5121, "normalized": True, "count": len(points), "type": "VEC4"},
    ]  # fmt: skip
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "matrix": [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": 0}]}],
        "buffers": [{"byteLength": len(binary)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


# --------------------------------------------------------------------------------------
# Generation: rows that share a batch and nothing else
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How one row is continued: greedily at temperature 0, else with random numbers of its own."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: tuple[int, int] = (0, 0)


class SampleRows(LogitsProcessor):
    """
    Makes a greedy search sample: argmax(logits / temperature + Gumbel noise) is a draw from their softmax.

    The noise of a row comes from its own generator, so a row is the same alone and in any batch.
    """

    def __init__(self, rows: list[Sampling]):
        self.greedy = torch.tensor([row.temperature == 0 for row in rows])
        self.temperature = torch.tensor([row.temperature or 1.0 for row in rows])
        self.top_p = torch.tensor([row.top_p for row in rows])
        mixed = [np.random.SeedSequence(row.seed).generate_state(1, np.uint64)[0] for row in rows]
        self.generators = [torch.Generator().manual_seed(int(seed) & (2**63 - 1)) for seed in mixed]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        device, size = scores.device, scores.shape[-1]
        scaled = scores.float() / self.temperature.to(device)[:, None]
        ordered, order = scaled.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        kept = (before < self.top_p.to(device)[:, None]).scatter(1, order, before < self.top_p.to(device)[:, None])
        noise = torch.stack([torch.empty(size).exponential_(generator=one) for one in self.generators]).log().neg()
        sampled = torch.where(kept, scaled + noise.to(device), -torch.inf)
        return torch.where(self.greedy.to(device)[:, None], scores.float(), sampled)


class StopRows(StoppingCriteria):
    """Ends each row at its own limit, and counts the tokens that were written: some models lengthen their prompts."""

    def __init__(self, rows: list[Sampling]):
        self.limits, self.steps = torch.tensor([row.max_new_tokens for row in rows]), 0

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        self.steps += 1
        return (self.steps >= self.limits).to(input_ids.device)


def generate_rows(model, inputs: dict, rows: list[Sampling]) -> list[tuple[list[int], bool]]:
    """Per row the new tokens, without the one that ends it, and whether there was one."""
    stop = StopRows(rows)
    with torch.inference_mode():
        sequences = model.generate(
            **inputs,
            max_new_tokens=max(row.max_new_tokens for row in rows),
            do_sample=False, temperature=None, top_p=None, top_k=None, num_beams=1,
            logits_processor=[SampleRows(rows)] if any(row.temperature for row in rows) else [],
            stopping_criteria=[stop],
        )  # fmt: skip
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, (list, tuple)) else [ends])
    answers = []
    for tokens, row in zip(sequences[:, sequences.shape[1] - stop.steps :].tolist(), rows):
        tokens = tokens[: row.max_new_tokens]
        end = next((place for place, token in enumerate(tokens) if token in ends), None)
        answers.append((tokens[:end], end is not None))
    return answers


def pad_rows(rows: list[torch.Tensor], value: int | None, side: str = "left") -> torch.Tensor:
    """
    `[B, S]` of rows `[1, s]`.

    Args:
        value: of the padding; None repeats a row's last token, so that a penalty on repetition finds nothing new in it.
    """
    length = max(row.shape[1] for row in rows)
    padded = []
    for row in rows:
        filling = row[:, -1:] if value is None else torch.full((1, 1), value, dtype=row.dtype)
        filling = filling.expand(1, length - row.shape[1])
        padded.append(torch.cat([filling, row] if side == "left" else [row, filling], 1))
    return torch.cat(padded)


# --------------------------------------------------------------------------------------
# Tasks
# --------------------------------------------------------------------------------------


@dataclass
class Job:
    """
    A request that is ready for the model.

    Args:
        task, model: who answers it. key: jobs with the same one can run together; None runs alone.
        inputs: of the model, for this request alone. parameters: as the request gave them, with defaults.
        media: what is needed once the model has run.
        cost: rows that it adds to a batch.
    """

    task: str
    model: str
    key: tuple | None
    inputs: dict
    parameters: dict
    media: dict = field(default_factory=dict)
    cost: int = 1


SEED = Field("integer", "of the random numbers; the same request with the same seed gets the same answer", 0, 0, 2**53)
MODEL = Field("text", "subfolder of the model, where several can do it")
TEMPERATURE = Field("number", "0: always the likeliest token; above: sampled", 0.0, 0, 10)
TOP_P = Field("number", "sample among the likeliest tokens that together have this probability", 1.0, 1e-6, 1)


def _new_tokens(default: int) -> Field:
    return Field("integer", "longest answer, in tokens", default, 1, "new_tokens")


class Task:
    """One entry of `TASKS`. `prepare` and `finish` may run in several threads, `run` in one."""

    NAME: str
    ABOUT: str
    MODEL_TYPES: tuple[str, ...]
    INPUTS: dict[str, Field]
    PARAMETERS: dict[str, Field]

    def __init__(self, endpoint: EndpointHandler):
        self.endpoint, self.limits = endpoint, endpoint.limits

    def prepare(self, model: str, inputs: dict, parameters: dict) -> Job:
        raise NotImplementedError

    def run(self, jobs: list[Job]) -> list:
        raise NotImplementedError

    def finish(self, job: Job, result) -> dict:
        raise NotImplementedError

    # ---- what several tasks do -----------------------------------------------------------

    def sampling(self, parameters: dict, candidate: int = 0) -> Sampling:
        return Sampling(
            parameters["max_new_tokens"],
            parameters["temperature"],
            parameters["top_p"],
            (parameters["seed"], candidate),
        )

    @staticmethod
    def pace(parameters: dict) -> int:
        """Requests for few tokens do not share a batch with those for many, which would keep their answers back."""
        return parameters["max_new_tokens"].bit_length() // 3

    def check_prompt(self, inputs: dict) -> None:
        length = inputs["input_ids"].shape[1]
        if length > self.limits.prompt_tokens:
            raise RequestError(
                "too_large",
                f"the prompt with its images has {length} tokens; at most {self.limits.prompt_tokens} are read. Send less or "
                "smaller media.",
            )

    def one_of(self, given: dict, names: tuple[str, ...]) -> str:
        """The one of several inputs that is there."""
        there = [name for name in names if given[name] is not None]
        if len(there) != 1:
            raise RequestError(
                "bad_request",
                f"`inputs` must hold one of {', '.join(names)}; got {' and '.join(there) or 'none of them'}.",
            )
        return there[0]

    @staticmethod
    def check_words(processor, *texts: str) -> None:
        """Refuse texts that hold special tokens: placeholders of images, ends of turns."""
        for token in [*processor.tokenizer.all_special_tokens, "<image>"]:
            if any(token and token in text for text in texts):
                raise RequestError(
                    "invalid_input", f"a text holds {token!r}, which stands for something else than these letters."
                )

    def question(self, given: dict) -> str:
        if given["question"] is None or not given["question"].strip():
            raise RequestError("bad_request", "`inputs.question` is missing or empty.")
        return given["question"]


class Ask(Task):
    NAME = "ask"
    ABOUT = "Answers a question about motion and space in a video, or about images."
    MODEL_TYPES = ("dsr",)
    INPUTS = {
        "question": Field("text", "what to ask"),
        "video": Field("file", "a video file"),
        "images": Field("files", "image files, in the order in which the question speaks of them"),
    }
    PARAMETERS = {
        "max_new_tokens": _new_tokens(128),
        "num_frames": Field("integer", "frames taken of the video; default: the model's", None, 1, "frames"),
        "attention": Field("flag", "also return where the geometry tokens looked, a grey picture per frame", False),
        "temperature": TEMPERATURE, "top_p": TOP_P, "seed": SEED, "model": MODEL,
    }  # fmt: skip

    def prepare(self, model, inputs, parameters) -> Job:
        question, files = self.question(inputs), Files(self.limits)
        processor = self.endpoint.processor(model)
        kind = self.one_of(inputs, ("video", "images"))
        media = {}
        if kind == "video":
            wanted = min(parameters["num_frames"] or processor.num_frames, self.limits.frames)
            choose = _module_of(processor).sample_frame_indices
            frames, facts = files.video("inputs.video", inputs["video"], lambda total: choose(total, wanted))
            metadata = _module_of(processor).VideoMetadata(
                total_num_frames=facts["total"], fps=facts["fps"], duration=facts["total"] / facts["fps"], height=frames.shape[1],
                width=frames.shape[2], video_backend="pyav", frames_indices=np.array(facts["indices"]),
            )  # fmt: skip
            arguments = {"videos": [frames], "video_metadata": [metadata]}
            content = [{"type": "video"}]
            media = {"sizes": [frames.shape[1:3]], "frames": [len(frames)], "indices": facts["indices"]}
        else:
            arguments = {"images": files.images_of("inputs.images", inputs["images"])}
            content = [{"type": "image"} for _ in arguments["images"]]
            media = {"sizes": [image.size[::-1] for image in arguments["images"]], "frames": [1] * len(content)}
        if parameters["attention"]:
            shown = (
                [Image.fromarray(frame) for frame in arguments["videos"][0]] if kind == "video" else arguments["images"]
            )
            media["shown"] = [image.resize(_shrunk(image.size, SHOWN_SIDE)) for image in shown]
        content.append({"type": "text", "text": question})
        self.check_words(processor, question)
        with self.endpoint.processing(model):
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            encoded = processor(text=[prompt], **arguments, return_tensors="pt")
        self.check_prompt(encoded)
        return Job(self.NAME, model, (self.NAME, model, self.pace(parameters)), dict(encoded), parameters, media)

    def run(self, jobs):
        model = self.endpoint.model(jobs[0].model)
        inputs = self.collate([job.inputs for job in jobs], model.device)
        answers = generate_rows(model, inputs, [self.sampling(job.parameters) for job in jobs])
        return [(answer, self.look(model, job)) for answer, job in zip(answers, jobs)]

    @staticmethod
    def collate(several: list[dict], device) -> dict:
        """Left-padded rows; vision patches one behind the other."""
        joined = {}
        for name, value in {"input_ids": None, "attention_mask": 0, "mm_token_type_ids": 0}.items():
            joined[name] = pad_rows([one[name] for one in several], value)
        for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
            parts = [torch.as_tensor(one[name]) for one in several if name in one]
            if parts:
                joined[name] = torch.cat(parts)
        return {name: value.to(device) for name, value in joined.items()}

    def look(self, model, job: Job):
        """Geometry attentions of the prompt, where they are wanted and there are any."""
        if not job.parameters["attention"]:
            return None
        with torch.inference_mode():
            output = model(
                **self.collate([job.inputs], model.device),
                output_geometry_attentions=True,
                logits_to_keep=1,
                use_cache=False,
            )
        return output.geometry_attentions

    def finish(self, job, result):
        (tokens, finished), attentions = result
        processor = self.endpoint.processor(job.model)
        with self.endpoint.processing(job.model):
            answer = {"answer": processor.decode(tokens, skip_special_tokens=True).strip()}
        answer |= {"tokens": tokens, "finished": finished, "prompt_tokens": job.inputs["input_ids"].shape[1]}
        if "indices" in job.media:
            answer["frames"] = job.media["indices"]
        if attentions is not None:
            small = [_shrunk(size, SHOWN_SIDE) for size in job.media["sizes"]]
            maps = processor.post_process_geometry_attentions(
                attentions, target_sizes=small, num_frames=job.media["frames"]
            )
            answer["attention"] = [as_png(_grey(frame, heat.max())) for heat in maps for frame in heat]
        return answer


SHOWN_SIDE = 320  # of pictures of attention, in pixels


def _shrunk(size, longest: int) -> tuple[int, int]:
    scale = min(1.0, longest / max(size))
    return tuple(max(1, round(side * scale)) for side in size)


def _grey(heat: torch.Tensor, top: torch.Tensor) -> Image.Image:
    return Image.fromarray((heat / top.clamp_min(1e-12) * 255).round().byte().cpu().numpy())


class Reconstruct(Task):
    NAME = "reconstruct"
    ABOUT = "Cameras, depth and coloured points of a scene, from images or a video."
    MODEL_TYPES = ("pi3", "page4d")
    OUTPUTS = ("glb", "depth", "points", "confidence", "mask", "dynamic")
    INPUTS = {
        "video": Field("file", "a video file"),
        "images": Field("files", "image files of one scene"),
    }
    PARAMETERS = {
        "num_frames": Field("integer", "frames taken of the video, evenly spread", 16, 1, "frames"),
        "outputs": Field("texts", "what to return beside the cameras", ("glb",), choices=OUTPUTS),
        "views": Field("integer", "the images are so many synchronised views of one time after another", None, 1, "images"),
        "confidence": Field("number", "points below it are left out of glb and mask", 0.1, 0, 1),
        "edge_tolerance": Field("number", "so are points where depth jumps by this part of it; 0 keeps them", 0.03, 0, 1e6),
        "max_points": Field("integer", "of the glb file", 100_000, 1, "points"),
        "seed": SEED, "model": MODEL,
    }  # fmt: skip

    def prepare(self, model, inputs, parameters) -> Job:
        files, processor = Files(self.limits), self.endpoint.processor(model)
        if self.one_of(inputs, ("video", "images")) == "video":
            count = min(parameters["num_frames"], self.limits.frames)
            choose = _module_of(processor).choose_frames
            frames, facts = files.video("inputs.video", inputs["video"], lambda total: choose(total, 1, count))
            images, numbers = [Image.fromarray(frame) for frame in frames], facts["indices"]
        else:
            images = files.images_of("inputs.images", inputs["images"])
            numbers = list(range(len(images)))
            if len(images) > self.limits.frames:
                raise RequestError("too_large", f"`inputs.images` holds more than {self.limits.frames} frames.")
        views = parameters["views"]
        if views is not None and len(images) % views:
            raise RequestError("invalid_input", f"{len(images)} images are no whole number of times {views} views.")
        with self.endpoint.processing(model):
            encoded = dict(processor(images))
        if views is not None and self.endpoint.knows_views(model):  # others see them as one sequence
            encoded["pixel_values"] = encoded["pixel_values"].unflatten(1, (-1, views))
        # Maps at the size at which the model sees the frames, never enlarged.
        boxes, sizes = encoded.pop("image_boxes"), encoded.pop("original_sizes")
        seen = (boxes[..., 2:] - boxes[..., :2]).flip(-1).round().to(sizes.dtype)
        media = {"images": images, "numbers": numbers, "boxes": boxes, "sizes": sizes.minimum(seen.clamp_min(1))}
        shape = tuple(encoded["pixel_values"].shape)
        return Job(self.NAME, model, (self.NAME, model, shape), encoded, parameters, media, cost=len(images))

    def run(self, jobs):
        model = self.endpoint.model(jobs[0].model)
        with torch.inference_mode():
            outputs = model(torch.cat([job.inputs["pixel_values"] for job in jobs]).to(model.device))
        rows = {
            name: value
            for name, value in outputs.items()
            if isinstance(value, torch.Tensor) and len(value) == len(jobs)
        }
        return [
            {name: value[number : number + 1].clone() for name, value in rows.items()} for number in range(len(jobs))
        ]

    def finish(self, job, result):
        processor, parameters, media = self.endpoint.processor(job.model), job.parameters, job.media
        (scene,) = processor.post_process_geometry(
            result, media["sizes"], media["boxes"], confidence_threshold=parameters["confidence"],
            edge_tolerance=parameters["edge_tolerance"] or None, first_camera=True,
        )  # fmt: skip
        frames = []
        for number, index in enumerate(media["numbers"]):
            height, width = scene.depth[number].shape
            frame = {
                "index": index, "width": width, "height": height,
                "camera_to_world": scene.camera_poses[number].tolist(), "intrinsics": scene.intrinsics[number].tolist(),
            }  # fmt: skip
            maps = {"depth": scene.depth, "points": scene.points, "confidence": scene.confidence, "mask": scene.mask}
            maps["dynamic"] = scene.dynamic_mask
            for name in parameters["outputs"]:
                if maps.get(name) is not None:
                    frame[name] = as_npy(maps[name][number])
            frames.append(frame)
        answer = {"frames": frames, "points": int(sum(mask.sum() for mask in scene.mask))}
        if "glb" in parameters["outputs"]:
            answer["glb"] = as_base64(points_glb(*self.cloud(processor, scene, media["images"], parameters)))
        return answer

    @staticmethod
    def cloud(processor, scene, images, parameters) -> tuple[np.ndarray, np.ndarray]:
        """Trusted points and their colours, at most `max_points`, evenly drawn."""
        resize, points, colours = _module_of(processor).resize_image, [], []
        for number, image in enumerate(images):
            mask = scene.mask[number].cpu().numpy()
            pixels = np.asarray(resize(image, mask.shape[::-1], Image.Resampling.LANCZOS))
            points.append(scene.points[number].cpu().numpy()[mask])
            colours.append(pixels[mask])
        points, colours = np.concatenate(points), np.concatenate(colours)
        if len(points) > parameters["max_points"]:
            generator = np.random.default_rng(parameters["seed"])
            chosen = np.sort(generator.choice(len(points), parameters["max_points"], replace=False))
            points, colours = points[chosen], colours[chosen]
        return points, colours


class Segment(Task):
    NAME = "segment"
    ABOUT = "Masks for phrases of an image; or answers a question about it, with masks for the phrases of the answer."
    MODEL_TYPES = ("frozen_qwen_sam",)
    INPUTS = {
        "image": Field("file", "an image file"),
        "phrases": Field("texts", "what to look for; with a question, words of the answer (default: its noun phrases)"),
        "caption": Field("text", "a text that contains the phrases (default: each by itself)"),
        "question": Field("text", "what to ask"),
    }
    PARAMETERS = {
        "threshold": Field("number", "probability from which a pixel belongs to a mask", 0.5, 0, 1),
        "mask_format": Field("text", "of the masks: COCO run lengths or PNG pictures", "rle", choices=("rle", "png")),
        "max_new_tokens": _new_tokens(128),
        "seed": SEED, "model": MODEL,
    }  # fmt: skip

    def prepare(self, model, inputs, parameters) -> Job:
        phrases, question, caption = inputs["phrases"], inputs["question"], inputs["caption"]
        if inputs["image"] is None:
            raise RequestError("bad_request", "`inputs.image` is missing.")
        if question is None and not phrases:
            raise RequestError("bad_request", "`inputs` must hold phrases or a question.")
        if question is not None:
            question = self.question(inputs)
            if caption is not None:
                raise RequestError(
                    "bad_request", "with `inputs.question` the answer is the caption; leave `caption` out."
                )
        if phrases and len(phrases) > self.limits.phrases:
            raise RequestError("too_large", f"`inputs.phrases` holds more than {self.limits.phrases} phrases.")
        processor = self.endpoint.processor(model)
        image = Files(self.limits).image("inputs.image", inputs["image"])
        media = {"phrases": phrases, "question": question}
        self.check_words(processor, *(phrases or ()), question or "", caption or "")
        with self.endpoint.processing(model):
            if question is None:
                encoded = processor(images=image, phrases=list(phrases), captions=caption)
            else:
                turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
                encoded = processor(images=image, text=[turn])
        self.check_prompt(encoded)
        # An answer and its phrases follow one another: such a job has the model to itself.
        key = (self.NAME, model) if question is None else None
        return Job(self.NAME, model, key, dict(encoded), parameters, media)

    def run(self, jobs):
        model = self.endpoint.model(jobs[0].model)
        if jobs[0].media["question"] is not None:
            return [self.answer(model, job) for job in jobs]
        with torch.inference_mode():
            output = model(**self.collate([job.inputs for job in jobs], model.device))
        return [{"logits": logits, "phrases": job.media["phrases"]} for logits, job in zip(output.sam_pred_masks, jobs)]

    @staticmethod
    def collate(several: list[dict], device) -> dict:
        """Right-padded rows; patches one behind the other."""
        joined = {"meta_data": [meta for one in several for meta in one["meta_data"]]}
        for name, value in {
            "input_ids": None, "attention_mask": 0, "mm_token_type_ids": 0, "mask_ids": -1, "caption_ids": 0
        }.items():  # fmt: skip
            joined[name] = pad_rows([one[name] for one in several], value, "right")
        for name in ("pixel_values", "image_grid_thw", "sam_pixel_values", "original_sizes", "reshaped_input_sizes"):
            joined[name] = torch.cat([one[name] for one in several])
        return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in joined.items()}

    def answer(self, model, job: Job) -> dict:
        processor, options = self.endpoint.processor(job.model), {"max_new_tokens": job.parameters["max_new_tokens"]}
        inputs = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in job.inputs.items()
        }
        state = model.answer(**inputs, **options)
        text = processor.tokenizer.decode(
            state.output_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        phrases = job.media["phrases"]
        if phrases is None:
            phrases = []
            if text.strip():
                prompt = processor.noun_phrase_prompt(text).to(model.device)
                with torch.inference_mode():
                    reply = model.vlm.generate(**prompt, **options, do_sample=False)[0, prompt["input_ids"].shape[1] :]
                phrases = processor.noun_phrases(processor.tokenizer.decode(reply, skip_special_tokens=True), text)
            phrases = phrases[: self.limits.phrases]
        found = {"answer": text, "tokens": state.output_ids.tolist(), "phrases": phrases, "logits": None}
        if phrases:
            try:
                spans = processor.token_spans(state.output_ids, phrases)
            except ValueError as error:
                raise RequestError("invalid_input", f"`inputs.phrases`: {error}") from error
            with torch.inference_mode():
                found["logits"] = model.ground(state, spans).sam_pred_masks[0]
        return found

    def finish(self, job, result):
        processor, media = self.endpoint.processor(job.model), job.media
        answer = {name: result[name] for name in ("answer", "tokens") if name in result}
        answer["phrases"] = []
        if result["logits"] is None:
            return answer
        output = _Masks([result["logits"]])
        (found,) = processor.post_process_masks(output, [result["phrases"]], job.parameters["threshold"])
        place = 0
        for phrase, mask, score, box in zip(found["phrases"], found["masks"].numpy(), found["scores"], found["boxes"]):
            entry = {"phrase": phrase, "score": float(score), "box": box.tolist(), "area": int(mask.sum())}
            if media["question"] is not None:  # where it stands in the answer, for whoever wants to click on it
                place = result["answer"].find(phrase, place)
                place = result["answer"].find(phrase) if place < 0 else place
                entry |= {"start": place, "end": place + len(phrase)}
            if job.parameters["mask_format"] == "rle":
                entry["rle"] = _module_of(processor).mask_to_rle(mask)
            else:
                entry["mask"] = as_png(Image.fromarray(mask))
            answer["phrases"].append(entry)
        return answer


@dataclass
class _Masks:
    """The part of the model's output that `post_process_masks` reads."""

    sam_pred_masks: list


class Cad(Task):
    NAME = "cad"
    ABOUT = "CadQuery programs for a part that is given as points, a mesh, views or a text."
    MODEL_TYPES = ("cadrille", "cad_recode")
    INPUTS = {
        "points": Field("cloud", "points of the surface: rows of x, y, z, or a .npy file"),
        "stl": Field("file", "a binary STL file"),
        "mesh": Field("object", '{"vertices": rows of x, y, z, "faces": rows of three vertex numbers}'),
        "images": Field("files", "one picture of 1, 2 or 4 views, or these views (Cadrille)"),
        "text": Field("text", "a description of the part (Cadrille)"),
    }
    PARAMETERS = {
        "candidates": Field("integer", "programs: the likeliest one, then sampled ones", 1, 1, "candidates"),
        "temperature": Field("number", "of the sampled ones", 1.0, 1e-3, 10),
        "top_p": Field("number", TOP_P.about, 0.95, 1e-6, 1),
        "max_new_tokens": _new_tokens(768),
        "normalization": Field("text", "how points get into the model's frame", "fit", choices=("fit", "unit_cube", "program", "none")),
        "execute": Field("flag", "run the programs in a sandbox; return the solid that comes closest as STEP and STL", False),
        "seed": SEED, "model": MODEL,
    }  # fmt: skip

    def prepare(self, model, inputs, parameters) -> Job:
        kind, files = self.one_of(inputs, tuple(self.INPUTS)), Files(self.limits)
        processor = self.endpoint.processor(model)
        module = _module_of(processor)
        if kind in ("images", "text") and self.endpoint.models[model] == "cad_recode":
            raise RequestError(
                "invalid_input", f"CAD-Recode reads points alone, not `inputs.{kind}`; choose a Cadrille model."
            )
        target = None
        if kind == "points":
            target = files.array("inputs.points", inputs["points"], 3, self.limits.points).astype(np.float32)
            sample = {"point_clouds": [target]}
        elif kind in ("stl", "mesh"):
            if kind == "stl":
                vertices, faces = files.stl("inputs.stl", inputs["stl"])
            else:
                vertices, faces = self.mesh(files, inputs["mesh"])
            target = module.TriangleMesh(vertices, faces)
            sample = {"meshes": [target]}
        elif kind == "images":
            views = files.images_of("inputs.images", inputs["images"])
            sample = {"images": [views[0] if len(views) == 1 else views]}
        else:
            if not inputs["text"].strip():
                raise RequestError("bad_request", "`inputs.text` is empty.")
            self.check_words(processor, inputs["text"])
            sample = {"text": [inputs["text"]]}
        if parameters["execute"]:
            self.endpoint.sandbox()  # says now if there is none
        with self.endpoint.processing(model):
            options = {} if kind in ("images", "text") else {"normalization": parameters["normalization"]}
            encoded = dict(processor(**sample, seed=parameters["seed"], **options))
        self.check_prompt(encoded)
        grid = tuple(encoded["video_grid_thw"][0].tolist()) if "video_grid_thw" in encoded else None
        key = (self.NAME, model, grid, "point_clouds" in encoded, self.pace(parameters))
        return Job(self.NAME, model, key, encoded, parameters, {"target": target}, cost=parameters["candidates"])

    def mesh(self, files: Files, given: dict) -> tuple[np.ndarray, np.ndarray]:
        known = {"vertices": Field("cloud", "rows of x, y, z"), "faces": Field("cloud", "rows of three vertex numbers")}
        parts = read_fields("inputs.mesh", given, known, self.limits)
        if parts["vertices"] is None or parts["faces"] is None:
            raise RequestError("bad_request", "`inputs.mesh` must hold vertices and faces.")
        vertices = files.array("inputs.mesh.vertices", parts["vertices"], 3, self.limits.points)
        return vertices, files.array("inputs.mesh.faces", parts["faces"], 3, self.limits.points, kind="i")

    def run(self, jobs):
        model = self.endpoint.model(jobs[0].model)
        inputs = self.collate([job.inputs for job in jobs], [job.cost for job in jobs], model.device)
        rows = []
        for job in jobs:
            likeliest = {**job.parameters, "temperature": 0.0}
            rows += [self.sampling(job.parameters if number else likeliest, number) for number in range(job.cost)]
        answers = iter(generate_rows(model, inputs, rows))
        return [[next(answers) for _ in range(job.cost)] for job in jobs]

    @staticmethod
    def collate(several: list[dict], times: list[int], device) -> dict:
        """Left-padded rows, each as often as its request wants candidates."""
        joined = {}
        for name in several[0]:
            values = [one[name].expand(count, *one[name].shape[1:]) for one, count in zip(several, times)]
            if name in ("input_ids", "attention_mask", "point_token_mask"):
                filling = None if name == "input_ids" else 0
                joined[name] = pad_rows([row[None] for value in values for row in value], filling)
            else:
                joined[name] = torch.cat(values)
        return {name: value.to(device) for name, value in joined.items()}

    def finish(self, job, result):
        processor = self.endpoint.processor(job.model)
        with self.endpoint.processing(job.model):
            programs = [processor.decode_programs(torch.tensor([tokens]).long().view(1, -1))[0] for tokens, _ in result]
        answer = {
            "programs": programs,
            "tokens": [tokens for tokens, _ in result],
            "finished": [end for _, end in result],
        }
        if job.parameters["execute"]:
            answer["execution"] = self.execute(programs, job)
        return answer

    def execute(self, programs: list[str], job: Job) -> dict:
        """What came of each program, and the solid of the best one, in the input's place and size."""
        toolkit = importlib.import_module("dsr_toolkit.cad.candidates")
        sandbox, target = self.endpoint.sandbox(), job.media["target"]
        if hasattr(target, "faces"):  # the repository's class of meshes is not the toolkit's
            target = toolkit.TriangleMesh(target.vertices, target.faces)
        candidates = toolkit.judge_programs(programs, sandbox, target, seed=job.parameters["seed"])
        best = toolkit.best_candidate(candidates)
        outcome = {
            "candidates": [{"code": one.code, "message": one.execution.message, "chamfer": one.chamfer} for one in candidates],
            "best": best,
        }  # fmt: skip
        if best is None:
            return outcome
        scale, offset = 1.0, np.zeros(3)
        if target is not None:
            low, high = target.bounds if hasattr(target, "bounds") else (target.min(0), target.max(0))
            scale, offset = toolkit.placement_onto(candidates[best].execution, low, high)
        again = sandbox.run(programs[best], step=True, scale=scale, offset=offset)
        if not again.ok:
            return outcome | {
                "best": None,
                "message": f"the best program ended with {again.code} when it was run again",
            }
        module = _module_of(self.endpoint.processor(job.model))
        solid = module.TriangleMesh(again.vertices, again.faces).moved(scale, offset)
        view = module.render_mesh(
            candidates[best].mesh, module.VIEW_DIRECTIONS[0], pixels=384, smooth=False, oversampling=2
        )
        return outcome | {
            "step": as_base64(again.step), "stl": as_base64(_stl(solid)), "picture": as_png(Image.fromarray(view)),
            "volume": again.volume * scale**3,
        }  # fmt: skip


def _stl(mesh) -> bytes:
    """A binary STL file."""
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    triangles = np.zeros(len(mesh.faces), record)
    triangles["normal"], triangles["corners"] = mesh.face_normals()[0], mesh.vertices[mesh.faces]
    return b"binary STL".ljust(80) + struct.pack("<I", len(triangles)) + triangles.tobytes()


class Scene(Task):
    NAME = "scene"
    ABOUT = "Scene tokens of six surround cameras; with a question, the language model's answer from them."
    MODEL_TYPES = ("scene_qformer",)
    OUTPUTS = ("tokens", "picture")
    INPUTS = {
        "images": Field("object", "image files by camera name: CAM_FRONT and so on"),
        "calibration": Field(
            "object", "by camera name {intrinsics: 3×3 in pixels, extrinsics: 4×4 camera → vehicle, metres}"
        ),
        "question": Field("text", "what to ask; without one there are tokens only"),
    }
    PARAMETERS = {
        "outputs": Field("texts", "what to return beside the summary", ("picture",), choices=OUTPUTS),
        "max_new_tokens": _new_tokens(128), "temperature": TEMPERATURE, "top_p": TOP_P, "seed": SEED, "model": MODEL,
    }  # fmt: skip

    def prepare(self, model, inputs, parameters) -> Job:
        processor, files = self.endpoint.processor(model), Files(self.limits)
        cameras = list(processor.camera_names)
        images = read_fields(
            "inputs.images", inputs["images"], {name: Field("file", "an image file") for name in cameras}, self.limits
        )
        missing = [name for name in cameras if images[name] is None]
        if missing:
            raise RequestError(
                "bad_request", f"`inputs.images` lacks {', '.join(missing)}; it must hold {', '.join(cameras)}."
            )
        images = {name: files.image(f"inputs.images.{name}", images[name]) for name in cameras}
        arguments = {}
        if processor.needs_calibration or inputs["calibration"] is not None:
            arguments = self.calibration(files, inputs["calibration"], cameras)
        question = None
        if inputs["question"] is not None:
            if not self.endpoint.has_language_model(model):
                raise RequestError(
                    "invalid_input", f"the model {model!r} has no language model: leave `inputs.question` out."
                )
            question = self.question(inputs)
            self.check_words(processor, question)
        with self.endpoint.processing(model):
            if question is not None:
                turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
                arguments["text"] = self.prompt(processor, turn, question)
            encoded = dict(processor(images, **arguments))
        if question is not None:
            self.check_prompt(encoded)
        key = (self.NAME, model, question and self.pace(parameters), "cam_intrinsics" in encoded)
        return Job(self.NAME, model, key, encoded, parameters, {"images": images, "question": question})

    @staticmethod
    def prompt(processor, turn: list[dict], question: str) -> str:
        if processor.chat_template or processor.tokenizer.chat_template:
            prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
            if prompt.count(processor.image_token) == 1:
                return prompt
        return f"{processor.image_token}\n{question}"

    def calibration(self, files: Files, given, cameras: list[str]) -> dict:
        known = {name: Field("object", "{intrinsics: 3×3, extrinsics: 4×4}") for name in cameras}
        each = read_fields("inputs.calibration", given, known, self.limits)
        matrices = {"cam_intrinsics": {}, "cam_extrinsics": {}}
        parts = {
            "intrinsics": Field("cloud", "rows of a 3×3 matrix"),
            "extrinsics": Field("cloud", "rows of a 4×4 matrix"),
        }
        for camera in cameras:
            found = read_fields(f"inputs.calibration.{camera}", each[camera], parts, self.limits)
            for name, side in (("intrinsics", 3), ("extrinsics", 4)):
                place = f"inputs.calibration.{camera}.{name}"
                if found[name] is None:
                    raise RequestError(
                        "bad_request", f"`{place}` is missing; this request needs the calibration of every camera."
                    )
                matrices[f"cam_{name}"][camera] = files.array(place, found[name], side, side)
        return matrices

    def run(self, jobs):
        model = self.endpoint.model(jobs[0].model)
        inputs = self.collate([job.inputs for job in jobs], model.device)
        text = {name: inputs.pop(name) for name in ("input_ids", "attention_mask") if name in inputs}
        with torch.inference_mode():
            output = getattr(model, "scene_qformer", model)(**inputs, output_attentions=True)
        answers = [None] * len(jobs)
        if text:
            answers = generate_rows(
                model, text | {"scene_tokens": output.scene_tokens}, [self.sampling(job.parameters) for job in jobs]
            )
        attentions = output.attentions[-1]
        return [
            {
                "tokens": output.scene_tokens[number],
                "attentions": attentions[number : number + 1],
                "answer": answers[number],
            }
            for number in range(len(jobs))
        ]

    @staticmethod
    def collate(several: list[dict], device) -> dict:
        joined = {}
        for name in several[0]:
            values = [one[name] for one in several]
            filling = {"input_ids": None, "attention_mask": 0}
            joined[name] = pad_rows(values, filling[name]) if name in filling else torch.cat(values)
        return {name: value.to(device) for name, value in joined.items()}

    def finish(self, job, result):
        processor, tokens = self.endpoint.processor(job.model), result["tokens"].float()
        shares = result["attentions"][0].float().mean((0, 1)).sum((-2, -1))
        answer = {
            "shape": list(tokens.shape),
            "mean_norm": tokens.norm(dim=-1).mean().item(),
            "attention": dict(zip(processor.camera_names, shares.tolist())),
        }
        if result["answer"] is not None:
            ids, finished = result["answer"]
            with self.endpoint.processing(job.model):
                answer |= {"answer": processor.tokenizer.decode(ids, skip_special_tokens=True).strip()}
            answer |= {"tokens_written": ids, "finished": finished}
        if "tokens" in job.parameters["outputs"]:
            answer["tokens"] = as_npy(tokens)
        if "picture" in job.parameters["outputs"]:
            heat = processor.post_process_attentions((result["attentions"],))[0]
            answer["picture"] = as_png(processor.paint_attentions(job.media["images"], heat))
        return answer


TASKS = {task.NAME: task for task in (Ask, Reconstruct, Segment, Cad, Scene)}


def _module_of(thing):
    """The module of the repository's code that holds the class of a model or processor."""
    return sys.modules[type(thing).__module__]


# --------------------------------------------------------------------------------------
# The endpoint
# --------------------------------------------------------------------------------------

AUTO_CLASS = {
    "dsr": AutoModelForImageTextToText,
    "cadrille": AutoModelForImageTextToText,
    "cad_recode": AutoModelForCausalLM,
}


# Switches of a PAGE-4D configuration that are on only in models for synchronised views.
VIEW_PARTS = ("enable_dual_stream", "enable_dynamic_mask", "enable_sparse_global", "enable_epipolar")


class EndpointHandler:
    """
    Every model of a repository folder, loaded when it is first asked for.

    Args:
        path: folder of the repository: a model at the root, more in subfolders.
        limits: of requests; default: [`Limits`], with what the environment says.
        device: default a GPU if there is one. dtype: "auto" (as stored) or one of torch.
        allow_missing: confinements of the CAD sandbox that this machine may lack.
    """

    def __init__(
        self, path: str = "", limits: Limits | None = None, device=None, dtype: str = "auto", allow_missing=()
    ):
        self.path = Path(path)
        self.limits = limits or Limits.from_environment()
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype, self.allow_missing = dtype, allow_missing
        self.models, self._subfolders, self._facts = self._find_models()
        self.tasks = {name: task(self) for name, task in TASKS.items() if self._answering(task)}
        if not self.tasks:
            raise ValueError(
                f"{str(self.path)!r} holds no model of {sorted({t for c in TASKS.values() for t in c.MODEL_TYPES})}."
            )
        self._loaded, self._processors, self._sandbox = {}, {}, None
        self._lock, self._locks = threading.RLock(), {name: threading.RLock() for name in self.models}

    def _find_models(self) -> tuple[dict[str, str], dict[str, str], dict[str, dict]]:
        """Model type, subfolder and what it can do, by name: the subfolder's, or of the root its type."""
        types, subfolders, facts = {}, {}, {}
        for file in [self.path / "config.json", *sorted(self.path.glob("*/config.json"))]:
            if not file.is_file():
                continue
            config = json.loads(file.read_text(encoding="utf-8"))
            at_root = file.parent == self.path
            name = config.get("model_type") if at_root else file.parent.name
            types[name], subfolders[name] = config.get("model_type"), "" if at_root else file.parent.name
            facts[name] = {
                "language": config.get("text_config") is not None,
                "views": any(config.get(part) for part in VIEW_PARTS),
            }
        return types, subfolders, facts

    def _answering(self, task) -> list[str]:
        """Names of the models that can do a task, best first."""
        return [name for wanted in task.MODEL_TYPES for name, kind in self.models.items() if kind == wanted]

    # ---- a request, step by step ---------------------------------------------------------

    def __call__(self, data: dict) -> dict:
        job = self.prepare(data)
        return self.finish(job, self.run([job])[0])

    def prepare(self, data: dict) -> Job:
        """Read, check and process a request; whatever is wrong with it is found here."""
        if not isinstance(data, dict):
            raise RequestError("bad_request", f"a request must be a JSON object, got {_shown(data)}.")
        unknown = sorted(str(key)[:80] for key in data if key not in ("task", "inputs", "parameters"))
        if unknown:
            raise RequestError(
                "bad_request", f"unknown fields {unknown[:5]}; a request has task, inputs and parameters."
            )
        name = data.get("task")
        if not isinstance(name, str):
            raise RequestError("bad_request", f"`task` must be one of {', '.join(self.tasks)}, got {_shown(name)}.")
        if name not in self.tasks:
            raise RequestError("unknown_task", f"`task` must be one of {', '.join(self.tasks)}, got {name[:80]!r}.")
        task = self.tasks[name]
        inputs = read_fields("inputs", data.get("inputs"), task.INPUTS, self.limits)
        parameters = read_fields("parameters", data.get("parameters"), task.PARAMETERS, self.limits)
        model = self._choose(task, parameters["model"])
        try:
            return task.prepare(model, inputs, parameters)
        except RequestError:
            raise
        except ValueError as error:  # the processors' own checks
            raise RequestError("invalid_input", str(error)) from error

    def run(self, jobs: list[Job]) -> list:
        """Results of jobs of one key, in their order. One thread at a time."""
        return self.tasks[jobs[0].task].run(jobs)

    def finish(self, job: Job, result) -> dict:
        """The answer as JSON; numbers that are not finite, which JSON does not know, are null."""
        return finite({"task": job.task, "model": job.model, **self.tasks[job.task].finish(job, result)})

    def _choose(self, task: Task, wanted: str | None) -> str:
        able = self._answering(task)
        if wanted is None:
            return able[0]
        if wanted not in able:
            raise RequestError(
                "bad_request", f"`parameters.model` must be one of {', '.join(able)}, got {wanted[:80]!r}."
            )
        return wanted

    # ---- models --------------------------------------------------------------------------

    def has_language_model(self, name: str) -> bool:
        return self._facts[name]["language"]

    def knows_views(self, name: str) -> bool:
        """Whether a reconstruction model was made for synchronised views."""
        return self._facts[name]["views"]

    @property
    def loaded(self) -> int:
        """How many models are in memory."""
        return len(self._loaded)

    def processing(self, name: str) -> threading.RLock:
        """Held while a processor works: fast tokenizers do not share their state between threads."""
        return self._locks[name]

    def processor(self, name: str):
        if name not in self._processors:
            with self._lock:
                if name not in self._processors:
                    self._processors[name] = self._load(AutoProcessor, name)
        return self._processors[name]

    def model(self, name: str):
        if name not in self._loaded:
            with self._lock:
                if name not in self._loaded:
                    kind = self.models[name]
                    auto = AUTO_CLASS.get(kind, AutoModel)
                    if kind == "scene_qformer" and self.has_language_model(name):
                        auto = AutoModelForImageTextToText
                    logger.info("loading %s", name)
                    self._loaded[name] = self._load(auto, name, dtype=self.dtype, device_map=self.device).eval()
        return self._loaded[name]

    def _load(self, auto, name: str, **options):
        return auto.from_pretrained(self.path, subfolder=self._subfolders[name], trust_remote_code=True, **options)

    # ---- CAD programs --------------------------------------------------------------------

    def sandbox(self):
        """The sandbox of this library's toolkit, started when it is first needed."""
        with self._lock:
            if self._sandbox is None:
                try:
                    cad = importlib.import_module("dsr_toolkit.cad")
                except ImportError as error:
                    raise RequestError(
                        "not_available",
                        f"`execute` needs this library's toolkit with its extra [cad] on the server ({error}).",
                    ) from error
                try:
                    self._sandbox = cad.Sandbox(allow_missing=self.allow_missing)
                except OSError as error:
                    raise RequestError("not_available", str(error)) from error
            return self._sandbox

    def close(self) -> None:
        """End what runs beside this process."""
        with self._lock:
            if self._sandbox is not None:
                self._sandbox.close()
                self._sandbox = None

    # ---- for people and programs ---------------------------------------------------------

    def describe(self) -> dict:
        """Tasks with their models, and the JSON schemas of their inputs and parameters."""
        described = {}
        for name, task in self.tasks.items():
            described[name] = {"about": task.ABOUT, "models": self._answering(task)}
            for part, known in (("inputs", task.INPUTS), ("parameters", task.PARAMETERS)):
                properties = {key: one.schema(self.limits) for key, one in known.items()}
                described[name][part] = {"type": "object", "properties": properties, "additionalProperties": False}
        return described
