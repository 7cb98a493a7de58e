"""Errors of a clip's geometry: right of what is known, the same in any unit and frame."""

import numpy as np
import pytest

from dsr_toolkit.evaluation.world_geometry import best_scale, clip_errors
from dsr_toolkit.worlds import make_world


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
