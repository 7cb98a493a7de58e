"""Which scenes one call reconstructs: one, the folders of a folder, or those that a manifest lists."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..media_check import list_images
from .inputs import is_multiview

MANIFESTS = (".txt", ".json", ".jsonl")


@dataclass(frozen=True)
class Scene:
    """
    Args:
        name: of its result folder; "" where it is the only scene. source: a folder of images, an image, a video, or a
            folder of synchronised views. cameras, depths: what is known beforehand, see [`read_cameras`] and
            [`read_depths`].
    """

    name: str
    source: Path
    cameras: Path | None = None
    depths: Path | None = None


def find_scenes(source: Path, cameras: Path | None = None, depths: Path | None = None) -> list[Scene]:
    """
    The scenes of `source`.

    A manifest is a text file with a path per line, or JSON: a list (or a line each) of paths or of
    `{"input": …, "name": …, "cameras": …, "depths": …}`; paths are relative to the manifest. A folder without images of
    its own stands for the folders of images, folders of synchronised views and videos in it.

    Raises:
        ValueError: nothing there, or a manifest that cannot be read.
    """
    if not source.exists():
        raise ValueError(f"there is no folder, image or video at {str(source)!r}.")
    if source.is_file() and source.suffix.lower() in MANIFESTS:
        found = _manifest(source)
    elif source.is_dir() and not is_multiview(source) and not _has_images(source):
        found = [Scene(path.stem, path) for path in sorted(source.iterdir()) if _is_scene(path)]
        if not found:
            raise ValueError(
                f"{str(source)!r} holds no image, no video and no folder of images; expected jpg, "
                "png, webp, tif or the like."
            )
    else:
        return [Scene("", source, cameras, depths)]
    if cameras or depths:
        raise ValueError("--cameras and --depths speak of one scene; for several, give them in a JSON manifest.")
    return _with_own_names(found)


def _has_images(folder: Path) -> bool:
    return bool(list_images(folder))


def _is_scene(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return is_multiview(path) or _has_images(path)
    return path.suffix.lower() in VIDEOS


VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif")


def _manifest(path: Path) -> list[Scene]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        if path.suffix == ".json":
            entries = json.loads(text)
        else:
            lines = [line.strip() for line in text.splitlines()]
            lines = [line for line in lines if line and not line.startswith("#")]
            entries = [json.loads(line) for line in lines] if path.suffix == ".jsonl" else lines
    except ValueError as error:
        raise ValueError(f"the manifest {path} is no JSON: {error}.") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"the manifest {path} lists no scene; expected a list of paths or objects with `input`.")
    scenes = []
    for number, entry in enumerate(entries, 1):
        entry = {"input": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("input"), str):
            raise ValueError(f"entry {number} of {path} must be a path or an object with `input`, got {entry!r}.")
        unknown = sorted(entry.keys() - {"input", "name", "cameras", "depths"})
        if unknown:
            raise ValueError(f"entry {number} of {path} has unknown keys {', '.join(unknown)}.")
        place = lambda name, entry=entry: path.parent / entry[name] if entry.get(name) else None  # noqa: E731
        name = str(entry.get("name") or Path(entry["input"]).stem)
        if Path(name).name != name or name in (".", ".."):
            raise ValueError(f"entry {number} of {path}: `name` must be the name of a folder, got {name!r}.")
        scenes.append(Scene(name, place("input"), place("cameras"), place("depths")))
    return scenes


def _with_own_names(scenes: list[Scene]) -> list[Scene]:
    """Names that occur twice get a number."""
    taken: set[str] = set()
    found = []
    for scene in scenes:
        name, number = scene.name, 1
        while name in taken:
            number += 1
            name = f"{scene.name}-{number}"
        taken.add(name)
        found.append(Scene(name, scene.source, scene.cameras, scene.depths))
    return found
