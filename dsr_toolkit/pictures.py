"""Pictures of what a model looked at, drawn with Pillow alone."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from modeling_dsr.pictures import heat_colours, overlay_heat

PAPER, INK, FAINT = (255, 255, 255), (25, 25, 30), (110, 110, 118)
# Dark violet to light yellow, rising evenly in brightness, so that it also reads in grey and to the colour-blind.
WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "DejaVuSans.ttf")
MARGIN, GAP, CELL_WIDTH, MAX_COLUMNS, MAX_FRAMES = 24, 10, 300, 4, 16


def attention_sheet(
    frames: np.ndarray,
    heat: np.ndarray,
    per_token: np.ndarray,
    labels: list[str],
    title: str,
    lines: Sequence[str] = (),
) -> Image.Image:
    """
    A contact sheet of frames under the attention they received, and, where there are several, below it the share of
    every token in every frame.

    Args:
        frames: uint8 RGB `[T, H, W, 3]`.
        heat: `[T, H, W]`, attention of each pixel; scaled here so that all together sum to 1.
        per_token: `[K, T]`, the attention of each token to each frame; scaled here so that each row sums to 1.
        labels: a caption for each frame, such as its time.
        title: the heading.
        lines: further text below the heading; long lines are wrapped.

    Returns:
        An RGB image. Colours run from the 1st to the 99.5th percentile of the pixels and are labelled as multiples of
        the even share, 1 / (T·H·W).
    """
    density = heat * (heat.size / heat.sum())  # 1 where attention is spread evenly
    low, high = np.percentile(density, [1, 99.5])
    shown = np.unique(np.round(np.linspace(0, len(frames) - 1, min(len(frames), MAX_FRAMES))).astype(int))
    columns = min(MAX_COLUMNS, len(shown))
    cell_height = round(CELL_WIDTH * frames.shape[1] / frames.shape[2])
    width = max(2 * MARGIN + columns * CELL_WIDTH + (columns - 1) * GAP, 2 * MARGIN + 2 * CELL_WIDTH + GAP)

    blocks = [_text_block(title, width, 24)]
    blocks += [_text_block(line, width, 15, FAINT) for line in lines]
    if len(shown) < len(frames):
        blocks.append(_text_block(f"{len(shown)} of {len(frames)} frames are shown.", width, 15, FAINT))
    for start in range(0, len(shown), columns):
        row = Image.new("RGB", (width, cell_height + 24 + GAP), PAPER)
        for column, index in enumerate(shown[start : start + columns]):
            left = MARGIN + column * (CELL_WIDTH + GAP)
            cell = overlay(frames[index], density[index], low, high).resize(
                (CELL_WIDTH, cell_height), Image.Resampling.LANCZOS
            )
            row.paste(cell, (left, 22))
            ImageDraw.Draw(row).text((left, 2), labels[index], INK, _font(15))
        blocks.append(row)
    blocks.append(_scale_block(low, high, "attention per pixel, as a multiple of the even share", width))
    if len(frames) > 1:  # one frame has all of every token
        blocks.append(_token_block(per_token, labels, width))

    sheet = Image.new("RGB", (width, sum(block.height for block in blocks) + 2 * MARGIN), PAPER)
    top = MARGIN
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def shrink(frames, width: int = 2 * CELL_WIDTH) -> np.ndarray:
    """Frames (arrays `[H, W, 3]` or PIL images) at most `width` wide, all a sheet can show: uint8 `[T, H', W', 3]`."""
    images = [frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for frame in frames]
    height = max(1, round(images[0].height * width / images[0].width))
    if images[0].width > width:
        images = [image.resize((width, height), Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image) for image in images])


def overlay(frame: np.ndarray, values: np.ndarray, low: float, high: float) -> Image.Image:
    """A grey frame under the colours of `values` `[H, W]`; the higher the value, the more colour."""
    return overlay_heat(Image.fromarray(frame), (values - low) / max(high - low, 1e-12))


def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which knows Latin letters; for other text the first common font that the system has."""
    if not text.isascii():
        for name in WIDE_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def _text_block(text: str, width: int, size: int, colour=INK) -> Image.Image:
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    font = _font(size, text)
    letters = int((width - 2 * MARGIN) / max(font.getlength("n"), 1))
    text = "\n".join(textwrap.wrap(text, letters)) or " "
    height = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font=font)[3]
    block = Image.new("RGB", (width, round(height + size * 0.5)), PAPER)
    ImageDraw.Draw(block).multiline_text((MARGIN, 0), text, colour, font)
    return block


def _scale_block(low: float, high: float, caption: str, width: int) -> Image.Image:
    """A horizontal colour bar with its numbers and a caption."""
    bar_width = width - 2 * MARGIN
    block = Image.new("RGB", (width, 76), PAPER)
    ramp = heat_colours(np.linspace(0, 1, bar_width))[None].repeat(14, axis=0)
    block.paste(Image.fromarray(ramp.astype(np.uint8)), (MARGIN, 26))
    draw, font = ImageDraw.Draw(block), _font(14)
    draw.text((MARGIN, 4), caption, INK, font)
    digits = max(2, 1 - int(np.floor(np.log10(max(high - low, 1e-6)))))
    for fraction, anchor in ((0, "la"), (0.5, "ma"), (1, "ra")):
        number = f"{low + fraction * (high - low):.{digits}f}x"
        draw.text((MARGIN + fraction * bar_width, 43), number, INK, font, anchor)
    return block


def _token_block(per_token: np.ndarray, labels: list[str], width: int) -> Image.Image:
    """One row per token, one column per frame; colours as multiples of the even share of a frame."""
    tokens, frames = per_token.shape
    relative = per_token * (frames / per_token.sum(1, keepdims=True))
    low, high = float(relative.min()), float(relative.max())
    left, cell_height = MARGIN + 30, 9
    cells = heat_colours((relative - low) / max(high - low, 1e-12)).astype(np.uint8)
    strip = Image.fromarray(cells).resize((width - left - MARGIN, tokens * cell_height), Image.Resampling.NEAREST)
    block = Image.new("RGB", (width, strip.height + 50), PAPER)
    block.paste(strip, (left, 26))
    draw, font = ImageDraw.Draw(block), _font(14)
    draw.text((MARGIN, 4), f"each geometry token (rows, 1 to {tokens}) over the frames (columns)", INK, font)
    for token in {0, tokens - 1}:
        draw.text((left - 6, 26 + (token + 0.5) * cell_height), str(token + 1), FAINT, font, "rm")
    for index, anchor in ((0, "la"), (frames // 2, "ma"), (frames - 1, "ra")):
        x = left + (index + {"la": 0, "ma": 0.5, "ra": 1}[anchor]) * strip.width / frames
        draw.text((x, 26 + strip.height + 3), labels[index], FAINT, font, anchor)
    scale = _scale_block(low, high, "attention per frame, as a multiple of the even share", width)
    both = Image.new("RGB", (width, block.height + scale.height), PAPER)
    both.paste(block, (0, 0))
    both.paste(scale, (0, block.height))
    return both
