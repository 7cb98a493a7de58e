"""What is wrong with rows, before a training starts: row, field and reason."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass
class Problem:
    """Of row `row` (from 0), field `field` (None: the row as a whole)."""

    row: int
    field: str | None
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}{f', field {self.field!r}' if self.field else ''}: {self.reason}"


def _text(value) -> str | None:
    return None if isinstance(value, str) and value.strip() else f"must be a text that is not empty, got {value!r:.60}"


def _file(value) -> str | None:
    if isinstance(value, (list, tuple)):
        return next((reason for one in value if (reason := _file(one))), None)
    if isinstance(value, dict):
        return next((f"{name}: {reason}" for name, one in value.items() if (reason := _file(one))), None)
    if isinstance(value, str) and "://" not in value and not os.path.isfile(value):
        return f"there is no file {value!r}"
    return None


# Field -> what is wrong with its value, or None; "must" fields have to be there.
FIELDS: dict[str, dict[str, Callable]] = {
    "dsr": {"video": _file, "videos": _file, "image": _file, "images": _file, "question": _text, "answer": _text},
    "cadrille": {"program": _text, "mesh": _file, "text": _text},
    "cad_recode": {"program": _text, "mesh": _file},
    "pi3": {"images": _file},
    "page4d": {"images": _file},
    "frozen_qwen_sam": {},
    "scene_qformer": {"images": _file, "question": _text, "answer": _text},
}
MUST = {"cadrille": ("program",), "cad_recode": ("program",)}


def problems(kind: str, rows, collate: Callable | None = None, limit: int | None = None) -> Iterator[Problem]:
    """
    Everything that is wrong with rows of an architecture.

    Args:
        rows: with a length. collate: the collator; each row that looks right is also made into a batch of its own,
            which opens its media. limit: rows to look at; None: all.
    """
    for number in range(len(rows) if limit is None else min(limit, len(rows))):
        try:
            row = rows[number]
        except Exception as error:  # whatever a reader raises, the row cannot be read
            yield Problem(number, None, f"cannot be read ({type(error).__name__}: {error})")
            continue
        found = False
        chat = kind == "dsr" and row.get("messages") is not None
        must = ("question", "answer") if kind == "dsr" and not chat else MUST.get(kind, ())
        for field, check in FIELDS[kind].items():
            if row.get(field) is None and field not in must:
                continue
            if reason := check(row.get(field)):
                found = True
                yield Problem(number, field, reason)
        if not found and collate is not None:
            try:
                collate([row])
            except Exception as error:
                yield Problem(number, None, str(error) or type(error).__name__)
