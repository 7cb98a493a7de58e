"""What `dsr demo` puts beside the truth, and the page that shows it."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFont

from dsr_toolkit.demo import dsr, frozen_qwen_sam, geometry
from dsr_toolkit.demo.clip import FRAMES, question, sample
from dsr_toolkit.demo.page import Panel, Text, _wrapped, aside, cloud_picture, overview


@pytest.mark.parametrize("size", [(112, 112), (56, 84)])
def test_the_truth_is_found_to_be_true(size):
    truth = geometry.true_maps(np.array([0, 9, FRAMES - 1]), size)
    assert truth["depth"].shape == (3, *size) == truth["images"].shape[:3]
    found = {"depth": 3 * truth["depth"], "camera_to_world": truth["poses"], "dynamic": truth["dynamic"].astype(float)}
    errors = geometry.compare(found, truth)
    assert errors["abs_rel"] < 1e-6 and errors["rotation_error_median"] < 1e-3 and errors["mask_iou"] == 1
    assert errors["scale"] == pytest.approx(1 / 3) and errors["abs_rel_constant"] > 0.2


def test_true_points_are_where_the_things_are():
    """Points of the red ball's pixels, as the page draws them, lie within its radius of its centre."""
    clip = sample()
    truth = geometry.true_maps(np.array([16]), (112, 112))
    ball = clip.names.index("red ball")
    rays = np.stack(np.meshgrid(np.arange(112), np.arange(112)), -1)
    intrinsics = truth["intrinsics"][0]
    local = (rays - intrinsics[:2, 2]) / intrinsics[[0, 1], [0, 1]] * truth["depth"][0][..., None]
    points = np.concatenate([local, truth["depth"][0][..., None]], -1)[clip.instances[16] == ball + 1]
    centre = (clip.positions[ball, 16] - clip.poses[16, :3, 3]) @ clip.poses[16, :3, :3]
    distances = np.linalg.norm(points - centre, axis=-1)
    assert distances.max() < 1.05 * np.median(distances) < 1


def test_attention_is_compared_with_the_share_of_pixels():
    mask = np.zeros((2, 8, 8), bool)
    mask[:, :4, :4] = True
    assert dsr.attention_on(mask, np.ones((2, 16, 16))) == (0.25, 0.25)
    heat = np.zeros((2, 4, 4))
    heat[:, 0, 0] = 1
    assert dsr.attention_on(mask, heat) == (1.0, 0.25)


def test_what_is_said_to_be_looked_at_is_what_is_asked_about():
    truth = sample()
    for number, name in enumerate(truth.names):
        line = dsr.looked_at(truth, replace(question(truth), things=(number,)), 0.25, 0.125)
        assert line.startswith(f"The {name} covers 12.5% of the pixels and gets 25.0%")


@pytest.mark.parametrize(
    "answer, right",
    [("{true}", True), ("12 30 {true}", True), ("{false}", False), ("to the left", True), ("to the right", False)],
)
def test_an_answer_is_right_by_its_letter_or_its_words(answer, right):
    asked = question(sample())
    letters = {"true": asked.letter, "false": "BA"["AB".index(asked.letter)]}
    assert dsr.is_right(answer.format(**letters), asked) is right


def test_masks_are_compared_by_what_they_share():
    one, other = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    one[:2], other[1:3] = True, True
    assert frozen_qwen_sam.iou(one, other) == pytest.approx(1 / 3)


def test_the_nearest_point_is_seen():
    points = np.array([[0, 0, 5.0], [0, 0, 2.0], [0, 0, -3.0]])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    picture = np.asarray(cloud_picture(points, colours, np.eye(4), 1.0, (40, 30)))
    assert picture[15, 20].tolist() == [0, 255, 0]
    camera = aside(np.eye(4), np.array([0, 0, 4.0]))
    seen = (np.array([0, 0, 4.0]) - camera[:3, 3]) @ camera[:3, :3]
    assert np.allclose(seen[:2], 0, atol=1e-9) and np.allclose(camera[:3, :3] @ camera[:3, :3].T, np.eye(3))


def test_every_card_is_on_the_page_and_no_line_is_wider_than_it():
    font = ImageFont.load_default(17)
    lines = _wrapped("   a long line of words " * 20, font, 300)
    assert len(lines) > 5 and all(font.getlength(line) <= 300 for line in lines) and lines[0].startswith("   a")
    colours = [(250, 10 * number, 20) for number in range(5)]
    panels = [
        Panel(f"card {number}", "about", [[("a picture", Image.new("RGB", (112, 112), colour))]], [Text("line")])
        for number, colour in enumerate(colours)
    ]
    page = np.asarray(overview(panels, "remark"))
    assert all((page == colour).all(-1).sum() > 100 * 100 for colour in colours)
