"""Names of the files of a part."""

import os

SUFFIXES = (".step", ".stl", ".py", ".png", ".html", ".json")


def part_names(stem: str, step_suffix: str = ".step") -> list[str]:
    """Everything that is written for a part, the STEP file first."""
    return [f"{stem}{suffix}" for suffix in (step_suffix, *SUFFIXES[1:])]


def free_stem(stem: str) -> str:
    """`stem`, or `stem-2`, `stem-3`, … of which no file is there yet."""
    number, free = 1, stem
    while any(os.path.lexists(name) for name in part_names(free)):
        number += 1
        free = f"{stem}-{number}"
    return free
