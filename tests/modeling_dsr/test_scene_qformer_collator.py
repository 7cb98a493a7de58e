"""Training rows of the scene Q-Former: what a batch holds, and that sharing a scene changes no number."""

import copy
import pickle

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from dsr_toolkit.tiny.tokenizer import write_tokenizer
from modeling_dsr.modeling_scene_qformer import SceneQFormerForConditionalGeneration
from modeling_dsr.scene_qformer_collator import resample
from processing_dsr import SceneQFormerProcessor
from tests.modeling_dsr.scene_samples import extrinsics, intrinsics, pictures, tiny_language_config

SIZE = (48, 80)
QUERIES = 14
SHORT_TEMPLATE = (
    "{%- for message in messages -%}{{ message.content }}"
    "{{ '\n' if message.role == 'user' else eos_token }}{%- endfor -%}"
)
LINE = {"label": 0, "points": np.stack([np.full(5, 3.0), np.linspace(-30, 30, 5)], -1)}
RING = {"label": 1, "points": np.array([[-3.0, 6], [3, 6], [3, 9], [-3, 9]])}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = None
    return tokenizer


@pytest.fixture(scope="module")
def processor(tokenizer):
    return SceneQFormerProcessor(tokenizer, image_size=(32, 48), num_scene_tokens=QUERIES)


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    place = processor.tokenizer.get_vocab()["<image>"]
    config = tiny_language_config(image_token_id=place, position_encoding="sine_camera")
    return SceneQFormerForConditionalGeneration(config).eval()


def row(number: int = 0, **fields) -> dict:
    images = pictures(SIZE)
    names = list(images)
    return {"images": dict(zip(names, [images[name] for name in names[number:] + names[:number]])), **fields}


QUESTIONS = ["What is ahead?", "How many cars are there?", "Which is nearer, the red car or the truck?"]
ANSWERS = ["car", "two", "the red car"]


def test_only_the_answer_and_its_end_are_supervised(processor):
    batch = processor.training_collator()([row(question=QUESTIONS[0], answer=ANSWERS[0])])
    labels, ids = batch["labels"][0], batch["input_ids"][0]
    assert processor.tokenizer.decode(labels[labels >= 0]) == " car" + processor.tokenizer.eos_token
    assert (ids[labels >= 0] == labels[labels >= 0]).all()


@pytest.mark.parametrize("template", [None, SHORT_TEMPLATE])
def test_prompt_is_that_of_inference(tokenizer, template):
    processor = SceneQFormerProcessor(tokenizer, template, image_size=(32, 48), num_scene_tokens=QUERIES)
    batch = processor.training_collator()([row(question=QUESTIONS[0], answer=ANSWERS[0])])
    asked = processor(row()["images"], processor.question_prompt(QUESTIONS[0]))["input_ids"][0]
    assert batch["input_ids"][0, : len(asked)].tolist() == asked.tolist()
    assert (batch["labels"][0, : len(asked)] == -100).all()


def test_questions_about_one_scene_cost_what_they_cost_apart(processor, model):
    """Loss and logits of three questions that share a scene are those of three rows."""
    collate = processor.training_collator()
    together = collate([row(1, question=QUESTIONS, answer=ANSWERS)])
    apart = collate([row(1, question=q, answer=a) for q, a in zip(QUESTIONS, ANSWERS)])
    assert together["pixel_values"].shape[0] == 1 and together["attention_mask"].ndim == 4
    with torch.inference_mode():
        one, three = model(**together), model(**apart)
    assert one.loss.item() == pytest.approx(three.loss.item(), abs=1e-5)
    found, wanted = one.logits[together["labels"] >= 0], three.logits[apart["labels"] >= 0]
    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_map_beside_questions_is_the_map_alone(processor, model, implementation):
    """Though the questions are longer than the map's prompt, and another row is longer still."""
    weights = model.state_dict()
    model = SceneQFormerForConditionalGeneration._from_config(
        copy.deepcopy(model.config), attn_implementation=implementation
    ).eval()
    model.load_state_dict(weights)
    short = SceneQFormerProcessor(
        processor.tokenizer, image_size=(32, 48), num_scene_tokens=QUERIES, map_instruction="Map."
    )
    collate = short.training_collator(map_points=5)
    both = collate(
        [
            row(1, question=QUESTIONS[:1], answer=ANSWERS[:1], map=[LINE]),
            row(2, question=QUESTIONS, answer=ANSWERS, map=[]),
        ]
    )
    alone = short(row(1)["images"], short.map_prompt())
    with torch.inference_mode():
        beside, single = model(**both), model(**alone, output_map=True)
    assert torch.allclose(beside.points[0], single.points[0], atol=1e-5)
    assert torch.allclose(beside.class_logits[0], single.class_logits[0], atol=1e-5)


