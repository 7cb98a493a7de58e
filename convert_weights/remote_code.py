"""The code that ships beside the weights: `trust_remote_code=True` finds it flat at the root of the folder."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import modeling_dsr
from modeling_dsr import ARCHITECTURES

PACKAGE = Path(modeling_dsr.__file__).parent


def code_files(model_types: Iterable[str] = ARCHITECTURES) -> dict[str, Path]:
    """
    The files of `modeling_dsr` that models of these types need, by their name in the folder: those of the type's name,
    and what they import. A type that is not this library's needs none.
    """
    wanted = []
    for model_type in ARCHITECTURES.keys() & set(model_types):
        architecture = ARCHITECTURES[model_type]
        wanted += [f"configuration_{model_type}", f"modeling_{model_type}", architecture.processor.split(".")[0]]
    found = set()
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            wanted += _siblings(PACKAGE / f"{name}.py")
    return {f"{name}.py": PACKAGE / f"{name}.py" for name in sorted(found)}


@cache
def _siblings(path: Path) -> list[str]:
    """Names of the files that a file imports from its own folder, anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return [node.module for node in imports if node.module]


def copy_code(folder: Path, model_type: str) -> list[str]:
    """Copy the remote code of a model type into `folder`; returns the names."""
    files = code_files([model_type])
    for name, path in files.items():
        shutil.copyfile(path, folder / name)
    return list(files)


def check_code(folder: Path, expected: dict[str, Path]) -> list[str]:
    """What is wrong with the files of code in a folder: missing ones, and those that differ from this library's."""
    problems = []
    for name, path in expected.items():
        if not (folder / name).is_file():
            problems.append(f"{folder / name}: missing.")
        elif (folder / name).read_bytes() != path.read_bytes():
            problems.append(f"{folder / name}: differs from this library's.")
    return problems
