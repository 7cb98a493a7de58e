"""Similarities, windows, and what the files of a reconstruction hold."""

import io
import json

import av
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy.spatial.transform import Rotation

from dsr_toolkit.cli import main
from dsr_toolkit.demo.clip import CLIP
from dsr_toolkit.evaluation.geometry_metrics import trajectory_metrics
from dsr_toolkit.loading import load
from dsr_toolkit.reconstruction import View, predict
from dsr_toolkit.reconstruction.inputs import count_frames, multiview_files
from dsr_toolkit.reconstruction.similarity import Similarity, robust_similarity, umeyama
from dsr_toolkit.reconstruction.windows import reconstruct_windows, windows
from dsr_toolkit.reconstruction.writers import FORMATS, PointSample, open_writers
from dsr_toolkit.tiny import hub_folder
from modeling_dsr.frames import read_frames

HEIGHT, WIDTH = 6, 8


def similarity(seed: int) -> Similarity:
    generator = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    return Similarity(float(np.exp(generator.normal(0, 0.5))), rotation, generator.normal(0, 3, 3))


def true_views(count: int, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> list[View]:
    """A camera on a winding way, and what lies before it."""
    generator = np.random.default_rng(seed)
    intrinsics = np.array([[7.0, 0, width / 2], [0, 6.5, height / 2], [0, 0, 1]])
    v, u = np.mgrid[:height, :width]
    rays = np.stack([(u - intrinsics[0, 2]) / 7.0, (v - intrinsics[1, 2]) / 6.5, np.ones_like(u)], -1)
    views = []
    for number in range(count):
        camera = np.eye(4)
        camera[:3, :3] = Rotation.from_euler("yxz", [0.05 * number, 0.2 * np.sin(number / 9), 0.1]).as_matrix()
        camera[:3, 3] = [np.sin(number / 15) * 6, 0.3 * np.cos(number / 5), number * 0.25]
        depth = generator.uniform(1, 6, (height, width))
        points = (rays * depth[..., None]) @ camera[:3, :3].T + camera[:3, 3]
        views.append(
            View(
                generator.integers(0, 255, (height, width, 3), np.uint8), points.astype(np.float32),
                depth.astype(np.float32),
                generator.uniform(0.3, 1, (height, width)).astype(np.float32), generator.random((height, width)) > 0.2,
                camera,
                intrinsics, (generator.random((height, width)) > 0.7).astype(np.float32), f"frame {number}.jpg",
                number / 10,
            )
        )  # fmt: skip
    return views


# --------------------------------------------------------------------------------------
# Similarities and windows
# --------------------------------------------------------------------------------------


def test_umeyama_recovers_a_similarity_also_of_a_reflected_looking_set():
    for seed in range(20):
        points = np.random.default_rng(seed).normal(size=(4, 3))  # so few that a reflection can tempt
        truth = similarity(seed)
        found = umeyama(points, truth.apply(points))
        assert np.allclose(found.apply(points), truth.apply(points), atol=1e-9)
        assert np.isclose(np.linalg.det(found.rotation), 1)


def test_umeyama_minimises_the_weighted_error():
    generator = np.random.default_rng(0)
    x, y, weights = generator.normal(size=(30, 3)), generator.normal(size=(30, 3)), generator.random(30)
    best = umeyama(x, y, weights)
    error = lambda fit: float((weights * np.square(fit.apply(x) - y).sum(-1)).sum())  # noqa: E731
    for _ in range(200):
        turn = Rotation.from_rotvec(generator.normal(0, 0.02, 3)).as_matrix()
        other = Similarity(
            best.scale * np.exp(generator.normal(0, 0.02)),
            turn @ best.rotation,
            best.translation + generator.normal(0, 0.02, 3),
        )
        assert error(other) > error(best)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_gross_outliers_do_not_move_the_similarity(share):
    generator = np.random.default_rng(1)
    truth, x = similarity(5), generator.normal(size=(500, 3))
    y = truth.apply(x)
    wrong = generator.random(500) < share
    y[wrong] += generator.normal(0, 50, (wrong.sum(), 3))
    found, inlier = robust_similarity(x, y, generator.uniform(0.1, 1, 500))
    assert np.allclose(found.apply(x), truth.apply(x), atol=1e-6)
    assert not inlier[wrong].any()


def test_a_line_leaves_the_rotation_open():
    line = np.outer(np.arange(10.0), [1, 2, 3])
    with pytest.raises(ValueError, match="line"):
        robust_similarity(line, line)


def test_windows_overlap_and_the_last_may_be_short():
    assert list(windows(range(7), 4, 2)) == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6]]
    assert list(windows(range(4), 4, 1)) == [[0, 1, 2, 3]]
    assert list(windows(iter(range(2)), 4, 3)) == [[0, 1]]
    with pytest.raises(ValueError, match="overlap"):
        next(windows(range(9), 4, 4))


