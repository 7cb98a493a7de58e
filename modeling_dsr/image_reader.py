"""
The one reader of images: whatever people have becomes an upright RGB picture of 8 bits over white.

Used by processors, commands, endpoint and page alike; an endpoint passes limits, everybody else trusts their own files.
"""

import base64
import http.client
import io
import os
import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

WHITE = (255, 255, 255)
TIMEOUT = 30  # seconds that a server may be silent
# Formats that Pillow opens by running another program, or that are no pictures.
NO_PICTURES = {"EPS", "PDF", "WMF", "EMF", "MPEG", "HDF5", "GRIB", "BUFR", "FITS", "WAL"}
# Formats whose further pictures are moments; those of others are pages, layers, sizes, or a phone's extras.
MOVING = {"AVIF", "FLI", "GIF", "PNG", "WEBP"}
LITTER = re.compile(r"\..*|Thumbs\.db|desktop\.ini|__MACOSX|Icon\r", re.I)  # what operating systems leave in folders


class TooLarge(ValueError):
    """A file that is more than the given limits allow."""


def image_suffixes() -> tuple[str, ...]:
    """Suffixes of all formats that can be read here: Pillow's, and HEIC where `pillow_heif` is installed."""
    _register_heif()
    known = Image.registered_extensions()
    return tuple(sorted(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in NO_PICTURES))


def is_image_file(path: str | os.PathLike) -> bool:
    """Whether a name looks like an image's."""
    return Path(path).suffix.lower() in image_suffixes()


def list_images(folder: str | os.PathLike) -> tuple[list[Path], list[Path]]:
    """
    The images of a folder in natural order (1, 2, 10), and the other files in it.

    What operating systems leave behind (`._a.png`, `Thumbs.db`) is in neither.
    """
    entries = [path for path in Path(folder).iterdir() if path.is_file() and not LITTER.fullmatch(path.name)]
    images = sorted((path for path in entries if is_image_file(path)), key=lambda path: natural_key(path.name))
    return images, sorted(set(entries) - set(images), key=lambda path: natural_key(path.name))


