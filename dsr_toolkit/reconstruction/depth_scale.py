"""One scale of colours for the depths of all frames, with its numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modeling_dsr.pictures import heat_colours

LEFT_OUT = 200  # grey


@dataclass(frozen=True)
class DepthScale:
    """Nearness 1/z between `near` and `far`, so that what is close has the most colours; near is light."""

    near: float
    far: float

    @classmethod
    def of(cls, depths) -> DepthScale:
        """That of many maps `[h, w]`, 0 where unknown: from the 2nd to the 98th percentile of what is known."""
        known = [np.asarray(depth, float)[np.asarray(depth) > 0] for depth in depths]
        known = np.concatenate([*known, np.zeros(0)])
        if not len(known):
            return cls(1.0, 2.0)
        near, far = np.percentile(known, [2, 98])
        return cls(float(near), float(max(far, near * 1.01)))

    def level(self, depth: np.ndarray) -> np.ndarray:
        """0 (far) … 1 (near)."""
        nearness = 1 / np.maximum(np.asarray(depth, float), 1e-12)
        return np.clip((nearness - 1 / self.far) / (1 / self.near - 1 / self.far), 0, 1)

    def colours(self, depth: np.ndarray) -> np.ndarray:
        """uint8 `[h, w, 3]`; grey where `depth` is 0."""
        depth = np.asarray(depth, float)
        return np.where((depth > 0)[..., None], heat_colours(self.level(depth)), LEFT_OUT).astype(np.uint8)

    def ticks(self, count: int = 4) -> list[tuple[float, float]]:
        """(level, depth) at even steps of the colours, from far to near."""
        levels = np.linspace(0, 1, count)
        return [(float(x), 1 / (1 / self.far + x * (1 / self.near - 1 / self.far))) for x in levels]

    def labels(self, count: int = 4) -> list[tuple[float, str]]:
        """(level, depth as text) of the ticks, each with as many digits as tell it from the next."""
        levels, depths = zip(*self.ticks(count))
        steps = -np.diff(depths)
        steps = np.minimum(np.append(steps, np.inf), np.insert(steps, 0, np.inf))
        digits = np.clip(np.ceil(np.log10(depths / steps)) + 1, 3, 7).astype(int)
        return [(level, f"{depth:.{count}g}") for level, depth, count in zip(levels, depths, digits)]


def shrunk(view, side: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Image uint8 `[h, w, 3]` and trusted depth float32 `[h, w]`, 0 where there is none, with sides of at most `side`
    pixels.
    """
    from PIL import Image

    height, width = view.depth.shape
    factor = min(1.0, side / max(height, width))
    shape = max(round(height * factor), 1), max(round(width * factor), 1)
    image = np.asarray(Image.fromarray(view.image).resize(shape[::-1], Image.Resampling.LANCZOS))
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, (height, width)))
    chosen = np.ix_(rows, columns)
    return image, np.where(view.mask[chosen], view.depth[chosen], 0).astype(np.float32)
