"""
What the Hub's inference widget and plain pipelines send: `inputs` without a `task`, answered as the pipeline of the
repository's tag, image-text-to-text, answers: `[{"generated_text": …}]`.

    {"inputs": "What is a pinhole camera?"}              a text: the language model answers it
    {"inputs": "<an image in base64>"}                   an image, which is described; also as bytes
    {"inputs": {"text": "…", "image": "<base64>"}}       both; "images" and "video" as the task `ask` has them
    {"inputs": [{"role": "user", "content": …}]}         a conversation

`parameters` are those of the task `ask`, with the same limits.
"""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image

from .request import Limits, RequestError

DESCRIBE = "Describe this image."
# First bytes of pictures, by which base64 text is told from a question.
HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"II*\0", b"MM\0*", b"BM")


def as_request(data: dict, limits: Limits) -> dict | None:
    """The request for `ask` that a widget's is; None if it is none of a widget."""
    inputs = data.get("inputs")
    if "task" in data or inputs is None:
        return None
    if isinstance(inputs, list):
        asked = {"messages": inputs}
    elif isinstance(inputs, dict):
        if not inputs.keys() & {"text", "image"}:
            return None
        asked = {name: value for name, value in inputs.items() if name not in ("text", "image")}
        if inputs.get("text") is not None:
            asked["question"] = inputs["text"]
        if inputs.get("image") is not None:
            asked["images"] = [inputs["image"]]
    elif isinstance(inputs, str) and not _is_picture(inputs):
        asked = {"question": inputs}
    elif isinstance(inputs, (str, bytes, bytearray, Image.Image)):
        asked = {"images": [inputs]}
    else:
        return None
    if "images" in asked and isinstance(asked["images"], list):
        asked["images"] = [_as_bytes(one, limits) for one in asked["images"]]
        asked.setdefault("question", DESCRIBE)
    elif isinstance(asked.get("question"), str) and not asked.keys() & {"images", "video"}:
        asked["messages"] = [{"role": "user", "content": asked.pop("question")}]
    rest = {name: value for name, value in data.items() if name != "inputs"}
    return {**rest, "task": "ask", "inputs": asked}


def as_answer(answer: dict) -> list[dict]:
    """As transformers' pipelines answer."""
    several = answer.get("answers") or [answer]
    return [{"generated_text": one["answer"]} for one in several]


def _is_picture(text: str) -> bool:
    if text[:11].lower() == "data:image/":
        return True
    try:
        head = base64.b64decode(text[:64], validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(text) > 64 and head.startswith(HEADS)


def _as_bytes(image, limits: Limits):
    """An Endpoint hands pictures over as Pillow has opened them."""
    if not isinstance(image, Image.Image):
        return image
    if image.width * image.height > limits.pixels:
        raise RequestError(
            "too_large", f"`inputs` has {image.width}×{image.height} pixels; at most {limits.pixels} are read."
        )
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
