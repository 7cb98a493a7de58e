"""GeometryProcessor with PAGE-4D's image rules, and PAGE-4D's output back at the size of the originals."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_dsr.frame_sizes import page4d_image_size
from modeling_dsr.modeling_page4d import Page4DOutput
from modeling_dsr.pose import decode_pose, encode_pose, transform_points, unproject_depth
from processing_dsr import GeometryProcessor


def picture(width, height, mode="RGB"):
    values = np.random.default_rng(width + height).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(values, mode)


@pytest.mark.parametrize(
    "size,mode,expected",
    [
        ((640, 480), "crop", (518, 392)),
        ((480, 640), "crop", (518, 686)),
        ((480, 640), "pad", (392, 518)),
        ((1920, 1080), "crop", (518, 294)),
        ((4000, 10), "crop", (518, 14)),
    ],
)
def test_published_sizes(size, mode, expected):
    assert page4d_image_size(*size, mode=mode) == expected


@pytest.mark.parametrize("rule", ["page4d", "page4d_pad", "page4d_square"])
def test_frames_fit_the_model(rule):
    data = GeometryProcessor(resize_rule=rule, image_size=56)([picture(40, 30), picture(20, 60)])
    pixels = data["pixel_values"]
    assert pixels.shape[:3] == (1, 2, 3) and pixels.shape[3] % 14 == 0 and pixels.shape[4] % 14 == 0
    assert 0 <= pixels.min() and pixels.max() <= 1
    assert data["original_sizes"].tolist() == [[[30, 40], [60, 20]]]


def test_tall_images_lose_top_and_bottom():
    data = GeometryProcessor(resize_rule="page4d", image_size=56)([picture(20, 60)])
    assert data["pixel_values"].shape[-2:] == (56, 56)
    assert data["image_boxes"].tolist() == [[[0, -56, 56, 112]]]  # 20×60 → 56×168, rows 56 to 112 kept


def test_padding_is_white_and_in_the_middle():
    data = GeometryProcessor(resize_rule="page4d_pad", image_size=56)([picture(20, 60)])
    assert data["image_boxes"].tolist() == [[[21, 0, 35, 56]]]  # 20×60 → 14×56
    pixels = data["pixel_values"][0, 0]
    assert (pixels[..., :21] == 1).all() and (pixels[..., 35:] == 1).all() and not (pixels[..., 21:35] == 1).all()


def test_squares_are_padded_with_black():
    data = GeometryProcessor(resize_rule="page4d_square", image_size=56)([picture(60, 20)])
    pixels = data["pixel_values"][0, 0]
    assert (pixels[:, :16] == 0).all() and (pixels[:, 40:] == 0).all()


def test_transparent_images_lie_on_white():
    clear = Image.new("RGBA", (28, 28), (255, 0, 0, 0))
    assert (GeometryProcessor(resize_rule="page4d", image_size=28)([clear])["pixel_values"] == 1).all()


def test_the_side_must_be_a_multiple_of_the_patch():
    with pytest.raises(ValueError, match="`image_size` must be a multiple"):
        GeometryProcessor(resize_rule="page4d", image_size=500)


# --------------------------------------------------------------------------------------
# Back
# --------------------------------------------------------------------------------------


def wall(frames=2, height=28, width=42):
    """Outputs of cameras that step to the right before a slanted wall."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    depth = (2 + x + y).expand(1, frames, height, width)
    extrinsics = torch.eye(4)[:3].expand(1, frames, 3, 4).clone()
    extrinsics[..., 0, 3] = -0.1 * torch.arange(frames)
    intrinsics = torch.tensor([[40.0, 0, width / 2], [0, 40.0, height / 2], [0, 0, 1]]).expand(1, frames, 3, 3)
    pose_enc = encode_pose(extrinsics, intrinsics, (height, width))
    extrinsics, intrinsics = decode_pose(pose_enc, (height, width))
    confidence = torch.full((1, frames, height, width), 3.0)
    confidence[:, :, 0] = 1.01
    mask = torch.rand(1, frames, height // 14, width // 14) - 0.5
    return Page4DOutput(
        pose_enc=pose_enc,
        extrinsics=extrinsics,
        intrinsics=intrinsics,
        depth=depth.unsqueeze(-1),
        depth_conf=confidence,
        world_points=unproject_depth(depth, intrinsics, extrinsics),
        world_points_conf=confidence,
        mask_bias=mask,
        dynamic_mask=0.5 - mask,
    )


def without(outputs, *names):
    return Page4DOutput(**{name: value for name, value in outputs.items() if name not in names})


def test_outputs_at_their_own_size_come_back_unchanged():
    outputs = wall()
    (scene,) = GeometryProcessor(resize_rule="page4d").post_process_geometry(outputs, edge_tolerance=None)
    assert torch.allclose(scene.depth, outputs.depth[0, ..., 0], atol=1e-5)
    assert torch.allclose(scene.points, outputs.world_points[0], atol=1e-4)
    assert torch.allclose(scene.intrinsics, outputs.intrinsics[0], atol=1e-3)
    assert torch.allclose(scene.extrinsics[:, :3], outputs.extrinsics[0], atol=1e-5)
    assert torch.allclose(scene.camera_poses @ scene.extrinsics, torch.eye(4).expand(2, 4, 4), atol=1e-5)
    assert torch.allclose(scene.confidence[:, 1:], torch.tensor(2 / 3))  # 1 - 1/3
    assert not scene.mask[:, 0].any() and scene.mask[:, 1:].all()


def test_the_point_head_can_be_the_source():
    outputs = wall()
    processor = GeometryProcessor(resize_rule="page4d")
    by_depth, by_points = (
        processor.post_process_geometry(outputs, edge_tolerance=None, point_source=source)[0]
        for source in ("depth", "points")
    )
    assert torch.allclose(by_depth.points, by_points.points, atol=1e-4)
    outputs.world_points = 2 * outputs.world_points
    (moved,) = processor.post_process_geometry(outputs, edge_tolerance=None, point_source="points")
    assert torch.allclose(moved.points, 2 * by_points.points, atol=1e-4)
    with pytest.raises(ValueError, match="`point_source` must be one of"):
        processor.post_process_geometry(outputs, point_source="tracks")
    outputs = without(outputs, "world_points")
    with pytest.raises(ValueError, match="no such head"):
        processor.post_process_geometry(outputs, point_source="points")


def test_points_at_the_original_size_project_to_their_pixels():
    """Depth, points, intrinsics and poses stay consistent through resizing and cropping."""
    outputs = wall(height=56, width=56)
    processor = GeometryProcessor(resize_rule="page4d", image_size=56)
    data = processor([picture(30, 45), picture(30, 45)])  # to 56×84, of which the middle 56 rows are seen
    (scene,) = processor.post_process_geometry(
        outputs, data["original_sizes"], data["image_boxes"], edge_tolerance=None, confidence_threshold=0.0
    )
    assert scene.depth.shape == (2, 45, 30)
    seen = transform_points(scene.extrinsics, scene.points)
    projected = (scene.intrinsics[:, None, None] @ seen.unsqueeze(-1)).squeeze(-1)
    projected = projected[..., :2] / projected[..., 2:]
    v, u = torch.meshgrid(torch.arange(45.0), torch.arange(30.0), indexing="ij")
    inside = scene.mask[0]
    assert 0.5 < inside.float().mean() < 0.8 and not inside[0].any()
    error = (projected - torch.stack([u, v], -1))[:, inside].abs()
    assert error.quantile(0.9) < 0.3


def test_dynamic_masks_grow_to_the_image():
    outputs = wall()
    processor = GeometryProcessor(resize_rule="page4d")
    (scene,) = processor.post_process_geometry(outputs)
    assert scene.dynamic_mask.shape == scene.depth.shape
    assert torch.allclose(scene.dynamic_mask[:, :7, :7], outputs.dynamic_mask[0, :, :1, :1].expand(-1, 7, 7), atol=1e-4)
    outputs = without(outputs, "mask_bias", "dynamic_mask")
    assert processor.post_process_geometry(outputs)[0].dynamic_mask is None
