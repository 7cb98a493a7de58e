"""Published checkpoints to this library: streaming conversion, verification and assembly of the Hub repository."""

from pathlib import Path

from .architectures.registry import ARCHITECTURES
from .conversion import convert
from .report import Report
from .repository.assembly import assemble
from .repository.report import HUB_REPORT, HubReport
from .repository.verification import verify_repository
from .verification import verify_folder

__all__ = ["ARCHITECTURES", "HubReport", "Report", "assemble", "convert", "verify"]


def verify(folder: str | Path, *, load: bool = True, progress: bool = True) -> list[str]:
    """
    Check what this package wrote: a converted folder ([`verify_folder`]), or a repository that `hub` assembled
    ([`verify_repository`], which also loads and runs every model unless `load` is False).

    Returns:
        What is wrong, one line each, naming file and key; empty if all is well.
    """
    if (Path(folder) / HUB_REPORT).is_file():
        return verify_repository(folder, load=load, progress=progress)
    return verify_folder(folder, progress=progress)
