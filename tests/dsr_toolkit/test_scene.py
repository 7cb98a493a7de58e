"""`dsr scene`, the nuScenes reader, the two training stages and the augmentations."""

import json
import random

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from dsr_toolkit.cli import main
from dsr_toolkit.commands.scene import read_scene
from dsr_toolkit.datasets.nuscenes import NuScenes
from dsr_toolkit.loading import resolve
from dsr_toolkit.quaternions import quaternion_of, rotation_of
from dsr_toolkit.scenes import answer_questions
from dsr_toolkit.tiny.tokenizer import write_tokenizer
from dsr_toolkit.training.scene_qformer import begin_stage, jitter, mirror_scene
from dsr_toolkit.worlds.surround import SurroundWorld
from dsr_toolkit.worlds.surround_export import write_scene
from modeling_dsr.configuration_scene_qformer import SCENE_CAMERAS
from modeling_dsr.modeling_scene_qformer import SceneQFormerForConditionalGeneration, SceneQFormerModel
from modeling_dsr.scene_position import frustum_points
from processing_dsr import SceneQFormerProcessor
from tests.modeling_dsr.scene_samples import (
    extrinsics,
    intrinsics,
    map_labels,
    pictures,
    pixels,
    prompts,
    scenes,
    tiny_config,
    tiny_language_config,
)


@pytest.fixture
def street(tmp_path):
    return write_scene(SurroundWorld(3, height=112, width=200)[0], tmp_path / "street")


# ---- command -----------------------------------------------------------------------------


