"""`dsr segment` and the three ways of grounding, on the tiny model."""

import json

import numpy as np
import pytest
from PIL import Image

from dsr_toolkit.cli import main
from dsr_toolkit.loading import load
from dsr_toolkit.tiny import build
from modeling_dsr.frozen_qwen_sam_grounding import grounded_answer, second_look, segment_phrases
from processing_dsr import FrozenQwenSAMProcessor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build("frozen_qwen_sam", tmp_path_factory.mktemp("tiny_sam"))


@pytest.fixture(scope="module")
def model_and_processor(folder):
    return load(str(folder), "frozen_qwen_sam", device="cpu")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(path)
    return path


def first_word(model_and_processor, picture):
    """A word that the tiny model says about the picture."""
    found = grounded_answer(*model_and_processor, str(picture), "What is there?", [], max_new_tokens=8)
    return next(word for word in found["answer"].split() if word.isalnum())


def test_given_phrases(folder, picture, tmp_path):
    assert (
        main(
            [
                "segment",
                str(picture),
                "a man",
                "the dog",
                "--model",
                str(folder),
                "--device",
                "cpu",
                "-o",
                str(tmp_path),
            ]
        )
        == 0
    )
    report = json.loads((tmp_path / "segment.json").read_text())
    phrases = report["images"][0]["phrases"]
    assert [one["phrase"] for one in phrases] == ["a man", "the dog"]
    for one in phrases:
        mask = np.asarray(Image.open(tmp_path / one["mask"]))
        assert mask.shape == (60, 90) and sum(one["rle"]["counts"][1::2]) == (mask > 0).sum()
    assert (tmp_path / "overlay.png").exists()


def test_debug_prints_the_tensors_and_draws_the_stages(folder, picture, tmp_path, capsys):
    main(["segment", str(picture), "a man", "--debug", "--model", str(folder), "--device", "cpu", "-o", str(tmp_path)])
    printed = capsys.readouterr().out
    for name in (
        "input_ids",
        "mask_attentions",
        "text_embeds[0]",
        "norms",
        "pred_masks",
        "prompt_masks",
        "sam_pred_masks",
    ):
        assert name in printed
    sheet = np.asarray(Image.open(tmp_path / "debug.png"))
    assert sheet.shape[1] == 960 and sheet.std() > 0


def test_a_question_is_answered_and_its_words_are_found(model_and_processor, folder, picture, tmp_path):
    word = first_word(model_and_processor, picture)
    arguments = [
        "--ask",
        "What is there?",
        "--look-again",
        "--max-new-tokens",
        "8",
        "--model",
        str(folder),
        "--device",
        "cpu",
    ]
    assert main(["segment", str(picture), word, *arguments, "-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "segment.json").read_text())["images"][0]
    assert word in record["answer"] and record["phrases"][0]["phrase"] == word
    assert record["second_look"]["thought"] == record["answer"] and len(record["second_look"]["cells"]) == 4


def test_the_manifest_of_samples(folder, picture, tmp_path):
    samples = [
        {"id": "one", "image": picture.name, "question": "?", "ground_click": {"text": "the dog"}},
        {"id": "gone", "image": "nowhere.png", "question": "?", "ground_click": {"text": "the dog"}},
    ]
    manifest = picture.parent / "manifest.json"
    manifest.write_text(json.dumps({"image_base_dir": ".", "samples": samples}))
    assert main(["segment", str(manifest), "--model", str(folder), "--device", "cpu", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "one" / "overlay.png").exists() and not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.png", "dog"], "no file"),
        (["PICTURE"], "at least one phrase"),
        (["PICTURE", "dog", "--look-again"], "goes with --ask"),
        (["PICTURE", "hat", "--caption", "one cat"], "nearest is 'cat'"),
    ],
)
def test_wrong_input_is_told_in_one_line(folder, picture, tmp_path, capsys, arguments, message):
    arguments = [str(picture) if a == "PICTURE" else a for a in arguments]
    assert main(["segment", *arguments, "--model", str(folder), "--device", "cpu", "-o", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "reply, expected",
    [
        ('["a man", "blue shirt", "the man"]', ["A man", "blue shirt"]),
        ('Sure: ["dog",\n "brown dog", "unicorn"]', ["brown dog"]),
        ("- brown dog\n- blue shirt", ["blue shirt", "brown dog"]),
        ("nothing of it", []),
    ],
)
def test_phrases_are_read_from_the_models_reply(reply, expected):
    assert FrozenQwenSAMProcessor.noun_phrases(reply, "A man in a blue shirt walks a brown dog.") == expected


def test_chinese_phrases_are_read_too():
    assert FrozenQwenSAMProcessor.noun_phrases('["男人", "狗"]', "图片中有 男人 和 狗") == ["男人", "狗"]


def test_the_model_itself_is_asked_for_phrases(model_and_processor):
    text = "a man and a brown dog"
    model, processor = model_and_processor
    assert all(phrase in text for phrase in model.list_phrases(processor, text, max_new_tokens=8))
    assert model.list_phrases(processor, " ") == []


def test_a_second_look_needs_a_region(model_and_processor, picture):
    found = grounded_answer(*model_and_processor, str(picture), "What is there?", [], max_new_tokens=4)
    with pytest.raises(ValueError, match="no region"):
        second_look(*model_and_processor, "What is there?", found)


def test_a_caption_gives_its_phrases_context(model_and_processor, picture):
    alone = segment_phrases(*model_and_processor, str(picture), ["the dog"])["output"].mask_attentions[0]
    told = segment_phrases(*model_and_processor, str(picture), ["the dog"], caption="a man sees the dog")[
        "output"
    ].mask_attentions[0]
    assert alone.shape == told.shape and (alone - told).abs().max() > 1e-5
