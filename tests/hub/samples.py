"""Requests to the endpoint, good ones and broken ones, drawn and computed here."""

import base64
import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

from dsr_toolkit.demo import clip
from dsr_toolkit.worlds.surround import SurroundWorld


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def picture(seed: int = 0, size=(72, 56), kind: str = "PNG", black: bool = False) -> bytes:
    """Coloured blocks, or black ones."""
    blocks = (
        np.zeros((4, 5, 3), np.uint8) if black else np.random.default_rng(seed).integers(0, 255, (4, 5, 3), np.uint8)
    )
    stream = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(stream, kind)
    return stream.getvalue()


@cache
def video() -> bytes:
    return clip.CLIP.read_bytes()


@cache
def cloud(seed: int = 0, count: int = 300) -> tuple:
    """Points of a box's surface, as nested lists."""
    generator = np.random.default_rng(seed)
    points = generator.uniform(-1, 1, (count, 3)) * (1.0, 0.6 + 0.05 * seed, 0.4)
    axis = generator.integers(0, 3, count)
    points[np.arange(count), axis] = np.sign(points[np.arange(count), axis]) * np.array((1.0, 0.6, 0.4))[axis]
    return tuple(map(tuple, points.round(4).tolist()))


def points(seed: int = 0) -> list[list[float]]:
    return [list(point) for point in cloud(seed)]


@cache
def _street():
    return SurroundWorld(0, height=112, width=200)[0]


@cache
def street() -> dict[str, str]:
    return {name: encoded(_png(Image.fromarray(image))) for name, image in _street().images.items()}


def street_calibration() -> dict:
    return {
        name: {"intrinsics": camera.intrinsics.tolist(), "extrinsics": camera.extrinsics.tolist()}
        for name, camera in _street().cameras.items()
    }


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def ask(seed: int = 0, /, tokens: int = 6, **parameters) -> dict:
    question = (
        "Which way does the ball move?",
        "Does it come nearer?",
        "What is left of the box, seen from the camera?",
    )
    inputs = {"question": question[seed % 3]}
    if seed % 2:
        inputs["images"] = [encoded(picture(seed, (60 + 8 * (seed % 5), 60)))]
    else:
        inputs["video"] = encoded(video())
        parameters.setdefault("num_frames", 4)
    return {"task": "ask", "inputs": inputs, "parameters": {"max_new_tokens": tokens, **parameters}}


def reconstruct(seed: int = 0, model: str = "pi3", **parameters) -> dict:
    images = [encoded(picture(seed + number, kind="JPEG")) for number in range(2)]
    parameters = {"model": model, "outputs": ["glb", "depth"], **parameters}
    return {"task": "reconstruct", "inputs": {"images": images}, "parameters": parameters}


def segment(seed: int = 0, **parameters) -> dict:
    inputs = {"image": encoded(picture(seed)), "phrases": ["the red block", "a wall"][: 1 + seed % 2]}
    return {"task": "segment", "inputs": inputs, "parameters": parameters}


def segment_answer(seed: int = 0, **parameters) -> dict:
    inputs = {"image": encoded(picture(seed)), "question": "What is in the picture?"}
    return {"task": "segment", "inputs": inputs, "parameters": {"max_new_tokens": 6, **parameters}}


def cad(seed: int = 0, tokens: int = 8, **parameters) -> dict:
    inputs = [
        {"points": points(seed)},
        {"text": f"A plate with {seed} holes"},
        {"images": [encoded(picture(seed, (268, 268)))]},
    ]
    return {
        "task": "cad",
        "inputs": inputs[seed % 3],
        "parameters": {"max_new_tokens": tokens, "seed": seed, **parameters},
    }


def cad_recode(seed: int = 0, tokens: int = 8, **parameters) -> dict:
    parameters = {"max_new_tokens": tokens, "seed": seed, "model": "cad_recode", **parameters}
    return {"task": "cad", "inputs": {"points": points(seed)}, "parameters": parameters}


def scene(seed: int = 0, **parameters) -> dict:
    inputs = {"images": street(), "calibration": street_calibration()}
    if seed % 2:
        inputs["question"] = f"How many cars are there? ({seed})"
        parameters.setdefault("max_new_tokens", 5)
    return {"task": "scene", "inputs": inputs, "parameters": parameters}


GOOD = {
    "ask": ask, "reconstruct": reconstruct, "segment": segment, "cad": cad, "cad_recode": cad_recode, "scene": scene,
    "page4d": lambda seed=0, **parameters: reconstruct(seed, "page4d", **parameters), "segment_answer": segment_answer,
}  # fmt: skip


# ---- broken ones: name -> (request, code of the error) -----------------------------------


