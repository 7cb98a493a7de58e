"""The carried clip: small, rendered by the code beside it, and moving as it says."""

import numpy as np

from dsr_toolkit.demo.clip import CLIP, FRAMES, SEED, sample, write_clip
from dsr_toolkit.training import load_recipe, recipe_names
from modeling_dsr.frames import decode_video


def test_it_is_small():
    assert CLIP.stat().st_size < 200_000


def test_it_shows_what_the_code_renders(tmp_path):
    rendered, _ = decode_video(write_clip(tmp_path / "again.mp4"))
    carried, metadata = decode_video(CLIP)
    assert metadata.total_num_frames == FRAMES
    assert np.abs(rendered.astype(int) - carried).mean() < 2  # encoders differ a little


def test_the_red_ball_comes_and_the_blue_box_goes():
    truth = sample(9)
    ball, box = truth.names.index("red ball"), truth.names.index("blue box")
    distance = np.linalg.norm(truth.positions - truth.poses[:, :3, 3], axis=-1)
    assert distance[ball, -1] < 0.6 * distance[ball, 0] and distance[box, -1] > 1.25 * distance[box, 0]
    for thing in (ball, box):
        assert all((frame == thing + 1).sum() > 100 for frame in truth.instances)


def test_no_recipe_trains_on_it():
    for name in recipe_names():
        for stage in load_recipe(name).stages:
            if "GeometryClips" in str(stage.data.get("rows")):
                assert SEED not in (stage.data.get("seed"), (stage.evaluation or {}).get("seed"))
