"""The training loss of PAGE-4D, term by term, on inputs whose loss is known."""

import pytest
import torch

from modeling_dsr.page4d_losses import (
    camera_loss,
    dense_loss,
    gradient_loss,
    normal_loss,
    normalize_scene,
    scene_targets,
)
from modeling_dsr.pose import encode_pose
from tests.modeling_dsr.test_modeling_page4d import targets


def plane(height=12, width=12):
    y, x = torch.meshgrid(torch.arange(height) / 4, torch.arange(width) / 4, indexing="ij")
    return torch.stack([x, y, 2 + 0 * x], -1)[None, None]


def test_normalised_scenes_start_at_the_first_camera_and_have_unit_size():
    known = targets(2, 3)
    known["extrinsics"][..., :3, 3] += torch.tensor([0.3, -0.2, 1.0])
    scene = normalize_scene(scene_targets(**known))
    assert torch.allclose(scene.extrinsics[:, 0], torch.eye(4)[:3].expand(2, 3, 4), atol=1e-6)
    assert torch.allclose(scene.world_points.norm(dim=-1).mean((1, 2, 3)), torch.ones(2), atol=1e-4)
    assert torch.allclose(scene.cam_points[..., 2], scene.depths)


def test_scene_normalisation_forgets_the_unit_of_length():
    known = targets(1, 2)
    scaled = {**known, "depths": 7 * known["depths"], "extrinsics": known["extrinsics"].clone()}
    scaled["extrinsics"][..., 3] *= 7
    one, other = (normalize_scene(scene_targets(**given)) for given in (known, scaled))
    for name in ("extrinsics", "depths", "world_points"):
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-4), name


def test_depth_without_a_value_is_masked():
    known = targets(1, 2)
    known["depths"][0, 0, 0, 0], known["depths"][0, 0, 0, 1] = float("nan"), 0.0
    scene = scene_targets(**known)
    assert not scene.point_masks[0, 0, 0, :2].any() and scene.point_masks[0, 0, 0, 2:].all()
    normalised = normalize_scene(scene)
    assert all(torch.isfinite(t).all() for t in (normalised.depths, normalised.world_points, normalised.extrinsics))


def test_true_cameras_cost_nothing_and_late_stages_weigh_more():
    scene = normalize_scene(scene_targets(**targets(2, 2)))
    truth = encode_pose(scene.extrinsics, scene.intrinsics, scene.depths.shape[-2:])
    wrong = truth.clone()
    wrong[..., 0] += 0.3
    assert camera_loss([truth, truth], scene)["camera"] == 0
    late, early = (camera_loss(stages, scene)["camera"] for stages in ([truth, wrong], [wrong, truth]))
    assert late == pytest.approx(0.3 / 3 / 2, rel=1e-5)  # one of three numbers, mean over two stages
    assert early == pytest.approx(0.6 * late.item(), rel=1e-5)


def test_samples_whose_first_frame_is_empty_do_not_train_cameras():
    known = targets(2, 2)
    mask = torch.ones_like(known["depths"], dtype=torch.bool)
    mask[1, 0] = False
    scene = normalize_scene(scene_targets(**known, point_masks=mask))
    truth = encode_pose(scene.extrinsics, scene.intrinsics, scene.depths.shape[-2:])
    wrong = truth.clone()
    wrong[1] += 5
    assert camera_loss([wrong], scene)["camera"] == 0


def test_dense_loss_follows_its_formula():
    truth, prediction = torch.zeros(1, 1, 12, 12, 1), torch.full((1, 1, 12, 12, 1), 0.5)
    confidence, mask = torch.full((1, 1, 12, 12), 2.0), torch.ones(1, 1, 12, 12, dtype=torch.bool)
    losses = dense_loss(prediction, confidence, truth, mask, gamma=0.3, alpha=0.06)
    assert losses["regression"] == pytest.approx(0.5)
    assert losses["confidence"] == pytest.approx(0.3 * 0.5 * 2 - 0.06 * torch.tensor(2.0).log().item(), rel=1e-5)
    assert losses["gradient"] == 0


def test_outliers_are_left_out_where_many_values_remain():
    truth = torch.zeros(1, 1, 60, 60, 1)
    prediction, confidence = torch.full_like(truth, 0.1), torch.ones(1, 1, 60, 60)
    prediction[0, 0, 0] = 50.0  # 60 of 3600
    mask = torch.ones(1, 1, 60, 60, dtype=torch.bool)
    prediction[0, 0, 1:] += 1e-4 * torch.rand(59, 60, 1)
    with_outliers = dense_loss(prediction, confidence, truth, mask, 1.0, 0.2)["regression"]
    without = dense_loss(prediction, confidence, truth, mask, 1.0, 0.2, valid_range=0.98)["regression"]
    assert with_outliers > 0.9 and without == pytest.approx(0.1, abs=1e-3)


def test_too_few_valid_pixels_give_zero_and_finite_gradients():
    prediction = torch.rand(1, 1, 12, 12, 3, requires_grad=True)
    confidence = (1 + torch.rand(1, 1, 12, 12)).requires_grad_()
    mask = torch.zeros(1, 1, 12, 12, dtype=torch.bool)
    losses = dense_loss(prediction, confidence, torch.zeros_like(prediction), mask, 1.0, 0.2, "normal", 0.98)
    total = sum(losses.values())
    total.backward()
    assert total == 0 and torch.isfinite(prediction.grad).all() and torch.isfinite(confidence.grad).all()


def test_a_perfect_prediction_has_finite_gradients():
    points = plane()
    prediction = points.clone().requires_grad_()
    confidence, mask = torch.ones(1, 1, 12, 12), torch.ones(1, 1, 12, 12, dtype=torch.bool)
    losses = dense_loss(prediction, confidence, points, mask, 1.0, 0.2, "normal", 0.98)
    sum(losses.values()).backward()
    assert losses["regression"] == 0 and torch.isfinite(prediction.grad).all()


def test_gradient_loss_sees_slopes_and_not_offsets():
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    truth = torch.rand(1, 8, 8, 1)
    assert gradient_loss(truth + 3, truth, mask) == pytest.approx(0, abs=1e-5)
    ramp = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 8, 8, 1)
    assert gradient_loss(truth + ramp, truth, mask) == pytest.approx(7 / 8, rel=1e-4)  # 56 steps of 1 over 64 pixels


def test_normal_loss_sees_the_angle_between_surfaces():
    points, mask = plane()[0], torch.ones(1, 12, 12, dtype=torch.bool)
    angle = torch.tensor(0.5)
    turn = torch.tensor([[1, 0, 0], [0, angle.cos(), -angle.sin()], [0, angle.sin(), angle.cos()]])
    assert normal_loss(points, points, mask) == pytest.approx(0, abs=1e-6)
    assert normal_loss(points @ turn.T, points, mask) == pytest.approx(1 - angle.cos().item(), rel=1e-4)
