"""The `dsr` command, end to end on the tiny model: nothing it shows is canned, and bad input is told kindly."""

import json
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from dsr_toolkit.cli import main
from dsr_toolkit.commands.ask import answer, heat_of, read_media
from dsr_toolkit.demo import SECTIONS
from dsr_toolkit.demo.clip import CLIP, render
from dsr_toolkit.loading import load, resolve
from dsr_toolkit.pictures import attention_sheet
from dsr_toolkit.tiny import shipped

SAMPLES = sorted((Path(__file__).parents[3] / "shared" / "samples" / "video").glob("*.mp4"))
QUESTIONS = ["Does the red ball come nearer?", "What moves away from the camera?"]


@pytest.fixture(scope="module")
def model_and_processor(tiny_dsr):
    return load(str(tiny_dsr), "dsr", device="cpu")


@pytest.fixture(scope="module")
def other_video(tmp_path_factory) -> Path:
    """The clip backwards, in mirror image."""
    path = tmp_path_factory.mktemp("videos") / "other.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        frames = render(12)[::-1, :, ::-1]
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def results(model_and_processor, other_video):
    """Both questions about both videos, by (video, question)."""
    found = {}
    for path in (CLIP, other_video):
        media = read_media([str(path)], [], 12)
        for result in answer(*model_and_processor, media, QUESTIONS, max_new_tokens=8):
            heat, per_token = heat_of(model_and_processor[1], result["geometry_attentions"][0], media[0]["frames"])
            found[path, result["question"]] = {**result, "heat": heat, "per_token": per_token, **media[0]}
    return found


def picture(result) -> np.ndarray:
    """The sheet of a result over blank frames and without its words: what is left is where the tokens looked."""
    frames = np.full_like(result["frames"], 128)
    sheet = attention_sheet(frames, result["heat"], result["per_token"], [""] * len(frames), "")
    return np.asarray(sheet).astype(float)


def test_another_question_changes_logits_answer_and_picture(results):
    one, other = (results[CLIP, question] for question in QUESTIONS)
    assert (one["logits"].softmax(-1) - other["logits"].softmax(-1)).abs().sum() > 0.1
    assert one["answer"] != other["answer"]
    assert np.abs(picture(one) - picture(other)).mean() > 1


def test_another_video_changes_logits_answer_and_picture(results, other_video):
    one, other = results[CLIP, QUESTIONS[0]], results[other_video, QUESTIONS[0]]
    assert (one["logits"].softmax(-1) - other["logits"].softmax(-1)).abs().sum() > 0.1
    assert one["answer"] != other["answer"]
    assert np.abs(picture(one) - picture(other)).mean() > 1


def test_the_same_question_again_changes_nothing(model_and_processor, results):
    again = next(answer(*model_and_processor, read_media([str(CLIP)], [], 12), QUESTIONS[:1], max_new_tokens=8))
    assert again["answer"] == results[CLIP, QUESTIONS[0]]["answer"]
    assert torch.equal(again["logits"], results[CLIP, QUESTIONS[0]]["logits"])


def test_a_question_asked_second_gets_the_answer_it_gets_alone(model_and_processor, results):
    alone = next(answer(*model_and_processor, read_media([str(CLIP)], [], 12), QUESTIONS[1:], max_new_tokens=8))
    assert alone["answer"] == results[CLIP, QUESTIONS[1]]["answer"]
    assert torch.allclose(alone["logits"], results[CLIP, QUESTIONS[1]]["logits"], atol=1e-4)


def test_heat_sums_to_one(results):
    for result in results.values():
        assert result["heat"].shape == result["frames"].shape[:3]
        assert abs(result["heat"].sum() - 1) < 1e-3
        assert np.allclose(result["per_token"].sum(1), 1, atol=1e-4)


