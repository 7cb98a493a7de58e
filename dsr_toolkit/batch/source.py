"""What every source of items has in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .columns import ItemError, column_of, inputs_of

REPORT = "batch.json"  # of a run, in its output


class Source:
    """
    Items in a fixed order.

    `items()` yields dicts, which JSON takes: `id`, and either `inputs` and `parameters`, or `row`, the number of a row
    of a table that a worker reads itself (it may hold whole files), or `error` where a row says nothing.

    Args:
        task: one of `COLUMNS`. name: as the user gave it. split: of a data set.
    """

    def __init__(self, task: str, name: str, split: str = "train"):
        self.task, self.name, self.split = task, name, split
        self.left_out: list[str] = []  # columns and files that mean nothing to the task

    def items(self) -> Iterator[dict]:
        raise NotImplementedError

    def item(self, number: int, row: dict, folder: Path | None) -> dict:
        """An item of a row that names its files."""
        item = {"id": id_of(row, number)}
        try:
            return item | {"inputs": inputs_of(self.task, row, folder), "parameters": self.parameters(row)}
        except ItemError as error:
            return item | {"error": [error.code, error.message]}

    def parameters(self, row: dict) -> dict:
        """A column `parameters`, an object, holds what is asked for of this row alone."""
        given = row.get("parameters") or {}
        if not isinstance(given, dict):
            raise ItemError("bad_request", "`parameters` must be an object.")
        return {name: value for name, value in given.items() if value is not None}

    def note_columns(self, names) -> None:
        known = ("id", "parameters")
        self.left_out = sorted({name for name in names if name not in known and column_of(self.task, name) is None})


def id_of(row: dict, number: int) -> str:
    """What the row calls itself; its number, from 0, where it does not."""
    given = row.get("id")
    return str(number) if given is None or given == "" else writable(str(given))


def writable(text: str) -> str:
    """Text that every file takes: halves of characters, as broken names of files hold them, are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