def test_map_points_are_scaled_clipped_and_resampled(processor):
    collate = processor.training_collator(map_points=8)
    far = {"label": 2, "points": np.array([[20.0, -40], [20, 40]])}
    (labels,) = collate([row(map=[LINE, RING, far])])["map_labels"]
    assert labels["class_labels"].tolist() == [0, 1, 2] and labels["points"].shape == (3, 8, 2)
    assert torch.allclose(labels["points"][0, :, 0], torch.tensor(3 / 15))
    assert torch.allclose(labels["points"][0, :, 1], torch.linspace(-1, 1, 8))
    assert labels["points"][2].abs().max() == 1


def test_a_ring_is_resampled_around():
    points = resample(RING["points"], 6, closed=True)  # 18 m around: 3 m apart
    assert points.tolist() == [[-3, 6], [0, 6], [3, 6], [3, 9], [0, 9], [-3, 9]]
    line = resample(RING["points"], 3)
    assert line.tolist() == [[-3, 6], [3, 7.5], [-3, 9]]


def test_calibration_comes_along(tokenizer):
    processor = SceneQFormerProcessor(tokenizer, image_size=(32, 48), num_scene_tokens=QUERIES, needs_calibration=True)
    given = {"cam_intrinsics": intrinsics(SIZE).numpy(), "cam_extrinsics": extrinsics().numpy()}
    batch = processor.training_collator()([row(question="?", answer="!", **given)] * 2)
    assert batch["cam_extrinsics"].shape == (2, 6, 4, 4)
    assert batch["cam_intrinsics"][0, 0, 0, 0] == pytest.approx(intrinsics(SIZE)[0, 0, 0].item() * 48 / 80)


def test_map_may_be_learnt_in_some_batches(processor):
    collate = processor.training_collator(map_points=5, map_every=2)
    batches = [collate([row(question="?", answer="!", map=[LINE], seed=seed)]) for seed in (3, 4)]
    assert ["map_labels" in batch for batch in batches] == [False, True]
    assert "map_labels" in collate([row(map=[LINE], seed=3)])  # there is nothing else to learn


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{}], "Row 0 must have .question. and .answer., or .map."),
        ([{"question": "What?"}], "Row 0: `answer` to .What.. must be a text, got None"),
        ([{"question": "What?", "answer": " "}], "Row 0: `answer` to 'What\\?' must be a text, got ' '"),
        ([{"question": ["a", "b"], "answer": ["c"]}], "as many .question. as .answer., got 2 and 1"),
        ([{"map": [LINE]}, {"question": "?", "answer": "!"}], "row 1 has none"),
        ([{"map": [{"label": 0, "points": [[1.0, 2]]}]}], "element 0 must be finite"),
    ],
)
def test_rows_that_cannot_be_learnt_are_named(processor, rows, message):
    with pytest.raises(ValueError, match=message):
        processor.training_collator()([row(**fields) for fields in rows])


def test_collator_travels_to_workers(processor):
    collate = processor.training_collator(map_points=5)
    rows = [row(question=QUESTIONS, answer=ANSWERS, map=[LINE])]
    there, here = pickle.loads(pickle.dumps(collate))(rows), collate(rows)
    assert all(torch.equal(there[name], here[name]) for name in ("input_ids", "attention_mask", "pixel_values"))


def test_a_mask_of_another_size_is_refused(processor, model):
    batch = processor.training_collator(map_points=5)([row(question=QUESTIONS, answer=ANSWERS, map=[LINE])])
    batch["attention_mask"] = batch["attention_mask"][..., :-1]
    with pytest.raises(ValueError, match="must cover prompt and output queries"):
        model(**batch)
