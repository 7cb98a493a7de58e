"""Metrics on cases whose value is known; the recorded numbers of the published code are compared by `tests.parity`."""

import numpy as np
import pytest
import torch

from dsr_toolkit.evaluation.geometry_metrics import (
    ALIGNMENTS,
    average_depth_metrics,
    depth_metrics,
    evaluation_frames,
    fit_depth,
    trajectory_metrics,
)


@pytest.fixture
def truth():
    return 1 + 4 * torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("align", [name for name in ALIGNMENTS if name != "metric"])
def test_a_scaled_truth_has_no_error(truth, align):
    found = depth_metrics(truth / 3, truth, align)
    assert found["abs_rel"] < 1e-3 and found["rmse"] < 1e-2 and found["delta_1"] == 1.0
    assert found["valid_pixels"] == truth.numel()


@pytest.mark.parametrize("size", [(392, 518), (518, 294)])
def test_evaluation_frames_are_the_same_on_any_number_of_threads_and_in_any_layout(size):
    """PyTorch's own kernels differ in the last digit between one thread and several, and between layouts."""
    frames = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    layouts = (frames, frames.contiguous(memory_format=torch.channels_last))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found += [evaluation_frames(layout) for layout in layouts]
        published = torch.nn.functional.interpolate(frames, size=(518, 518), mode="bilinear")  # on two threads
    finally:
        torch.set_num_threads(before)
    for one in found:
        torch.testing.assert_close(one, published, rtol=0, atol=0)


def test_metric_depth_is_taken_as_it_is(truth):
    found = depth_metrics(1.5 * truth, truth, "metric")
    assert found["abs_rel"] == pytest.approx(0.5, abs=1e-6)
    assert (found["delta_1"], found["delta_2"]) == (0.0, 1.0)  # 1.25 < 1.5 < 1.25²


def test_least_squares_finds_scale_and_shift(truth):
    assert fit_depth(2 * truth.flatten() - 1, truth.flatten(), "lstsq") == pytest.approx((0.5, 0.5), abs=1e-5)


def test_the_scale_fit_ignores_outliers(truth):
    prediction = truth.flatten() / 2
    prediction[::20] *= 2
    assert fit_depth(prediction, truth.flatten(), "scale")[0] == pytest.approx(2.0, rel=1e-2)


def test_depth_out_of_range_does_not_count(truth):
    prediction = truth.clone()
    truth[0] = -1
    truth[1] = 80
    assert depth_metrics(prediction, truth, "metric")["valid_pixels"] == truth[2].numel()
    assert depth_metrics(prediction, truth, "metric", max_depth=None)["valid_pixels"] == truth[1:].numel()


def test_clipping_cuts_aligned_predictions(truth):
    found = depth_metrics(torch.full_like(truth, 60.0), truth, "metric", clip_max=5.0)
    assert found["rmse"] == pytest.approx((5 - truth).square().mean().sqrt().item(), rel=1e-5)


def test_averages_weigh_pixels():
    one, two = {"abs_rel": 0.1, "valid_pixels": 100.0}, {"abs_rel": 0.4, "valid_pixels": 300.0}
    assert average_depth_metrics([one, two]) == {"abs_rel": pytest.approx(0.325), "valid_pixels": 400.0}


def test_wrong_shapes_and_empty_truth_are_refused(truth):
    with pytest.raises(ValueError, match="one shape"):
        depth_metrics(truth[0], truth)
    with pytest.raises(ValueError, match="holds no depth"):
        depth_metrics(truth, -truth)
    with pytest.raises(ValueError, match="`align` must be one of"):
        depth_metrics(truth, truth, "mean")


def test_evaluation_squashes_frames():
    frames = torch.rand(2, 3, 28, 56)
    squashed = evaluation_frames(frames, 42)
    assert squashed.shape == (2, 3, 42, 42)
    assert squashed.mean() == pytest.approx(frames.mean().item(), abs=1e-2)


def helix(count=12):
    angles = np.linspace(0, 3, count)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(angles)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(angles), -np.sin(angles)
    poses[:, :3, 3] = np.stack([np.cos(angles), np.sin(angles), 0.3 * angles], -1)
    return poses


def test_trajectories_that_differ_by_a_similarity_agree():
    pytest.importorskip("evo")
    truth = helix()
    moved = truth.copy()
    moved[:, :3, 3] = 2.5 * truth[:, :3, 3] @ truth[4, :3, :3].T + [1, 2, 3]
    moved[:, :3, :3] = truth[4, :3, :3] @ truth[:, :3, :3]
    assert trajectory_metrics(moved, truth) == pytest.approx({"ate": 0, "rpe_trans": 0, "rpe_rot": 0}, abs=1e-5)


def test_trajectory_errors_grow_with_noise():
    pytest.importorskip("evo")
    truth, noisy = helix(), helix()
    noisy[:, :3, 3] += 0.05 * np.random.default_rng(0).standard_normal((12, 3))
    found = trajectory_metrics(noisy, truth)
    assert 0.02 < found["ate"] < 0.15 and found["rpe_rot"] < 5


def test_trajectories_of_different_length_need_times():
    pytest.importorskip("evo")
    truth = helix()
    with pytest.raises(ValueError, match="pass `timestamps`"):
        trajectory_metrics(truth[::2], truth)
    times = np.arange(12.0)
    assert trajectory_metrics(truth[::2], truth, times[::2], times)["ate"] < 1e-6