def test_ask_prints_the_answer_and_writes_picture_and_report(tiny_dsr, tmp_path, capsys):
    arguments = ["--frames", "8", "--max-new-tokens", "4", "--device", "cpu", "-o", str(tmp_path)]
    assert main(["ask", "--model", str(tiny_dsr), "--video", str(CLIP), QUESTIONS[0], *arguments]) == 0
    report = json.loads((tmp_path / "answer.json").read_text())
    assert report["stand_in"] is None and len(report["media"][0]["frames"]) == 8
    (entry,) = report["answers"]
    assert entry["question"] == QUESTIONS[0] and len(entry["next_tokens"]) == 5
    assert f"A: {entry['answer']}" in capsys.readouterr().out
    assert Image.open(tmp_path / entry["pictures"][0]).size[0] > 1000


@pytest.mark.skipif(not SAMPLES, reason="needs the sample videos")
@pytest.mark.parametrize("video", SAMPLES, ids=lambda path: path.name)
def test_ask_about_a_real_video(tiny_dsr, tmp_path, video):
    options = ["--max-new-tokens", "4", "-o", str(tmp_path)]
    assert main(["ask", "--model", str(tiny_dsr), "--video", str(video), QUESTIONS[0], *options]) == 0
    colours = np.asarray(Image.open(tmp_path / "attention.png"))
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 1000


def test_ask_about_several_videos_and_an_image(tiny_dsr, tmp_path, other_video):
    Image.fromarray(render(1)[0]).save(tmp_path / "still.png")
    files = ["--video", str(CLIP), "--video", str(other_video), "--image", str(tmp_path / "still.png")]
    options = ["--frames", "4", "--max-new-tokens", "2", "-o", str(tmp_path / "out")]
    assert main(["ask", "--model", str(tiny_dsr), *files, *QUESTIONS, *options]) == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["answer.json", *(f"attention-{q}-{v}.png" for q in (1, 2) for v in (1, 2))]


def test_ask_about_an_image_alone_draws_nothing(tiny_dsr, tmp_path, capsys):
    Image.fromarray(render(1)[0]).save(tmp_path / "still.png")
    options = ["--model", str(tiny_dsr), "--max-new-tokens", "2", "-o", str(tmp_path / "out")]
    assert main(["ask", "--image", str(tmp_path / "still.png"), "What is this?", *options]) == 0
    assert "no picture" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["answer.json"]


