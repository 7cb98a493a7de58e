"""The endpoint's handler behind HTTP: a queue that batches requests, and the application around it."""

import importlib.util
import sys


def handler_module():
    """The package `hub/endpoint`, which also lies in every repository, as a module."""
    name = "dsr_endpoint"
    if name not in sys.modules:
        from convert_weights.repository.files import beside

        folder = beside("hub") / "endpoint"
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]
