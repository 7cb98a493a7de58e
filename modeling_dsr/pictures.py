"""Heat maps and masks as pictures, and masks as run lengths."""

import numpy as np
import torch
from PIL import Image, ImageFont


def cell_overlap(pixels: int, cells: int) -> torch.Tensor:
    """`[pixels, cells]`: the share of each cell that falls on each pixel of the same line; columns sum to 1."""
    edges = torch.arange(pixels + 1, dtype=torch.float64) * cells / pixels
    left, right = edges[:-1, None], edges[1:, None]
    cell = torch.arange(cells, dtype=torch.float64)
    return (torch.minimum(right, cell + 1) - torch.maximum(left, cell)).clamp_min(0).float()


HEAT_COLOURS = np.array(
    [[18, 8, 60], [72, 18, 110], [135, 35, 105], [195, 60, 80], [238, 105, 50], [250, 170, 40], [252, 240, 150]], float
)


def heat_colours(level: np.ndarray) -> np.ndarray:
    """RGB in 0..255, `[..., 3]`, of levels, clipped to 0..1: dark blue, red, orange, light yellow."""
    position = np.clip(level, 0, 1) * (len(HEAT_COLOURS) - 1)
    below = np.minimum(position.astype(int), len(HEAT_COLOURS) - 2)
    fraction = (position - below)[..., None]
    return (1 - fraction) * HEAT_COLOURS[below] + fraction * HEAT_COLOURS[below + 1]


def overlay_heat(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """The picture in grey under the colours of `heat` `[H, W]` in 0..1; the more heat, the more colour."""
    grey = np.asarray(picture.convert("RGB")).astype(float).mean(-1, keepdims=True)
    level = np.clip(heat, 0, 1)
    opacity = 0.35 + 0.4 * level[..., None]
    return Image.fromarray(((1 - opacity) * grey + opacity * heat_colours(level)).astype(np.uint8))


MASK_COLOURS = (
    (230, 60, 60),
    (60, 120, 235),
    (50, 175, 90),
    (245, 160, 30),
    (160, 80, 220),
    (30, 180, 190),
    (225, 90, 170),
)


def mask_to_rle(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths of a boolean mask `[H, W]`: column by column, beginning with background."""
    flat = np.asarray(mask, bool).flatten(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(flat)]])
    counts: list[int] = list(map(int, np.diff(edges)))
    return {"size": list(mask.shape), "counts": ([0] + counts) if len(flat) and flat[0] else counts}


def rle_to_mask(rle: dict) -> np.ndarray:
    """The boolean mask `[H, W]` of uncompressed run lengths."""
    counts = rle["counts"]
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(rle["size"], order="F")


def shifted_mask(mask: np.ndarray, axis: int, step: int) -> np.ndarray:
    """`mask` moved by one pixel; what comes in from outside counts as inside, so that borders get no outline."""
    moved = np.roll(mask, step, axis)
    edge: list[slice | int] = [slice(None)] * 2
    edge[axis] = 0 if step > 0 else -1
    moved[tuple(edge)] = True
    return moved


def label_font(size: int, text: str):
    """Pillow's own font, which knows Latin letters; for other text the first common font that the system has."""
    if not text.isascii():
        for name in ("NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf", "wqy-zenhei.ttc", "Arial Unicode.ttf"):
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)
