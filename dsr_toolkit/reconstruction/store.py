"""Predicted windows on disk, so that they need not fit into memory and an interrupted run can go on."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..console import say
from .views import View


def readable_size(count: float) -> str:
    """Bytes as people write them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            break
        count /= 1000
    else:
        unit = "TB"
    return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"


class WindowStore:
    """
    A folder of windows. Each is named after its number and the content of its frames, so that what was predicted for
    the very same frames is found again and nothing else is.

    Args:
        windows: how many there will be, where known; after the first, the size of all is told.
    """

    def __init__(self, folder: Path, windows: int | None = None):
        self.folder, self.windows, self.told = folder, windows, False
        folder.mkdir(parents=True, exist_ok=True)

    def remember(self, label: str, predict: Callable[[list], list[View]], frames: list) -> tuple[str, list[View]]:
        """Name and views of a window: from disk, or of `predict`, which disk then keeps."""
        name = f"{label}-{content_of(frames)}"
        if (self.folder / name).is_dir():
            return name, self.read(name)
        views = predict(frames)
        beside = self.folder / f"{name}.partial"
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            for number, view in enumerate(views):
                view.save(beside / f"{number:06d}.npz")
            os.rename(beside, self.folder / name)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                errno.ENOSPC,
                f"the disk is full: the windows predicted so far, which are kept until the run ends, take "
                f"{readable_size(self.size())} in {self.folder}. Make room and start again, and the run goes on from "
                "there, or write to another disk with -o",
            ) from error
        self._tell(name)
        return name, views

    def read(self, name: str) -> list[View]:
        return [View.load(path) for path in sorted((self.folder / name).glob("*.npz"))]

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def _tell(self, name: str) -> None:
        """How much disk all windows will take, once one is there."""
        if self.told or not self.windows or self.windows < 2:
            return
        self.told = True
        one = sum(path.stat().st_size for path in (self.folder / name).iterdir())
        free = shutil.disk_usage(self.folder).free
        say(
            f"Until the run ends, {self.windows} windows are kept in {self.folder}: about "
            f"{readable_size(one * self.windows)}, of {readable_size(free)} free."
        )
        if one * (self.windows - 1) > free:
            say("That is more than the disk has left: the run will stop before its end.")


def content_of(frames: list) -> str:
    """Tells frames from others by their pixels, names and times."""
    digest = hashlib.blake2b(digest_size=8)
    for frame in frames:
        pixels = np.ascontiguousarray(np.asarray(frame.image))
        digest.update(f"{frame.name}\0{frame.time!r}\0{pixels.shape}\0".encode())
        digest.update(pixels.data)
    return digest.hexdigest()
