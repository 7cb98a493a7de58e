"""Published checkpoints to this library: streaming conversion, verification and assembly of the Hub repository."""

from .conversion import convert
from .hub import HubReport, assemble
from .registry import ARCHITECTURES
from .report import Report
from .verification import verify

__all__ = ["ARCHITECTURES", "HubReport", "Report", "assemble", "convert", "verify"]
