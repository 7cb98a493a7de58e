"""SceneQFormerProcessor: six named images and their calibration in, pictures and metres out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from dsr_toolkit.tiny.tokenizer import write_tokenizer
from modeling_dsr.configuration_scene_qformer import SCENE_CAMERAS
from processing_dsr import SceneQFormerProcessor
from tests.modeling_dsr.scene_samples import extrinsics, intrinsics, pictures

SIZE = (48, 80)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def processor(**kwargs) -> SceneQFormerProcessor:
    return SceneQFormerProcessor(**{"image_size": (32, 48), "num_scene_tokens": 5, **kwargs})


def calibration() -> dict[str, np.ndarray]:
    return {"cam_intrinsics": intrinsics(SIZE).numpy(), "cam_extrinsics": extrinsics().numpy()}


# ---- images ------------------------------------------------------------------------------


def test_named_images_come_in_nuscenes_order():
    images = pictures(SIZE)
    shuffled = {name: images[name] for name in reversed(SCENE_CAMERAS)}
    listed = processor()(list(images.values()))["pixel_values"]
    assert listed.shape == (1, 6, 3, 32, 48)
    assert torch.equal(processor()(shuffled)["pixel_values"], listed)


def test_images_are_resized_whole_and_normalised():
    """Bilinear to the size asked for, without a crop, then ImageNet's mean and deviation."""
    image = pictures(SIZE)["CAM_BACK"]
    found = processor()(pictures(SIZE))["pixel_values"][0, 3]
    resized = np.asarray(image.resize((48, 32), Image.Resampling.BILINEAR)) / 255.0
    expected = (resized - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(found.numpy(), expected.transpose(2, 0, 1), atol=1e-6)


def test_scenes_make_a_batch():
    scenes = [pictures(SIZE), list(pictures((24, 40)).values())]
    assert processor()(scenes)["pixel_values"].shape == (2, 6, 3, 32, 48)


@pytest.mark.parametrize("count", [0, 5, 7])
def test_wrong_number_of_cameras_is_refused(count):
    images = (list(pictures(SIZE).values()) * 2)[:count]
    with pytest.raises(ValueError, match=f"must hold 6 entries.*got {count}"):
        processor()([images] if not count else images)


def test_unknown_and_missing_names_are_refused():
    images = pictures(SIZE)
    images["CAM_TOP"] = images.pop("CAM_BACK")
    with pytest.raises(ValueError, match=r"missing \['CAM_BACK'\], unknown \['CAM_TOP'\]"):
        processor()(images)


def test_wrong_order_of_cameras_is_refused():
    order = ["CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"]
    with pytest.raises(ValueError, match="in this order"):
        processor()([pictures(SIZE)[name] for name in order], camera_names=order)


def test_files_that_are_no_images_are_refused(tmp_path):
    bad = tmp_path / "CAM_FRONT.jpg"
    bad.write_bytes(b"not an image")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        processor()({**pictures(SIZE), "CAM_FRONT": bad})


# ---- calibration -------------------------------------------------------------------------


def test_intrinsics_are_scaled_with_the_images():
    found = processor(needs_calibration=True)(pictures(SIZE), **calibration())
    given = intrinsics(SIZE)
    scale = torch.tensor([48 / 80, 32 / 48])
    assert torch.allclose(found["cam_intrinsics"][0, :, :2], given[:, :2] * scale[:, None])
    assert torch.equal(found["cam_intrinsics"][0, :, 2], given[:, 2])
    assert torch.equal(found["cam_extrinsics"][0], extrinsics())


def test_calibration_may_come_by_name():
    given = calibration()
    named = {name: dict(zip(SCENE_CAMERAS, matrices)) for name, matrices in given.items()}
    named["cam_intrinsics"] = dict(reversed(named["cam_intrinsics"].items()))
    expected = processor()(pictures(SIZE), **given)
    found = processor()(pictures(SIZE), **named)
    assert torch.equal(found["cam_intrinsics"], expected["cam_intrinsics"])
    assert torch.equal(found["cam_extrinsics"], expected["cam_extrinsics"])


def test_missing_calibration_is_refused_where_the_model_reads_it():
    with pytest.raises(ValueError, match="`cam_intrinsics` and `cam_extrinsics` missing"):
        processor(needs_calibration=True)(pictures(SIZE))
    with pytest.raises(ValueError, match="`cam_extrinsics` missing"):
        processor()(pictures(SIZE), cam_intrinsics=calibration()["cam_intrinsics"])


def spoil(name, function):
    given = calibration()
    given[name] = given[name].copy()
    function(given[name])
    return given


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("cam_intrinsics", lambda m: m[2].fill(0), "CAM_FRONT_LEFT in scene 0 has no last row"),
        ("cam_intrinsics", lambda m: m[2, :2].fill(0), "CAM_FRONT_LEFT in scene 0 is singular"),
        ("cam_intrinsics", lambda m: m[1].__setitem__((0, 2), 500), "principal point outside of the image"),
        ("cam_intrinsics", lambda m: m[1].__setitem__((0, 0), -60), "focal length that is not positive"),
        ("cam_intrinsics", lambda m: m[1].__setitem__((0, 0), np.nan), "finite 3×3"),
        ("cam_extrinsics", lambda m: m[4, :3, :3].__imul__(2), "CAM_BACK_LEFT in scene 0 must be a rotation"),
        ("cam_extrinsics", lambda m: m[4, :, 0].__imul__(-1), "must be a rotation"),
        ("cam_extrinsics", lambda m: m[0, 3].fill(1), "last row"),
    ],
)
def test_calibration_that_does_not_fit_is_refused(name, function, message):
    with pytest.raises(ValueError, match=message):
        processor()(pictures(SIZE), **spoil(name, function))


