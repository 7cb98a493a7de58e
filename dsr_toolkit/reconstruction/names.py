"""Names of images in files that refer to them."""

from __future__ import annotations

import re
from pathlib import Path

# COLMAP's reader of text ends a name at the first of white space (binary files hold any); control characters and bytes
# that are no text break other readers.
UNFIT = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff/\\]")
LONGEST = 180  # bytes, of the 255 that file systems take


def plain(stem: str) -> str:
    """A name without folder and suffix as every reader takes it: "_" for what some do not, and not too long."""
    return UNFIT.sub("_", stem).encode()[:LONGEST].decode(errors="ignore")


def image_name(number: int, name: str) -> str:
    """Of the copy of the `number`th image in a model that we write: in the order of the views, different for each."""
    return f"{number:06d}-{plain(Path(name).stem)}.png"


def write_names(path: Path, images: list[tuple[str, str, float]]) -> None:
    """A table of (image, name, time): how images are called there, and were called before."""
    import csv

    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "name", "time"])
        table.writerows(images)
