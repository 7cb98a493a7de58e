"""Pictures of attention: colours mean what the scale says, and everything fits on the sheet."""

import numpy as np
import pytest

from dsr_toolkit.pictures import CELL_WIDTH, MARGIN, attention_sheet, overlay, shrink
from modeling_dsr.pictures import HEAT_COLOURS, heat_colours


def sheet(frames=6, height=40, width=60, heat=None, tokens=5, **changes):
    heat = np.ones((frames, height, width)) if heat is None else heat
    arguments = dict(
        frames=np.full((frames, height, width, 3), 128, np.uint8),
        heat=heat,
        per_token=np.ones((tokens, frames)),
        labels=[f"{i} s" for i in range(frames)],
        title="Title",
    )
    return np.asarray(attention_sheet(**(arguments | changes)))


def test_colours_run_over_the_whole_scale_and_brighten():
    colours = heat_colours(np.linspace(0, 1, 101))
    assert np.array_equal(colours[[0, -1]], HEAT_COLOURS[[0, -1]])
    brightness = colours @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) > 0).all()


def test_high_values_are_bright():
    values = np.zeros((10, 20))
    values[:, 10:] = 1
    picture = np.asarray(overlay(np.full((10, 20, 3), 100, np.uint8), values, 0, 1)).mean((0, 2))
    assert picture[15] > picture[5] + 50


def test_a_hot_frame_stands_out_on_the_sheet():
    heat = np.ones((4, 40, 60))
    heat[2] = 3
    picture = sheet(frames=4, heat=heat / heat.sum())
    plain = sheet(frames=4)
    changed = np.abs(picture.astype(int) - plain).sum(-1)
    columns = [changed[:, MARGIN + i * (CELL_WIDTH + 10) :][:, :CELL_WIDTH] for i in range(4)]
    row = slice(70, 70 + 150)  # inside the frames' row
    assert columns[2][row].mean() > 5 * max(columns[i][row].mean() for i in (0, 1)) + 10


def test_scale_of_the_attention_does_not_matter():
    heat = np.random.default_rng(0).random((6, 40, 60))
    assert np.array_equal(sheet(heat=heat), sheet(heat=heat / 7))


@pytest.mark.parametrize("frames", [1, 2, 5, 16, 40])
def test_any_number_of_frames(frames):
    assert sheet(frames=frames).shape[1] >= 2 * MARGIN + 2 * CELL_WIDTH


def test_a_single_frame_has_no_shares_between_frames():
    assert sheet(frames=2, tokens=32).shape[0] > sheet(frames=1, tokens=32).shape[0] + 32 * 9


def test_even_attention_is_drawn_without_division_by_zero():
    with np.errstate(all="raise"):
        assert sheet().std() > 0


def test_long_and_foreign_lines_are_wrapped():
    one, many = sheet(lines=["short"]), sheet(lines=["a long answer " * 40])
    assert many.shape[1] == one.shape[1] and many.shape[0] > one.shape[0] + 30
    sheet(lines=["日本語の質問", "control \x10\x00 characters", ""])


def test_large_frames_are_shrunk():
    assert shrink(np.zeros((2, 900, 1800, 3), np.uint8)).shape == (2, CELL_WIDTH, 2 * CELL_WIDTH, 3)
    assert shrink(np.zeros((2, 30, 40, 3), np.uint8)).shape == (2, 30, 40, 3)
