"""The carried clip: small, rendered by the code beside it, and moving as it says."""

import numpy as np

from dsr_toolkit.demo.clip import CLIP, FRAMES, render, write_clip
from modeling_dsr.frames import decode_video


def test_it_is_small():
    assert CLIP.stat().st_size < 200_000


def test_it_shows_what_the_code_renders(tmp_path):
    rendered, _ = decode_video(write_clip(tmp_path / "again.mp4"))
    carried, metadata = decode_video(CLIP)
    assert metadata.total_num_frames == FRAMES
    assert np.abs(rendered.astype(int) - carried).mean() < 2  # encoders differ a little


def test_the_red_ball_comes_and_the_blue_box_goes():
    first, last = render(2).astype(int)

    def area(frame, channel):
        others = [c for c in range(3) if c != channel]
        return (frame[..., channel] > 1.6 * frame[..., others].max(-1)).sum()

    assert area(last, 0) > 3 * area(first, 0)
    assert area(last, 2) < area(first, 2) / 3
