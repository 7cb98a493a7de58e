"""`dsr reconstruct`: no work is lost, several scenes in one call, cameras that are known beforehand."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

import dsr_toolkit.reconstruction.run as run
from dsr_toolkit.cli import main
from dsr_toolkit.commands.reconstruct import _default_folder
from dsr_toolkit.reconstruction.store import WindowStore, readable_size
from dsr_toolkit.reconstruction.windows import count_windows, windows
from tests.dsr_toolkit.reconstruction.tours import winding

COUNT = 6


def reconstruct(source, output, model, *more, formats="npz,tum") -> int:
    arguments = [
        "reconstruct",
        str(source),
        "-o",
        str(output),
        "--model",
        model,
        "--format",
        formats,
        "--device",
        "cpu",
    ]
    return main([*arguments, "--confidence", "0", "--edge-tolerance", "0", *more])


def report_of(output) -> dict:
    return json.loads((Path(output) / "reconstruct.json").read_text())


# ---- windows ---------------------------------------------------------------------------


def test_landscape_and_portrait_photographs_go_through_windows(photos, tmp_path, quick_pi3):
    """The first image of each window chooses the size of its frames: what two windows share comes in two sizes."""
    for number in (1, 2, 5):
        Image.open(photos / f"{number}.png").resize((40, 60)).save(photos / f"{number}.png")
    assert reconstruct(photos, tmp_path / "out", quick_pi3, "--window", "2", formats="all") == 0
    with np.load(tmp_path / "out" / "geometry.npz") as file:
        assert len(file["names"]) == COUNT and np.isfinite(file["camera_to_world"]).all()
    assert len(report_of(tmp_path / "out")["joins"]) == COUNT - 2


def test_every_join_is_judged_in_the_report_and_on_the_screen(photos, tmp_path, quick_pi3, capsys):
    assert reconstruct(photos, tmp_path / "out", quick_pi3, "--window", "3", "--overlap", "1") == 0
    joins = report_of(tmp_path / "out")["joins"]
    assert [join["first"] for join in joins] == ["2.png", "4.png"]
    assert all(join.keys() >= {"scale", "residual", "agreement", "scale_spread", "trusted"} for join in joins)
    doubted = sum(not join["trusted"] for join in joins)
    assert ("cannot be trusted" in capsys.readouterr().err) == bool(doubted)


def test_an_overlap_of_nothing_is_refused_and_not_the_default(photos, tmp_path, quick_pi3, capsys):
    assert reconstruct(photos, tmp_path / "out", quick_pi3, "--window", "4", "--overlap", "0") == 2
    assert "--overlap must be at least 1" in capsys.readouterr().err


def interrupted(monkeypatch, after):
    """Windows, the `after`th of which fails; returns the list of what was asked."""
    asked, predict = [], run.predict

    def failing(model, processor, images, names, *rest, **more):
        asked.append(names)
        if len(asked) == after:
            raise ValueError("the power is gone")
        return predict(model, processor, images, names, *rest, **more)

    monkeypatch.setattr(run, "predict", failing)
    return asked


@pytest.mark.parametrize("inside", [False, True])
def test_an_interrupted_run_goes_on_where_it_was(inside, photos, tmp_path, quick_pi3, monkeypatch, capsys):
    output = (photos if inside else tmp_path) / "out"
    asked = interrupted(monkeypatch, 3)
    arguments = (photos, output, quick_pi3, "--window", "2", "--overlap", "1", "--no-loops")
    assert reconstruct(*arguments) == 2
    told = capsys.readouterr().err
    assert "the power is gone" in told and f"kept in {output / 'windows'}" in told
    assert len(list((output / "windows").glob("00000*"))) == 2
    assert reconstruct(*arguments) == 0
    assert [names[0] for names in asked] == ["0.png", "1.png", "2.png", "2.png", "3.png", "4.png"]
    assert not (output / "windows").exists() and report_of(output)["views"] == COUNT
    assert "Going on with an interrupted run: 2 windows" in capsys.readouterr().err


def test_taking_a_bad_image_out_keeps_the_windows_before_it(photos, tmp_path, quick_pi3, monkeypatch):
    (photos / "4.png").write_bytes((photos / "4.png").read_bytes()[:100])
    asked = interrupted(monkeypatch, 99)
    arguments = (photos, tmp_path / "out", quick_pi3, "--window", "2", "--overlap", "1", "--no-loops")
    assert reconstruct(*arguments) == 2
    (photos / "4.png").unlink()
    assert reconstruct(*arguments) == 0
    assert asked == [["0.png", "1.png"], ["1.png", "2.png"], ["2.png", "3.png"], ["3.png", "5.png"]]


def test_another_wish_asks_again(photos, tmp_path, quick_pi3, monkeypatch):
    asked = interrupted(monkeypatch, 3)
    arguments = (photos, tmp_path / "out", quick_pi3, "--window", "2", "--overlap", "1", "--no-loops")
    assert reconstruct(*arguments) == 2
    assert reconstruct(*arguments, "--original-size") == 0
    assert len(asked) == 3 + 5


def test_a_model_that_was_trained_on_asks_again(photos, tmp_path, quick_pi3, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(quick_pi3, model)
    asked = interrupted(monkeypatch, 3)
    arguments = (photos, tmp_path / "out", str(model), "--window", "2", "--overlap", "1", "--no-loops")
    assert reconstruct(*arguments) == 2
    os.utime(model / "model.safetensors", (1, 1))
    assert reconstruct(*arguments) == 0
    assert len(asked) == 3 + 5


def test_a_folder_of_that_name_that_is_not_ours_is_left_alone(photos, tmp_path, quick_pi3, capsys):
    (tmp_path / "out" / "windows").mkdir(parents=True)
    (tmp_path / "out" / "windows" / "thesis.tex").write_text("mine")
    assert reconstruct(photos, tmp_path / "out", quick_pi3, "--window", "2") == 2
    assert "holds something else" in capsys.readouterr().err and (tmp_path / "out" / "windows" / "thesis.tex").exists()


def test_windows_on_disk_are_compressed_and_their_size_is_told_beforehand(tmp_path, capsys):
    views = winding(8, height=60, width=80)
    flat = [type(view)(**{**vars(view), "image": view.image * 0, "points": view.points * 0}) for view in views]
    store = WindowStore(tmp_path / "windows", windows=7)
    name, _ = store.remember("000000", lambda frames: frames, flat[:4])
    raw = sum(value.nbytes for view in flat[:4] for value in vars(view).values() if isinstance(value, np.ndarray))
    assert store.size() < 0.6 * raw
    told = capsys.readouterr().err
    assert f"7 windows are kept in {tmp_path / 'windows'}" in told and readable_size(7 * store.size()) in told
    for view, again in zip(flat, store.read(name)):
        assert np.array_equal(view.depth, again.depth) and view.name == again.name and view.time == again.time


def test_a_full_disk_says_what_fills_it(tmp_path, monkeypatch):
    views = winding(4)
    store = WindowStore(tmp_path / "windows")
    store.remember("000000", lambda frames: frames, views)

    def full(self, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(views[0]), "save", full)
    with pytest.raises(OSError, match="the disk is full: the windows predicted so far") as failure:
        store.remember("000001", lambda frames: frames, views)
    assert str(tmp_path / "windows") in str(failure.value) and "goes on from there" in str(failure.value)


def test_windows_are_counted_as_they_come():
    for frames in range(1, 40):
        for size, overlap in ((4, 1), (4, 3), (8, 2)):
            assert count_windows(frames, size, overlap) == len(list(windows(range(frames), size, overlap)))


def test_the_default_folder_is_the_one_that_can_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _default_folder() == Path("dsr-reconstruct")
    (tmp_path / "dsr-reconstruct" / "windows").mkdir(parents=True)
    assert _default_folder() == Path("dsr-reconstruct")
    (tmp_path / "dsr-reconstruct" / "scene.glb").write_bytes(b"")
    assert _default_folder() == Path("dsr-reconstruct-2")


# ---- formats and scenes -------------------------------------------------------------------


def test_a_format_that_fails_leaves_the_others_and_says_so(photos, tmp_path, quick_pi3, monkeypatch, capsys):
    from dsr_toolkit.reconstruction.writers.arrays import NpzWriter

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(NpzWriter, "finish", full)
    assert reconstruct(photos, tmp_path / "out", quick_pi3, formats="npz,glb,tum") == 1
    assert "npz cannot be written" in capsys.readouterr().err
    report = report_of(tmp_path / "out")
    assert list(report["failed"]) == ["npz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "overview.png", "reconstruct.json", "scene.glb", "trajectory.tum",
    ]  # fmt: skip


def test_mixed_sizes_are_written_in_every_format(photos, tmp_path, quick_pi3):
    Image.open(photos / "3.png").resize((30, 20)).save(photos / "3.png")
    assert reconstruct(photos, tmp_path / "out", quick_pi3, formats="all") == 0
    with np.load(tmp_path / "out" / "geometry.npz") as file:
        assert "points_000003" in file.files and "points" not in file.files
    assert "failed" not in report_of(tmp_path / "out")


def test_what_is_transparent_is_left_out(tmp_path, quick_pi3):
    folder = tmp_path / "cut out"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 4), np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(folder / "0.png")
    pixels[:, :30, 3] = 0
    Image.fromarray(pixels).save(folder / "1.png")
    assert reconstruct(folder, tmp_path / "out", quick_pi3) == 0
    with np.load(tmp_path / "out" / "geometry.npz") as file:
        assert file["mask"][0].all() and file["mask"][1, :, 21:].all() and not file["mask"][1, :, :21].any()


@pytest.mark.parametrize("kind", ["folder", "list", "json"])
def test_several_scenes_get_a_folder_each_and_one_that_fails_ends_nothing(kind, photos, tmp_path, quick_pi3, capsys):
    root = tmp_path / "many"
    for name in ("garden", "hall"):
        (root / name).mkdir(parents=True)
        for number in range(2):
            (root / name / f"{number}.png").write_bytes((photos / f"{number}.png").read_bytes())
    (root / "broken").mkdir()
    (root / "broken" / "0.png").write_bytes(b"no image at all")
    (root / "notes").mkdir()  # neither images nor a video: no scene
    source = root
    if kind == "list":
        source = root / "scenes.txt"
        source.write_text("# what to do\nbroken\n\ngarden\nhall\n")
    elif kind == "json":
        source = root / "scenes.json"
        source.write_text(json.dumps([{"input": "broken"}, {"input": "garden", "name": "garden"}, {"input": "hall"}]))
    assert reconstruct(source, tmp_path / "out", quick_pi3, "--window", "2") == 1
    whole = report_of(tmp_path / "out")
    assert whole["scenes"].keys() == {"garden", "hall"} and whole["failed"].keys() == {"broken"}
    assert "broken failed" in capsys.readouterr().err
    for name in ("garden", "hall"):
        assert report_of(tmp_path / "out" / name)["views"] == 2
        assert (tmp_path / "out" / name / "trajectory.tum").is_file()


def test_manifests_that_cannot_be_read_are_refused(photos, tmp_path, quick_pi3, capsys):
    manifest = tmp_path / "scenes.json"
    for content, message in (
        ("[", "no JSON"), ("[]", "lists no scene"), ('[{"name": "x"}]', "`input`"),
        ('[{"input": "a", "camera": 1}]', "camera"),
        ('[{"input": "photos", "name": "../up"}]', "name of a folder"),
    ):  # fmt: skip
        manifest.write_text(content)
        assert reconstruct(manifest, tmp_path / "out", quick_pi3) == 2
        assert message in capsys.readouterr().err


# ---- cameras and depths known beforehand ----------------------------------------------------


def true_cameras(count=COUNT):
    poses = np.tile(np.eye(4), (count, 1, 1))
    for number in range(count):
        poses[number, :3, :3] = Rotation.from_euler("yx", [0.2 * number, 0.05 * number]).as_matrix()
        poses[number, :3, 3] = [0.5 * number, 0.1 * number**2, 3]
    return poses, np.array([[50.0, 0, 29.5], [0, 50.0, 19.5], [0, 0, 1]])


def write_transforms(path, poses, k, leave_out=()):
    frames = [
        {"file_path": f"images/{n}.png", "transform_matrix": (pose @ np.diag([1, -1, -1, 1])).tolist()}
        for n, pose in enumerate(poses)
        if n not in leave_out
    ]
    document = {"w": 60, "h": 40, "fl_x": 50.0, "fl_y": 50.0, "cx": 30.0, "cy": 20.0, "frames": frames}
    path.write_text(json.dumps(document))


def write_colmap(folder, poses, k, text):
    pycolmap = pytest.importorskip("pycolmap")
    from dataclasses import replace

    from dsr_toolkit.reconstruction.writers import open_writers

    (view,) = winding(1, height=40, width=60)
    folder.mkdir()
    name = "colmap-text" if text else "colmap"
    writer = open_writers(folder, (name,), 1)[name]
    for number, pose in enumerate(poses):
        writer.add(replace(view, camera_to_world=pose, intrinsics=k, name=f"{number}.png"))
    writer.finish()
    assert pycolmap.Reconstruction(str(folder / "colmap" / "sparse" / "0")).num_images() == len(poses)
    return folder / "colmap"


@pytest.fixture
def given(monkeypatch):
    """What the model receives, call by call."""
    from modeling_dsr.modeling_pi3 import Pi3Model

    calls, forward = [], Pi3Model.forward

    def listening(self, pixel_values=None, **conditions):
        calls.append(conditions)
        return forward(self, pixel_values, **conditions)

    monkeypatch.setattr(Pi3Model, "forward", listening)
    return calls


@pytest.mark.parametrize("form", ["transforms", "colmap", "colmap-text", "trajectory", "npz"])
def test_pi3x_reads_known_cameras_of_every_kind(form, photos, tmp_path, quick_pi3x, given):
    poses, k = true_cameras()
    if form == "transforms":
        cameras = tmp_path / "transforms.json"
        write_transforms(cameras, poses, k)
    elif form == "npz":
        cameras = tmp_path / "cameras.npz"
        np.savez(cameras, poses=poses, intrinsics=np.tile(k, (COUNT, 1, 1)))
    elif form == "trajectory":
        cameras = tmp_path / "trajectory.txt"
        rows = [[n, *p[:3, 3], *Rotation.from_matrix(p[:3, :3]).as_quat()] for n, p in enumerate(poses)]
        cameras.write_text("# time tx ty tz qx qy qz qw\n" + "\n".join(" ".join(map(str, row)) for row in rows))
    else:
        cameras = write_colmap(tmp_path / "model", poses, k, form == "colmap-text")
    assert reconstruct(photos, tmp_path / "out", quick_pi3x, "--cameras", str(cameras)) == 0
    (conditions,) = given
    assert conditions["pose_mask"].all() and np.allclose(conditions["poses"][0], poses, atol=1e-5)
    if form != "trajectory":
        # In pixels of the frame, which is 42 wide where the image is 60: centres at whole numbers in both.
        assert np.allclose(conditions["intrinsics"][0, :, 0, 0], 50 * 42 / 60, atol=1e-3)
        assert np.allclose(conditions["intrinsics"][0, :, 0, 2], 29.5 * 42 / 60, atol=1e-3)
    known = report_of(tmp_path / "out")["known"]
    assert known["given_to_the_model"] and known["counts"]["poses"] == COUNT and "ate" in known["trajectory"]
    assert report_of(tmp_path / "out")["unit"] == "the unit of the known cameras"


def test_what_is_known_of_some_images_is_given_for_those(photos, tmp_path, quick_pi3x, given):
    poses, k = true_cameras()
    write_transforms(tmp_path / "transforms.json", poses, k, leave_out=(1, 4))
    depths = tmp_path / "depths"
    depths.mkdir()
    for number in (0, 4):
        Image.fromarray(np.full((40, 60), 2500, np.uint16)).save(depths / f"{number}.png")
    np.save(depths / "5.npy", np.full((40, 60), 1.5, np.float32))
    more = ("--cameras", str(tmp_path / "transforms.json"), "--depths", str(depths), "--depth-scale", "500")
    assert reconstruct(photos, tmp_path / "out", quick_pi3x, *more) == 0
    (conditions,) = given
    assert (
        conditions["pose_mask"][0].tolist() == conditions["ray_mask"][0].tolist() == [n not in (1, 4) for n in range(6)]
    )
    assert conditions["depth_mask"][0].tolist() == [True, False, False, False, True, True]
    assert conditions["depths"][0, 0].unique().tolist() == [5.0] and conditions["depths"][0, 5].unique().tolist() == [
        1.5
    ]
    counts = report_of(tmp_path / "out")["known"]["counts"]
    assert counts == {"poses": 4, "intrinsics": 4, "depths": 3}


@pytest.mark.parametrize("window", [(), ("--window", "4", "--overlap", "2")])
def test_the_result_stands_in_the_world_of_the_known_cameras(window, photos, tmp_path, quick_pi3, monkeypatch):
    """π³ reads images alone: here it is right but for its world, and the known cameras place it, window by window."""
    poses, k = true_cameras()
    write_transforms(tmp_path / "transforms.json", poses, k)
    from dataclasses import replace

    from tests.dsr_toolkit.reconstruction.tours import world_of

    (view,) = winding(1, height=40, width=60)
    calls = []

    def predict(model, processor, images, names, times, **rest):
        calls.append(names)
        views = [
            replace(view, camera_to_world=poses[int(name[0])], intrinsics=k, name=name, time=time, dynamic=None)
            for name, time in zip(names, times)
        ]
        return [one.moved(world_of(len(calls))) for one in views]

    monkeypatch.setattr(run, "predict", predict)
    more = ("--cameras", str(tmp_path / "transforms.json"), *window)
    assert reconstruct(photos, tmp_path / "out", quick_pi3, *more) == 0
    with np.load(tmp_path / "out" / "geometry.npz") as file:
        assert np.allclose(file["camera_to_world"], poses, atol=1e-6)
    known = report_of(tmp_path / "out")["known"]
    assert not known["given_to_the_model"] and known["trajectory"]["ate"] < 1e-6
    assert known["focal_ratio"] == pytest.approx(1, abs=1e-6)


def test_known_cameras_on_one_line_cost_no_result(photos, tmp_path, quick_pi3, capsys):
    poses, k = true_cameras()
    poses[:, :3, 3] = np.arange(COUNT)[:, None] * [1.0, 0, 0]
    write_transforms(tmp_path / "transforms.json", poses, k)
    assert reconstruct(photos, tmp_path / "out", quick_pi3, "--cameras", str(tmp_path / "transforms.json")) == 0
    assert "trajectory" not in report_of(tmp_path / "out")["known"]
    assert "cannot be aligned" in capsys.readouterr().err


def test_pi3x_can_be_told_what_the_window_before_said(photos, tmp_path, quick_pi3x, given):
    assert reconstruct(photos, tmp_path / "out", quick_pi3x, "--window", "4", "--overlap", "2", "--overlap-prior") == 0
    first, second = given
    assert not first
    assert second["pose_mask"][0].tolist() == second["depth_mask"][0].tolist() == [True, True, False, False]
    assert second["ray_mask"][0].tolist() == [True, True, False, False] and (second["depths"][0, :2] > 0).any()


def test_only_pi3x_can_be_told(photos, tmp_path, quick_pi3, capsys):
    assert reconstruct(photos, tmp_path / "out", quick_pi3, "--window", "4", "--overlap-prior") == 2
    assert "--overlap-prior needs a Pi3X" in capsys.readouterr().err


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: None, "there is nothing at"),
        (lambda path: path.mkdir(), "holds no COLMAP model"),
        (lambda path: path.with_suffix(".json").write_text('{"frames": []}'), "no `frames`"),
        (
            lambda path: path.with_suffix(".json").write_text('{"frames": [{"file_path": "9.png"}]}'),
            "belongs to an image",
        ),
        (
            lambda path: path.with_suffix(".json").write_text(
                json.dumps({"frames": [{"file_path": "0.png", "transform_matrix": np.zeros((4, 4)).tolist()}]})
            ),
            "no rotation",
        ),
        (lambda path: path.with_suffix(".txt").write_text("1 2 3\n"), "8 finite numbers"),
        (lambda path: np.savez(path.with_suffix(".npz"), other=np.ones(3)), "none of `poses`"),
        (lambda path: path.with_suffix(".json").write_text('{"frames": [3]}'), "frame 0 has no `file_path`"),
        (
            lambda path: path.with_suffix(".json").write_text(
                '{"w": null, "h": 2, "frames": [{"file_path": "0.png"}]}'
            ),
            "frame 0 holds what is no number",
        ),
        (
            lambda path: path.with_suffix(".json").write_text(
                '{"fl_x": NaN, "cx": 1, "cy": 1, "frames": [{"file_path": "0.png"}]}'
            ),
            "finite and with positive focal lengths",
        ),
        (lambda path: path.with_suffix(".npz").write_bytes(b"PK"), "cannot be read as arrays"),
        (lambda path: np.savez(path.with_suffix(".npz"), poses=np.full((6, 4, 4), np.nan)), "finite matrices"),
        (lambda path: path.with_suffix(".csv").write_text("a"), "is none of"),
    ],
)
def test_cameras_that_cannot_be_used_are_refused(write, message, photos, tmp_path, quick_pi3x, capsys):
    write(tmp_path / "cameras")
    path = next(iter(tmp_path.glob("cameras*")), tmp_path / "cameras")
    assert reconstruct(photos, tmp_path / "out", quick_pi3x, "--cameras", str(path)) == 2
    assert message in capsys.readouterr().err