def test_ask_without_a_model_says_what_stands_in(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    options = ["--frames", "2", "--max-new-tokens", "2", "-o", str(tmp_path / "out")]
    assert main(["ask", "--video", str(CLIP), QUESTIONS[0], *options]) == 0
    said, stand_in = capsys.readouterr(), resolve(None, "dsr")[1]
    assert stand_in.notice in said.err and stand_in.remark in said.out
    assert json.loads((tmp_path / "out" / "answer.json").read_text())["stand_in"] == stand_in.remark


@pytest.mark.parametrize("model", ["nobody/nothing", "models/typo", "nobody/nothing/pi3"])
@pytest.mark.parametrize(
    "command",
    [
        ["ask", "--video", str(CLIP), QUESTIONS[0]],
        ["segment", "picture.png", "a ball"],
        ["reconstruct", str(CLIP)],
        ["cad", "part.stl"],
        ["serve"],
    ],
    ids=lambda command: command[0],
)
def test_a_model_that_is_not_there_is_an_error(command, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "part.stl").write_bytes(box_stl())
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    assert main([*command, "--model", model]) == 2
    said = capsys.readouterr().err
    assert repr(model) in said and "there is no such folder" in said and "No --model" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.stl", "picture.png"]


def box_stl() -> bytes:
    import trimesh

    return trimesh.exchange.stl.export_stl(trimesh.creation.box())


def broken(tmp_path, content: bytes) -> list[str]:
    (tmp_path / "broken.mp4").write_bytes(content)
    return ["--video", str(tmp_path / "broken.mp4"), "Q?"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (lambda path: ["Q?"], "--video FILE or --image FILE"),
        (lambda path: ["--video", str(path / "gone.mp4"), "Q?"], "no file at .*gone.mp4"),
        (lambda path: broken(path, b"not a video"), "cannot be decoded"),
        (lambda path: broken(path, CLIP.read_bytes()[: CLIP.stat().st_size // 2]), "cannot be decoded"),
        (lambda path: ["--image", __file__, "Q?"], "cannot be read as an image"),
        (lambda path: ["--video", str(CLIP), "--frames", "0", "Q?"], "`num_frames` must be at least 1"),
        (lambda path: ["--video", str(CLIP), "--max-new-tokens", "0", "Q?"], "--max-new-tokens must be at least 1"),
        (lambda path: ["--video", str(CLIP), "--dtype", "int8", "Q?"], "--dtype must be one of"),
        (lambda path: ["--video", str(CLIP), " "], "a question is empty"),
    ],
)
def test_ask_explains_bad_input_and_exits_with_2(tiny_dsr, tmp_path, capsys, arguments, message):
    options = ["--model", str(tiny_dsr), "-o", str(tmp_path / "out")]
    assert main(["ask", *arguments(tmp_path), *options]) == 2
    said = capsys.readouterr().err
    assert re.search(f"dsr ask: error: .*{message}", said) and "Traceback" not in said


@pytest.mark.parametrize(
    "model, message",
    [
        ("not a name!", "neither a folder nor a Hub repository's name"),
        ("sources/Qwen2.5-VL-tiny", "holds a 'qwen2_5_vl' model"),
    ],
)
def test_ask_explains_a_model_that_does_not_fit(tiny_dsr, tmp_path, capsys, model, message):
    model = str(tiny_dsr.parent / model) if "/" in model else model
    assert main(["ask", "--model", model, "--video", str(CLIP), "Q?", "-o", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_demo_shows_what_is_found_beside_what_is_true(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert main(["demo", "-o", str(folder)]) == 0
    report, said = json.loads((folder / "demo.json").read_text()), capsys.readouterr().out
    assert {name for name in SECTIONS if "not_trained" in report[name]} == set(SECTIONS) - set(shipped.shipped())
    assert "random" not in re.sub(r"Not shown: no trained model .*", "", said).casefold()
    for section in ("pi3", "page4d"):
        assert shipped.about(section) in said and report[section]["clip"]["abs_rel"] < 0.15
    assert all(phrase["iou"] > 0.3 for phrase in report["frozen_qwen_sam"]["phrases"])
    page = Image.open(folder / "overview.png")
    assert page.width == 1640 and page.convert("RGB").getcolors(1 << 12) is None  # pictures are on it


def test_demo_of_a_kind_that_is_not_trained_says_so_before_anything(tmp_path, capsys):
    for section in sorted(set(SECTIONS) - set(shipped.shipped())):
        folder = tmp_path / section
        assert main(["demo", section, "-o", str(folder)]) == 0
        report, said = json.loads((folder / "demo.json").read_text())[section], capsys.readouterr().out
        assert report["random_weights"] and said.index("RANDOM WEIGHTS") < said.index("It says")


@pytest.mark.slow
def test_demo_with_a_model_over_an_earlier_demo(tiny_dsr, tmp_path):
    reports = []
    for arguments in (["dsr"], ["--model", str(tiny_dsr)]):
        assert main(["demo", *arguments, "-o", str(tmp_path), "--overwrite"]) == 0
        reports.append(json.loads((tmp_path / "demo.json").read_text())["dsr"])
    assert reports[0]["model"] != reports[1]["model"] == str(tiny_dsr) and reports[1]["stand_in"] is None
    assert [path.name for path in (tmp_path / "dsr").iterdir()] == ["attention.png"]


def test_demo_leaves_a_folder_of_somebody_else_alone(tmp_path, capsys):
    (tmp_path / "pi3").mkdir()
    (tmp_path / "pi3" / "thesis.tex").write_text("years of work")
    for options in ([], ["--overwrite"]):
        assert main(["demo", "pi3", "-o", str(tmp_path), *options]) == 2
        assert "thesis.tex" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["pi3", "thesis.tex"]


def test_demo_of_an_unknown_section(tmp_path, capsys):
    assert main(["demo", "cooking", "-o", str(tmp_path / "out")]) == 2
    assert "no section cooking" in capsys.readouterr().err


def test_convert_passes_everything_on(tiny_dsr, capsys):
    assert main(["convert", "verify", str(tiny_dsr)]) == 0
    assert "complete and unchanged" in capsys.readouterr().out


def test_unknown_arguments_are_refused(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["ask", "--colour", "red", "Q?"])
    assert exit.value.code == 2 and "unrecognized arguments: --colour" in capsys.readouterr().err


@pytest.mark.parametrize("parser", ["dsr_toolkit.cli.build_parser()", "convert_weights.__main__._parser()"])
def test_help_does_not_wait_for_torch(parser):
    code = f"import sys, {parser.rpartition('.')[0]}; {parser}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


LIGHT = (
    "import sys; from dsr_toolkit.cli import main\n"
    "code = main(sys.argv[1:]); sys.exit(9 if 'torch' in sys.modules else code)"
)


@pytest.mark.parametrize(
    "command, said",
    [
        (["ask", "What moves?", "--video", "wrong.mp4"], "decoded as a video"),
        (["ask", "What is it?", "--image", "wrong.png"], "read as an image"),
        (["segment", "wrong.png", "box"], "read as an image"),
        (["reconstruct", "wrong.mp4"], "decoded as a video"),
        (["reconstruct", "wrong.png"], "read as an image"),
        (["reconstruct", "empty"], "holds no image"),
        (["scene", "empty"], "holds no images"),
        (["scene", "cameras"], "read as an image"),
        (["scene", "cameras", "--model", "pi3"], "'pi3' model where 'scene_qformer' is needed"),
        (["batch", "ask", "absent.mp4"], "no file or folder"),
        (["batch", "ask", "wrong.mp4", "--model", "./absent"], "no such folder"),
        (["convert", "pi3", "--source", "pi3=./absent", "--output", "out"], "does not exist"),
        (["convert", "pi3", "--source", "pi3=wrong.png", "--output", "out"], "expected a .safetensors"),
        (["train", "pi3", "--data", "absent", "--model", "pi3", "-o", "out"], "--data: there is no file"),
        (["train", "dsr", "--data", "empty", "--model", "pi3", "-o", "out"], "'pi3' model where 'dsr' is needed"),
        (["train", "pi4", "--data", "empty", "--model", "pi3", "-o", "out"], "ARCH must be one of"),
        (["eval", "relpose", "absent"], "there is no folder"),
        (["eval", "relpose", "absent", "--model", "empty"], "holds no model"),
        (["eval", "world", "pi3", "--seed", "1", "--model", "wrong.png"], "is a file"),
        (["serve", "--model", "./absent"], "no such folder"),
        (["serve", "--dtype", "int8"], "--dtype must be one of"),
        (["cad", "--text", "a box", "--model", "pi3"], "where 'cadrille' or 'cad_recode' is needed"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_before_torch_is_imported(tmp_path, command, said):
    for name in ("wrong.mp4", "wrong.png", "cameras/CAM_FRONT.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("neither a picture nor a video")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pi3").mkdir()
    (tmp_path / "pi3" / "config.json").write_text('{"model_type": "pi3"}')
    result = subprocess.run([sys.executable, "-c", LIGHT, *command], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode in (1, 2) and said in result.stderr and "Loading" not in result.stderr


def test_help_is_told_without_numpy():
    for words in (["--help"], ["convert", "--help"], ["reconstruct", "--help"]):
        told = (
            "import sys; from dsr_toolkit.cli import main\n"
            f"try: main({words})\nexcept SystemExit: sys.exit(9 if {{'numpy', 'torch'}} & set(sys.modules) else 0)"
        )
        assert subprocess.run([sys.executable, "-c", told], stdout=subprocess.DEVNULL).returncode == 0
