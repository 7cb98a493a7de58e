"""Published checkpoints to this library: streaming conversion, verification and assembly of the Hub repository."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from .architectures.registry import ARCHITECTURES

if TYPE_CHECKING:
    from .conversion import convert
    from .report import Report
    from .repository.assembly import assemble
    from .repository.report import HubReport

# Imported when they are asked for: they bring torch and transformers, and the command line only wants its parser.
HOMES = {
    "HubReport": ".repository.report",
    "Report": ".report",
    "assemble": ".repository.assembly",
    "convert": ".conversion",
}
__all__ = ["ARCHITECTURES", "HubReport", "Report", "assemble", "convert", "verify"]


def __getattr__(name: str):
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(HOMES[name], __name__), name)


def verify(folder: str | Path, *, load: bool = True, progress: bool = True) -> list[str]:
    """
    Check what this package wrote: a converted folder ([`verify_folder`]), or a repository that `hub` assembled
    ([`verify_repository`], which also loads and runs every model unless `load` is False).

    Returns:
        What is wrong, one line each, naming file and key; empty if all is well.
    """
    from .repository.report import HUB_REPORT
    from .repository.verification import verify_repository
    from .verification import verify_folder

    if (Path(folder) / HUB_REPORT).is_file():
        return verify_repository(folder, load=load, progress=progress)
    return verify_folder(folder, progress=progress)
