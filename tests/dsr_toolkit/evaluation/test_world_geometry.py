"""Errors of a clip's geometry: right of what is known, the same in any unit and frame."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dsr_toolkit.evaluation.world_geometry import (
    best_scale,
    clip_errors,
    evaluate,
    without_dual_stream,
    without_mask,
)
from dsr_toolkit.training.geometry import build_pi3, multiview_from_page4d, page4d_from_pi3
from dsr_toolkit.training.recipes.tiny.page4d import SETTINGS
from dsr_toolkit.worlds import make_world
from modeling_dsr.modeling_page4d import Page4DModel
from modeling_dsr.processing_geometry import GeometryProcessor


@pytest.fixture(scope="module")
def truth():
    sample = make_world("space", 3, frames=4, height=28, width=42, questions=0)[1]
    return {"depths": sample.depth, "poses": sample.poses, "dynamic": sample.dynamic}


def moved(truth, scale=1.0):
    """The truth in another unit and world frame."""
    angle = 0.7
    frame = np.array(
        [[np.cos(angle), -np.sin(angle), 0, 3], [np.sin(angle), np.cos(angle), 0, 1], [0, 0, 1, 2], [0, 0, 0, 1]]
    )
    poses = frame @ truth["poses"]
    poses[:, :3, 3] *= scale
    return {"depths": truth["depths"] * scale, "poses": poses}


def test_truth_in_another_unit_and_frame_has_no_error(truth):
    errors = clip_errors(moved(truth, 0.3), truth)
    assert errors["abs_rel"] < 1e-6 and errors["scale"] == pytest.approx(1 / 0.3, rel=1e-5)
    assert max(errors["rotation_errors"]) < 1e-4 and len(errors["rotation_errors"]) == 6


def test_constant_depth_is_the_best_constant(truth):
    errors = clip_errors({**moved(truth), "depths": np.full_like(truth["depths"], 7.0)}, truth)
    assert errors["abs_rel"] == pytest.approx(errors["abs_rel_constant"])
    tried = [(np.abs(c - truth["depths"]) / truth["depths"]).mean() for c in np.linspace(1, 8, 400)]
    assert errors["abs_rel_constant"] == pytest.approx(min(tried), rel=1e-3)
    assert errors["abs_rel_constant"] <= min(tried) + 1e-9


def test_best_scale_is_better_than_its_neighbours():
    generator = np.random.default_rng(0)
    found, true = generator.uniform(1, 5, 500), generator.uniform(1, 5, 500)
    error = lambda s: (np.abs(s * found - true) / true).mean()  # noqa: E731
    best = best_scale(found, true)
    assert all(error(best) <= error(best * factor) for factor in (0.9, 0.99, 0.999, 1.001, 1.01, 1.1))


def test_rotation_error_is_the_angle_between_relative_rotations(truth):
    still = clip_errors({**moved(truth), "poses": np.tile(np.eye(4), (4, 1, 1))}, truth)
    assert np.allclose(still["rotation_errors"], still["true_rotations"])
    poses = truth["poses"].copy()
    turn = np.radians(10)
    poses[2, :3, :3] = poses[2, :3, :3] @ [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    errors = clip_errors({**moved(truth), "poses": poses[:, :3]}, truth)["rotation_errors"]
    assert np.allclose(sorted(errors), [0, 0, 0, 10, 10, 10], atol=1e-4)  # three of six pairs have frame 2


@pytest.mark.parametrize("layout", ["grid", "views"])
def test_overlap_counts_patches_of_which_half_moves(truth, layout):
    patches = np.zeros((4, 2, 3))
    truth = {**truth, "dynamic": np.zeros((4, 28, 42), bool)}
    truth["dynamic"][0, :14, :14] = True  # a whole patch
    truth["dynamic"][1, :14, 14:20] = True  # 6 of 14 columns
    truth["dynamic"][2, 14:, 35:] = True  # half a patch
    patches[0, 0, 0], patches[3, 1, 1] = 0.9, 0.6
    if layout == "views":  # two times of two views, with patches in a row
        patches = patches.reshape(2, 2, 6, 1)
        truth = {name: value.reshape(2, 2, *value.shape[1:]) for name, value in truth.items()}
    errors = clip_errors({**truth, "dynamic": patches}, truth)
    assert (errors["intersection"], errors["union"]) == (1, 3)
    assert errors["abs_rel"] < 1e-9 and max(errors["rotation_errors"]) < 1e-4


class Knowing:
    """Stands where a model stands, and says the truth of the clip that it is shown, moved into a unit of its own."""

    dtype, device = torch.float32, "cpu"

    def __init__(self, world, **config):
        self.config = SimpleNamespace(model_type="pi3", **config)
        self.samples = [world[index] for index in range(2)]

    def __call__(self, pixel_values):
        shown = (pixel_values[0].movedim(-3, -1) * 255).round().to(torch.uint8).numpy()
        (sample,) = [one for one in self.samples if np.array_equal(one.images, shown)]
        depth, poses = torch.from_numpy(sample.depth * 0.2), torch.from_numpy(sample.poses)
        points = torch.stack([depth, depth, depth], -1)
        return SimpleNamespace(local_points=points[None], camera_poses=poses[None])


def test_who_knows_the_truth_makes_no_error():
    world = make_world("space", 5, difficulty="easy", questions=0)
    found = evaluate(Knowing(world), GeometryProcessor(pixel_limit=112 * 112), seed=5, count=2, frames=())
    assert (found["model_type"], found["seed"], found["count"]) == ("pi3", 5, 2)
    metrics = found["metrics"]
    assert metrics["abs_rel"] < 1e-6 and metrics["abs_rel_ratio"] > 1e5 and metrics["rotation_error_median"] < 1e-4
    assert metrics["rotation_still_median"] > 1 and set(metrics["by_frames"]) == {8}


@pytest.mark.parametrize("build", ["pi3", "page4d"])
def test_models_are_measured_at_their_size(build, tmp_path):
    torch.manual_seed(0)
    model, processor = build_pi3(32, 1, 6, 2, 32, size=28, picture_size=28)
    if build == "page4d":
        model.save_pretrained(tmp_path / "pi3")
        page4d_from_pi3({"tiny/pi3": tmp_path / "pi3"}, tmp_path / "page4d", size=28, **SETTINGS)
        model = Page4DModel.from_pretrained(tmp_path / "page4d")
        processor = GeometryProcessor.from_pretrained(tmp_path / "page4d")
    metrics = evaluate(model.eval(), processor, seed=1, count=2, frames=(2,))["metrics"]
    assert 0.3 < metrics["abs_rel_ratio"] < 1.5 and set(metrics["by_frames"]) == {2, 8}
    assert ("mask_iou" in metrics) == ("mask_off" in metrics) == (build == "page4d")


def test_streams_are_measured_without_the_mask_and_without_the_second_one(tmp_path):
    torch.manual_seed(0)
    model, _ = build_pi3(32, 1, 6, 2, 32, size=28, picture_size=28)
    model.save_pretrained(tmp_path / "pi3")
    page4d_from_pi3({"tiny/pi3": tmp_path / "pi3"}, tmp_path / "page4d", size=28, **SETTINGS)
    streams = {"enable_dual_stream": True, "dual_stream_layers": [2], "lambda_pose": 4.0, "lambda_geo_t": 2.0}
    multiview_from_page4d({"tiny/page4d": tmp_path / "page4d"}, tmp_path / "views", **streams)
    model = Page4DModel.from_pretrained(tmp_path / "views").eval()
    images = torch.rand(1, 2, 2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.multiview.geo_view_blocks[0].mlp.fc1.weight.mul_(3)  # until now both streams are copies of one trunk
        whole = model(images)
        with without_mask(model):
            unmasked = model(images)
        with without_dual_stream(model):
            alone = model(images)
        after = model(images)
        model.multiview.geo_view_blocks[0].mlp.fc1.weight.div_(3)
        with without_mask(model):
            copies = model(images)
    assert torch.equal(after.depth, whole.depth) and torch.equal(after.pose_enc, whole.pose_enc)
    assert not torch.equal(unmasked.pose_enc, whole.pose_enc) and torch.equal(unmasked.pose_enc, alone.pose_enc)
    assert not torch.equal(unmasked.depth, alone.depth) and torch.allclose(alone.depth, copies.depth, atol=1e-6)
    processor = GeometryProcessor.from_pretrained(tmp_path / "views")
    metrics = evaluate(model, processor, seed=1, count=1, frames=(2,))["metrics"]
    assert {"mask_off", "dual_stream_off", "mask_iou"} <= set(metrics) and set(metrics["by_frames"]) == {2, 4}
