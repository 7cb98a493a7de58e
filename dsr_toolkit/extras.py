"""`needs`, of the models' package beside this one, at once: importing that package takes seconds, and loads torch."""

import importlib.util
from pathlib import Path

_file = Path(__file__).resolve().parents[1] / "modeling_dsr" / "optional_libraries.py"
_spec = importlib.util.spec_from_file_location("modeling_dsr_optional_libraries", _file)
assert _spec and _spec.loader
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

EXTRAS, needs = _module.EXTRAS, _module.needs
