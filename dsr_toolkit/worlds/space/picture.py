"""A page that shows a clip of the space world and what is true of it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from modeling_dsr.pictures import heat_colours

from ...pictures import FAINT, GAP, INK, MARGIN, PAPER, _font, _text_block
from .scene import COLOURS

CELL, PLAN, SHOWN = 168, 260, 6
DIM = 0.35  # brightness of what a mask leaves out


def contact_sheet(sample) -> Image.Image:
    """
    Frames, depth, the mask of what moves, the paths seen from above, and the questions with their answers.

    Args:
        sample: a `SpaceSample`. Of several views, each gets its rows.
    """
    moments = np.unique(np.linspace(0, len(sample.images) - 1, min(SHOWN, len(sample.images))).round().astype(int))
    width = 2 * MARGIN + len(moments) * CELL + (len(moments) - 1) * GAP
    width = max(width, 2 * MARGIN + PLAN + 420)
    blocks = [
        _text_block(f"The space world, seed {sample.seed}, sample {sample.index}", width, 22),
        _text_block("; ".join(map(_describe, sample.scene.things)) + ".", width, 14, FAINT),
    ]
    several = sample.images.ndim == 5
    for view in range(sample.images.shape[1] if several else 1):
        pick = (lambda values, view=view: values[:, view]) if several else (lambda values: values)
        images, depth, dynamic = pick(sample.images), pick(sample.depth), pick(sample.dynamic)
        near, far = np.percentile(depth, [1, 99])
        shade = heat_colours(1 - np.clip((np.log(depth / near)) / np.log(far / near), 0, 1)).astype(np.uint8)
        moving = np.where(dynamic[..., None], images, (255 - DIM * (255 - images.astype(float)))).astype(np.uint8)
        name = f"camera {view + 1}: " if several else ""
        for title, pictures in (
            (f"{name}frames", images),
            (f"depth, {near:.1f} m (light) to {far:.1f} m (dark)", shade),
            ("what moves or turns", moving),
        ):
            blocks.append(_row(title, [pictures[moment] for moment in moments], sample.times[moments], width))
    blocks.append(_plan_and_questions(sample, width))
    page = Image.new("RGB", (width, sum(block.height for block in blocks) + 2 * MARGIN), PAPER)
    top = MARGIN
    for block in blocks:
        page.paste(block, (0, top))
        top += block.height
    return page


def _describe(thing) -> str:
    does = [word for word, true in (("moves", thing.moves), ("turns", thing.turns), ("floats", thing.floats)) if true]
    return f"the {thing.name} {' and '.join(does) if does else 'stands still'}"


def _row(title: str, pictures, times, width: int) -> Image.Image:
    height = round(CELL * pictures[0].shape[0] / pictures[0].shape[1])
    top = 42
    row = Image.new("RGB", (width, height + top + GAP), PAPER)
    draw = ImageDraw.Draw(row)
    draw.text((MARGIN, 4), title, INK, _font(14))
    for column, (picture, time) in enumerate(zip(pictures, times)):
        left = MARGIN + column * (CELL + GAP)
        row.paste(Image.fromarray(np.ascontiguousarray(picture)).resize((CELL, height), Image.BICUBIC), (left, top))
        draw.text((left, top - 18), f"{time:.1f} s", FAINT, _font(13))
    return row


def _plan_and_questions(sample, width: int) -> Image.Image:
    """The room from above, with the paths of things and cameras; beside it the questions, the right answers marked."""
    plan = _plan(sample)
    texts = []
    for question in sample.questions:
        texts.append((f"{question.type}, {question.viewer}", FAINT, 12))
        texts.append((question.text, INK, 16))
        for number, option in enumerate(question.options):
            right = number == question.answer
            texts.append((f"   {'ABCD'[number]}  {option}{'   (true)' if right else ''}", INK if right else FAINT, 15))
        texts.append((question.phrase, (30, 110, 60), 15))
    column = width - PLAN - 2 * MARGIN
    blocks = [_text_block(text, column + MARGIN, size, colour) for text, colour, size in texts]
    block = Image.new("RGB", (width, max(PLAN + 30, sum(b.height for b in blocks) + 24)), PAPER)
    block.paste(plan, (MARGIN, 24))
    ImageDraw.Draw(block).text((MARGIN, 4), "From above: paths, places and fronts at the end", INK, _font(14))
    top = 24
    for one in blocks:
        block.paste(one, (MARGIN + PLAN, top))
        top += one.height
    return block


def _plan(sample) -> Image.Image:
    scale = 4  # drawn larger, for smooth lines
    plan = Image.new("RGB", (PLAN * scale, PLAN * scale), (246, 246, 244))
    draw = ImageDraw.Draw(plan)
    room = sample.scene.room
    unit = PLAN * scale * 0.47 / room.max()
    place = lambda point: (PLAN * scale / 2 + point[0] * unit, PLAN * scale / 2 - point[1] * unit)  # noqa: E731
    draw.rectangle(
        [place((-room[0], room[1])), place((room[0], -room[1]))], fill="white", outline=(170, 170, 170), width=6
    )
    poses = sample.poses.reshape(len(sample.poses), -1, 4, 4)
    for view in range(poses.shape[1]):
        draw.line([place(pose[:2, 3]) for pose in poses[:, view]], fill=(120, 120, 120), width=8)
        eye, half = poses[-1, view], np.tan(sample.scene.cameras[view].field_of_view / 2)
        edges = [eye[:3, 3] + 1.2 * (eye[:3, 2] + side * half * eye[:3, 0]) for side in (-1, 1)]
        draw.polygon([place(eye[:2, 3]), *map(place, edges)], outline=(120, 120, 120), width=6)
    for thing, path, rotation in zip(sample.scene.things, sample.positions, sample.rotations):
        colour = COLOURS[thing.colour]
        draw.line([place(point) for point in path], fill=colour, width=10)
        x, y = place(path[-1])
        r = thing.radius * unit
        draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)
        tip = path[-1] + 1.6 * thing.radius * rotation[-1, :, 0]
        draw.line([(x, y), place(tip)], fill=(40, 40, 40), width=6)
    return plan.resize((PLAN, PLAN), Image.LANCZOS)
