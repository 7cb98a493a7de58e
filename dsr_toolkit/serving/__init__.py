"""The endpoint's handler behind HTTP: a queue that batches requests, and the application around it."""

import importlib.util
import sys
from pathlib import Path

ENDPOINT = Path(__file__).parents[2] / "hub" / "endpoint"


def handler_module():
    """The package `hub/endpoint`, which also lies in every repository, as a module."""
    name = "dsr_endpoint"
    if name not in sys.modules:
        entry = ENDPOINT / "__init__.py"
        if not entry.is_file():
            raise ImportError(f"{entry} is missing: install the library with `pip install -e .`, or a wheel of it.")
        spec = importlib.util.spec_from_file_location(name, entry, submodule_search_locations=[str(ENDPOINT)])
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]
