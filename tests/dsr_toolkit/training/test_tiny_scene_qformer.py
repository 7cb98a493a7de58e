"""The recipe of the tiny scene Q-Former: its model, its rows, and that its measures say what the model says."""

import re

import numpy as np
import pytest
import torch

from dsr_toolkit.evaluation.world_scene import evaluate
from dsr_toolkit.scenes import answer_questions, scene_tokens
from dsr_toolkit.training.recipe import load_recipe
from dsr_toolkit.training.recipes.tiny.scene_qformer import assemble, build, build_backbone
from dsr_toolkit.training.surround import CROP_LABELS, CropCollator, build_words, crop_rows, measure, rows, show
from dsr_toolkit.worlds.surround_questions import TYPES
from modeling_dsr.modeling_scene_qformer import SceneQFormerForConditionalGeneration

SEED = 41


@pytest.fixture(scope="module")
def learnt():
    """Model and processor that know one scene by heart, and its row."""
    torch.manual_seed(0)
    model, processor = build("sine_camera", width=32, num_queries=12)
    row = rows(SEED, descriptions=False)[0]
    batch = processor.training_collator(map_points=8)([row])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(70):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval(), processor, row


def test_every_word_of_the_world_is_one_token():
    tokenizer = build_words()
    unknown = rows(SEED + 1)
    for index in range(5):
        row = unknown[index]
        for text in (*row["question"], *(f" {answer}" for answer in row["answer"])):
            words = re.findall(r"[A-Za-z]+|[0-9]|[?.,:]", text)
            spaced = len(re.findall(r" (?=[0-9])", text))  # a space before a digit is a token
            assert len(tokenizer(text)["input_ids"]) == len(words) + spaced, text


@pytest.mark.parametrize("position_encoding", ["sine_camera", "depth_3d", "ray_3d"])
def test_model_is_small_and_reads_calibration_where_its_encoding_does(position_encoding):
    model, processor = build(position_encoding)
    assert sum(p.numel() for p in model.parameters()) < 3e6
    assert processor.needs_calibration == (position_encoding != "sine_camera")
    assert processor.num_scene_tokens == model.config.num_queries


def test_rows_hold_questions_of_all_types_and_a_description_of_each_direction():
    source = rows(SEED)
    seen = {kind for index in range(8) for kind in source[index]["type"]}
    assert seen == {*TYPES, "description"}
    assert source[0]["type"].count("description") == 6
    assert "description" not in rows(SEED, types=["lanes"], descriptions=False)[0]["type"]


def test_measure_says_what_greedy_answers_say(learnt):
    model, processor, row = learnt
    batch = processor.training_collator(map_points=8)([row])
    with torch.no_grad():
        found = measure(model, processor, [row], batch, model(**batch))
    tokens = scene_tokens(model, processor, *([row[n]] for n in ("images", "cam_intrinsics", "cam_extrinsics")))
    said = answer_questions(model, processor, row["question"], tokens.expand(len(row["question"]), -1, -1))
    assert found["accuracy"] == [answer == true for answer, true in zip(said, row["answer"])]
    assert sum(found["accuracy"]) >= 0.8 * len(said)  # it was learnt by heart
    assert len(found["map_recall"]) == len(row["map"])


def test_evaluation_knows_the_scene_that_was_learnt_from_another(learnt):
    model, processor, _ = learnt
    known = evaluate(model, processor, SEED, count=1)
    assert (known["model_type"], known["seed"], known["count"]) == ("scene_qformer", SEED, 1)
    metrics = known["metrics"]
    assert metrics["accuracy"] >= 0.8 and set(metrics["accuracy_by_type"]) == set(metrics["chance"]) <= set(TYPES)
    assert max(metrics["chance"].values()) <= 0.5 and metrics["map_distance"] == 1.5
    other = evaluate(model, processor, SEED + 1, count=3)["metrics"]
    assert other["accuracy"] < 0.8 and other["questions"] > metrics["questions"]


def test_what_is_shown_are_answers_and_a_plan(learnt):
    model, processor, row = learnt
    (shown,) = show(model, processor, [row], {})
    assert len(shown["answers (truth)"]) == len(row["sample"].questions)
    assert shown["map"].size[0] > 100


def test_recipe_is_a_record():
    recipe = load_recipe("tiny/scene_qformer")
    assert [stage.name for stage in recipe.stages] == ["see", "assemble", "look", "answer"]
    other = recipe.changed({"assemble:options.position_encoding": "sine_camera"})
    assert other.stages[1].options == {"position_encoding": "sine_camera"}


def test_crops_show_what_they_are_called():
    """A coloured thing's crop holds pixels nearer to its colour than a crop of nothing does."""
    red = CROP_LABELS.index("red car")
    source, found = crop_rows(SEED), {red: [], CROP_LABELS.index("nothing"): []}
    for index in range(60):
        row = source[index]
        assert row["images"].shape[1:] == (32, 32, 3) and len(row["images"]) == len(row["labels"])
        for image, label in zip(row["images"].astype(int), row["labels"]):
            if label in found:
                found[label].append((image[..., 0] - image[..., 1:].max(-1)).max())
    shown, nothing = found.values()
    assert min(shown) > 60 > 50 > np.percentile(nothing, 95)


def test_backbone_of_the_crops_goes_into_the_model(tmp_path):
    torch.manual_seed(1)
    model, processor = build_backbone()
    batch = CropCollator(processor)([crop_rows(SEED)[0]])
    assert model(**batch).logits.shape == (len(batch["labels"]), len(CROP_LABELS))
    model.save_pretrained(tmp_path / "see")
    assemble({"see": tmp_path / "see"}, tmp_path / "out", position_encoding="ray_3d")
    whole = SceneQFormerForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert whole.config.position_encoding == "ray_3d"
    wanted, found = model.resnet.state_dict(), whole.scene_qformer.backbone.state_dict()
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
