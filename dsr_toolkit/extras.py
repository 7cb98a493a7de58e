"""`needs`, of the models' package, at once: importing that package takes seconds, and loads torch."""

import importlib.util
from pathlib import Path

_package = importlib.util.find_spec("modeling_dsr")
assert _package and _package.origin, "the library is installed in part: modeling_dsr is missing"
_file = Path(_package.origin).with_name("optional_libraries.py")
_spec = importlib.util.spec_from_file_location("modeling_dsr_optional_libraries", _file)
assert _spec and _spec.loader
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

EXTRAS, needs = _module.EXTRAS, _module.needs
