"""Answers as JSON, written value by value: others get their turn between two of them, however large the whole is."""

from __future__ import annotations

import json
from collections.abc import Iterator

from fastapi.responses import Response


def as_response(answer) -> Response:
    """A reply of JSON."""
    return Response(b"".join(piece.encode() for piece in pieces(answer)), media_type="application/json")


def pieces(value) -> Iterator[str]:
    """JSON of a value; a list of plain numbers or texts is one piece."""
    if isinstance(value, dict):
        for number, (name, one) in enumerate(value.items()):
            yield f"{',' if number else '{'}{json.dumps(name)}:"
            yield from pieces(one)
        yield "}" if value else "{}"
    elif isinstance(value, (list, tuple)) and any(isinstance(one, (dict, list, tuple)) for one in value):
        for number, one in enumerate(value):
            yield "," if number else "["
            yield from pieces(one)
        yield "]"
    else:
        yield json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
