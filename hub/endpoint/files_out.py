"""Files of an answer: base64 text of arrays, pictures, clouds and meshes."""

from __future__ import annotations

import base64
import io
import json
import math
import struct

import numpy as np
import torch
from PIL import Image


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
    A binary glTF file of coloured points. Its colours are linear light, as glTF asks: viewers show the image's own.

    Args:
        points: float32 `[n, 3]`, OpenCV axes (y down, z forward); the file's node turns them upright. colours: uint8
        `[n, 3]`.
    """
    if not len(points):  # viewers refuse empty buffers
        points, colours = np.zeros((1, 3)), np.zeros((1, 3))
    points = np.ascontiguousarray(points, "<f4")
    level = np.asarray(colours, np.uint8) / 255
    rgb = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4).astype("<f4")  # sRGB to linear
    binary = points.tobytes() + rgb.tobytes()
    views = [
        {"buffer": 0, "byteOffset": 0, "byteLength": points.nbytes, "target": 34962},
        {"buffer": 0, "byteOffset": points.nbytes, "byteLength": rgb.nbytes, "target": 34962},
    ]
    accessors = [
        {
            "bufferView": 0, "componentType": 5126, "count": len(points), "type": "VEC3",
            "min": points.min(0).tolist(), "max": points.max(0).tolist(),
        },
        {"bufferView": 1, "componentType": 5126, "count": len(points), "type": "VEC3"},
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


def as_stl(mesh) -> bytes:
    """A binary STL file."""
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    triangles = np.zeros(len(mesh.faces), record)
    triangles["normal"], triangles["corners"] = mesh.face_normals()[0], mesh.vertices[mesh.faces]
    return b"binary STL".ljust(80) + struct.pack("<I", len(triangles)) + triangles.tobytes()
