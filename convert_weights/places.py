"""Where a checkpoint lies: a path, or a repository on the Hub. Read by the command line, so without torch."""

from __future__ import annotations

import re
from pathlib import Path

PICKLES = (".pth", ".pt", ".bin")
HUB_ID = re.compile(r"(?P<kind>datasets/)?(?P<repo>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<path>.+))?")


def place_of(name: str, location: str | Path) -> tuple[Path, str | None, re.Match | None]:
    """
    The path of a source called `name`, the entry of its file that is meant (behind a `#`), and, where there is no such
    path, the parts of a Hub id.

    Raises:
        FileNotFoundError: it is neither.
    """
    location = str(location)
    path, entry = Path(location).expanduser(), None
    if not _exists(path) and "#" in location:
        location, entry = location.rsplit("#", 1)
        path = Path(location).expanduser()
    if _exists(path):
        return path, entry, None
    hub_id = HUB_ID.fullmatch(location)
    if not hub_id:
        raise FileNotFoundError(f"Source `{name}`: {path} does not exist and is no Hub id of the form OWNER/NAME.")
    return path, entry, hub_id


def check_suffix(path: Path) -> None:
    """
    Raises:
        ValueError: the name of a file is none of a checkpoint's.
    """
    if path.suffix not in (".safetensors", *PICKLES, ".json"):
        raise ValueError(f"{path}: expected a .safetensors, {', '.join(PICKLES)} or .json file.")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False
