"""Synthetic worlds with exact truth, from which the tiny models learn and on which they are measured.

A world is an endless list: `make_world("space", seed=3)[7]` is its sample 7, the same on every machine, whatever was
read before. Another seed is another world; seeds that were never trained on are the held-out set. numpy alone makes
them.
"""

from __future__ import annotations

from importlib import import_module

# Name → module and class. Each module also has `contact_sheet(sample)`, a PIL picture that shows a sample.
WORLDS = {
    "space": ("space", "SpaceWorld"),
    "surround": ("surround", "SurroundWorld"),
    "parts": ("parts", "PartsWorld"),
}


def world_module(name: str):
    """The module of the world `name`, imported when first asked for."""
    if name not in WORLDS:
        raise ValueError(f"`name` must be a world, one of {', '.join(WORLDS)}; got {name!r}.")
    return import_module(f".{WORLDS[name][0]}", __name__)


def make_world(name: str, seed: int, **settings):
    """The world `name` of a seed; `settings` are its class's (frames, height, width, …)."""
    return getattr(world_module(name), WORLDS[name][1])(seed, **settings)


def contact_sheet(name: str, sample):
    """A PIL picture of a sample of the world `name`."""
    return world_module(name).contact_sheet(sample)
