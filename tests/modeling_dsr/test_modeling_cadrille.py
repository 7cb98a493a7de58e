"""Cadrille: the checks common to all models, mixed batches, positions, errors."""

import copy

import pytest
import torch
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from modeling_dsr.modeling_cadrille import CadrilleForConditionalGeneration, CadrilleModel, compact_videos
from tests.model_checks import ModelChecks, assert_same, randomize
from tests.modeling_dsr.cad_samples import (
    GRID,
    IMAGE,
    NUM_POINTS,
    POINT,
    VIDEO,
    cadrille_config,
    cadrille_inputs,
    cloud,
)

KINDS = "pvt"


class TestCadrille(ModelChecks):
    model_classes = (CadrilleModel, CadrilleForConditionalGeneration)
    generative = True
    padding_sides = ("left", "right")
    lora_targets = r".*language_model.*(q_proj|v_proj)"
    fsdp_layers = ("Qwen2VLDecoderLayer", "Qwen2VLVisionBlock")

    def tiny_config(self):
        return cadrille_config()

    def inputs(self, batch, padding_side="left"):
        return cadrille_inputs(KINDS[:batch], padding_side)

    def training_inputs(self, batch):
        return cadrille_inputs("vp"[:batch], "right", answer=3)

    def per_sample(self, outputs, inputs, batch):
        samples = super().per_sample(outputs, inputs, batch)
        for sample in samples:
            sample.pop("rope_deltas", None)  # counted from the end of the padded row
        return samples

    def compile_pieces(self, model, inputs):
        clouds = torch.stack([cloud(0), cloud(1)])
        return {"point encoder": (model.model.point_encoder, (clouds,), {})}


@pytest.fixture(scope="module")
def model():
    model = CadrilleForConditionalGeneration(cadrille_config()).eval()
    randomize(model)
    return model


def run(model, inputs, **kwargs):
    with torch.no_grad():
        return model(**copy.deepcopy(inputs), **kwargs)