def test_calibration_of_another_number_of_cameras_is_refused():
    given = calibration()
    with pytest.raises(ValueError, match="`cam_intrinsics` of scene 0 must hold 6 entries"):
        processor()(pictures(SIZE), cam_intrinsics=given["cam_intrinsics"][:5], cam_extrinsics=given["cam_extrinsics"])


# ---- text --------------------------------------------------------------------------------


def test_placeholder_is_written_once_per_scene_token(tokenizer):
    found = processor(tokenizer=tokenizer)(pictures(SIZE), "<image>\nWhat is ahead?")
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    ids = found["input_ids"][0].tolist()
    assert ids[:5] == [image_id] * 5 and ids.count(image_id) == 5
    assert ids[5:] == tokenizer("\nWhat is ahead?")["input_ids"]


def test_a_tokenizer_without_placeholder_gets_llavas(tmp_path):
    write_tokenizer(tmp_path)
    found = processor(tokenizer=AutoTokenizer.from_pretrained(tmp_path))(pictures(SIZE), "Look: <image> and speak")
    assert found["input_ids"][0].tolist().count(-200) == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_padded_on_the_tokenizers_side(tokenizer, side):
    made = processor(tokenizer=tokenizer)
    assert tokenizer.padding_side == "left"  # for generation; training may choose
    tokenizer.padding_side = side
    found = made([pictures(SIZE)] * 2, ["<image>a", "<image>a longer prompt"])
    mask = found["attention_mask"]
    padded = mask[0, 0] == 0 if side == "left" else mask[0, -1] == 0
    assert padded and mask[1].all()


def test_prompts_must_show_the_scenes(tokenizer):
    with pytest.raises(ValueError, match="holds 0 <image> for 1 scenes"):
        processor(tokenizer=tokenizer)(pictures(SIZE), "What is ahead?")


def test_map_prompt_names_the_cameras_in_their_order():
    prompt = processor().map_prompt()
    places = [
        prompt.index(name) for name in ("front,", "front right", "front left", "back,", "back left", "back right")
    ]
    assert prompt.startswith("<image>\n") and places == sorted(places)


TEXT_ONLY = (  # adds strings, as SmolLM2's does
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LISTS_ONLY = (
    "{% for message in messages %}[{{ message.role }}]{% for item in message.content %}"
    "{% if item.type == 'text' %}{{ item.text }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    "template, prompt",
    [
        (TEXT_ONLY, "<|im_start|>user\n<image>\nHow many cars?<|im_end|>\n<|im_start|>assistant\n"),
        (LISTS_ONLY, "[user]<image>\nHow many cars?"),
        (None, "<image>\nHow many cars?"),
    ],
)
def test_question_is_shown_as_the_chat_template_takes_it(tokenizer, template, prompt):
    made = processor(tokenizer=tokenizer, chat_template=template)
    made.tokenizer.chat_template = None
    assert made.question_prompt("How many cars?") == prompt
    if template is not None:
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many cars?"}]}]
        assert made.apply_chat_template(turn, add_generation_prompt=True) == prompt
        assert made.apply_chat_template([turn, turn], add_generation_prompt=True) == [prompt, prompt]
        ids = made.apply_chat_template(turn, add_generation_prompt=True, tokenize=True)["input_ids"]
        assert ids.tolist() == made(text=prompt)["input_ids"].tolist()


@pytest.mark.parametrize(
    "template, message",
    [("nothing", "leaves the text out"), ("{{ raise_exception('no users') }}", "TemplateError: no users")],
)
def test_a_template_that_cannot_ask_is_refused(tokenizer, template, message):
    with pytest.raises(ValueError, match=message):
        processor(tokenizer=tokenizer, chat_template=template).question_prompt("How many cars?")


def test_a_video_in_a_turn_is_refused(tokenizer):
    made = processor(tokenizer=tokenizer, chat_template=TEXT_ONLY)
    with pytest.raises(ValueError, match="must be an image .a scene. or a text, got type 'video'"):
        made.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])


