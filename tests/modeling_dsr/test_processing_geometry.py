"""GeometryProcessor with π³'s rules: what goes in, what comes back, what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from dsr_toolkit.demo.clip import CLIP
from modeling_dsr.frame_sizes import pi3_image_size
from modeling_dsr.frames import read_frames
from modeling_dsr.point_maps import depth_edge, depth_normal_edge, recover_intrinsics
from modeling_dsr.pose import invert_rigid
from processing_dsr import GeometryProcessor
from tests.modeling_dsr.pi3_samples import intrinsics, poses


@pytest.fixture
def processor():
    return GeometryProcessor(pixel_limit=10000)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# ---- in --------------------------------------------------------------------------------


def test_the_first_image_decides_the_size_of_all(processor):
    inputs = processor([picture(60, 40), picture(40, 60)])
    width, height = pi3_image_size(60, 40, 10000)
    assert inputs["pixel_values"].shape == (1, 2, 3, height, width)
    assert inputs["original_sizes"].tolist() == [[[40, 60], [60, 40]]]
    assert inputs["image_boxes"].tolist() == [[[0, 0, width, height]] * 2]


@pytest.mark.parametrize("width, height", [(640, 480), (14, 14), (1000, 10), (3000, 4000)])
def test_sizes_are_multiples_of_14_below_the_limit(width, height):
    chosen = pi3_image_size(width, height)
    assert all(side > 0 and side % 14 == 0 for side in chosen) and chosen[0] * chosen[1] <= 255000


def test_files_arrays_tensors_and_images_give_the_same(processor, tmp_path):
    image = picture(60, 40)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    expected = processor([image])["pixel_values"]
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for same in (
        [tmp_path / "a.png"],
        str(tmp_path / "a.png"),
        tmp_path,
        [array],
        array,
        image,
        [tensor],
        [tensor / 255],
    ):
        assert torch.equal(processor(same)["pixel_values"], expected)


def test_a_folder_is_read_in_natural_order_and_tells_what_it_leaves_out(processor, tmp_path):
    for name, seed in (("image_2.png", 2), ("image_10.png", 10), ("image_1.jpg", 1), ("notes.txt", None)):
        if seed is None:
            (tmp_path / name).write_text("no image")
        else:
            Image.new("RGB", (28, 28), (seed, seed, seed)).save(tmp_path / name)
    with pytest.warns(UserWarning, match="no images: notes.txt"):
        found = [round(frame.image.resize((1, 1)).getpixel((0, 0))[0]) for frame in read_frames(tmp_path)]
    assert found == [1, 2, 10]


def test_interval_and_number_choose_frames():
    images = [Image.new("RGB", (14, 14), (i, i, i)) for i in range(10)]
    chosen = lambda **wishes: [frame.image.getpixel((0, 0))[0] for frame in read_frames(images, **wishes)]  # noqa: E731
    assert chosen(interval=4) == [0, 4, 8]
    assert chosen(num_frames=4) == [0, 3, 6, 9]
    assert chosen() == list(range(10))


def test_a_video_by_number_and_by_frame_rate(processor):
    assert processor(CLIP, num_frames=3)["pixel_values"].shape[1] == 3
    every = sum(1 for _ in read_frames(CLIP, interval=1))
    import av

    with av.open(str(CLIP)) as container:
        rate = float(container.streams.video[0].average_rate)
    assert sum(1 for _ in read_frames(CLIP, fps=rate / 2)) == -(-every // 2)
    assert sum(1 for _ in read_frames(CLIP)) == -(-every // 10)


def test_several_scenes_make_a_batch(processor):
    scenes = [[picture(60, 40, 2 * i), picture(60, 40, 2 * i + 1)] for i in range(3)]
    together = processor(scenes)
    assert together["pixel_values"].shape[:2] == (3, 2)
    assert torch.equal(together["pixel_values"][1:2], processor(scenes[1])["pixel_values"])


def test_conditions_follow_the_frames(processor):
    images = [picture(60, 40, i) for i in range(4)]
    depths = torch.rand(4, 40, 60) + 1
    depths[0, :20], depths[0, 20:, :30] = float("nan"), -1
    given = dict(depths=depths, intrinsics=intrinsics(1, 4, 40, 60)[0], poses=poses(1, 4)[0])
    inputs = processor(images, interval=3, **given)
    height, width = inputs["pixel_values"].shape[-2:]
    assert inputs["depths"].shape == (1, 2, height, width)
    assert torch.equal(inputs["poses"][0], given["poses"][[0, 3]])
    scale = torch.tensor([width / 60, height / 40, 1.0])
    torch.testing.assert_close(inputs["intrinsics"][0], given["intrinsics"][[0, 3]] * scale.unsqueeze(1))
    assert (inputs["depths"][0, 0, : height // 2] == 0).all() and (inputs["depths"] >= 0).all()
    assert set(inputs["depths"][0, 1].unique().tolist()) <= set(depths[3].unique().tolist())  # nearest: no new depths


def test_saved_settings_come_back(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = GeometryProcessor.from_pretrained(tmp_path)
    assert (again.resize_rule, again.pixel_limit, again.patch_size) == ("pi3", 10000, 14)


# ---- back ------------------------------------------------------------------------------


def pinhole_scene(size: tuple[int, int], focal: tuple[float, float], frames: int = 2) -> dict:
    """π³'s output on a slanted plane seen by cameras with the principal point in the middle of the pixel centres."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    x, y = x / focal[0], y / focal[1]
    depth = 2 / (1 + 0.2 * x + 0.1 * y)
    local = torch.stack([x * depth, y * depth, depth], -1).expand(1, frames, height, width, 3)
    return {
        "local_points": local,
        "conf": torch.full((1, frames, height, width, 1), 3.0),
        "camera_poses": poses(1, frames),
    }


