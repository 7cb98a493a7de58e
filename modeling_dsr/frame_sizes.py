"""Sizes that the geometry models resize their frames to."""

from __future__ import annotations


def pi3_image_size(width: int, height: int, pixel_limit: int = 255000, patch_size: int = 14) -> tuple[int, int]:
    """
    (width, height) at which π³ sees an image: multiples of `patch_size` nearest to its aspect ratio below
    `pixel_limit`.

    Small images are enlarged. A side is at least one patch, for which a very long image may exceed the limit.
    """
    scale = (pixel_limit / (width * height)) ** 0.5
    columns, rows = round(width * scale / patch_size), round(height * scale / patch_size)  # half to even, as published
    while columns * rows * patch_size**2 > pixel_limit:
        if columns / rows > width / height:
            columns -= 1
        else:
            rows -= 1
    return patch_size * max(1, columns), patch_size * max(1, rows)


def page4d_image_size(
    width: int, height: int, img_size: int = 518, patch_size: int = 14, mode: str = "crop"
) -> tuple[int, int]:
    """
    (width, height) that PAGE-4D resizes an image to, before it crops or pads.

    Args:
        mode: `"crop"`: width `img_size`, height by the aspect ratio (what exceeds `img_size` is cut off later).
            `"pad"`: longer side `img_size` (the shorter one is padded later).
    """

    def multiple(side: float) -> int:
        return max(1, round(side / patch_size)) * patch_size  # half to even, as published

    if mode == "pad" and height > width:
        return multiple(width * (img_size / height)), img_size
    return img_size, multiple(height * (img_size / width))
