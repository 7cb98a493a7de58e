"""One page of what `dsr demo` shows: a card for each section, with its pictures and what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..pictures import FAINT, INK, PAPER

WIDTH, MARGIN, GAP = 1640, 28, 22
PADDING, BETWEEN, ROW_HEIGHT = 18, 8, 250
GROUND, BORDER = (243, 244, 247), (222, 224, 230)
RIGHT, WRONG = (22, 128, 60), (190, 45, 45)
TITLE = "What the tiny models see"
LINE = 1.42  # height of a line of text, in letters
PALE = 0.3  # of its darkness that a mask leaves to the rest of a picture


@dataclass
class Text:
    """A line of a card, wrapped where it is too long."""

    text: str
    colour: tuple[int, int, int] = INK
    size: int = 17


@dataclass
class Panel:
    """
    A section's part of the page.

    Args:
        title: what is shown. about: of whom, in small letters.
        rows: of pictures with their captions; those of a row are shown side by side, equally high.
        lines: below them.
    """

    title: str
    about: str = ""
    rows: list[list[tuple[str, Image.Image]]] = field(default_factory=list)
    lines: list[Text] = field(default_factory=list)


def not_trained(title: str, reason: str) -> Panel:
    """In place of a section of whose kind no trained model is carried."""
    return Panel(title, lines=[Text(f"Not shown: {reason}.", FAINT)])


def verdict(right: bool) -> tuple[str, tuple[int, int, int]]:
    """How an answer is judged, in a word and a colour."""
    return ("right", RIGHT) if right else ("wrong", WRONG)


def overview(panels: list[Panel], remark: str) -> Image.Image:
    """
    The page: two columns of cards in their order, each where there is more room; those without pictures last.

    Args:
        remark: below the heading.
    """
    width = (WIDTH - 2 * MARGIN - GAP) // 2
    columns: list[list[Image.Image]] = [[], []]
    heights = [0, 0]
    for panel in sorted(panels, key=lambda panel: not panel.rows):  # what is not shown comes last
        card = draw_card(panel, width)
        shorter = int(heights[1] < heights[0])
        columns[shorter].append(card)
        heights[shorter] += card.height + GAP
    head = 96
    page = Image.new("RGB", (WIDTH, head + max(heights) + MARGIN - GAP), GROUND)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, 22), TITLE, INK, ImageFont.load_default(32))
    pen.text((MARGIN, 64), remark, FAINT, ImageFont.load_default(16))
    for number, cards in enumerate(columns):
        top = head
        for card in cards:
            page.paste(card, (MARGIN + number * (width + GAP), top))
            top += card.height + GAP
    return page


def draw_card(panel: Panel, width: int) -> Image.Image:
    inner = width - 2 * PADDING
    blocks = [_text(Text(panel.title, INK, 22), inner)]
    if panel.about:
        blocks.append(_text(Text(panel.about, FAINT, 14), inner))
    blocks += [_row(row, inner) for row in panel.rows]
    blocks += [_text(line, inner) for line in panel.lines]
    height = sum(block.height for block in blocks) + BETWEEN * (len(blocks) - 1) + 2 * PADDING
    card = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(card).rectangle((0, 0, width - 1, height - 1), outline=BORDER)
    top = PADDING
    for block in blocks:
        card.paste(block, (PADDING, top))
        top += block.height + BETWEEN
    return card


def _text(line: Text, width: int) -> Image.Image:
    font = ImageFont.load_default(line.size)
    wrapped = _wrapped(line.text, font, width)
    block = Image.new("RGB", (width, round(LINE * line.size * len(wrapped))), PAPER)
    pen = ImageDraw.Draw(block)
    for number, part in enumerate(wrapped):
        pen.text((0, round(LINE * line.size * number)), part, line.colour, font)
    return block


def _wrapped(text: str, font, width: int) -> list[str]:
    """Lines of a text that are at most `width` pixels wide, if its words are; what indents it is kept."""
    text = "".join(letter if letter.isprintable() else " " for letter in text.replace("π³", "Pi3"))  # of the font
    first = text[: len(text) - len(text.lstrip())]
    lines = [first]
    for word in text.split():
        longer = f"{lines[-1]}{'' if lines[-1] in ('', first) else ' '}{word}"
        if font.getlength(longer) > width and lines[-1].strip():
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _row(row: list[tuple[str, Image.Image]], width: int) -> Image.Image:
    """Pictures as large as they fit, side by side under their captions."""
    font, caption = ImageFont.load_default(13), 20
    shape = sum(picture.width / picture.height for _, picture in row)
    height = min(ROW_HEIGHT, round((width - BETWEEN * (len(row) - 1)) / shape))
    block = Image.new("RGB", (width, height + caption), PAPER)
    pen, left = ImageDraw.Draw(block), 0
    for text, picture in row:
        shown = picture.convert("RGB").resize(
            (max(1, int(height * picture.width / picture.height)), height), Image.Resampling.LANCZOS
        )
        pen.text((left, 0), text, FAINT, font)
        block.paste(shown, (left, caption))
        left += shown.width + BETWEEN
    return block


def lit(picture: np.ndarray, mask: np.ndarray) -> Image.Image:
    """A picture `[H, W, 3]` uint8, pale where the mask `[H, W]` is not."""
    return Image.fromarray(np.where(mask[..., None], picture, 255 - PALE * (255.0 - picture)).astype(np.uint8))


def cloud_picture(
    points: np.ndarray, colours: np.ndarray, camera: np.ndarray, focal: float, size: tuple[int, int] = (360, 300)
) -> Image.Image:
    """
    Points as a camera sees them, the nearest in front.

    Args:
        points: `[N, 3]`. colours: uint8 `[N, 3]`. camera: camera-to-world `[4, 4]`, x right, y down, z forward.
        focal: in widths of the picture. size: width and height in pixels.
    """
    width, height = size
    seen = (points - camera[:3, 3]) @ camera[:3, :3]
    kept = seen[:, 2] > 1e-6
    seen, colours = seen[kept], colours[kept]
    pixels = (seen[:, :2] / seen[:, 2:] * focal * width + (width / 2, height / 2)).round().astype(int)
    canvas = np.full((height, width, 3), 250, np.uint8)
    order = np.argsort(-seen[:, 2], kind="stable")
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            x, y = (pixels[order] + (dx, dy)).T
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            canvas[y[inside], x[inside]] = colours[order][inside]
    return Image.fromarray(canvas)


def aside(pose: np.ndarray, target: np.ndarray, share: float = 0.3, up: float = 0.3) -> np.ndarray:
    """
    A camera that looks at `target` from the side and above of where `pose` is.

    Args:
        pose: camera-to-world `[4, 4]`. target: `[3]`. share, up: how far to go, in distances to the target.
    """
    distance = float(np.linalg.norm(target - pose[:3, 3]))
    centre = pose[:3, 3] + distance * (share * pose[:3, 0] - up * pose[:3, 1] - 0.25 * pose[:3, 2])
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross(pose[:3, 1], forward)
    right /= np.linalg.norm(right)
    camera = np.eye(4)
    camera[:3, :3] = np.column_stack([right, np.cross(forward, right), forward])
    camera[:3, 3] = centre
    return camera
