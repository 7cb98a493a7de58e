"""Generated CadQuery programs: checked, run in confinement, measured against what they should be."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .answers import Execution
    from .policy import PolicyViolation, check_program
    from .rewards import reward
    from .sandbox import ConfinementError, Sandbox, SandboxLimits

# Found when asked for: a command that only looks at its arguments does not wait for numpy.
_PLACES = {
    "ConfinementError": "sandbox", "Execution": "answers", "PolicyViolation": "policy", "Sandbox": "sandbox",
    "SandboxLimits": "sandbox", "check_program": "policy", "reward": "rewards",
}  # fmt: skip

__all__ = ["ConfinementError", "Execution", "PolicyViolation", "Sandbox", "SandboxLimits", "check_program", "reward"]


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
