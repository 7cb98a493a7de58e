"""This library's toolkit, where it is installed beside the repository."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def import_toolkit(name: str):
    """
    A module of `dsr_toolkit`.

    The repository's folder is on the path of an endpoint and of the page, and has files named like the library's
    packages: `modeling_dsr.py` there is one model's code. It is passed over.
    """
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if Path(entry or ".").resolve() != REPOSITORY]
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = path