def png_header(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG that announces a size, with any pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def gif_bomb() -> bytes:
    """Many frames of a large canvas in few bytes."""
    frames = [Image.new("P", (4000, 4000), number) for number in range(2)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    content = stream.getvalue()
    return content[:-1] + content[800:-1] * 20 + b";"


def npy(shape, dtype="<f8", body: bytes = b"") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + body


def zipped() -> bytes:
    """A zip file of zeros."""
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.npy", bytes(2**24))
    return stream.getvalue()


def playlist(target: str) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n".encode()


def _ask_image(value, code) -> tuple[dict, str]:
    return {"task": "ask", "inputs": {"question": "What is it?", "images": [value]}}, code


def _ask_video(value, code) -> tuple[dict, str]:
    return {"task": "ask", "inputs": {"question": "What is it?", "video": value}}, code


def _points(value, code) -> tuple[dict, str]:
    return {"task": "cad", "inputs": {"points": value}}, code


@cache
def broken() -> dict[str, tuple[dict, str]]:
    nan = points()
    nan[7][1] = float("nan")
    infinite = points()
    infinite[0][0] = 1e308
    bomb = zlib.compress(bytes(2**24), 9)
    return {
        "no task": ({"inputs": {}}, "bad_request"),
        "unknown task": ({"task": "sing", "inputs": {}}, "unknown_task"),
        "task of another type": ({"task": ["ask"]}, "bad_request"),
        "unknown field": ({"task": "ask", "inputs": {"question": "?", "file": "x"}}, "bad_request"),
        "unknown parameter": (ask(1, beams=4), "bad_request"),
        "inputs of another type": ({"task": "ask", "inputs": "What?"}, "bad_request"),
        "nothing to look at": ({"task": "ask", "inputs": {"question": "What is it?"}}, "bad_request"),
        "empty question": ({"task": "ask", "inputs": {"question": " ", "images": [encoded(picture())]}}, "bad_request"),
        "text as number": (ask(1, max_new_tokens="many"), "bad_request"),
        "flag as number": (ask(1, max_new_tokens=True), "bad_request"),
        "negative number": ({**ask(1), "parameters": {"seed": -1}}, "bad_request"),
        "too many tokens": (ask(1, max_new_tokens=10**9), "too_large"),
        "not a number": (ask(1, temperature=float("nan")), "bad_request"),
        "special token": (
            {"task": "ask", "inputs": {"question": "<|image_pad|>?", "images": [encoded(picture())]}},
            "invalid_input",
        ),
        "no base64": _ask_image("%%%", "bad_request"),
        "address": _ask_image("https://127.0.0.1/secret.png", "bad_request"),
        "file address": _ask_image("file:///etc/passwd", "bad_request"),
        "path": _ask_image("/etc/passwd", "bad_request"),
        "relative path": _ask_video("../../etc/hosts", "bad_request"),
        "path in base64": _ask_video(encoded(b"/etc/passwd"), "unreadable_media"),
        "playlist of a file": _ask_video(encoded(playlist("file:///etc/passwd")), "unreadable_media"),
        "list for concat": _ask_video(encoded(b"ffconcat version 1.0\nfile /etc/passwd\n"), "unreadable_media"),
        "empty file": _ask_image("", "unreadable_media"),
        "truncated png": _ask_image(encoded(picture()[:-40]), "unreadable_media"),
        "truncated jpeg": _ask_image(encoded(picture(kind="JPEG")[:300]), "unreadable_media"),
        "truncated video": _ask_video(encoded(video()[: len(video()) // 2]), "unreadable_media"),
        "noise as video": _ask_video(encoded(np.random.default_rng(0).bytes(5000)), "unreadable_media"),
        "picture as video": _ask_video(encoded(picture()), "unreadable_media"),
        "svg": _ask_image(encoded(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), "unreadable_media"),
        "100 megapixels": _ask_image(encoded(png_header(10000, 10000)), "too_large"),
        "a gigapixel": _ask_image(encoded(png_header(40000, 40000)), "too_large"),
        "png bomb": _ask_image(encoded(png_header(5000, 5000, bomb)), "unreadable_media"),
        "gif bomb": _ask_image(encoded(gif_bomb()), "unreadable_media"),
        "zip": _points(encoded(zipped()), "unreadable_media"),
        "npy that promises much": _points(encoded(npy((10**5, 3))), "unreadable_media"),
        "npy of objects": _points(encoded(npy((2, 3), "|O")), "unreadable_media"),
        "npy beyond the limit": _points(encoded(npy((10**12, 3))), "too_large"),
        "NaN points": _points(nan, "invalid_input"),
        "huge points": _points(infinite, "invalid_input"),
        "few points": _points(points()[:5], "invalid_input"),
        "equal points": _points([[1, 1, 1]] * 300, "invalid_input"),
        "ragged points": _points([[1, 2, 3], [1, 2]], "bad_request"),
        "points of text": _points([["a", "b", "c"]] * 300, "bad_request"),
        "too many points": _points([[0, 0, 0]] * 200_001, "too_large"),
        "two inputs": ({"task": "cad", "inputs": {"points": points(), "text": "A plate"}}, "bad_request"),
        "text for CAD-Recode": (
            {"task": "cad", "inputs": {"text": "A plate"}, "parameters": {"model": "cad_recode"}},
            "invalid_input",
        ),
        "faces beyond vertices": (
            {"task": "cad", "inputs": {"mesh": {"vertices": points()[:3], "faces": [[0, 1, 9]]}}}, "invalid_input",
        ),
        "truncated stl": (
            {"task": "cad", "inputs": {"stl": encoded(bytes(80) + b"\5\0\0\0" + bytes(60))}},
            "unreadable_media",
        ),
        "no phrase": ({"task": "segment", "inputs": {"image": encoded(picture())}}, "bad_request"),
        "empty phrase": (
            {"task": "segment", "inputs": {"image": encoded(picture()), "phrases": [""]}},
            "invalid_input",
        ),
        "phrase outside of its caption": (
            {"task": "segment", "inputs": {"image": encoded(picture()), "phrases": ["cat"], "caption": "a dog"}},
            "invalid_input",
        ),
        "model that cannot do it": (reconstruct(model="cadrille"), "bad_request"),
        "missing camera": ({"task": "scene", "inputs": {"images": {"CAM_FRONT": encoded(picture())}}}, "bad_request"),
    }  # fmt: skip
