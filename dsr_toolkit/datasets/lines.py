"""JSON of users: errors say where."""

import json
from pathlib import Path


def parsed(text: str, where: str):
    """The content of a text in JSON; an error names `where`."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}.") from error


def read_lines(path: Path) -> list:
    """What the lines of a file hold, each as JSON; empty ones are left out."""
    # Not `splitlines`: a text may hold U+2028 or U+0085 as it is, which are no ends of lines in JSON.
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [parsed(line, f"{path.name}, line {number},") for number, line in enumerate(lines, 1) if line.strip()]
