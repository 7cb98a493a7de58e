"""What a reconstruction starts from: images, a folder, a video, or synchronised views in `time_XX/viewY` folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..console import say

TIME_FOLDER, VIEW_FILE = re.compile(r"time_?(\d+)", re.I), re.compile(r"view_?(\d+)\.\w+", re.I)


def check_readable(source) -> None:
    """
    Before the work: every image of a [`FrameSource`] can be read. Says which files of a folder are left out.

    Raises:
        ValueError: names all that cannot be read at once.
    """
    from modeling_dsr.image_reader import unreadable_images

    if source.left_out:
        say(f"Left out, since they are no images: {', '.join(path.name for path in source.left_out)}.")
    files = [item for item in source.items or () if isinstance(item, (str, Path))]
    if problems := unreadable_images(files):
        told = "\n".join(f"  {Path(name).name}: {problem}" for name, problem in problems.items())
        raise ValueError(f"{len(problems)} of {len(files)} images cannot be read; mend them or take them out:\n{told}")


def is_multiview(source: Path) -> bool:
    return source.is_dir() and any(path.is_dir() and TIME_FOLDER.fullmatch(path.name) for path in source.iterdir())


def multiview_files(source: Path) -> dict[str, list[Path]]:
    """
    Image files by time, each time's in the order of the views.

    Raises:
        ValueError: a time without views, or times that do not have the same views.
    """
    from modeling_dsr.image_reader import list_images

    numbered = lambda paths, pattern: sorted(  # noqa: E731
        (int(match[1]), path) for path in paths if (match := pattern.fullmatch(path.name))
    )
    images = lambda folder: list_images(folder)[0]  # noqa: E731
    times = numbered((path for path in source.iterdir() if path.is_dir()), TIME_FOLDER)
    found = {folder.name: numbered(images(folder), VIEW_FILE) for _, folder in times}
    first = next(iter(found))
    expected = [number for number, _ in found[first]]
    for name, views in found.items():
        if not views or [number for number, _ in views] != expected:
            raise ValueError(
                f"{source / name} holds the views {[number for number, _ in views]} and {first} {expected}; each time "
                "needs the same views, as view0.png, view1.png and so on. Add the missing images or take the folder "
                "out."
            )
    return {name: [path for _, path in views] for name, views in found.items()}


def multiview_frames(times: dict[str, list[Path]]) -> Iterator:
    """The frames of [`multiview_files`], time by time; `time` counts the times."""
    from modeling_dsr.frames import Frame, read_frames

    for number, (name, files) in enumerate(times.items()):
        for path in files:
            (frame,) = read_frames([path])
            yield Frame(frame.image, f"{name}_{frame.name}", float(number))
