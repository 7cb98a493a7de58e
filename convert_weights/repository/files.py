"""Files at the root of a repository: the models' code, and what lies beside the weights."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

from ..remote_code import code_files

ROOT = "dsr"  # the model at the root


def beside(name: str) -> Path:
    """`hub` (what lies beside the weights: handler, requirements) or `model_card.md`: the source tree's, or a
    wheel's."""
    installed = Path(__file__).with_name("beside") / name
    found = installed if installed.exists() else Path(__file__).parents[2] / name
    if not found.exists():
        raise FileNotFoundError(errno.ENOENT, "is missing: install the library by `pip install`", str(found))
    return found


def path_in_repository(name: str, file: str) -> str:
    return file if name == ROOT else f"{name}/{file}"


def beside_files() -> dict[str, Path]:
    """Files of `hub/` by their name in the repository: the endpoint's handler, the folder of its tasks, what it
    requires, the Space and its examples."""
    folder = beside("hub")
    found = [path for path in sorted(folder.glob("*")) if path.suffix in (".py", ".txt") and path.name != "__init__.py"]
    found += sorted((folder / "endpoint").glob("*.py")) + sorted((folder / "space_files").glob("*.*"))
    names = {path.relative_to(folder).as_posix(): path for path in found}
    if missing := {"handler.py", "endpoint/__init__.py", "requirements.txt"} - names.keys():
        raise FileNotFoundError(errno.ENOENT, f"lacks {sorted(missing)}: install the library whole", str(folder))
    return names


def repository_code(model_types: Iterable[str]) -> dict[str, Path]:
    """Every file of a repository of models of these types that is this library's, by name."""
    return {**code_files(model_types), **beside_files()}
