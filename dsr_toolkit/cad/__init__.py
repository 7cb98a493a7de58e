"""Generated CadQuery programs: checked, run in confinement, measured against what they should be."""

from .policy import PolicyViolation, check_program
from .sandbox import ConfinementError, Execution, Sandbox, SandboxLimits

__all__ = ["ConfinementError", "Execution", "PolicyViolation", "Sandbox", "SandboxLimits", "check_program"]
