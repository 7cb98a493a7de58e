"""The space world's pictures, depth, cameras and masks agree with each other and with its solids."""

import dataclasses

import numpy as np
import pytest

from dsr_toolkit.worlds import make_world
from dsr_toolkit.worlds.space.scene import ROOM_HEIGHT


@pytest.fixture(scope="module")
def samples():
    return [
        make_world("space", 11, height=56, width=70, difficulty=level)[i] for level in ("easy", "hard") for i in (0, 1)
    ]


def world_points(sample, frame):
    """Points `[H, W, 3]` that the pixels of a frame see."""
    height, width = sample.depth.shape[-2:]
    pixels = np.stack([*np.meshgrid(np.arange(width), np.arange(height)), np.ones((height, width))], -1)
    local = pixels @ np.linalg.inv(sample.intrinsics[frame]).T * sample.depth[frame, ..., None].astype(float)
    return local @ sample.poses[frame, :3, :3].T + sample.poses[frame, :3, 3]


def project(points, sample, frame):
    """Pixels (x, y) and depth of world points."""
    local = (points - sample.poses[frame, :3, 3]) @ sample.poses[frame, :3, :3]
    seen = local @ sample.intrinsics[frame].T
    return seen[..., :2] / seen[..., 2:], local[..., 2]


def outside(points, sample, thing, frame):
    """Distance by which `points` are outside the solid: 0 on its surface, negative inside (not metric for the cone)."""
    solid = sample.scene.things[thing]
    x, y, z = np.moveaxis((points - sample.positions[thing, frame]) @ sample.rotations[thing, frame], -1, 0)
    r, h = solid.radius, solid.half_height
    round_ = np.hypot(x, y)
    return {
        "ball": np.sqrt(x * x + y * y + z * z) - r,
        "box": np.maximum(np.maximum(abs(x), abs(y)), abs(z)) - r,
        "cylinder": np.maximum(round_ - r, abs(z) - h),
        "cone": np.maximum(round_ - r * (h - z) / (2 * h), -z - h),
    }[solid.shape]


def test_points_go_back_to_their_pixels(samples):
    for sample in samples:
        height, width = sample.depth.shape[-2:]
        for frame in (0, 3, 7):
            pixels, depth = project(world_points(sample, frame), sample, frame)
            expected = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
            assert abs(pixels - expected).max() < 1e-3
            assert abs(depth - sample.depth[frame]).max() < 1e-4


def test_room_seen_in_one_frame_is_where_another_frame_sees_it(samples):
    for sample in samples:
        pixels, depth = project(world_points(sample, 0), sample, 5)
        nearest = pixels.round().astype(int)
        height, width = sample.depth.shape[-2:]
        inside = ((nearest >= 0) & (nearest < [width, height])).all(-1) & (depth > 0.5) & (sample.instances[0] == 0)
        columns, rows = nearest[inside].T
        same = sample.instances[5, rows, columns] == 0
        # Depth at the nearest pixel differs by the slope of the floor within half a pixel.
        error = abs(sample.depth[5, rows, columns] - depth[inside]) / depth[inside]
        assert same.sum() > 200 and np.median(error[same]) < 0.02 and np.quantile(error[same], 0.9) < 0.1


def test_every_pixel_lies_on_the_surface_that_its_mask_names(samples):
    for sample in samples:
        for frame in range(len(sample.images)):
            points, instances = world_points(sample, frame), sample.instances[frame]
            for thing in range(len(sample.names)):
                on = instances == thing + 1
                assert abs(outside(points[on], sample, thing, frame)).max(initial=0) < 2e-3
            room = points[instances == 0]
            walls = np.concatenate([sample.scene.room - abs(room[:, :2]), room[:, 2:], ROOM_HEIGHT - room[:, 2:]], -1)
            assert abs(walls.min(-1)).max() < 2e-3


