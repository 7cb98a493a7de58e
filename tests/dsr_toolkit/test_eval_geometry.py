"""`dsr eval relpose|video-depth|mono-depth|points`: every layout is read, the truth scores as the truth, errors
show."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

import dsr_toolkit.evaluation.geometry as evaluation
from dsr_toolkit.cli import main
from dsr_toolkit.commands.eval_geometry import NEEDS, choose
from dsr_toolkit.datasets.geometry import LAYOUTS, SINTEL_POSE, SINTEL_TAG, find_sequences, read_sintel_depth
from dsr_toolkit.evaluation.geometry import (
    compare_clouds,
    icp,
    published_frames,
    published_predict,
    score_depth,
    score_points,
    score_poses,
    true_points,
)
from dsr_toolkit.loading import resolve
from dsr_toolkit.reconstruction import View
from dsr_toolkit.reconstruction.similarity import Similarity
from dsr_toolkit.tiny import hub_folder
from processing_dsr import GeometryProcessor

COUNT, HEIGHT, WIDTH = 5, 24, 32
INTRINSICS = np.array([[30.0, 0, 15.5], [0, 30.0, 11.5], [0, 0, 1]])


def scene() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Camera-to-world poses `[N, 4, 4]`, depths `[N, h, w]` of a slanted, bumpy wall, and pictures."""
    generator = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (COUNT, 1, 1))
    for number in range(COUNT):
        poses[number, :3, :3] = Rotation.from_euler("yxz", [0.1 * number, 0.03 * number**2, 0.2]).as_matrix()
        poses[number, :3, 3] = [0.4 * number, 0.1 * number**2, 0.05 * number]
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    depths = np.stack([2 + 0.03 * u + 0.02 * v + 0.2 * np.sin(u / 4 + n) for n in range(COUNT)]).astype(np.float32)
    return poses, depths, list(generator.integers(0, 255, (COUNT, HEIGHT, WIDTH, 3), np.uint8))


