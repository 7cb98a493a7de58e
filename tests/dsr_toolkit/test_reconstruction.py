"""Similarities, windows, and what the files of a reconstruction hold."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from dsr_toolkit.cli import main
from dsr_toolkit.demo.clip import CLIP
from dsr_toolkit.evaluation.geometry_metrics import trajectory_metrics
from dsr_toolkit.loading import load, resolve
from dsr_toolkit.reconstruction import View, predict
from dsr_toolkit.reconstruction.inputs import multiview_files
from dsr_toolkit.reconstruction.similarity import Similarity, robust_similarity, umeyama
from dsr_toolkit.reconstruction.windows import reconstruct_windows, windows
from dsr_toolkit.tiny import hub_folder
from modeling_dsr.frames import find_frames, read_frames
from tests.dsr_toolkit.reconstruction.tours import winding, world_of

# --------------------------------------------------------------------------------------
# Similarities and windows
# --------------------------------------------------------------------------------------


def test_umeyama_recovers_a_similarity_also_of_a_reflected_looking_set():
    for seed in range(20):
        points = np.random.default_rng(seed).normal(size=(4, 3))  # so few that a reflection can tempt
        truth = world_of(seed)
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
    truth, x = world_of(5), generator.normal(size=(500, 3))
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
    truth = winding(size + 19 * (size - overlap), height=24, width=32)
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
            moved.append(View(**{**vars(view), "points": points, "camera_to_world": camera}).moved(world_of(calls)))
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
    views, asked = winding(12), []

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
    assert report["views"] == 3 and report["points"] > 0 and report["stand_in"] == resolve(None, "pi3")[1].remark
    with np.load(output / "geometry.npz") as file:
        assert file["mask"].sum() == report["points"]
        trajectory = np.loadtxt(output / "trajectory.tum")
        assert np.allclose(trajectory[:, 1:4], file["camera_to_world"][:, :3, 3], atol=1e-4)
    expected = {
        "scene.glb",
        "scene.html",
        "scene.rrd",
        "nerfstudio",
        "cloud.ply",
        "geometry.npz",
        "colmap",
        "depth.mp4",
        "trajectory.tum",
        "overview.png",
    }
    assert {path.name for path in output.iterdir()} == expected | {"reconstruct.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing beside it
    assert main(["reconstruct", str(photos), "-o", str(output), "--format", "tum"]) == 2  # an earlier one stays
    again = ["reconstruct", str(photos), "-o", str(output), "--format", "tum", "--overwrite"]
    assert main(again) == 0  # what it wrote is replaced
    assert not (output / "scene.glb").exists()


def test_a_video_in_windows(tmp_path):
    clip, output = CLIP, tmp_path / "out"
    count = len(find_frames(clip, 4))
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
    (tmp_path / "scene.glb").write_text("precious")
    for more in ([], ["--overwrite"]):
        assert main(["reconstruct", str(photos), "-o", str(tmp_path), *more]) == 2
        assert "scene.glb" in capsys.readouterr().err and (tmp_path / "scene.glb").read_text() == "precious"
