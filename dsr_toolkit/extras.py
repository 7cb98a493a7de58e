"""`needs`, of the models' package, at once: importing that package takes seconds, and loads torch."""

import importlib.util
from pathlib import Path

_package = importlib.util.find_spec("modeling_dsr")
_spec = importlib.util.spec_from_file_location(
    "modeling_dsr_optional_libraries", Path(_package.origin).with_name("optional_libraries.py")
)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

EXTRAS, needs = _module.EXTRAS, _module.needs