def save(path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def tum_lines(poses, times) -> str:
    rows = [[time, *pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()] for time, pose in zip(times, poses)]
    return "# time tx ty tz qx qy qz qw\n" + "\n".join(" ".join(f"{x:.9f}" for x in row) for row in rows) + "\n"


def write_tum(root, name="freiburg3_walk", suffix="_90"):
    poses, depths, pictures = scene()
    times = [1305.0 + 0.1 * n for n in range(COUNT)]
    for number in range(COUNT):
        save(root / name / f"rgb{suffix}" / f"{times[number]:.6f}.png", pictures[number])
        save(root / name / f"depth{suffix}" / f"{times[number] + 0.004:.6f}.png", _sixteen_bit(depths[number], 5000))
    (root / name / f"groundtruth{suffix}.txt").write_text(tum_lines(poses, times))


def write_bonn(root):
    write_tum(root, "rgbd_bonn_balloon", "_110")


def _sixteen_bit(depth, scale) -> np.ndarray:
    return np.round(depth * scale).astype(np.uint16)


def write_sintel(root, names=("alley_2",)):
    poses, depths, pictures = scene()
    for name in names:
        for number in range(COUNT):
            stem = f"frame_{number + 1:04d}"
            save(root / "training" / "final" / name / f"{stem}.png", pictures[number])
            camera = root / "training" / "camdata_left" / name / f"{stem}.cam"
            depth = root / "training" / "depth" / name / f"{stem}.dpt"
            camera.parent.mkdir(parents=True, exist_ok=True)
            depth.parent.mkdir(parents=True, exist_ok=True)
            tag = struct.pack("<f", SINTEL_TAG)
            extrinsics = np.linalg.inv(poses[number])[:3]
            camera.write_bytes(tag + INTRINSICS.astype("<f8").tobytes() + extrinsics.astype("<f8").tobytes())
            depth.write_bytes(tag + struct.pack("<ii", WIDTH, HEIGHT) + depths[number].astype("<f4").tobytes())


def write_kitti(root):
    poses, _, pictures = scene()
    for number in range(COUNT):
        save(root / "sequences" / "07" / "image_2" / f"{number:06d}.png", pictures[number])
    (root / "sequences" / "07" / "times.txt").write_text("\n".join(f"{0.1 * n:.6e}" for n in range(COUNT)) + "\n")
    (root / "poses").mkdir()
    rows = [" ".join(f"{x:.9e}" for x in pose[:3].flatten()) for pose in poses]
    (root / "poses" / "07.txt").write_text("\n".join(rows) + "\n")


def write_kitti_depth(root):
    _, depths, pictures = scene()
    for number in range(COUNT):
        save(root / "image_gathered" / "drive_0002" / f"{number:010d}.png", pictures[number])
        save(
            root / "groundtruth_depth_gathered" / "drive_0002" / f"{number:010d}.png", _sixteen_bit(depths[number], 256)
        )


def write_room(root):
    poses, depths, pictures = scene()
    for number in range(COUNT):
        save(root / f"{number}.png", pictures[number])
    np.savez(root / "condition.npz", intrinsics=np.tile(INTRINSICS, (COUNT, 1, 1)), poses=poses, depths=depths)


def write_multiview(root):
    poses, depths, pictures = scene()
    for number in range(COUNT):
        save(root / "time_00" / f"view{number}.png", pictures[number])
    extrinsics = np.linalg.inv(poses)[:, :3]
    np.savez(
        root / "time_00" / "geometry.npz",
        depth=depths,
        intrinsics=np.tile(INTRINSICS, (COUNT, 1, 1)),
        extrinsics=extrinsics,
    )


WRITERS = {
    "tum": write_tum, "bonn": write_bonn, "sintel": write_sintel, "kitti": write_kitti, "room": write_room,
    "multiview": write_multiview,
}  # fmt: skip


def views_of(poses, depths, change=lambda view: view) -> list[View]:
    """What a model would say that knows the truth."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([(u - 15.5) / 30, (v - 11.5) / 30, np.ones_like(u)], -1)
    everywhere = np.ones((HEIGHT, WIDTH), bool)
    return [
        change(
            View(
                np.zeros((HEIGHT, WIDTH, 3), np.uint8),
                ((rays * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32),
                depth, everywhere.astype(np.float32), everywhere, pose, INTRINSICS, None, f"{number}.png",
                float(number),
            )
        )
        for number, (pose, depth) in enumerate(zip(poses, depths))
    ]  # fmt: skip


def moved(similarity: Similarity):
    """The same scene in another world and unit."""

    def change(view: View) -> View:
        camera = view.camera_to_world.copy()
        camera[:3, :3], camera[:3, 3] = similarity.rotation @ camera[:3, :3], similarity.apply(camera[None, :3, 3])[0]
        points = similarity.apply(view.points.reshape(-1, 3).astype(float)).reshape(view.points.shape)
        return replace(
            view, camera_to_world=camera, points=points.astype(np.float32), depth=view.depth * similarity.scale
        )

    return change


ELSEWHERE = moved(Similarity(2.5, Rotation.from_euler("xyz", [0.3, -1, 2]).as_matrix(), np.array([4.0, -2, 1])))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognised_and_its_truth_is_read(layout, tmp_path):
    WRITERS[layout](tmp_path)
    (sequence,) = find_sequences(tmp_path)
    poses, depths, _ = scene()
    assert sequence.layout == layout and len(sequence.images) == COUNT
    assert np.allclose(sequence.poses, poses, atol=1e-6)
    if layout != "kitti":
        assert all(np.allclose(sequence.depth(n), depths[n], atol=1.1e-4) for n in range(COUNT))
    if layout in NEEDS["points"]:
        assert np.allclose(sequence.intrinsics, INTRINSICS)


def test_kittis_depth_selection_is_read(tmp_path):
    write_kitti_depth(tmp_path)
    (sequence,) = find_sequences(tmp_path)
    assert np.allclose(sequence.depth(2), scene()[1][2], atol=1 / 512 + 1e-6) and sequence.poses is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_truth_in_another_world_and_unit_has_no_pose_error(layout, tmp_path):
    WRITERS[layout](tmp_path)
    (sequence,) = find_sequences(tmp_path)
    poses, depths, _ = scene()
    metrics = score_poses(sequence, views_of(poses, depths, ELSEWHERE))
    assert max(metrics[name] for name in ("ate", "rpe_trans", "rpe_rot")) < 1e-4
    shaken = poses.copy()
    shaken[3, :3, 3] += 0.5
    assert score_poses(sequence, views_of(shaken, depths, ELSEWHERE))["ate"] > 0.05


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "kitti"])
def test_the_true_depth_has_no_depth_error(layout, together, tmp_path):
    WRITERS[layout](tmp_path)
    (sequence,) = find_sequences(tmp_path)
    poses, depths, _ = scene()
    metrics, pairs = score_depth(sequence, views_of(poses, depths, ELSEWHERE), "scale", together)
    assert metrics["abs_rel"] < 1e-4 and metrics["delta_1"] == 1 and metrics["frames"] == COUNT
    assert all(np.allclose(truth, aligned, atol=1e-3) for truth, aligned in pairs)


def test_one_scale_for_a_video_does_not_forgive_a_scale_per_image(tmp_path):
    write_room(tmp_path)
    (sequence,) = find_sequences(tmp_path)
    poses, depths, _ = scene()
    views = views_of(poses, depths * np.linspace(1, 2, COUNT, dtype=np.float32)[:, None, None])
    assert score_depth(sequence, views, "scale", True)[0]["abs_rel"] > 0.1
    assert score_depth(sequence, views, "scale", False)[0]["abs_rel"] < 1e-4


def test_true_points_score_as_the_truth_and_noise_shows(tmp_path):
    write_multiview(tmp_path)
    (sequence,) = find_sequences(tmp_path)
    poses, depths, _ = scene()
    metrics, _, _ = score_points(sequence, views_of(poses, depths, ELSEWHERE))
    assert max(metrics["accuracy"], metrics["completeness"]) < 1e-4 and metrics["normal_consistency"] > 0.999
    generator = np.random.default_rng(0)

    def noisy(view):
        return replace(view, points=view.points + generator.normal(0, 0.1, view.points.shape).astype(np.float32))

    worse, _, _ = score_points(sequence, views_of(poses, depths, noisy))
    assert worse["accuracy"] > 0.01 and worse["normal_consistency"] < metrics["normal_consistency"]


def test_large_clouds_are_compared_whole(monkeypatch):
    """Thinned to 100,000 points, a cloud of 608,000 lay 32 % (accuracy) and 70 % (completeness) further away."""
    generator = np.random.default_rng(0)
    monkeypatch.setattr(evaluation, "NORMAL_POINTS", 1_000)
    true = generator.uniform(0, 1, (150_000, 3)) * [1, 1, 0.01]
    found = true + generator.normal(0, 0.0005, true.shape)
    metrics = compare_clouds(found, true)
    for name, source, target in (("accuracy", found, true), ("completeness", true, found)):
        distance = cKDTree(target).query(source)[0]
        assert metrics[name] == pytest.approx(distance.mean(), rel=1e-9)
        assert metrics[f"{name}_median"] == pytest.approx(np.median(distance), rel=1e-9)


def test_a_sample_of_normals_stands_for_all(monkeypatch):
    generator = np.random.default_rng(0)
    flat = generator.uniform(-1, 1, (20_000, 2))
    true = np.concatenate([flat, 0.2 * np.sin(4 * flat[:, :1])], 1)
    found = true + generator.normal(0, 0.01, true.shape)
    whole = compare_clouds(found, true)["normal_consistency"]
    monkeypatch.setattr(evaluation, "NORMAL_POINTS", 5_000)
    assert compare_clouds(found, true)["normal_consistency"] == pytest.approx(whole, abs=0.01)


def test_accuracy_and_completeness_are_told_apart(tmp_path):
    write_room(tmp_path)
    (sequence,) = find_sequences(tmp_path)
    cloud = np.concatenate([true_points(sequence, n)[0].reshape(-1, 3) for n in range(COUNT)])
    half = compare_clouds(cloud[: len(cloud) // 2], cloud)  # what is there is right, half is missing
    assert half["accuracy"] < 1e-9 and half["completeness"] > 0.05
    more = compare_clouds(np.concatenate([cloud, cloud + [0, 0, 5]]), cloud)
    assert more["completeness"] < 1e-9 and more["accuracy"] > 0.5


def test_icp_finds_a_small_motion_and_keeps_the_size():
    generator = np.random.default_rng(0)
    target = generator.uniform(-1, 1, (4000, 3))
    motion = Similarity(
        1.0, Rotation.from_euler("xyz", [0.02, -0.01, 0.015]).as_matrix(), np.array([0.01, 0.02, -0.01])
    )
    source = motion.apply(target)
    found = icp(source, target)
    assert found.scale == 1 and np.abs(found.apply(source) - target).max() < 1e-3


def test_points_are_scored_at_their_own_published_width():
    """518 pixels, a whole number of patches, where poses and depth are scored at 512."""
    images = [Image.fromarray(np.full((48, 64, 3), 50, np.uint8))]
    frames = published_frames(images, GeometryProcessor(), "pi3", evaluation.PI3_POINTS_WIDTH)
    assert frames.shape == (1, 1, 3, 392, 518)


@pytest.mark.parametrize("kind", ["pi3", "page4d"])
def test_frames_are_fed_at_the_published_sizes(kind):
    images = [Image.fromarray(np.full((48, 64, 3), 50 * n, np.uint8)) for n in range(3)]
    processor = GeometryProcessor(resize_rule="pi3" if kind == "pi3" else "page4d")
    frames = published_frames(images, processor, kind)
    assert frames.shape == ((1, 3, 3, 378, 504) if kind == "pi3" else (1, 3, 3, 518, 518))
    assert np.allclose(frames[0, 2].numpy(), 100 / 255, atol=1e-5)


def test_a_sequence_of_two_images_is_left_out_by_name(tmp_path, capsys):
    write_sintel(tmp_path, ("alley_2", "cave_2"))
    for path in (tmp_path / "training").rglob("cave_2/frame_000[345].*"):
        path.unlink()
    assert [s.name for s in choose(find_sequences(tmp_path), "relpose", None)] == ["alley_2"]
    assert "With fewer than 3 images, left out: cave_2" in capsys.readouterr().err


def test_a_trajectory_on_one_line_is_left_out_by_name(tmp_path, capsys):
    write_room(tmp_path / "room")
    with np.load(tmp_path / "room" / "condition.npz") as file:
        arrays = dict(file)
    arrays["poses"][:, :3, 3] = np.arange(len(arrays["poses"]))[:, None] * [1.0, 0, 0]
    np.savez(tmp_path / "room" / "condition.npz", **arrays)
    assert main(["eval", "relpose", str(tmp_path / "room"), "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "room is left out: the trajectories cannot be aligned" in told and "no sequence could be scored" in told


@pytest.mark.parametrize(
    "task, kind, align",
    [("video-depth", "pi3", "scale"), ("mono-depth", "pi3", "scale"), ("video-depth", "page4d", "scale"),
     ("mono-depth", "page4d", "median")],
)  # fmt: skip
def test_depths_are_aligned_as_the_model_s_own_evaluation_does_and_the_table_says_so(task, kind, align, tmp_path):
    write_room(tmp_path / "room")
    arguments = ["--model", kind, "--max-frames", "1", "-o", str(tmp_path / "out")]
    assert main(["eval", task, str(tmp_path / "room"), *arguments]) == 0
    assert f"| room | 1 | {align} |" in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["align"] == align


def test_sintel_leaves_out_what_the_protocol_leaves_out(tmp_path, capsys):
    write_sintel(tmp_path, ("alley_1", "alley_2", "market_5"))
    sequences = find_sequences(tmp_path)
    assert [s.name for s in choose(sequences, "relpose", None)] == ["alley_2", "market_5"]
    assert [s.name for s in choose(sequences, "video-depth", None)] == ["alley_1", "alley_2"]
    assert [s.name for s in choose(sequences, "relpose", ["alley_1"])] == ["alley_1"]
    assert "not scored: alley_1" in capsys.readouterr().err and "alley_1" not in SINTEL_POSE


def test_the_command_scores_writes_and_goes_on(tmp_path, capsys, monkeypatch):
    write_sintel(tmp_path / "data", ("alley_2", "cave_2"))
    command = ["eval", "relpose", str(tmp_path / "data"), "--model", "pi3", "-o", str(tmp_path / "out")]
    main(command)
    printed = capsys.readouterr()
    assert "| alley_2 | 5 |" in printed.out and resolve(None, "pi3")[1].remark in printed.out
    first = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert first["sequences"] == 2 and first["average"]["ate"] > 0
    assert Image.open(tmp_path / "out" / "cave_2.png").width > 100

    kept = json.loads((tmp_path / "out" / "sequences.json").read_text())
    del kept["metrics"]["cave_2"]
    (tmp_path / "out" / "sequences.json").write_text(json.dumps(kept))
    scored = []
    import dsr_toolkit.evaluation.geometry as evaluation

    measure = evaluation.score_poses
    monkeypatch.setattr(evaluation, "score_poses", lambda s, views: scored.append(s.name) or measure(s, views))
    main(command)
    assert scored == ["cave_2"] and "1 sequences are scored" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["average"] == pytest.approx(first["average"])
    assert main([*command, "--max-frames", "4"]) == 2  # other settings: nothing is replaced unasked
    main([*command, "--max-frames", "4", "--overwrite"])
    assert scored == ["cave_2", "alley_2", "cave_2"]
    (tmp_path / "out" / "report.md").write_text("my notes")
    assert main(command) == 2 and main([*command, "--overwrite"]) == 2  # changed by hand: stays
    assert (tmp_path / "out" / "report.md").read_text() == "my notes" and scored == ["cave_2", "alley_2", "cave_2"]


@pytest.mark.parametrize("task", ["video-depth", "mono-depth", "points"])
def test_the_other_tasks_run_with_page4d(task, tmp_path, capsys):
    write_room(tmp_path / "room")
    model = str(hub_folder("page4d"))  # with a head for points
    arguments = ["--model", model, "--max-frames", "2", "-o", str(tmp_path / "out")]
    main(["eval", task, str(tmp_path / "room"), *arguments])
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.splitlines()[0].startswith("| sequence | frames |") and "| room | 2 |" in report
    assert Image.open(tmp_path / "out" / "room.png").height > 100


@pytest.mark.parametrize(
    ("break_it", "task", "message"),
    [
        (lambda root: None, "relpose", "looks like none of the layouts"),
        (write_kitti, "video-depth", "no sequence has what video-depth needs: depth"),
        (
            lambda root: (write_kitti(root), (root / "poses" / "07.txt").write_text("1 2 3\n")),
            "relpose",
            "12 finite numbers",
        ),
        (
            lambda root: (write_room(root), (root / "4.png").unlink()), "points", "has 5 rows for 4 images",
        ),
        (
            lambda root: (
                write_sintel(root),
                (root / "training" / "camdata_left" / "alley_2" / "frame_0001.cam").write_bytes(b"no camera at all"),
            ),
            "relpose",
            "does not start with Sintel's tag",
        ),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_scored_are_refused(break_it, task, message, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    break_it(tmp_path / "data")
    assert main(["eval", task, str(tmp_path / "data"), "-o", str(tmp_path / "out")]) != 0
    assert message in capsys.readouterr().err


def test_a_damaged_depth_map_is_named(tmp_path):
    file = tmp_path / "frame_0001.dpt"
    file.write_bytes(struct.pack("<fii", SINTEL_TAG, 1 << 20, 1 << 20))
    with pytest.raises(ValueError, match="announces 1048576×1048576 depths and holds 0"):
        read_sintel_depth(file)


@pytest.mark.parametrize("name", ["report.md", "sequences.json", "room.png"])
def test_files_of_somebody_else_are_not_overwritten(name, tmp_path, capsys):
    write_room(tmp_path / "room")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    for more in ([], ["--overwrite"]):
        assert main(["eval", "relpose", str(tmp_path / "room"), "-o", str(tmp_path / "out"), *more]) == 2
        assert f"{name} is" in capsys.readouterr().err
    assert (tmp_path / "out" / name).read_text() == "mine" and len(list((tmp_path / "out").iterdir())) == 1


def test_predictions_come_at_the_size_that_the_model_saw(tmp_path):
    from dsr_toolkit.loading import load
    from dsr_toolkit.tiny import hub_folder
    from modeling_dsr.frames import read_frames

    write_room(tmp_path)
    model, processor = load(hub_folder("pi3"), "pi3", device="cpu")
    views = published_predict(model, processor, "pi3")(list(read_frames(tmp_path))[:2])
    assert [view.depth.shape for view in views] == [(378, 504)] * 2 and all(view.mask.all() for view in views)