@pytest.mark.parametrize("size, overlap", [(8, 2), (4, 3)])
def test_windows_recover_the_trajectory_in_spite_of_noise_and_outliers(size, overlap):
    """Twenty windows, each in a frame and a scale of its own, points 1 % wrong and every tenth grossly: ATE < 1 %."""
    truth = true_views(size + 19 * (size - overlap), height=24, width=32)
    generator, calls = np.random.default_rng(2), 0

    def predict_window(views):
        nonlocal calls
        calls += 1
        moved = []
        for view in views:
            points = view.points + view.depth[..., None] * generator.normal(0, 0.01, view.points.shape)
            wrong = generator.random(view.depth.shape) < 0.1
            points[wrong] += generator.normal(0, 20, (wrong.sum(), 3))
            camera = view.camera_to_world.copy()
            camera[:3, 3] += generator.normal(0, 0.005, 3)
            moved.append(View(**{**vars(view), "points": points, "camera_to_world": camera}).moved(similarity(calls)))
        return moved

    found = list(reconstruct_windows(predict_window, iter(truth), size, overlap))
    assert calls == 20 and [view.name for view in found] == [view.name for view in truth]
    cameras, true_cameras = (np.stack([view.camera_to_world for view in views]) for views in (found, truth))
    length = np.linalg.norm(np.diff(true_cameras[:, :3, 3], axis=0), axis=1).sum()
    assert trajectory_metrics(cameras, true_cameras)["ate"] < 0.01 * length
    # Depths have one scale from the first window to the last.
    scales = [np.median(view.depth / other.depth) for view, other in zip(found, truth)]
    assert max(scales) / min(scales) < 1.03


def test_only_a_window_is_held_and_an_interrupted_run_asks_only_for_the_rest(tmp_path):
    views, asked = true_views(12), []

    def predict_window(window):
        asked.append(len(window))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return window

    run = lambda: list(reconstruct_windows(predict_window, iter(views), 4, 2, tmp_path))  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        run()
    again = run()
    assert asked == [4, 4, 4, 4, 4, 4]  # windows 1, 2, 3 (lost), 3, 4, 5
    assert [view.name for view in again] == [view.name for view in views]
    assert np.array_equal(again[0].points, views[0].points)


# --------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder, views = tmp_path_factory.mktemp("files"), true_views(5)
    writers = open_writers(folder, FORMATS, 10_000)
    for view in views:
        for writer in writers:
            writer.add(view)
    for writer in writers:
        for path in writer.finish():
            assert path.exists()
    return folder, views


def trusted(views) -> np.ndarray:
    return np.concatenate([view.points[view.mask] for view in views])


def same_points(found, expected) -> bool:
    order = lambda points: points[np.lexsort(np.round(points, 3).T)]  # noqa: E731
    return found.shape == expected.shape and np.allclose(
        order(np.asarray(found)), order(np.asarray(expected)), atol=1e-4
    )


def test_glb_holds_points_and_cameras(written):
    folder, views = written
    scene = trimesh.load(folder / "scene.glb")
    below = np.linalg.inv(scene.graph["opencv"][0])
    clouds = [scene.geometry[name].vertices for name in ("points", "moving")]
    assert same_points(np.concatenate(clouds), trusted(views))
    assert len(clouds[1]) == sum((view.mask & (view.dynamic > 0.5)).sum() for view in views)
    for number, view in enumerate(views):
        pose, name = scene.graph[f"camera_{number:06d}"]
        assert np.allclose(below @ pose, view.camera_to_world, atol=1e-4)
        # The far corners of the frustum are the corners of the image.
        lines = scene.geometry[name].vertices
        far = lines[lines[:, 2] > 0] @ view.intrinsics.T
        pixels = far[:, :2] / far[:, 2:]
        assert np.allclose(pixels.min(0), -0.5, atol=1e-3) and np.allclose(
            pixels.max(0), [WIDTH - 0.5, HEIGHT - 0.5], atol=1e-3
        )


