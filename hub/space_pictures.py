"""What the page draws of answers."""

import numpy as np
from PIL import Image


def glowing(heat: Image.Image, frame: Image.Image) -> Image.Image:
    """A frame in grey, coloured black, red, yellow, white where heat is 0 … 255."""
    share = np.asarray(heat).astype(np.float32)[..., None] / 255
    grey = np.asarray(frame.convert("L").convert("RGB")).astype(np.float32)
    colours = 255 * (3 * share - np.arange(3)).clip(0, 1)
    weight = 0.7 * np.sqrt(share)
    return Image.fromarray((grey * (1 - weight) + colours * weight).astype(np.uint8))


def depth_picture(depth: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Inverse depth between its 2nd and 98th percentile; what is not to be trusted is dark."""
    inverse = 1 / np.maximum(np.abs(depth), 1e-6)
    low, high = np.percentile(inverse, (2, 98))
    level = ((inverse - low) / max(high - low, 1e-12)).clip(0, 1)
    return Image.fromarray((255 * level * np.where(mask, 1.0, 0.35)).astype(np.uint8))


def highlighted(answer: str | None, entries: list[dict]) -> list[tuple[str, str | None]]:
    """Pieces of an answer, phrases with their number; without an answer the phrases alone."""
    if answer is None:
        return [(entry["phrase"], str(number + 1)) for number, entry in enumerate(entries)]
    pieces, place = [], 0
    for number, entry in sorted(enumerate(entries), key=lambda item: item[1]["start"]):
        if entry["start"] < place:
            continue
        pieces += [(answer[place : entry["start"]], None), (answer[entry["start"] : entry["end"]], str(number + 1))]
        place = entry["end"]
    return [piece for piece in (*pieces, (answer[place:], None)) if piece[0]]
