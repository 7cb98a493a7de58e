"""`dsr train ARCH`: published formats in, a model or an adapter out; and `--check`, which says what is wrong first."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor

from dsr_toolkit.cli import main
from dsr_toolkit.datasets.rows import rows
from dsr_toolkit.extras import EXTRAS
from dsr_toolkit.tiny import hub_folder
from dsr_toolkit.training import load_adapter, parts_rows
from dsr_toolkit.worlds.parts import PartsWorld
from dsr_toolkit.worlds.parts_export import write_cad_recode, write_text2cad
from dsr_toolkit.worlds.space.export import write_dsr_train, write_posed_images, write_refcoco
from dsr_toolkit.worlds.surround import SurroundWorld
from dsr_toolkit.worlds.surround_export import write_nuscenes

FAST = ["--set", "max_steps=1", "--set", "use_cpu=true", "--set", "gradient_accumulation_steps=1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A data set of each architecture, written by the worlds in the published format."""
    from dsr_toolkit.worlds.space import SpaceWorld

    root = tmp_path_factory.mktemp("data")
    world = SpaceWorld(5, frames=4, height=56, width=84)
    write_dsr_train([world[i] for i in range(2)], root / "dsr")
    write_refcoco([world[i] for i in range(2)], root / "frozen_qwen_sam")
    write_posed_images(world[0], root / "pi3")
    write_cad_recode(PartsWorld(5), root / "cad_recode", {"train": 3, "val": 2})
    write_text2cad(PartsWorld(5), root / "cadrille", {"train": 3})
    surround = SurroundWorld(5)
    write_nuscenes([surround[i] for i in range(2)], root / "scene_qformer")
    paths = {name: root / name for name in ("frozen_qwen_sam", "pi3", "cad_recode", "cadrille", "scene_qformer")}
    return paths | {"page4d": root / "pi3", "dsr": root / "dsr" / "train.json"}


KINDS = ("dsr", "pi3", "page4d", "frozen_qwen_sam", "cadrille", "cad_recode", "scene_qformer")


@pytest.mark.parametrize("kind", KINDS)
def test_published_formats_become_batches(kind, files):
    found = rows(0, kind, str(files[kind]))
    processor = AutoProcessor.from_pretrained(hub_folder(kind))
    batch = processor.training_collator()([found[0]])
    assert any(name in batch for name in ("labels", "target_points", "depths", "map_labels"))


def test_dsr_train_asks_as_published(files):
    found = rows(0, "dsr", str(files["dsr"]))
    published = next(iter(json.loads(files["dsr"].read_text()).values()))[0]
    text = found[0]["question"].splitlines()
    assert text[0] == published["Question"] and text[1] == "Options:" and text[2] == f"A {published['A']}"
    assert found[0]["answer"] == published["Correct"] and found[0]["video"].endswith(".mp4")