def test_cameras_and_points_return_at_the_original_size(processor):
    """Project the points that come back: each falls on its own pixel of the original."""
    outputs = pinhole_scene((28, 42), (40.0, 42.0))
    sizes, boxes = torch.tensor([[[56, 126]] * 2]), torch.tensor([[[0.0, 0.0, 42.0, 28.0]] * 2])
    (scene,) = processor.post_process_geometry(outputs, sizes, boxes)
    assert scene.depth.shape == (2, 56, 126) and scene.points.shape == (2, 56, 126, 3)
    torch.testing.assert_close(scene.intrinsics[:, 0, 0], torch.full((2,), 120.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(scene.intrinsics[:, 1, 1], torch.full((2,), 84.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(scene.intrinsics[0, :2, 2], torch.tensor([62.5, 27.5]), rtol=1e-4, atol=0)
    camera = torch.einsum("nij,nhwj->nhwi", scene.extrinsics[:, :3, :3], scene.points)
    camera = camera + scene.extrinsics[:, None, None, :3, 3]
    torch.testing.assert_close(camera[..., 2], scene.depth, rtol=1e-4, atol=1e-4)
    pixels = torch.einsum("nij,nhwj->nhwi", scene.intrinsics, camera)
    pixels = (pixels[..., :2] / pixels[..., 2:])[:, 4:-4, 4:-4]  # at the border the last value is repeated
    v, u = torch.meshgrid(torch.arange(4.0, 52), torch.arange(4.0, 122), indexing="ij")
    assert (pixels - torch.stack([u, v], -1)).abs().max() < 0.1


def test_extrinsics_are_the_inverse_of_the_poses(processor):
    (scene,) = processor.post_process_geometry(pinhole_scene((28, 28), (30.0, 30.0)))
    identity = torch.eye(4).expand(2, 4, 4)
    torch.testing.assert_close(scene.extrinsics @ scene.camera_poses, identity, atol=1e-5, rtol=0)
    torch.testing.assert_close(invert_rigid(scene.extrinsics), scene.camera_poses, atol=1e-5, rtol=0)


def test_the_first_camera_can_be_the_world(processor):
    (scene,) = processor.post_process_geometry(pinhole_scene((28, 28), (30.0, 30.0)), first_camera=True)
    torch.testing.assert_close(scene.camera_poses[0], torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(scene.points[0, ..., 2], scene.depth[0], atol=1e-4, rtol=0)


def test_originals_of_different_sizes_come_back_as_lists(processor):
    sizes, boxes = torch.tensor([[[56, 84], [28, 30]]]), torch.tensor([[[0.0, 0.0, 42.0, 28.0]] * 2])
    (scene,) = processor.post_process_geometry(pinhole_scene((28, 42), (40.0, 42.0)), sizes, boxes)
    assert [tuple(one.shape) for one in scene.mask] == [(56, 84), (28, 30)]


def test_confidence_and_edges_mask_pixels(processor):
    outputs = pinhole_scene((28, 42), (40.0, 42.0))
    outputs["conf"] = outputs["conf"].clone()
    outputs["conf"][:, 0, :7] = -5.0
    far = outputs["local_points"].clone()
    far[:, 1, :, 21:] *= 3  # a step in depth, and in the direction of the surface
    outputs["local_points"] = far
    (scene,) = processor.post_process_geometry(outputs)
    assert not scene.mask[0, :7].any() and scene.mask[0, 8:].all()
    assert not scene.mask[1, 2:-2, 20:22].any() and scene.mask[1, :, :18].all() and scene.mask[1, :, 25:].all()
    (kept,) = processor.post_process_geometry(outputs, edge_tolerance=None)
    assert kept.mask[1].all()
    (strict,) = processor.post_process_geometry(outputs, confidence_threshold=0.99)
    assert not strict.mask.any()


def test_a_smooth_surface_has_no_edges():
    local = pinhole_scene((28, 42), (40.0, 42.0))["local_points"]
    assert not depth_normal_edge(local).any()


def test_edges_of_depth_ignore_what_is_not_valid():
    depth = torch.ones(1, 9, 9)
    depth[0, 4, 4] = 50
    assert depth_edge(depth).sum() == 9
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[0, 4, 4] = False
    assert not depth_edge(depth, mask=mask)[mask].any()


def test_intrinsics_are_recovered_from_rays_of_any_length():
    v, u = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    rays = torch.stack([(u - 13) / 25, (v - 11) / 27, torch.ones_like(u)], -1) * (1 + u).unsqueeze(-1)
    expected = torch.tensor([[25.0, 0, 13], [0, 27, 11], [0, 0, 1]])
    torch.testing.assert_close(recover_intrinsics(rays), expected, atol=1e-3, rtol=1e-4)


# ---- refused ---------------------------------------------------------------------------


def test_an_empty_folder_is_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="holds no image; expected jpg, png"):
        processor(tmp_path)


def test_an_empty_list_is_refused(processor):
    with pytest.raises(ValueError, match="holds no image"):
        processor([])


def test_a_missing_path_is_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="no folder, image or video"):
        processor(tmp_path / "nothing.mp4")


def test_a_damaged_image_is_named(processor, tmp_path):
    picture(28, 28).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"b\.png.*cannot be read"):
        processor(tmp_path)


def test_a_video_that_is_cut_short_is_refused(processor, tmp_path):
    content = CLIP.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.mp4"):
        processor(tmp_path / "cut.mp4", interval=1)


def test_an_unreadable_frame_in_a_video_is_refused(processor, tmp_path):
    """The index of the file stays whole, so that it opens; the pictures after the first ones are gone."""
    content = bytearray(CLIP.read_bytes())
    start = content.index(b"mdat") + 4
    middle = start + (len(content) - start) // 2
    content[middle : middle + 20000] = bytes(len(content[middle : middle + 20000]))
    (tmp_path / "damaged.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.mp4.*(cannot be read|cut short)"):
        processor(tmp_path / "damaged.mp4", interval=1)


def test_scenes_that_do_not_stack_are_refused(processor):
    with pytest.raises(ValueError, match=r"do not stack.*\[1, 3, 84, 112\]"):
        processor([[picture(60, 45)], [picture(45, 60)]])


@pytest.mark.parametrize(
    "wishes, message",
    [
        (dict(interval=2, num_frames=3), "`interval` and `num_frames`"),
        (dict(fps=2), "`fps` is for video files"),
        (dict(num_frames=0), "`num_frames` must be positive, got 0"),
        (
            dict(intrinsics=torch.full((2, 3, 3), float("nan"))),
            "`intrinsics` hold numbers that are not finite in matrix 0",
        ),
        (dict(poses=2 * torch.eye(4).expand(2, 4, 4)), "`poses` hold a matrix that is not rigid: number 0"),
        (dict(poses=torch.eye(4).expand(3, 4, 4)), "`poses` must hold one entry per image"),
        (dict(depths=torch.ones(2, 1, 40, 60)), r"`depths` must be \[N, h, w\]"),
    ],
)
def test_contradictory_wishes_and_bad_conditions_are_refused(processor, wishes, message):
    with pytest.raises(ValueError, match=message):
        processor([picture(60, 40, 0), picture(60, 40, 1)], **wishes)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="`resize_rule` must be one of"):
        GeometryProcessor(resize_rule="square")


# ---- focal lengths and values that are not finite ----------------------------------------


def camera_rays(height=28, width=42, focal=(40.0, 42.0), centre=None):
    cx, cy = centre or ((width - 1) / 2, (height - 1) / 2)
    v, u = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([(u - cx) / focal[0], (v - cy) / focal[1], torch.ones_like(u)], -1)


@pytest.mark.parametrize("centered", [True, False])
def test_a_few_large_rays_do_not_shorten_the_focal_length(centered):
    """0.2 % of rays at 45° and more cost least squares 17 %."""
    rays = camera_rays()
    rays[3, 5] = torch.tensor([50.0, -70.0, 1.0])
    rays[20, 30] = torch.tensor([-300.0, 4.0, 1.0])
    found = recover_intrinsics(rays, centered)
    torch.testing.assert_close(found.diagonal()[:2], torch.tensor([40.0, 42.0]), rtol=1e-5, atol=1e-4)
    assert (recover_intrinsics(rays, centered, method="regression").diagonal()[:2] < 30).all()


@pytest.mark.parametrize("centered", [True, False])
def test_noise_of_rays_does_not_shorten_the_focal_length(centered):
    """Noise of 0.2 cost least squares 14 %, since it counts rays as exact and pixels as uncertain."""
    rays = camera_rays(224, 336, (300.0, 310.0))
    rays[..., :2] += 0.2 * torch.randn(224, 336, 2, generator=torch.Generator().manual_seed(0))
    found = recover_intrinsics(rays, centered).diagonal()[:2]
    torch.testing.assert_close(found, torch.tensor([300.0, 310.0]), rtol=0.02, atol=0)
    assert (recover_intrinsics(rays, centered, method="regression").diagonal()[:2] < 270).all()


def test_pixels_outside_the_mask_do_not_decide_the_focal_length():
    rays, mask = camera_rays(), torch.zeros(28, 42, dtype=torch.bool)
    mask[:10] = True
    rays[10:, :, :2] *= 3
    torch.testing.assert_close(recover_intrinsics(rays, True, mask=mask)[0, 0], torch.tensor(40.0))
    nothing = torch.zeros_like(mask)  # then all pixels count
    torch.testing.assert_close(recover_intrinsics(camera_rays(), True, mask=nothing)[1, 1], torch.tensor(42.0))


def test_units_of_the_pixel_centres_are_the_same_camera():
    found = recover_intrinsics(camera_rays(), ndc=True)
    torch.testing.assert_close(found, recover_intrinsics(camera_rays(), ndc=True, method="regression"))


def test_rays_that_explain_no_camera_still_give_finite_numbers():
    for rays in (torch.full((2, 4, 6, 3), torch.nan), -torch.ones(2, 4, 6, 3), torch.zeros(2, 4, 6, 3)):
        for centered in (True, False):
            found = recover_intrinsics(rays, centered)
            assert found.isfinite().all() and (found[:, 0, 0] == 6).all()
    with pytest.raises(ValueError, match="`method` must be one of"):
        recover_intrinsics(camera_rays(), method="mean")


@pytest.mark.parametrize("original", [None, (56, 84)])
def test_one_infinite_pixel_spoils_nothing_but_itself(processor, original):
    outputs = pinhole_scene((28, 42), (40.0, 42.0))
    clean = post_processed(processor, outputs, original)
    outputs["local_points"][0, 0, 5, 7] = torch.inf
    outputs["local_points"][0, 0, 20, 9, 2] = torch.nan
    scene = post_processed(processor, outputs, original)
    for name in ("depth", "points", "confidence", "intrinsics", "camera_poses", "extrinsics"):
        assert getattr(scene, name).isfinite().all(), name
    torch.testing.assert_close(scene.intrinsics, clean.intrinsics, rtol=1e-5, atol=1e-4)
    lost = clean.mask[0] & ~scene.mask[0]
    assert 2 <= lost.sum() <= (2 * 9 if original is None else 2 * 64)  # the edge filter looks at neighbours
    torch.testing.assert_close(scene.points[scene.mask], clean.points[scene.mask])


def post_processed(processor, outputs, original):
    sizes = None if original is None else torch.tensor(original).expand(1, outputs["local_points"].shape[1], 2)
    boxes = None if original is None else torch.tensor([0.0, 0, 42, 28]).expand(1, outputs["local_points"].shape[1], 4)
    outputs = {name: value.clone() for name, value in outputs.items()}
    (scene,) = processor.post_process_geometry(outputs, sizes, boxes)
    return scene


def test_rays_that_are_all_shifted_alike_keep_the_focal_length():
    """A principal point beside the middle: the halves of the image disagree, and their median lies anywhere between."""
    rays = camera_rays()
    rays[..., 0] += 0.2
    rays[..., 1] -= 0.1
    found = recover_intrinsics(rays, True)
    torch.testing.assert_close(found.diagonal()[:2], torch.tensor([40.0, 42.0]), rtol=1e-4, atol=0)
    assert found[:2, 2].tolist() == [20.5, 13.5]
