"""From images and video to cameras and coloured points: the models' answers as [`View`]s, in files that people open."""

from .views import View, predict

__all__ = ["View", "predict"]