def test_a_chat_list_is_read(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A ball."}]
    (tmp_path / "chat.json").write_text(json.dumps([{"image": "one.png", "conversations": turns}]))
    (row,) = rows(0, "dsr", str(tmp_path / "chat.json"))
    assert row["image"] == str(tmp_path / "one.png")
    assert row["messages"][0]["content"] == [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    assert row["messages"][1]["role"] == "assistant"


def test_fine_tuning_writes_a_model(files, tmp_path, capsys):
    arguments = ["train", "cad_recode", "--data", str(files["cad_recode"]), "--model", str(hub_folder("cad_recode"))]
    assert main([*arguments, "-o", str(tmp_path / "out"), *FAST]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "model")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["stages"][0]["freeze"] == "all"


MEASURED = {
    "dsr": {"exact_match", "accuracy", "tokens_right"},
    "pi3": {"abs_rel", "rotation_error_median"},
    "page4d": {"abs_rel", "rotation_error_median"},
    "frozen_qwen_sam": {"ciou", "giou"},
    "cadrille": {"tokens_right", "programs_right"},
    "cad_recode": {"tokens_right", "programs_right"},
    "scene_qformer": {"accuracy"},
}
SHOWN = {
    "dsr": {"question", "said", "true"},
    "pi3": {"image", "abs_rel", "rotation_errors"},
    "page4d": {"image", "abs_rel", "rotation_errors"},
    "frozen_qwen_sam": {"image", "phrases"},
    "cadrille": {"program", "true"},
    "cad_recode": {"program", "true"},
    "scene_qformer": {"answers (truth)"},
}


SLOW = ("pi3", "page4d", "frozen_qwen_sam", "cadrille", "scene_qformer")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow if k in SLOW else ()) for k in KINDS])
def test_held_out_rows_are_measured_and_shown(kind, files, tmp_path):
    arguments = [
        "train",
        kind,
        "--data",
        str(files[kind]),
        "--eval-data",
        str(files[kind]),
        "-o",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--model", str(hub_folder(kind)), *FAST]) == 0
    metrics = json.loads((tmp_path / "out" / "train" / "metrics.json").read_text())
    assert metrics.keys() >= {"loss"} | MEASURED[kind]
    if kind in ("cadrille", "cad_recode") and all(map(find_spec, EXTRAS["cad"])) and parts_rows._sandbox():
        assert metrics.keys() >= {"valid", "iou"}
    lines = (tmp_path / "out" / "train" / "samples" / "step-1.jsonl").read_text().splitlines()
    shown = [json.loads(line) for line in lines]
    assert shown and all(one.keys() >= SHOWN[kind] for one in shown)
    assert all((tmp_path / "out" / "train" / "samples" / one["image"]).is_file() for one in shown if "image" in one)


def test_lora_writes_an_adapter(files, tmp_path):
    arguments = ["train", "cad_recode", "--data", str(files["cad_recode"]), "--model", str(hub_folder("cad_recode"))]
    assert main([*arguments, "-o", str(tmp_path / "out"), "--lora", "attention", *FAST]) == 0
    model = load_adapter(tmp_path / "out" / "model")
    assert any("lora_A" in name for name, _ in model.named_parameters())
    assert AutoProcessor.from_pretrained(tmp_path / "out" / "model")


def test_check_names_row_field_and_reason(tmp_path, capsys):
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).normal(size=(300, 3)))
    lines = [
        {"program": "r = 1", "cloud": "cloud.npy"},
        {"program": "", "cloud": "cloud.npy"},
        {"program": "r = 2", "mesh": "missing.stl"},
        {"program": "r = 3"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [
        "train",
        "cad_recode",
        "--data",
        str(tmp_path / "rows.jsonl"),
        "--model",
        str(hub_folder("cad_recode")),
    ]
    assert main([*arguments, "--check"]) == 2
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("row 1, field 'program': must be a text that is not empty")
    assert told[1].startswith("row 2, field 'mesh': there is no file")
    assert told[2].startswith("row 3: ") and "cloud" in told[2]
    assert len(told) == 3


def test_check_is_content_with_good_rows(files, capsys):
    arguments = ["train", "dsr", "--data", str(files["dsr"]), "--model", str(hub_folder("dsr")), "--check"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train"], "say either"),
        (["train", "dsr", "--data", "x"], "--model is needed"),
        (["train", "--recipe", "tiny/pi3", "--lora", "attention", "-o", "x"], "--lora belong to ARCH"),
        (["train", "dsr", "--data", "x", "--model", str("/nowhere/at/all/x")], "neither a folder"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def documented() -> list[str]:
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [line.split("#")[0].strip() for line in lines if line.startswith("dsr ")]
    commands = [command for command in commands if not command.endswith("--recipe tiny --output out")]  # all, for hours
    return [command for command in commands if f"{command} --resume" not in commands]  # run before that is resumed


@pytest.mark.slow
@pytest.mark.parametrize("command", documented())
def test_commands_of_the_documentation_run(command, files, tmp_path):
    """As they stand, with files and models that are here, and one step.

    Untrained models write no solid: every program has the lowest reward, which is told, and the run is whole."""
    names = {"DSR-Train/train.json": files["dsr"], "room": files["pi3"], "parts": files["cad_recode"]}
    names |= {"features": tmp_path / "features", "out": tmp_path / "out"}
    names |= {f"OWNER/{kind}": hub_folder(kind) for kind in ("dsr", "pi3", "cad_recode", "cadrille")}
    words = [str(names.get(word, word)) for word in command.split()[1:]]
    words = [word.replace("feature_cache=features", f"feature_cache={names['features']}") for word in words]
    settings = ["max_steps=1", "use_cpu=true"]
    if "--recipe" in words:
        settings += ["per_device_train_batch_size=2"]
        settings += (
            ["evaluation.count=2"] if "tiny/pi3" in words else [f'model={{"path": "{hub_folder("cad_recode")}"}}']
        )
    if "--reward" in words or "grpo/cad_recode" in words:
        settings += ["per_device_train_batch_size=2", "arguments.num_generations=2"]
        settings += ["arguments.max_completion_length=4"]
    words += [word for setting in settings for word in ("--set", setting)]
    if "--resume" in words:
        assert main([word for word in words if word != "--resume"]) in (0, None)
    assert main(words) in (0, None)
    if "--check" not in words:
        assert (names["out"] / "model" / "README.md").is_file()
    if "--reward" in words:
        metrics = json.loads((names["out"] / "train" / "metrics.json").read_text())
        assert metrics == {"reward_first_tenth": -10, "reward_last_tenth": -10}
        assert (names["out"] / "train" / "rewards.png").stat().st_size > 1000
        AutoProcessor.from_pretrained(names["out"] / "model")
