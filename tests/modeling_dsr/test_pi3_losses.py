"""Training losses of π³ and Pi3X against their formulas, written out number by number."""

import math

import pytest
import torch

from modeling_dsr.pi3_losses import Pi3Targets, align, optimal_scale, pair_losses, pi3_loss, pi3x_loss
from tests.modeling_dsr.pi3_samples import poses, targets, tiny_config


def example(batch: int = 2, frames: int = 3):
    """(predictions, targets): the truth, disturbed."""
    true = targets(batch, frames)
    target = Pi3Targets(true["target_points"], true["target_camera_poses"], true["target_valid"])
    generator = torch.Generator().manual_seed(5)
    inverse = torch.linalg.inv(target.camera_poses)
    rotation, translation = inverse[..., None, None, :3, :3], inverse[..., None, None, :3, 3]
    local = (rotation @ target.points.unsqueeze(-1)).squeeze(-1) + translation
    local = 1.7 * local * (1 + 0.05 * torch.randn(local.shape, generator=generator))
    camera_poses = target.camera_poses.clone()
    camera_poses[..., :3, 3] = 1.7 * camera_poses[..., :3, 3] + 0.1 * torch.randn(batch, frames, 3, generator=generator)
    conf = torch.randn(local.shape[:-1] + (1,), generator=generator)
    return local, camera_poses, conf, target


