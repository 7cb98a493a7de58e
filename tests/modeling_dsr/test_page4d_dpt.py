"""Parts of the DPT head, the track head and the pose algebra against their definitions."""

import pytest
import torch
from torch.nn import functional as F

from modeling_dsr.page4d_dpt import DPTHead, FeatureFusion, add_position_map
from modeling_dsr.page4d_track_head import Tracker, sample_bilinear
from modeling_dsr.pose import (
    check_cameras,
    decode_pose,
    encode_pose,
    invert_rigid,
    matrix_to_quaternion,
    quaternion_to_matrix,
    to_homogeneous,
    transform_points,
    unproject_depth,
)

from .test_modeling_page4d import tiny_config


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_cameras(*shape):
    quaternion = F.normalize(torch.randn(*shape, 4), dim=-1)
    extrinsics = torch.cat([quaternion_to_matrix(quaternion), torch.randn(*shape, 3, 1)], -1)
    intrinsics = torch.tensor([[50.0, 0, 20], [0, 60, 15], [0, 0, 1]]).expand(*shape, 3, 3)
    return extrinsics, intrinsics


# ---- pose algebra --------------------------------------------------------------------


def test_poses_survive_the_encoding():
    extrinsics, intrinsics = random_cameras(4, 5)
    found, lens = decode_pose(encode_pose(extrinsics, intrinsics, (30, 40)), (30, 40))
    assert torch.allclose(found, extrinsics, atol=1e-5) and torch.allclose(lens, intrinsics, atol=1e-3)


def test_quaternions_may_have_any_length():
    quaternion = torch.randn(6, 4)
    assert torch.allclose(quaternion_to_matrix(3 * quaternion), quaternion_to_matrix(quaternion), atol=1e-6)


@pytest.mark.parametrize("axis", range(3))
def test_half_turns_have_a_quaternion(axis):
    """The scalar part is 0, where the plain formula divides by it."""
    rotation = -torch.eye(3)
    rotation[axis, axis] = 1
    assert torch.allclose(quaternion_to_matrix(matrix_to_quaternion(rotation)), rotation, atol=1e-6)


def test_quaternions_have_no_negative_scalar_part():
    rotations = quaternion_to_matrix(torch.randn(50, 4))
    assert (matrix_to_quaternion(rotations)[..., 3] >= 0).all()


def test_the_rigid_inverse_inverts():
    extrinsics = random_cameras(7)[0]
    for pose in (extrinsics, to_homogeneous(extrinsics)):
        assert invert_rigid(pose).shape == pose.shape
        product = to_homogeneous(pose) @ to_homogeneous(invert_rigid(pose))
        assert torch.allclose(product, torch.eye(4).expand(7, 4, 4), atol=1e-5)


def test_unprojected_points_project_back():
    extrinsics, intrinsics = random_cameras(2, 3)
    depth = 1 + torch.rand(2, 3, 6, 8)
    seen = transform_points(extrinsics, unproject_depth(depth, intrinsics, extrinsics))
    pixels = (intrinsics[..., None, None, :, :] @ seen.unsqueeze(-1)).squeeze(-1)
    pixels = pixels[..., :2] / pixels[..., 2:]
    v, u = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    assert torch.allclose(pixels, torch.stack([u, v], -1).expand_as(pixels), atol=1e-3)
    assert torch.allclose(seen[..., 2], depth, atol=1e-4)


def test_wrong_cameras_are_named():
    extrinsics, intrinsics = random_cameras(3)
    check_cameras(extrinsics, intrinsics)
    mirrored = extrinsics.clone()
    mirrored[0, 0, :3] *= -1
    for wrong, lens, message in (
        (mirrored, intrinsics, "1 of 3 cameras.*det R = 1"),
        (extrinsics * 1.1, intrinsics, "not a rotation"),
        (extrinsics / 0, intrinsics, "`extrinsics` holds values that are not finite"),
        (extrinsics, -intrinsics, "focal length that is not positive"),
    ):
        with pytest.raises(ValueError, match=message):
            check_cameras(wrong, lens)


# ---- dense head ----------------------------------------------------------------------


def test_the_position_map_is_constant_along_the_other_axis():
    x = torch.zeros(2, 8, 5, 7)
    added = add_position_map(x.clone(), aspect=7 / 5)
    assert added.abs().max() <= 0.1 + 1e-6
    assert (added[:, :4] == added[:, :4, :1]).all() and (added[:, 4:] == added[:, 4:, :, :1]).all()


def test_projecting_before_resizing_changes_nothing():
    fusion, x, skip = FeatureFusion(6), torch.randn(2, 6, 4, 5), torch.randn(2, 6, 4, 5)
    inner = fusion.unit(x + fusion.skip_unit(skip))
    expected = fusion.projection(F.interpolate(inner, size=(9, 11), mode="bilinear", align_corners=True))
    assert torch.allclose(fusion(x, skip, (9, 11)), expected, atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (3, 2)])
def test_the_dense_head_covers_the_image(grid):
    head = DPTHead(12, 3, 8, (4, 4, 8, 8), patch_size=14, hidden_channels=4)
    layers = [torch.randn(2, grid[0] * grid[1], 12) for _ in range(4)]
    assert head(layers, grid).shape == (2, 3, 14 * grid[0], 14 * grid[1])


# ---- tracks --------------------------------------------------------------------------


def test_samples_at_pixel_centres_are_pixels():
    maps = torch.randn(2, 3, 4, 5)
    found = sample_bilinear(maps, torch.tensor([[[2.0, 1.0], [4.0, 3.0]]]).expand(2, -1, -1))
    assert torch.allclose(found[:, 0], maps[:, :, 1, 2], atol=1e-5) and torch.allclose(
        found[:, 1], maps[:, :, 3, 4], atol=1e-5
    )


def test_correlations_of_sampled_features_equal_samples_of_correlation_maps():
    """The published way multiplies with every pixel first and samples after."""
    tracker = Tracker(tiny_config(track_features=8))
    maps, features = torch.randn(3, 8, 6, 7), torch.randn(1, 3, 4, 8)
    coordinates = 5 * torch.rand(1, 3, 4, 2)
    found = tracker._correlate(features, coordinates, tracker._pyramid(maps[None]))
    radius = tracker.radius
    offsets = torch.cartesian_prod(torch.arange(-radius, radius + 1.0), torch.arange(-radius, radius + 1.0))
    expected = []
    for level, level_maps in enumerate((maps, F.avg_pool2d(maps, 2, stride=2))):
        products = torch.einsum("snc,schw->snhw", features[0], level_maps) / 8**0.5
        at = (coordinates[0] / 2**level).unsqueeze(2) + offsets
        sampled = sample_bilinear(products.flatten(0, 1).unsqueeze(1), at.flatten(0, 1), "zeros")
        expected.append(sampled.view(1, 3, 4, -1))
    assert torch.allclose(found, torch.cat(expected, -1), atol=1e-5)


def test_queries_stay_where_they_were_asked():
    tracker = Tracker(tiny_config(track_features=8)).eval()
    queries = torch.tensor([[[3.0, 5.0], [9.0, 2.0]]])
    tracks, visibility, confidence = tracker(queries, torch.randn(1, 4, 8, 6, 7))
    assert len(tracks) == tracker.iterations and visibility.shape == confidence.shape == (1, 4, 2)
    assert all(torch.allclose(stage[:, 0], queries) for stage in tracks)
    assert not torch.allclose(tracks[-1][:, 1], queries)
