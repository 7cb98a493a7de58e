"""Files that are no pictures or videos, refused before anything large is imported."""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

# The readers of the models' package, which need neither torch nor the rest of it: importing that loads both.
_package = ModuleType("modeling_dsr_readers")
_package.__path__ = [str(Path(__file__).resolve().parents[1] / "modeling_dsr")]


def check_images(paths: Iterable[str | Path]) -> None:
    """Raise a ValueError of the first file that cannot be read as an image."""
    for problem in _reader("image_reader").unreadable_images(list(paths)).values():
        raise ValueError(problem)


def check_videos(paths: Iterable[str | Path]) -> None:
    """Raise a ValueError of the first file that holds no video."""
    for path in paths:
        _reader("video_reader").check_video(str(path))


def check_media(path: str | Path) -> None:
    """Raise a ValueError of a file that is neither an image nor, under another name than an image's, a video."""
    (check_images if _reader("image_reader").is_image_file(path) else check_videos)([path])


def list_images(folder: str | Path) -> list[Path]:
    """The images of a folder in natural order; what operating systems leave behind is not among them."""
    return _reader("image_reader").list_images(folder)[0]


def _reader(name: str) -> ModuleType:
    sys.modules.setdefault(_package.__name__, _package)
    return importlib.import_module(f"{_package.__name__}.{name}")
