"""The clip of `dsr demo`: a sample of the easy space world, which the tiny models know and have never seen.

Rendered by this file (`python -m dsr_toolkit.demo.clip`) and carried as `assets/demo.mp4`. What is true in it is known:
the red ball crosses the picture from right to left, the green box turns, the cyan cone stands still.
"""

from pathlib import Path

import numpy as np

from ..worlds.space import SpaceSample, SpaceWorld
from ..worlds.space.export import write_video

CLIP = Path(__file__).parents[1] / "assets" / "demo.mp4"
SEED, INDEX, ASKED = 2026, 109, "rel_dir/camera"  # no recipe trains on this seed
WIDTH, HEIGHT, FRAMES, FPS = 112, 112, 33, 16


def sample(frames: int = FRAMES) -> SpaceSample:
    """The clip with its depth, cameras, masks and questions; any number of frames spreads over the same two seconds."""
    return SpaceWorld(SEED, frames, HEIGHT, WIDTH, difficulty="easy", question_kinds=ASKED)[INDEX]


def question(truth: SpaceSample):
    """The question about the clip that the demo asks."""
    return truth.questions[0]


def render(frames: int = FRAMES) -> np.ndarray:
    """The clip as uint8 RGB `[frames, HEIGHT, WIDTH, 3]`."""
    return sample(frames).images


def write_clip(path: Path = CLIP) -> Path:
    """Encode it as H.264, which every decoder reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(sample(), path)


if __name__ == "__main__":
    print(write_clip())
