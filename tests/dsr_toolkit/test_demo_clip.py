"""The carried clip: small, rendered by the code beside it, and moving as it says."""

import numpy as np
from PIL import Image

from convert_weights.repository.files import beside
from dsr_toolkit.demo import space_examples
from dsr_toolkit.demo.clip import CLIP, FRAMES, SEED, question, sample, write_clip
from dsr_toolkit.training import load_recipe, recipe_names
from modeling_dsr.frames import decode_video


def test_it_is_small():
    assert CLIP.stat().st_size < 200_000


def test_it_shows_what_the_code_renders(tmp_path):
    rendered, _ = decode_video(write_clip(tmp_path / "again.mp4"))
    carried, metadata = decode_video(CLIP)
    assert metadata.total_num_frames == FRAMES
    assert np.abs(rendered.astype(int) - carried).mean() < 2  # encoders differ a little


def test_the_red_ball_crosses_the_picture_and_the_cone_stands_still():
    truth = sample(9)
    ball, cone, box = (truth.names.index(name) for name in ("red ball", "cyan cone", "green box"))
    columns = [np.nonzero((frame == ball + 1).any(0))[0].mean() for frame in truth.instances]
    assert columns[0] > 95 and columns[-1] < 85
    assert np.ptp(truth.positions[cone], axis=0).max() == 0 < np.ptp(truth.positions[box], axis=0).max()
    for thing in (ball, cone, box):
        assert all((frame == thing + 1).sum() > 100 for frame in truth.instances)


def test_the_question_about_it_is_about_the_ball():
    asked = question(sample())
    assert "red ball" in asked.text and (asked.type, asked.key) == ("rel_dir", "left")


def test_the_space_shows_what_the_worlds_make(tmp_path):
    made, carried = space_examples.write(tmp_path / "made"), beside("hub") / "space_files"
    assert {path.name for path in made.iterdir()} == {path.name for path in carried.iterdir()}
    for path in made.iterdir():
        if path.suffix == ".png":
            assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(carried / path.name))), path.name
        else:
            assert path.read_bytes() == (carried / path.name).read_bytes(), path.name


def test_no_recipe_trains_on_it():
    for name in recipe_names():
        for stage in load_recipe(name).stages:
            if "GeometryClips" in str(stage.data.get("rows")):
                assert SEED not in (stage.data.get("seed"), (stage.evaluation or {}).get("seed"))