def test_scale_is_the_weighted_median():
    """No other scale costs less."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 50, 3, generator=generator) for _ in range(2))
    w, valid = torch.rand(2, 50, generator=generator), torch.rand(2, 50, generator=generator) > 0.2
    y = 3 * x + 0.3 * y
    found = optimal_scale(x, y, w, valid)
    # 4096 samples of some 40 points take each about equally often.
    counts = torch.zeros(2, 50)
    for i in range(2):
        members = valid[i].nonzero().squeeze(1)
        index = members[(torch.arange(4096) * (len(members) / 4096)).long()]
        counts[i] = torch.bincount(index, minlength=50)
    cost = lambda s: (counts * w * (s.view(-1, 1, 1) * x - y).abs().sum(-1)).sum(1)  # noqa: E731
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (cost(found) <= cost(found * factor) + 1e-4).all()


def test_a_perfect_prediction_costs_nothing_at_any_scale():
    true = targets(2)
    target = Pi3Targets(true["target_points"], true["target_camera_poses"], true["target_valid"])
    inverse = torch.linalg.inv(target.camera_poses)
    local = (inverse[..., None, None, :3, :3] @ target.points.unsqueeze(-1)).squeeze(-1) + inverse[
        ..., None, None, :3, 3
    ]
    scaled = target.camera_poses.clone()
    scaled[..., :3, 3] *= 4
    _, losses = pi3_loss(4 * local, scaled, torch.zeros_like(local[..., :1]), target, tiny_config())
    assert losses["points"] < 1e-4 and losses["translation"] < 1e-6
    assert losses["rotation"] < 0.01  # the cosine is clamped 1e-6 below 1
    assert losses["normals"] < 0.01  # an angle below 1° counts as 1°


def test_the_loss_does_not_depend_on_world_frames():
    local, camera_poses, conf, target = example()
    expected, _ = pi3_loss(local, camera_poses, conf, target, tiny_config())
    elsewhere = poses(2, 1, seed=3)
    world = (elsewhere[..., None, None, :3, :3] @ target.points.unsqueeze(-1)).squeeze(-1) + elsewhere[
        ..., None, None, :3, 3
    ]
    moved = Pi3Targets(world, elsewhere @ target.camera_poses, target.valid)
    found, _ = pi3_loss(local, poses(2, 1, seed=4) @ camera_poses, conf, moved, tiny_config())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_pairs_are_all_ordered_pairs_of_different_frames():
    local, camera_poses, _, target = example(1, 4)
    aligned = align(local, camera_poses, target)
    huber, angle = pair_losses(aligned)
    found = aligned.poses.clone()
    found[..., :3, 3] *= aligned.scale.view(-1, 1, 1)
    expected_huber, expected_angle = [], []
    for i in range(4):
        for j in range(4):
            if i != j:
                a = (torch.linalg.inv(found[0, i]) @ found[0, j])[:3]
                b = (torch.linalg.inv(aligned.target_poses[0, i]) @ aligned.target_poses[0, j])[:3]
                expected_huber.append(torch.nn.functional.huber_loss(a[:, 3], b[:, 3], delta=0.1))
                cosine = ((torch.trace(a[:, :3].T @ b[:, :3]) - 1) / 2).clamp(-1 + 1e-6, 1 - 1e-6)
                expected_angle.append(cosine.acos())
    torch.testing.assert_close(huber[0], torch.stack(expected_huber), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(angle[0], torch.stack(expected_angle), rtol=1e-2, atol=1e-3)


def test_one_frame_has_no_pairs_and_a_finite_loss():
    local, camera_poses, conf, target = example(1, 1)
    total, losses = pi3_loss(local.requires_grad_(), camera_poses, conf, target, tiny_config())
    total.backward()
    assert losses["translation"] == 0 and losses["rotation"] == 0
    assert torch.isfinite(total) and torch.isfinite(local.grad).all()


def test_a_scene_without_valid_points_gives_finite_gradients():
    local, camera_poses, conf, target = example()
    target.valid[0] = False
    total, _ = pi3_loss(local.requires_grad_(), camera_poses, conf, target, tiny_config())
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(local.grad).all()


def test_points_that_are_not_finite_are_not_valid():
    true = targets(1)
    true["target_points"][0, 0, 0, 0] = float("nan")
    target = Pi3Targets(true["target_points"], true["target_camera_poses"])
    assert not target.valid[0, 0, 0, 0] and target.valid.sum() == target.valid.numel() - 1
    assert torch.isfinite(target.points).all()


# ---- Pi3X: the list of terms -------------------------------------------------------------


@pytest.fixture
def pi3x():
    """Everything that the terms are computed from, and the terms."""
    local, camera_poses, conf, target = example()
    rays = torch.nn.functional.normalize(local + 0.1, dim=-1)
    metric = torch.tensor([0.8, 2.5])
    known_depth, known_pose = (
        torch.rand(local.shape[:-1]) > 0.7,
        torch.tensor([[True, True, False], [False, False, False]]),
    )
    config = tiny_config("pi3x", confidence_loss_weight=0.05)
    total, losses = pi3x_loss(local, rays, camera_poses, conf, metric, target, config, known_depth, known_pose)
    return dict(
        rays=rays, conf=conf, metric=metric, target=target, known_depth=known_depth, known_pose=known_pose,
        aligned=align(local, camera_poses, target), total=total, losses=losses, config=config,
    )  # fmt: skip


def test_pi3x_rays(pi3x):
    aligned, valid = pi3x["aligned"], pi3x["target"].valid
    true = aligned.target_local / aligned.target_local.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(pi3x["losses"]["rays"], (pi3x["rays"] - true)[valid].abs().mean())


def test_pi3x_depths(pi3x):
    aligned, valid = pi3x["aligned"], pi3x["target"].valid
    error = (aligned.scale.view(-1, 1, 1, 1) * aligned.local[..., 2] - aligned.target_local[..., 2]).abs()
    torch.testing.assert_close(pi3x["losses"]["depth"], (aligned.weight * error)[valid].mean())
    torch.testing.assert_close(pi3x["losses"]["sparse_depth"], error[valid & pi3x["known_depth"]].mean())


def test_pi3x_pairs_with_and_without_given_poses_are_averaged_apart(pi3x):
    huber, angle = pair_losses(pi3x["aligned"])
    order = [(i, j) for i in range(3) for j in range(3) if i != j]
    known = torch.tensor([[bool(mask[i] and mask[j]) for i, j in order] for mask in pi3x["known_pose"]])
    assert known.sum() == 2
    torch.testing.assert_close(pi3x["losses"]["translation"], huber[known].mean() + huber[~known].mean())
    torch.testing.assert_close(pi3x["losses"]["rotation"], angle[known].mean() + angle[~known].mean())


def test_pi3x_metric(pi3x):
    """The wanted scale takes points before scaling to the targets' unit; the loss compares logarithms of 1 + scale."""
    aligned, metric = pi3x["aligned"], pi3x["metric"]
    unscaled = aligned.local * (aligned.unit / metric).view(-1, 1, 1, 1, 1)
    true = aligned.target_local * aligned.target_unit.view(-1, 1, 1, 1, 1)
    wanted = optimal_scale(unscaled, true, aligned.weight, pi3x["target"].valid)
    torch.testing.assert_close(
        pi3x["losses"]["metric"], (metric.log1p() - wanted.log1p()).square().mean(), rtol=1e-4, atol=1e-6
    )


def test_pi3x_confidence(pi3x):
    aligned, target = pi3x["aligned"], pi3x["target"]
    error = (
        aligned.weight * (aligned.scale.view(-1, 1, 1, 1) * aligned.local[..., 2] - aligned.target_local[..., 2]).abs()
    )
    logits = pi3x["conf"][..., 0]
    probability, deserved = logits.sigmoid()[target.valid], (-50 * error).exp()[target.valid]
    cross_entropy = -(deserved * probability.log() + (1 - deserved) * (1 - probability).log()).mean()
    torch.testing.assert_close(pi3x["losses"]["confidence"], cross_entropy)


def test_pi3x_weights(pi3x):
    losses = pi3x["losses"]
    expected = losses["rays"] + losses["depth"] + losses["sparse_depth"] + losses["normals"] + losses["metric"]
    expected = expected + 10 * losses["translation"] + 0.1 * losses["rotation"] + 0.05 * losses["confidence"]
    torch.testing.assert_close(pi3x["total"], expected)
    assert math.isfinite(pi3x["total"])
