"""From images and video to cameras and coloured points: the models' answers as [`View`]s, in files that people open."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .views import View, predict

__all__ = ["View", "predict"]


def __getattr__(name: str):
    """Imported when they are asked for: they bring NumPy and Pillow, and the command line only wants names."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from . import views

    return getattr(views, name)
