"""Are two answers of the endpoint the same? Text and ids exactly, numbers to 1e-4, arrays to 1e-4 of their largest
number."""

import base64
import io

import numpy as np
from PIL import Image

TOLERANCE = 1e-4
# A pixel on the threshold of a mask may fall on either side.
SHARE_OF_PIXELS = 2e-3


def different(first, second, place: str = "") -> list[str]:
    """Places at which two answers differ."""
    if isinstance(first, dict) and isinstance(second, dict) and "rle" in first and "rle" in second:
        return _masks(first, second, place)
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return [place or "fields"]
        return [found for key in first for found in different(first[key], second[key], f"{place}.{key}".lstrip("."))]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        if len(first) != len(second):
            return [place]
        return [
            found for number, (a, b) in enumerate(zip(first, second)) for found in different(a, b, f"{place}.{number}")
        ]
    if isinstance(first, float) and isinstance(second, float):
        return [] if abs(first - second) <= TOLERANCE * max(1.0, abs(first)) else [place]
    if first == second:
        return []
    if isinstance(first, str) and isinstance(second, str):
        return [] if _same_file(first, second) else [place]
    return [place]


def _masks(first: dict, second: dict, place: str) -> list[str]:
    a, b = (decode_rle(one["rle"]) for one in (first, second))
    if a.shape != b.shape or (a != b).mean() > SHARE_OF_PIXELS:
        return [f"{place}.rle"]
    rest = [{key: value for key, value in one.items() if key not in ("rle", "area", "box")} for one in (first, second)]
    return different(*rest, place)


def decode_rle(rle: dict) -> np.ndarray:
    counts = rle["counts"]
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(rle["size"], order="F")


def _same_file(first: str, second: str) -> bool:
    try:
        contents = [base64.b64decode(one, validate=True) for one in (first, second)]
    except ValueError:
        return False
    if all(content.startswith(b"\x93NUMPY") for content in contents):
        a, b = (np.load(io.BytesIO(content)) for content in contents)
        if a.dtype == bool:
            return a.shape == b.shape and (a != b).mean() <= SHARE_OF_PIXELS
        return a.shape == b.shape and bool(np.abs(a - b).max() <= TOLERANCE * max(1.0, np.abs(a).max()))
    if all(content.startswith(b"\x89PNG") for content in contents):
        a, b = (np.asarray(Image.open(io.BytesIO(content))).astype(int) for content in contents)
        return a.shape == b.shape and np.abs(a - b).max() <= 2
    if all(content.startswith(b"glTF") for content in contents):
        return abs(len(contents[0]) - len(contents[1])) <= SHARE_OF_PIXELS * len(contents[0]) + 64
    return False