def test_answered_question_begins_as_the_open_one(tokenizer):
    made = processor(tokenizer=tokenizer, chat_template=TEXT_ONLY)
    prompt, answer = made.conversation("How many cars?", "two")
    assert prompt == made.question_prompt("How many cars?") and answer == "two<|im_end|>"
    with pytest.raises(ValueError, match="otherwise than an open one"):
        processor(tokenizer=tokenizer, chat_template="{{ messages | length }}<image>").conversation("How?", "so")


def test_text_without_tokenizer_is_refused():
    with pytest.raises(ValueError, match="needs a tokenizer"):
        processor()(pictures(SIZE), "<image>")


def test_round_trip_without_tokenizer(tmp_path):
    before = processor(needs_calibration=True)
    before.save_pretrained(tmp_path)
    after = SceneQFormerProcessor.from_pretrained(tmp_path)
    saved = [{k: v for k, v in made.to_dict().items() if k != "auto_map"} for made in (before, after)]
    assert saved[0] == saved[1] and after.tokenizer is None
    assert torch.equal(
        after(pictures(SIZE), **calibration())["pixel_values"], before(pictures(SIZE), **calibration())["pixel_values"]
    )


# ---- back --------------------------------------------------------------------------------


def test_heat_maps_keep_the_probabilities():
    weights = torch.rand(2, 4, 7, 6, 3, 5)
    weights = weights / weights.sum((-3, -2, -1), keepdim=True)
    heat = processor().post_process_attentions((weights,), target_size=(20, 31))
    assert heat.shape == (2, 6, 20, 31)
    assert torch.allclose(heat.sum((1, 2, 3)), torch.ones(2), atol=1e-5)
    assert torch.allclose(heat.sum((2, 3)), weights.mean((1, 2)).sum((-2, -1)), atol=1e-5)


def test_heat_maps_of_chosen_queries():
    weights = torch.zeros(1, 2, 3, 6, 2, 2)
    weights[:, :, 1, 4, 0, 1] = 1
    heat = processor().post_process_attentions((weights,), queries=[1])[0]
    assert heat[4, :16, 24:].sum() == pytest.approx(1, abs=1e-5) and heat[:4].sum() == 0


def test_painting_marks_the_camera_that_was_looked_at():
    heat = torch.zeros(6, 32, 48)
    heat[3] = 1 / (32 * 48)
    cold, hot = torch.zeros(6, 32, 48), heat
    made = processor()
    difference = np.abs(
        np.asarray(made.paint_attentions(pictures(SIZE), hot), int)
        - np.asarray(made.paint_attentions(pictures(SIZE), cold), int)
    ).sum(-1)
    height, width = difference.shape
    upper, lower = difference[: height // 2], difference[height // 2 :]
    middle = slice(width // 3 + 4, 2 * width // 3 - 4)
    assert (lower[10:40, middle] > 50).mean() > 0.5  # CAM_BACK is the middle one below
    assert (upper[30:50] > 50).mean() < 0.1


def test_detections_come_back_in_metres():
    logits = torch.full((1, 2, 3), -5.0)
    logits[0, 1, 2] = 5.0
    points = torch.tensor([[[[0.0, 0], [1, 1]], [[-1, -1], [0.5, 0.5]]]])
    found = processor().post_process_map_detection(SimpleNamespace(class_logits=logits, points=points))[0]
    assert found["labels"].tolist() == [2]
    assert found["points"].tolist() == [[[-15, -30], [7.5, 15]]]
