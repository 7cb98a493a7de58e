"""What a request may say: errors, limits, and fields that are checked before anything is read."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

import numpy as np

# What can be wrong with a request: code -> (HTTP status, when).
ERRORS = {
    "bad_request": (400, "not the JSON that is asked for: a field is missing, unknown, or of the wrong type"),
    "unauthorized": (401, "the server wants a key, and this is none of its keys"),
    "unknown_task": (404, "no such task, or the repository holds no model for it"),
    "too_slow": (408, "the request was not sent within the time that the server gives for it"),
    "too_large": (413, "more bytes, pixels, frames, points, tokens than the limits allow"),
    "unreadable_media": (415, "an image, video or cloud that is cut short, damaged, or of a kind that is not read"),
    "invalid_input": (422, "well-formed, but nothing the model can work on"),
    "too_many": (429, "this client has as many requests on their way as it may have at a time"),
    "cancelled": (499, "whoever asked has left"),
    "internal": (500, "a fault of the server, which its log tells about"),
    "not_available": (501, "needs something that is not installed or that this machine does not give"),
    "interrupted": (503, "what worked on it has ended; nothing of that is left, and it may be asked again"),
    "overloaded": (503, "too many requests are waiting, or the server is stopping; try again later"),
    "timed_out": (504, "the answer was not there within the time that the server gives for it"),
}


class RequestError(ValueError):
    """Why a request gets no answer. `code` is one of `ERRORS`, `status` its HTTP status."""

    def __init__(self, code: str, message: str):
        self.code, self.status = code, ERRORS[code][0]
        # It may quote the request, which may hold halves of characters that no answer can be written with.
        self.message = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(self.message)

    def as_json(self) -> dict:
        return {"error": {"status": self.status, "code": self.code, "message": self.message}}


@dataclass(frozen=True)
class Limits:
    """
    What a request may ask for. Each can be set by an environment variable: `DSR_LIMIT_BYTES=1000000`.

    Args:
        bytes: of all files of a request, decoded from base64.
        pixels: of one image or video frame. total_pixels: of all images and chosen frames of a request.
        images: in a request. frames: taken of a video. video_frames: that a video may hold. video_pixels: that have to
            be decoded to get to the last chosen frame.
        points: of a cloud or a mesh (faces, too), and in the clouds that are sent back.
        text: characters of a question, caption or phrase. phrases: to look for.
        prompt_tokens: of a prompt with its image placeholders. new_tokens: written by a model.
        candidates: CAD programs for one part, or answers to one question.
        stops: texts that end an answer. turns: of a conversation.
        in_flight: bytes of unpacked images and frames, of all requests that are being read at the same time; what does
            not fit waits. A request that needs more is read when it is alone.
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
    stops: int = 4
    turns: int = 64
    in_flight: int = 2**29

    def __post_init__(self):
        for one in fields(self):
            value = getattr(self, one.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"the limit `{one.name}` must be a whole number of at least 1, got {value!r}.")

    @classmethod
    def from_environment(cls, **given: int) -> Limits:
        """What the environment says, and over it what is given."""
        found = {one.name: os.environ.get(f"DSR_LIMIT_{one.name.upper()}") for one in fields(cls)}
        try:
            return cls(**{name: int(value) for name, value in found.items() if value} | given)
        except ValueError as error:
            raise ValueError(f"DSR_LIMIT_…: {error}") from error


KINDS = {  # of fields -> (Python types, JSON schema, in words)
    "text": (str, {"type": "string"}, "a text"),
    "file": ((str, bytes, bytearray), {"type": "string", "format": "byte"}, "a file in base64"),
    "files": (list, {"type": "array", "items": {"type": "string", "format": "byte"}}, "a list of files in base64"),
    "texts": (list, {"type": "array", "items": {"type": "string"}}, "a list of texts"),
    "turns": (list, {"type": "array", "items": {"type": "object"}}, "a list of turns"),
    "object": (dict, {"type": "object"}, "an object"),
    "cloud": (
        (list, str, bytes, bytearray, np.ndarray), {"anyOf": [{"type": "array"}, {"type": "string", "format": "byte"}]},
        "a list of rows, or a .npy file in base64",
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
        default: where it is not given. low, high: of numbers, and of how many entries; a text names one of [`Limits`].
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
        extra = {
            "default": self.default,
            "minimum": self.low,
            "maxItems" if self.kind in ("files", "texts", "turns") else "maximum": self.bound(limits),
        }
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
                "bad_request", f"`{name}` must be {KINDS[self.kind][2]}, got {shown_value(value)}: {self.about}."
            )
        if self.kind in ("files", "texts", "turns"):
            if (most := self.bound(limits)) is not None and len(value) > most:
                raise RequestError("too_large", f"`{name}` holds {len(value)} entries; at most {most} are taken.")
            item_types = {"files": (str, bytes, bytearray), "texts": str, "turns": dict}[self.kind]
            wrong = next((item for item in value if not isinstance(item, item_types)), None)
            if wrong is not None:
                raise RequestError(
                    "bad_request", f"`{name}` must be {KINDS[self.kind][2]}, got {shown_value(wrong)} in it."
                )
        if self.kind in ("integer", "number"):
            high = self.bound(limits)
            if value != value or (self.low is not None and value < self.low):
                raise RequestError(
                    "bad_request", f"`{name}` must be a number of at least {self.low}, got {shown_value(value)}."
                )
            if high is not None and value > high:
                raise RequestError("too_large", f"`{name}` must be at most {high}, got {shown_value(value)}.")
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
        raise RequestError("bad_request", f"`{name}` must be an object, got {shown_value(given)}.")
    unknown = [str(key)[:80] for key in given if key not in known]
    if unknown:
        raise RequestError("bad_request", f"`{name}` has unknown fields {unknown[:5]}; there are {', '.join(known)}.")
    return {key: one.read(f"{name}.{key}", given.get(key), limits) for key, one in known.items()}


def shown_value(value) -> str:
    """A value of a request, for a message."""
    if isinstance(value, int) and abs(value) > 10**30:  # Python refuses to write very long ones
        return "an enormous number"
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else "…"
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '…'}"