def natural_key(name: str) -> list:
    """Sorts numbers in names by their value."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in re.split(r"(\d+)", name)]


def unreadable_images(files: Sequence[str | os.PathLike]) -> dict[str, str]:
    """Why each of the files that cannot be read cannot be; decodes them as small as their format allows."""
    problems = {}
    for path in files:
        try:
            with _open(path, os.fspath(path), None) as image:
                _check_still(image, os.fspath(path))
                image.draft("RGB", (64, 64))
                _load(image, os.fspath(path))
        except ValueError as error:
            problems[os.fspath(path)] = str(error)
    return problems


def read_image(
    image, name: str | None = None, *, formats: Sequence[str] | None = None, max_pixels: int | None = None, check=None
) -> Image.Image:
    """
    An RGB image, turned as its camera was held, over white where it is transparent, 16 bits scaled to 8.

    Args:
        image: a file (path, bytes or an open binary file), an http(s) address or a data URL, a pillow image, an array
            `[H, W]` or `[H, W, 1 … 4]` or a tensor `[C, H, W]`: bytes, 16-bit numbers, booleans, or floats in 0…1 (or,
            if any is above 1, in 0…255).
        name: what errors call it.
        formats: of Pillow, that are read; default all.
        max_pixels: more are refused before anything is unpacked; default Pillow's own limit.
        check: called with (width, height) before anything is unpacked.

    Raises:
        TooLarge: more pixels than allowed.
        ValueError: no image, or a damaged one.
    """
    return flatten(read_with_alpha(image, name, formats=formats, max_pixels=max_pixels, check=check)[0])


def read_with_alpha(
    image, name: str | None = None, *, formats: Sequence[str] | None = None, max_pixels: int | None = None, check=None
) -> tuple[Image.Image, np.ndarray | None]:
    """As [`read_image`]; also `[H, W]` bool, True where it is not fully transparent, or None where nothing is."""
    name = name or (os.fspath(image) if isinstance(image, (str, os.PathLike)) else "the image")
    if len(name) > 100:
        name = name[:100] + "…"
    if not isinstance(image, Image.Image) and not _is_file(image):
        image = _from_array(image, name)
    if isinstance(image, Image.Image):
        _check_size(image, name, max_pixels, check)
        image = _upright(_load(image, name))
    else:
        with _open(image, name, formats) as opened:
            _check_still(opened, name)
            _check_size(opened, name, max_pixels, check)
            image = _upright(_load(opened, name))
    image = _eight_bits(image)
    if not has_alpha(image):
        return image.convert("RGB"), None
    rgba = image.convert("RGBA")
    opaque = np.asarray(rgba.getchannel("A")) > 0
    return flatten(rgba), None if opaque.all() else opaque


def has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def flatten(image: Image.Image) -> Image.Image:
    """RGB over white."""
    if not has_alpha(image):
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*WHITE, 255)), rgba).convert("RGB")


def _is_file(image) -> bool:
    return isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(image, "read")


def _open(image, name: str, formats) -> Image.Image:
    _register_heif()
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        try:
            request = urllib.request.Request(image, headers={"User-Agent": __name__})
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                image = io.BytesIO(answer.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ValueError(f"{name} cannot be fetched ({error}).") from error
    elif isinstance(image, str) and image.startswith("data:"):
        try:
            image = io.BytesIO(base64.b64decode(image.partition(",")[2], validate=True))
        except ValueError as error:
            raise ValueError(f"{name} is a data URL that is not base64 ({error}).") from error
    elif isinstance(image, (bytes, bytearray, memoryview)):
        image = io.BytesIO(image)
    elif isinstance(image, (str, os.PathLike)) and not os.path.isfile(image):
        raise ValueError(f"There is no image file at {os.fspath(image)!r}.")
    if formats is not None:
        Image.init()  # a format that is named must be known
        formats = [kind for kind in formats if kind in Image.OPEN]
    try:
        return Image.open(image, formats=formats)
    except Image.DecompressionBombError as error:
        raise TooLarge(f"{name} has too many pixels ({error}). Scale it down.") from error
    except UnidentifiedImageError as error:
        hint = " HEIC needs `pip install pillow-heif`." if _is_heic(image) else ""
        raise ValueError(f"{name} cannot be read as an image: it has none of the formats known here.{hint}") from error
    except Exception as error:  # pillow's decoders raise nearly anything
        raise ValueError(f"{name} cannot be read as an image ({type(error).__name__}: {error}).") from error


def _is_heic(image) -> bool:
    return isinstance(image, (str, os.PathLike)) and Path(image).suffix.lower() in (".heic", ".heif")


def _register_heif() -> None:
    if "HEIF" in Image.OPEN:
        return
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()


def _check_still(image: Image.Image, name: str) -> None:
    if getattr(image, "is_animated", False) and image.format in MOVING:
        raise ValueError(f"{name} is an animation; pass a still image, or a video.")


def _check_size(image: Image.Image, name: str, max_pixels: int | None, check) -> None:
    width, height = image.size
    if check is not None:
        check(width, height)
    limit = max_pixels if max_pixels is not None else 2 * (Image.MAX_IMAGE_PIXELS or 1 << 62)
    if width * height > limit:
        raise TooLarge(f"{name} has {width}×{height} pixels; at most {limit} are read. Scale it down.")
    if not width or not height:
        raise ValueError(f"{name} is empty ({width}×{height} pixels).")


def _load(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        return image
    except Exception as error:  # pillow's decoders raise nearly anything
        raise ValueError(
            f"{name} cannot be read as an image ({type(error).__name__}: {error}). Fetch it again or leave it out."
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about how the camera was held
        return image.copy()


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey pictures of 16 or 32 bits, which Pillow would clip, scaled to 8."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N"):
        values = np.asarray(image)
        grey = Image.fromarray((values.astype(np.float64) / 257).round().astype(np.uint8))
        if isinstance(hidden := image.info.get("transparency"), int):  # one of the 65536 greys
            grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
        return grey
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        top = values.max(initial=0)
        span = 1 if image.mode == "F" and top <= 1 else 255 if top <= 255 else 65535 if top <= 65535 else top
        return Image.fromarray((values.clip(0) / span * 255).round().astype(np.uint8))
    return image


def _from_array(image, name: str) -> Image.Image:
    if hasattr(image, "detach"):  # a tensor; files are read without torch, too
        array = image.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    else:
        array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape or array.dtype.kind not in "buif":
        raise ValueError(
            f"{name} must be a file, a pillow image, an array [H, W, 3] or a tensor [3, H, W], got "
            f"{type(image).__name__} of shape {tuple(getattr(image, 'shape', ()))}."
        )
    array = _bytes(array, name)
    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array, modes[array.shape[2]])


def _bytes(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite.")
        span = 1 if array.max() <= 1 else 255
    else:
        span = 65535 if array.dtype == np.uint16 else 255
    low, high = array.min(), array.max()
    if low < 0 or high > span:
        raise ValueError(f"{name} holds values from {low} to {high}; expected 0…1 or 0…255. Scale them.")
    return (array.astype(np.float64) * (255 / span)).round().astype(np.uint8)