def test_ply_holds_points_and_colours(written):
    folder, views = written
    cloud = trimesh.load(folder / "cloud.ply")
    assert np.allclose(cloud.vertices, trusted(views), atol=1e-6)
    still = np.concatenate([view.dynamic[view.mask] < 0.5 for view in views])
    colours = np.concatenate([view.image[view.mask] for view in views])
    assert np.array_equal(cloud.colors[still, :3], colours[still])
    assert np.array_equal(cloud.metadata["_ply_raw"]["vertex"]["data"]["moving"] == 0, still)


def test_colmap_model_reads_back(written):
    folder, views = written
    model = folder / "colmap" / "sparse" / "0"
    cameras = [line.split() for line in (model / "cameras.txt").read_text().splitlines()]
    lines = (model / "images.txt").read_text().splitlines()
    assert all(line == "" for line in lines[1::2])
    for camera, line, view in zip(cameras, lines[::2], views, strict=True):
        number, w, x, y, z, *translation, camera_number, name = line.split()
        assert camera[:4] == [camera_number, "PINHOLE", str(WIDTH), str(HEIGHT)] and number == camera_number
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_quat([float(i) for i in (x, y, z, w)]).as_matrix()
        pose[:3, 3] = [float(i) for i in translation]
        assert np.allclose(np.linalg.inv(pose), view.camera_to_world, atol=1e-4)
        fx, fy, cx, cy = (float(i) for i in camera[4:])
        k = view.intrinsics
        assert np.allclose([fx, fy, cx - 0.5, cy - 0.5], [k[0, 0], k[1, 1], k[0, 2], k[1, 2]])
        assert np.array_equal(np.asarray(Image.open(folder / "colmap" / "images" / name)), view.image)
    points = np.loadtxt(model / "points3D.txt")
    assert same_points(points[:, 1:4], trusted(views))


def test_tum_trajectory_reads_back(written):
    from evo.tools import file_interface

    folder, views = written
    trajectory = file_interface.read_tum_trajectory_file(str(folder / "trajectory.tum"))
    assert np.allclose(trajectory.timestamps, [view.time for view in views])
    assert np.allclose(trajectory.poses_se3, [view.camera_to_world for view in views], atol=1e-4)


def test_npz_holds_everything(written):
    folder, views = written
    with np.load(folder / "geometry.npz") as file:
        for name in ("image", "points", "depth", "confidence", "mask", "camera_to_world", "intrinsics", "dynamic"):
            assert np.array_equal(file[name], np.stack([getattr(view, name) for view in views])), name
        assert file["names"].tolist() == [view.name for view in views]
        assert np.allclose(file["times"], [view.time for view in views])


