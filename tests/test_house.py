"""The house: no file is a hall, and no two files wait for each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("modeling_dsr", "convert_weights", "dsr_toolkit", "hub")


def files_of(room: str) -> dict[str, Path]:
    """By dotted name; the copies of code that tiny models carry are links to `modeling_dsr`."""
    found = (path for path in (ROOT / room).rglob("*.py") if "assets" not in path.parts)
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in found}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def imports_of(name: str, path: Path, known) -> set[str]:
    """Files of the same room that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            place = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            place = place[: len(place) + 1 - node.level] if node.level else []
            base = ".".join([*place, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return (found & set(known)) - {name}


@pytest.mark.parametrize("room", ROOMS)
def test_no_circle_between_files(room):
    files = files_of(room)
    left = {name: imports_of(name, path, files) for name, path in files.items()}
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]
    assert not left, "each of these waits for another: " + ", ".join(sorted(left))


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_needs_a_map(room):
    assert not [str(path) for path in files_of(room).values() if len(path.read_text("utf-8").splitlines()) > 700]