def valid_logits(model, inputs, **kwargs):
    return run(model, inputs, **kwargs).logits[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("kinds", ["pvt", "vpt", "tpv", "tvp"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_mixed_batch_equal_their_rows_alone(model, kinds, side):
    """Points, views and text in any order, on either padding side, in forward and in generate."""
    together = cadrille_inputs(kinds, side)
    logits = run(model, together).logits
    generated = (
        model.generate(**together, max_new_tokens=4, do_sample=False, eos_token_id=None) if side == "left" else None
    )
    for i in range(len(kinds)):
        mask = together["attention_mask"][i].bool()
        alone = {name: value[i : i + 1] for name, value in together.items()}
        alone["input_ids"], alone["attention_mask"] = alone["input_ids"][:, mask], alone["attention_mask"][:, mask]
        assert_same({"logits": logits[i, mask]}, {"logits": run(model, alone).logits[0]}, 1e-4)
        if generated is not None:
            single = model.generate(**alone, max_new_tokens=4, do_sample=False, eos_token_id=None)
            assert torch.equal(generated[i, -4:], single[0, -4:])


def test_generation_equals_repeated_forward_passes_on_mixed_batches(model):
    """Placeholders are banned: a generated one is harmless in the cache, but would be taken for views in a new pass."""
    inputs, banned = cadrille_inputs("tvp"), [IMAGE, VIDEO, POINT]
    generated = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None, suppress_tokens=banned)
    grown = dict(inputs)
    for _ in range(5):
        logits = run(model, grown).logits[:, -1]
        logits[:, banned] = -torch.inf
        best = logits.argmax(-1, keepdim=True)
        grown["input_ids"] = torch.cat([grown["input_ids"], best], 1)
        grown["attention_mask"] = torch.cat([grown["attention_mask"], torch.ones_like(best)], 1)
    assert torch.equal(generated, grown["input_ids"])


def test_cached_forward_passes_continue_at_the_right_positions(model):
    """Without a mask at decode too: positions come from the cache."""
    inputs = cadrille_inputs("vv")
    full = run(model, inputs).logits
    cut = {name: value[:, :-2] if name in ("input_ids", "attention_mask") else value for name, value in inputs.items()}
    first = run(model, cut, use_cache=True)
    for i in (-2, -1):
        step = model(
            input_ids=inputs["input_ids"][:, i : i + 1 or None],
            attention_mask=inputs["attention_mask"][:, : i + 1 or None],
            past_key_values=first.past_key_values,
        )
        assert_same({"logits": step.logits[:, 0]}, {"logits": full[:, i]}, 1e-4)


@pytest.mark.parametrize("kinds", ["v", "vt", "pvvt", "tp"])
def test_positions_equal_qwen2_vl(model, kinds):
    inputs = cadrille_inputs(kinds)
    _, grid = compact_videos(inputs.get("pixel_values_videos"), inputs.get("video_grid_thw"), inputs["is_img"])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    found, deltas = model.model.get_rope_index(ids, video_grid_thw=grid, attention_mask=mask)
    types = 2 * (ids == VIDEO).int()
    expected, expected_deltas = Qwen2VLModel.get_rope_index(
        model.model, ids, mm_token_type_ids=types, video_grid_thw=grid, attention_mask=mask
    )
    valid = mask.bool().expand(3, -1, -1)
    assert torch.equal(found[valid], expected[valid])
    assert torch.equal(deltas + ids.shape[1] - mask.sum(1, keepdim=True), expected_deltas)


def test_positions_of_images_and_videos_together(model):
    row = [1, IMAGE, IMAGE, 2, 3, *[VIDEO] * 12, 4, IMAGE, 5]
    ids = torch.tensor([row, row])
    images = torch.tensor([[1, 2, 4], [1, 2, 2], [1, 4, 2], [1, 2, 2]])
    videos = torch.tensor([[2, 4, 6], [2, 6, 4]])
    found, _ = model.model.get_rope_index(ids, image_grid_thw=images, video_grid_thw=videos)
    types = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    expected, _ = Qwen2VLModel.get_rope_index(
        model.model, ids, mm_token_type_ids=types, image_grid_thw=images, video_grid_thw=videos
    )
    assert torch.equal(found, expected)


def test_compact_video_layout_equals_the_batched_one(model):
    inputs = cadrille_inputs("pvt")
    compact = dict(inputs)
    compact["pixel_values_videos"], compact["video_grid_thw"] = inputs["pixel_values_videos"][1], torch.tensor([GRID])
    assert_same({"l": valid_logits(model, compact)}, {"l": valid_logits(model, inputs)})
    settings = dict(max_new_tokens=4, do_sample=False, eos_token_id=None, num_beams=2, num_return_sequences=2)
    assert torch.equal(model.generate(**compact, **settings), model.generate(**inputs, **settings))


def test_point_rows_are_found_by_their_placeholders(model):
    inputs = cadrille_inputs("pvt")
    bare = {name: value for name, value in inputs.items() if name not in ("is_pc", "is_img")}
    assert_same({"l": valid_logits(model, bare)}, {"l": valid_logits(model, inputs)})


def test_the_callers_tensors_stay_as_they_are(model):
    inputs = cadrille_inputs("pvt")
    before = copy.deepcopy(inputs)
    model(**inputs)
    assert_same(inputs, before)


def test_points_after_text_are_found(model):
    """The placeholders, not the beginning of the row, say where points go."""
    inputs = cadrille_inputs("p")
    ids = inputs["input_ids"].roll(3, 1)
    embeds = []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(lambda m, args: embeds.append(args[0]))
    run(model, {**inputs, "input_ids": ids})
    hook.remove()
    with torch.no_grad():
        expected = model.get_point_features(inputs["point_clouds"])
    assert_same({"points": embeds[0][ids == POINT]}, {"points": expected[0]})


def test_channels_after_xyz_are_not_read(model):
    inputs = cadrille_inputs("p")
    more = {**inputs, "point_clouds": torch.cat([inputs["point_clouds"], torch.ones(1, NUM_POINTS, 3)], -1)}
    assert_same({"l": valid_logits(model, more)}, {"l": valid_logits(model, inputs)})


def test_no_process_wide_dtype_is_changed():
    before = torch.get_default_dtype()
    CadrilleForConditionalGeneration(cadrille_config())
    assert torch.get_default_dtype() == before


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i: i.update(point_clouds=i["point_clouds"][:, :3]), "fewer points than placeholders"),
        (lambda i: i.update(point_clouds=i["point_clouds"].repeat(1, 2, 1)), "too many points"),
        (lambda i: i.update(point_clouds=i["point_clouds"].clone().fill_(float("nan"))), "NaN"),
        (lambda i: i.update(point_clouds=i["point_clouds"][0]), r"must be \[1, points, 3\]"),
        (lambda i: i.update(pixel_values_videos=torch.zeros(24, 1176)), "video_grid_thw"),
        (lambda i: i.update(labels=torch.zeros(1, 2, dtype=torch.long)), "labels"),
        (lambda i: i.pop("input_ids"), "input_ids"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model, change, message):
    inputs = cadrille_inputs("p")
    change(inputs)
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_a_video_without_its_tokens_is_refused(model):
    inputs = cadrille_inputs("v")
    inputs["input_ids"][inputs["input_ids"] == VIDEO] = 1
    with pytest.raises(ValueError, match="ideo"):
        model(**inputs)


@pytest.mark.parametrize("field, value", [("num_freqs", 0), ("num_points", 0), ("loss_chunk_size", -1)])
def test_configurations_that_make_no_model_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        cadrille_config(**{field: value})