def test_videos_have_a_frame_per_view(written):
    folder, views = written
    for name in ("depth", "dynamic"):
        with av.open(str(folder / f"{name}.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == len(views) and frames[0].shape == (HEIGHT, WIDTH, 3)
    assert np.corrcoef(frames[0].mean(-1).ravel(), views[0].dynamic.ravel())[0, 1] > 0.5


def test_npz_refuses_images_of_two_sizes(tmp_path):
    (writer,) = open_writers(tmp_path, ("npz",), 10)
    writer.add(true_views(1)[0])
    with pytest.raises(ValueError, match="Leave npz out"):
        writer.add(true_views(1, height=HEIGHT + 2)[0])


def test_the_sample_of_points_is_bounded_and_even():
    sample = PointSample(1000)
    for number in range(40):
        points = np.full((500, 3), number, np.float32)
        sample.add(points, np.zeros((500, 3), np.uint8), np.zeros(500, bool))
        assert sample.size <= 2500
    points = sample.points()[0][:, 0]
    assert len(points) == 1000 and np.all(np.diff(points) >= 0)
    assert abs(points.mean() - 19.5) < 1.5 and len(np.unique(points)) == 40


# --------------------------------------------------------------------------------------
# Models and the command
# --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(generator.integers(0, 255, (30, 40, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("kind", ["pi3", "page4d"])
def test_views_are_the_model_s_own_output(kind, photos):
    model, processor = load(str(hub_folder(kind)), kind)
    images = [frame.image for frame in read_frames(photos)]
    inputs = processor(images)
    with torch.inference_mode():
        outputs = model(inputs["pixel_values"])
    views = predict(model, processor, images, original_size=True)
    (scene,) = processor.post_process_geometry(outputs, inputs["original_sizes"], inputs["image_boxes"])
    for number, view in enumerate(views):
        assert view.image.shape == (30, 40, 3) and np.array_equal(view.image, np.asarray(images[number]))
        assert np.allclose(view.points, scene.points[number], atol=1e-5)
        assert np.allclose(view.camera_to_world, scene.camera_poses[number], atol=1e-6)
    assert (views[0].dynamic is None) == (kind == "pi3")


def test_the_command_writes_every_format(photos, tmp_path):
    output = tmp_path / "out"
    assert main(["reconstruct", str(photos), "-o", str(output), "--format", "all", "--edge-tolerance", "0"]) == 0
    report = json.loads((output / "reconstruct.json").read_text())
    assert report["views"] == 3 and report["points"] > 0 and report["random_weights"]
    with np.load(output / "geometry.npz") as file:
        assert file["mask"].sum() == report["points"]
        trajectory = np.loadtxt(output / "trajectory.tum")
        assert np.allclose(trajectory[:, 1:4], file["camera_to_world"][:, :3, 3], atol=1e-4)
    expected = {
        "scene.glb",
        "scene.html",
        "cloud.ply",
        "geometry.npz",
        "colmap",
        "depth.mp4",
        "trajectory.tum",
        "overview.png",
    }
    assert {path.name for path in output.iterdir()} == expected | {"reconstruct.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing beside it
    assert main(["reconstruct", str(photos), "-o", str(output), "--format", "tum"]) == 0  # an earlier one is replaced
    assert not (output / "scene.glb").exists()


def test_a_video_in_windows(tmp_path):
    clip, output = CLIP, tmp_path / "out"
    count = count_frames(clip, 4, None, None)
    arguments = ["--interval", "4", "--window", "4", "--overlap", "2", "--format", "tum,ply"]
    assert main(["reconstruct", str(clip), "-o", str(output), *arguments]) == 0
    trajectory = np.loadtxt(output / "trajectory.tum")
    assert len(trajectory) == count > 4 and np.all(np.diff(trajectory[:, 0]) > 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_synchronised_views_give_a_cloud_per_time(photos, tmp_path):
    for time in (0, 6):
        for number in range(3):
            target = tmp_path / "scene" / f"time_{time:02d}" / f"view{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((photos / f"{number}.png").read_bytes())
    output = tmp_path / "out"
    assert (
        main(["reconstruct", str(tmp_path / "scene"), "-o", str(output), "--model", "page4d", "--format", "glb,npz"])
        == 0
    )
    for time in ("time_00", "time_06"):
        with np.load(output / time / "geometry.npz") as file:
            assert len(file["points"]) == 3 and "dynamic" in file.files
            assert 0 < file["dynamic"].min() and file["dynamic"].max() < 1 and file["dynamic"].std() > 0
        assert (output / time / "scene.glb").stat().st_size > 0
    (tmp_path / "scene" / "time_06" / "view2.png").unlink()
    with pytest.raises(ValueError, match="the same"):
        multiview_files(tmp_path / "scene")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "no folder, image or video"),
        (["PHOTOS", "--format", "obj"], "obj"),
        (["PHOTOS", "--fps", "2"], "fps"),
        (["PHOTOS", "--overlap", "2"], "--window"),
        (["PHOTOS", "--window", "3", "--overlap", "3"], "--overlap"),
        (["PHOTOS", "--confidence", "1.5"], "--confidence"),
        (["PHOTOS", "--frames", "0"], "--frames"),
        (["EMPTY"], "no image"),
        (["BROKEN"], "cannot be read"),
    ],
)
def test_wrong_wishes_are_told(arguments, message, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_bytes((photos / "0.png").read_bytes()[:200])
    places = {"PHOTOS": photos, "EMPTY": tmp_path / "empty", "BROKEN": tmp_path / "broken"}
    output = tmp_path / "out"
    assert main(["reconstruct", *(str(places.get(word, word)) for word in arguments), "-o", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_folder_of_something_else_is_left_alone(photos, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    assert main(["reconstruct", str(photos), "-o", str(tmp_path)]) == 2
    assert "something else" in capsys.readouterr().err and (tmp_path / "thesis.txt").exists()


@pytest.mark.slow
def test_the_page_shows_the_cloud_without_a_network(written, page):
    folder, _ = written
    requests, problems = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((folder / "scene.html").as_uri())
    page.wait_for_function("typeof scene !== 'undefined' && scene.children.length > 1")
    page.wait_for_timeout(500)
    assert not problems and not [url for url in requests if url.startswith("http")]
    drawn = page.evaluate(
        "() => "
        "{ let points = 0, lines = 0; "
        "scene.traverse(o => { points += o.isPoints ? 1 : 0; lines += o.isLine ? 1 : 0 }); "
        "return [points, lines] }"
    )
    assert drawn[0] == 2 and drawn[1] >= 5
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    assert (np.asarray(picture) < 250).any(-1).sum() > 200