def test_scene_prints_a_summary_and_paints(street, tmp_path, capsys):
    assert main(["scene", str(street), "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    report, stand_in = json.loads((tmp_path / "out" / "scene.json").read_text()), resolve(None, "scene_qformer")[1]
    assert "{} scene tokens of {} numbers".format(*report["tokens"]) in printed.out
    assert stand_in.notice in printed.err and report["stand_in"] == stand_in.remark
    assert sum(report["attention"].values()) == pytest.approx(1, abs=1e-4)
    assert (tmp_path / "out" / "attention.png").stat().st_size > 3_000


def test_nothing_is_canned(street, tmp_path):
    """Another image or another calibration changes tokens and picture."""

    def outcome(name):
        assert main(["scene", str(street), "-o", str(tmp_path / name)]) == 0
        return json.loads((tmp_path / name / "scene.json").read_text()), (
            tmp_path / name / "attention.png"
        ).read_bytes()

    first = outcome("a")
    (street / "CAM_BACK.png").write_bytes((street / "CAM_FRONT.png").read_bytes())
    second = outcome("b")
    cameras = json.loads((street / "calibration.json").read_text())
    cameras["CAM_FRONT"], cameras["CAM_BACK"] = cameras["CAM_BACK"], cameras["CAM_FRONT"]
    (street / "calibration.json").write_text(json.dumps(cameras))
    third = outcome("c")
    for one, other in ((first, second), (second, third)):
        assert one[0]["attention"] != other[0]["attention"] and one[1] != other[1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "CAM_BACK.png").unlink(), "missing ['CAM_BACK']"),
        (lambda folder: (folder / "calibration.json").unlink(), "`cam_intrinsics` and `cam_extrinsics` missing"),
        (lambda folder: (folder / "calibration.json").write_text("{"), "calibration.json must be"),
        (lambda folder: (folder / "CAM_BACK.png").write_text("?"), "cannot be read as an image"),
    ],
)
def test_wrong_folders_are_told_in_one_line(street, tmp_path, capsys, spoil, message):
    spoil(street)
    assert main(["scene", str(street), "-o", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed


def test_scene_answers_questions_from_its_images(street, tmp_path, capsys):
    """One answer per question; another image may change it, and changes what the answer is read from."""
    command = ["scene", str(street), "--ask", "What is ahead?", "--ask", "How many cars?", "--max-new-tokens", "6"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    answers = json.loads((tmp_path / "out" / "scene.json").read_text())["answers"]
    assert list(answers) == ["What is ahead?", "How many cars?"]
    printed = capsys.readouterr().out
    assert all(f"Q: {question}\nA: {answer}" in printed for question, answer in answers.items())


def test_asking_a_model_without_language_model_is_refused(street, tmp_path, capsys):
    SceneQFormerModel(tiny_config()).save_pretrained(tmp_path / "mute")
    command = ["scene", str(street), "--model", str(tmp_path / "mute"), "--ask", "What?", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    assert "has no language model to ask" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("known", [True, False], ids=["placeholder in the vocabulary", "LLaVA's placeholder"])
def test_answers_in_a_batch_are_those_of_lone_questions(tmp_path, known):
    """Of different lengths, about different scenes."""
    write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = None
    place = -200
    if known:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        place = tokenizer.get_vocab()["<image>"]
    processor = SceneQFormerProcessor(tokenizer, image_size=(32, 48), num_scene_tokens=14)
    torch.manual_seed(0)
    model = SceneQFormerForConditionalGeneration(tiny_language_config(image_token_id=place)).eval()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    questions, tokens = ["What is ahead?", "How many cars are there in all?", "Why?"], torch.randn(3, 14, 32) * 3
    together = answer_questions(model, processor, questions, tokens, max_new_tokens=5)
    apart = [answer_questions(model, processor, [q], t[None], 5)[0] for q, t in zip(questions, tokens)]
    assert together == apart and len(set(together)) > 1


# ---- nuScenes ----------------------------------------------------------------------------


def write_nuscenes(root) -> None:
    """One sample of one scene in the devkit's layout, with a sweep and a LiDAR that must be left out."""
    tables = root / "v1.0-mini"
    tables.mkdir(parents=True)
    rows = {name: [] for name in ("sensor", "calibrated_sensor", "sample_data", "ego_pose")}
    for number, name in enumerate((*SCENE_CAMERAS, "LIDAR_TOP")):
        camera = name.startswith("CAM")
        rows["sensor"].append(
            {"token": f"sensor{number}", "channel": name, "modality": "camera" if camera else "lidar"}
        )
        rows["calibrated_sensor"].append(
            {
                "token": f"calibrated{number}",
                "sensor_token": f"sensor{number}",
                "translation": [number, 0.5, 1.5],
                "rotation": [0.5, -0.5, 0.5, -0.5],
                "camera_intrinsic": intrinsics((48, 80))[0].tolist() if camera else [],
            }
        )
        for key_frame in (True, False):
            folder = "samples" if key_frame else "sweeps"
            rows["sample_data"].append(
                {
                    "token": f"data{number}{key_frame}",
                    "sample_token": "sample0",
                    "calibrated_sensor_token": f"calibrated{number}",
                    "ego_pose_token": "pose0",
                    "filename": f"{folder}/{name}/0.png",
                    "is_key_frame": key_frame,
                }
            )
    rows["ego_pose"].append({"token": "pose0", "translation": [10.0, 20, 0], "rotation": [1.0, 0, 0, 0]})
    rows["scene"] = [{"token": "scene0", "name": "scene-0061"}, {"token": "scene1", "name": "scene-0103"}]
    rows["sample"] = [{"token": "sample0", "scene_token": "scene0"}]
    for name, content in rows.items():
        (tables / f"{name}.json").write_text(json.dumps(content))
    for name, image in pictures((48, 80)).items():
        (root / "samples" / name).mkdir(parents=True)
        image.save(root / "samples" / name / "0.png")


def test_nuscenes_samples_are_read_without_the_devkit(tmp_path):
    write_nuscenes(tmp_path)
    dataset = NuScenes(tmp_path)
    assert dataset.scene_names() == ["scene-0061", "scene-0103"]
    assert dataset.samples() == dataset.samples(["scene-0061"]) == ["sample0"] and dataset.samples(["scene-0103"]) == []
    sample = dataset.read("sample0")
    assert list(sample["images"]) == list(SCENE_CAMERAS)
    assert all(path.parts[-3] == "samples" and path.is_file() for path in sample["images"].values())
    pose = sample["cam_extrinsics"]["CAM_BACK"]
    assert pose[:3, 3].tolist() == [3, 0.5, 1.5]
    # The quaternion of a camera that looks ahead: its forward axis is the vehicle's x.
    assert np.allclose(pose[:3, 2], [1, 0, 0], atol=1e-6)
    assert sample["ego_pose"][:3, 3].tolist() == [10, 20, 0]


def test_scene_reads_a_nuscenes_folder(tmp_path):
    write_nuscenes(tmp_path / "data")
    assert read_scene(tmp_path / "data")["name"] == "sample0"
    assert main(["scene", str(tmp_path / "data"), "--sample", "sample0", "-o", str(tmp_path / "out")]) == 0


def test_incomplete_nuscenes_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one folder v1.0"):
        NuScenes(tmp_path)
    write_nuscenes(tmp_path)
    with pytest.raises(ValueError, match="no key frame"):
        NuScenes(tmp_path).read("sample9")
    (tmp_path / "v1.0-mini" / "sensor.json").unlink()
    with pytest.raises(ValueError, match=r"lacks the tables \['sensor'\]"):
        NuScenes(tmp_path)


def test_rotations_of_quaternions():
    half = np.sqrt(0.5)
    assert np.allclose(rotation_of([half, 0, 0, half]), [[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert np.allclose(rotation_of([2, 0, 0, 0]), np.eye(3))
    for quaternion in ([0.1, -0.7, 0.5, 0.5], [0, 0, 1, 0]):  # a half turn has w = 0
        there_and_back = quaternion_of(rotation_of(quaternion))
        assert np.allclose(there_and_back, quaternion / np.linalg.norm(quaternion))


# ---- training ----------------------------------------------------------------------------


def test_stage_one_freezes_the_backbone_alone():
    model = SceneQFormerModel(tiny_config(position_encoding="depth_3d"))
    groups = begin_stage(model, 1)
    assert {group["name"]: group["lr"] for group in groups} == {"decoder": 1e-4, "projector": 1e-4}
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    frozen = {name for name, parameter in model.named_parameters() if id(parameter) not in trained}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("backbone.")}


def test_stage_one_leaves_the_backbones_statistics_alone():
    model = SceneQFormerModel(tiny_config())
    optimizer = torch.optim.AdamW(begin_stage(model, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(pixels(0)[None]).scene_tokens.square().mean().backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith("backbone.") for name in changed)
    assert {"neck.0.weight", "neck.1.running_mean", "queries.content.weight"} <= changed
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_stage_two_trains_everything_with_three_rates():
    model = SceneQFormerModel(tiny_config())
    begin_stage(model, 1)
    groups = begin_stage(model, 2)
    assert {group["name"]: group["lr"] for group in groups} == {"backbone": 1e-5, "decoder": 1e-4, "projector": 1e-4}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert model.backbone.training


def test_stages_leave_a_frozen_language_model_frozen():
    model = SceneQFormerForConditionalGeneration(tiny_language_config())
    model.language_model.requires_grad_(False)
    groups = begin_stage(model, 2)
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    assert not trained & {id(parameter) for parameter in model.language_model.parameters()}
    inputs = prompts(2, 14, "right", answer=3) | {
        "pixel_values": scenes(2)["pixel_values"],
        "map_labels": map_labels(2),
    }
    optimizer = torch.optim.AdamW(groups)

    def loss_without_dropout():
        with torch.no_grad():
            loss = model.eval()(**inputs).loss.item()
        model.train()
        return loss

    before = loss_without_dropout()
    for _ in range(20):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    assert loss_without_dropout() < before


@pytest.mark.parametrize("stage", [0, 3, "1"])
def test_unknown_stages_are_refused(stage):
    with pytest.raises(ValueError, match="`stage` must be 1"):
        begin_stage(SceneQFormerModel(tiny_config()), stage)


# ---- augmentation ------------------------------------------------------------------------


def test_mirrored_points_are_the_mirror_image_of_the_points():
    """What a cell shows in the mirrored scene lies where the mirror puts what it showed before: y negated, x kept."""
    size, grid, depths = (64, 96), (4, 6), torch.tensor([2.0, 10.0])
    inner = intrinsics(size)
    inner[:, 0, 2] += torch.arange(6)
    outer = extrinsics()
    images = pixels(0, size)
    mirrored, inner_m, outer_m, _ = mirror_scene(images, inner, outer)
    points = frustum_points(inner, outer, depths, grid, size)[[0, 2, 1, 3, 5, 4]].flip(2)
    points_m = frustum_points(inner_m, outer_m, depths, grid, size)
    assert torch.allclose(points_m, points * torch.tensor([1.0, -1, 1]), atol=1e-3)
    assert torch.equal(mirrored[1], images[2].flip(-1))
    assert torch.allclose(torch.linalg.det(outer_m[:, :3, :3]), torch.ones(6), atol=1e-5)


def test_the_front_camera_still_looks_ahead_in_the_mirror():
    _, _, mirrored, points = mirror_scene(pixels(0), intrinsics(), extrinsics(), torch.tensor([[0.5, 0.2]]))
    assert torch.allclose(mirrored[0, :3, 2], torch.tensor([1.0, 0, 0]), atol=1e-6)
    assert points.tolist() == [[-0.5, pytest.approx(0.2)]]


def test_mirroring_twice_changes_nothing():
    given = (pixels(0), intrinsics(), extrinsics(), torch.rand(3, 2))
    for found, expected in zip(mirror_scene(*mirror_scene(*given)), given):
        assert torch.allclose(found, expected)


def test_jitter_changes_colours_within_bounds():
    image = pictures((32, 48))["CAM_FRONT"]
    generator = random.Random(0)
    found = [np.asarray(jitter(image, generator), float) for _ in range(24)]
    means = [array.mean() / np.asarray(image, float).mean() for array in found]
    assert len({round(mean, 4) for mean in means}) > 10 and 0.5 < min(means) and max(means) < 1.5
    assert np.array_equal(np.asarray(jitter(image, random.Random(5))), np.asarray(jitter(image, random.Random(5))))