def test_nothing_stands_between_the_camera_and_what_it_sees(samples):
    """Depth is that of the first surface: no point on the way lies inside a thing."""
    for sample in samples:
        for frame in (0, 4):
            points, eye = world_points(sample, frame), sample.poses[frame, :3, 3]
            distance = np.linalg.norm(points - eye, axis=-1, keepdims=True)
            for share in np.linspace(0.2, 1, 120):
                on_the_way = eye + (points - eye) * (share - 5e-3 / distance)
                for thing in range(len(sample.names)):
                    assert outside(on_the_way, sample, thing, frame).min() > -2e-3


def test_poses_are_rigid_and_the_camera_is_opencv(samples):
    for sample in samples:
        rotations = sample.poses[:, :3, :3]
        assert abs(rotations @ rotations.swapaxes(1, 2) - np.eye(3)).max() < 1e-9
        assert np.linalg.det(rotations).min() > 0.999
        assert (rotations[:, 2, 1] < 0).all()  # y of the picture points to the floor
        top, bottom = sample.depth[:, 0].astype(float), sample.depth[:, -1]
        assert (bottom.mean() < top.mean()) and (sample.poses[:, 2, 3] > 0).all()


def test_dynamic_pixels_are_those_of_things_that_move_or_turn(samples):
    for sample in samples:
        for thing, solid in enumerate(sample.scene.things):
            still = (
                np.ptp(sample.positions[thing], axis=0).max() < 1e-9
                and np.ptp(sample.rotations[thing], axis=0).max() < 1e-9
            )
            assert solid.dynamic == (not still)
            assert (sample.dynamic[sample.instances == thing + 1] == solid.dynamic).all()
        assert not sample.dynamic[sample.instances == 0].any()


def test_things_keep_apart_on_the_floor_and_in_sight():
    world = make_world("space", 4, difficulty="hard")
    for index in range(20):
        scene = world.scene(index)
        paths = scene.positions(np.linspace(-1, 1, 9))
        for first, thing in enumerate(scene.things):
            assert (paths[first, :, 2] > thing.half_height - 1e-6).all()
            for second in range(first):
                gap = np.linalg.norm(paths[first] - paths[second], axis=-1) - thing.bound - scene.things[second].bound
                assert gap.min() > 0
        assert len({thing.name for thing in scene.things}) == len(scene.things)


def test_same_scene_at_another_size_frame_rate_and_order():
    small, large = (
        make_world("space", 8, frames=frames, height=size, width=size) for frames, size in ((3, 28), (5, 84))
    )
    later, first = small[6], small[2]
    other = large[2]
    assert np.array_equal(first.images, make_world("space", 8, frames=3, height=28, width=28)[2].images)
    assert not np.array_equal(first.images, later.images)
    assert np.allclose(first.poses, other.poses[::2]) and np.allclose(first.positions, other.positions[:, ::2])
    assert first.names == other.names and np.allclose(first.times, [0, 1, 2])


def test_synchronised_views_show_one_moving_scene():
    sample = make_world("space", 2, frames=3, height=42, width=42, views=3)[0]
    assert sample.images.shape == (3, 3, 42, 42, 3) and sample.poses.shape == (3, 3, 4, 4)
    for view in range(3):
        one = dataclasses.replace(
            sample, **{name: getattr(sample, name)[:, view] for name in ("depth", "instances", "poses", "intrinsics")}
        )
        for frame in range(3):
            points, instances = world_points(one, frame), one.instances[frame]
            for thing in range(len(sample.names)):
                assert abs(outside(points[instances == thing + 1], one, thing, frame)).max(initial=0) < 2e-3
    apart = np.linalg.norm(sample.poses[0, 0, :3, 3] - sample.poses[0, 1, :3, 3])
    assert 1 < apart < 6  # metres


def test_errors_name_the_argument():
    for argument in ("frames", "height", "width", "views"):
        with pytest.raises(ValueError, match=f"`{argument}` must be a positive integer, got 0"):
            make_world("space", 0, **{argument: 0})
    with pytest.raises(ValueError, match="`difficulty` must be one of easy, normal, hard, got 'mad'"):
        make_world("space", 0, difficulty="mad")
