"""FrozenQwenSAM: what a user may rely on beyond the checks of all models."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SamModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

from modeling_dsr.frozen_qwen_sam_answers import region_cells
from modeling_dsr.modeling_frozen_qwen_sam import FrozenQwenSAMModel, crop_padding
from tests.model_checks import randomize
from tests.modeling_dsr.frozen_qwen_sam_samples import IMAGE_TOKEN, collate, sample, tiny_config


def build(**overrides) -> FrozenQwenSAMModel:
    torch.manual_seed(0)
    model = FrozenQwenSAMModel(tiny_config(**overrides)).eval()
    randomize(model)
    model.freeze()
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def inputs():
    return collate([sample(0, phrases=(3, 2), separate=True)], labels=False)


def only_caption(row: dict, number: int) -> dict:
    """The row with one of its captions, whose phrase becomes phrase 0."""
    keep = (row["caption_ids"] == 0) | (row["caption_ids"] == number + 1)
    one = {name: row[name][keep] for name in ("input_ids", "mask_ids", "caption_ids")}
    one["mask_ids"] = torch.where(one["mask_ids"] >= 0, 0, -1)
    return {**row, **one}


# ---- phrases and captions ------------------------------------------------------------------


@pytest.mark.parametrize("padding, atol", [("phrase", 5e-4), ("image", None)])
def test_a_phrase_alone_equals_itself_among_twenty(padding, atol):
    model = build(mask_prompt_padding=padding)
    row = sample(3, phrases=tuple(1 + i % 4 for i in range(20)), separate=True)
    # A large coarse range, so that the padding of another phrase could matter.
    model.mask_head.classifier.weight.data *= 20
    with torch.no_grad():
        together = model(**collate([row], labels=False))
        alone = [model(**collate([only_caption(row, i)], labels=False)) for i in (0, 7, 19)]
    differences = []
    for number, single in zip((0, 7, 19), alone):
        torch.testing.assert_close(single.pred_masks[0][0], together.pred_masks[0][number], atol=2e-2, rtol=1e-4)
        scale = together.prompt_masks[0][number].abs().max()
        differences.append(((single.prompt_masks[0][0] - together.prompt_masks[0][number]).abs().max() / scale).item())
    if atol is not None:
        assert max(differences) < atol
    else:  # the published rule lets phrases of an image share the padding
        assert max(differences) > 1e-2


def test_phrases_of_one_caption_see_what_stands_before_them(model):
    row = sample(4, phrases=(2, 2))
    changed = copy.deepcopy(row)
    first = (row["mask_ids"] == 0).nonzero()[0]
    changed["input_ids"][first] = (row["input_ids"][first] + 1) % 70
    with torch.no_grad():
        before, after = (model(**collate([one], labels=False), use_sam=False) for one in (row, changed))
        separate = [
            {**one, "caption_ids": sample(4, phrases=(2, 2), separate=True)["caption_ids"]} for one in (row, changed)
        ]
        split_before, split_after = (model(**collate([one], labels=False), use_sam=False) for one in separate)
    assert (before.mask_attentions[0][1] - after.mask_attentions[0][1]).abs().max() > 1e-5
    torch.testing.assert_close(split_before.mask_attentions[0][1], split_after.mask_attentions[0][1], atol=1e-7, rtol=0)


def test_without_caption_ids_everything_from_the_first_phrase_is_one_caption(model):
    row = sample(5, phrases=(2, 3))
    batch = collate([row], labels=False)
    explicit = {
        **batch,
        "caption_ids": (torch.arange(len(row["input_ids"])) >= (row["mask_ids"] >= 0).nonzero()[0])[None].long(),
    }
    batch.pop("caption_ids")
    with torch.no_grad():
        found, expected = model(**batch), model(**explicit)
    torch.testing.assert_close(found.sam_pred_masks[0], expected.sam_pred_masks[0], atol=1e-6, rtol=1e-6)


def test_features_answer_other_captions_without_the_image(model, inputs):
    with torch.no_grad():
        first = model(**inputs, return_features=True)
        calls = count_calls(model.vlm.model.visual, model.sam.vision_encoder)
        light = {k: v for k, v in inputs.items() if k not in ("pixel_values", "sam_pixel_values")}
        again = model(**light, features=first.features)
    assert calls() == [0, 0]
    torch.testing.assert_close(again.sam_pred_masks[0], first.sam_pred_masks[0], atol=1e-6, rtol=1e-6)


def test_the_image_is_encoded_once_for_all_phrases(model):
    calls = count_calls(model.vlm.model.visual, model.sam.vision_encoder)
    with torch.no_grad():
        model(**collate([sample(6, phrases=(1,) * 20, separate=True)], labels=False))
    assert calls() == [1, 1]


def count_calls(*modules):
    counts = [0] * len(modules)

    def counter(index):
        def hook(*_):
            counts[index] += 1

        return hook

    hooks = [module.register_forward_pre_hook(counter(i)) for i, module in enumerate(modules)]

    def finish():
        for hook in hooks:
            hook.remove()
        return counts

    return finish


def test_decoder_chunks_do_not_change_masks(inputs):
    row = collate([sample(7, phrases=(1, 2, 3, 1, 2), separate=True)], labels=False)
    with torch.no_grad():
        whole, chunked = (build(decoder_chunk_size=size)(**row) for size in (0, 2))
    torch.testing.assert_close(whole.sam_pred_masks[0], chunked.sam_pred_masks[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flags", [dict(use_text=False), dict(use_box=False), dict(use_mask=False),
                                   dict(multimask_output=True),
                                   dict(use_text=False, use_box=False, use_mask=False), dict(merge="max")])  # fmt: skip
def test_every_prompt_is_optional_and_matters(flags, inputs):
    with torch.no_grad():
        plain, other = build()(**inputs).sam_pred_masks[0], build(**flags)(**inputs).sam_pred_masks[0]
    assert torch.isfinite(other).all() and other.shape == plain.shape
    assert (plain - other).abs().max() > 1e-6


# ---- the attention bill --------------------------------------------------------------------


class LargeTensors(TorchDispatchMode):
    """Collects the shapes of tensors of at least `limit` elements that operations make."""

    def __init__(self, limit: int):
        super().__init__()
        self.limit, self.found = limit, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor)}
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if not isinstance(value, torch.Tensor) or value.numel() < self.limit:
                continue
            if value.untyped_storage().data_ptr() not in given:  # a view makes nothing
                self.found.append((str(func), tuple(value.shape)))
        return result


def long_row():
    row = sample(8, grid=(48, 48), phrases=(3, 2, 4))
    return row, len(row["input_ids"])


def test_no_tensor_of_sequence_squared_elements_is_made(model):
    row, length = long_row()
    assert length > 580
    batch = collate([row], labels=False)
    with torch.no_grad(), LargeTensors(length**2) as large:
        model(**batch)
    assert large.found == []


def test_the_check_sees_whole_attention_matrices():
    row, length = long_row()
    eager = build()
    eager.vlm.set_attn_implementation("eager")
    batch = collate([row], labels=False)
    ids = batch["input_ids"]
    with torch.no_grad(), LargeTensors(length**2) as large:
        eager.vlm.model(
            input_ids=ids, pixel_values=batch["pixel_values"], image_grid_thw=batch["image_grid_thw"],
            mm_token_type_ids=(ids == IMAGE_TOKEN).int(), output_attentions=True,
        )  # fmt: skip
    assert any(shape[-2:] == (length, length) for _, shape in large.found)


def test_attention_equals_that_of_whole_matrices(model):
    """Rows, columns, merging and channel order against `output_attentions` of one plain pass."""
    row = sample(9, grid=(4, 8), phrases=(3, 2))
    batch = collate([row], labels=False)
    eager = copy.deepcopy(model.vlm)
    eager.set_attn_implementation("eager")
    ids = batch["input_ids"]
    with torch.no_grad():
        found = model(**batch, use_sam=False)
        attentions = eager.model(
            input_ids=ids, pixel_values=batch["pixel_values"], image_grid_thw=batch["image_grid_thw"],
            mm_token_type_ids=(ids == IMAGE_TOKEN).int(), output_attentions=True,
        ).attentions  # fmt: skip
    for phrase in range(2):
        rows, columns = row["mask_ids"] == phrase, row["input_ids"] == IMAGE_TOKEN
        expected = torch.cat([layer[0][:, rows][:, :, columns].mean(1) for layer in attentions]).view(-1, 2, 4)
        torch.testing.assert_close(found.mask_attentions[0][phrase], expected, atol=1e-6, rtol=1e-5)


# ---- answers -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answer(model):
    row = sample(10, phrases=(1,))
    prompt = row["input_ids"][row["caption_ids"] == 0][None]
    return model.answer(
        prompt, row["pixel_values"], row["image_grid_thw"], (prompt == IMAGE_TOKEN).int(), max_new_tokens=8,
        eos_token_id=None,
        **{name: row[name] for name in ("sam_pixel_values", "original_sizes", "reshaped_input_sizes")},
    )  # fmt: skip


def test_grounding_an_answer_equals_a_forward_pass_over_it(model, answer):
    row = sample(10, phrases=(1,))
    mask_ids = torch.full_like(answer.input_ids, -1)
    mask_ids[0, answer.prompt_length + 2 : answer.prompt_length + 5] = 0
    with torch.no_grad():
        grounded = model.ground(answer, [(2, 5)])
        names = ("pixel_values", "image_grid_thw", "sam_pixel_values", "original_sizes", "reshaped_input_sizes")
        plain = model(input_ids=answer.input_ids, mask_ids=mask_ids, **{name: row[name] for name in names})
    torch.testing.assert_close(grounded.mask_attentions[0], plain.mask_attentions[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grounded.sam_pred_masks[0], plain.sam_pred_masks[0], atol=1e-3, rtol=1e-3)


def test_published_rows_are_those_of_the_tokens_before(model, answer):
    aligned, _ = model.token_maps(answer)
    published, _ = model.token_maps(answer, aligned=False)
    assert aligned.shape == (2, 4, len(answer.output_ids), 2, 3)
    torch.testing.assert_close(published[:, :, 1:], aligned[:, :, :-1], atol=1e-6, rtol=1e-5)
    assert (published - aligned).abs().max() > 1e-3


def test_a_given_answer_equals_the_generated_one(model, answer):
    row = sample(10, phrases=(1,))
    given = model.given_answer(answer.input_ids, len(answer.output_ids), row["pixel_values"], row["image_grid_thw"])
    for found, expected in zip(model.token_maps(given), model.token_maps(answer)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_region_answers_read_cached_tokens(model, answer):
    tokens, bounds = model.region_tokens(answer, (0, 0, 39, 14))
    assert bounds == (0, 1, 0, 3) and tokens.shape == (3, 32)
    prompt = torch.tensor([[1, 2, 85] + [IMAGE_TOKEN] * 3 + [86, 4]])
    calls = count_calls(model.vlm.model.visual)
    ids = model.answer_about_tokens(prompt, tokens, max_new_tokens=4, eos_token_id=None)
    assert calls() == [0] and ids.shape == (4,)
    with pytest.raises(ValueError, match="3 image placeholders for 2"):
        model.answer_about_tokens(prompt, tokens[:2])


@pytest.mark.parametrize(
    "box, expected",
    [((0, 0, 100, 50), (0, 5, 0, 10)), ((-5, -5, 3, 3), (0, 1, 0, 1)), ((99, 49, 300, 300), (4, 5, 9, 10)),
     ((15, 15, 15, 15), (1, 2, 1, 2)), ((10, 10, 30, 20), (1, 2, 1, 3))],
)  # fmt: skip
def test_region_cells_cover_the_box(box, expected):
    assert region_cells(box, (50, 100), (5, 10)) == expected


def test_padded_coarse_masks_are_cropped_to_the_image():
    meta = {
        "padded_shape": {"height": 100, "width": 200},
        "image_shape": {"height": 50, "width": 200},
        "padding": {"before_height": 25, "before_width": 0},
    }
    masks = torch.arange(8.0).view(1, 8, 1).expand(1, 8, 16)
    assert crop_padding(masks, meta)[0, :, 0].tolist() == [2, 3, 4, 5]


# ---- training and saving -------------------------------------------------------------------


def test_only_trained_parts_get_gradients(model):
    training = copy.deepcopy(model).train()
    assert not training.vlm.training and not training.sam.vision_encoder.training and training.mask_head.training
    training(**collate([sample(0)])).loss.backward()
    touched = {".".join(name.split(".")[:2]) for name, p in training.named_parameters() if p.grad is not None}
    assert touched == {
        "mask_head.encoder", "mask_head.decoder", "mask_head.classifier", "sam.prompt_encoder", "sam.mask_decoder",
        "text_proj.weight", "text_proj.bias", "text_layer_weights",
    }  # fmt: skip


def test_a_few_steps_lower_the_loss(model):
    training = copy.deepcopy(model).train()
    batch = collate([sample(0), sample(1, grid=(6, 4))])
    optimizer = torch.optim.AdamW([p for p in training.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(8):
        loss = training(**copy.deepcopy(batch)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_trained_parts_alone_are_saved_and_come_back(model, inputs, tmp_path):
    """The frozen weights are read from the repositories that the config names, here in transformers' own layouts."""
    plain = copy.deepcopy(model)
    qwen = Qwen2_5_VLForConditionalGeneration(plain.config.vlm_config)
    qwen.load_state_dict(plain.vlm.state_dict())
    qwen.save_pretrained(tmp_path / "qwen")
    sam = SamModel(plain.config.sam_config)
    sam.load_state_dict(plain.sam.state_dict())
    sam.mask_decoder.requires_grad_(False)
    for parameter in sam.mask_decoder.parameters():  # must come from the trained parts, not from here
        parameter.zero_()
    sam.save_pretrained(tmp_path / "sam")
    with pytest.raises(ValueError, match="vlm_source"):
        plain.save_pretrained(tmp_path / "parts", save_trained_only=True)
    plain.config.vlm_source = {"repo": str(tmp_path / "qwen"), "revision": "main"}
    plain.config.sam_source = {"repo": str(tmp_path / "sam"), "revision": "main"}
    plain.save_pretrained(tmp_path / "parts", save_trained_only=True)
    plain.save_pretrained(tmp_path / "whole")
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("parts", "whole")}
    assert size["parts"] < size["whole"] / 2
    loaded, info = FrozenQwenSAMModel.from_pretrained(tmp_path / "parts", output_loading_info=True)
    assert not any(info.values())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    loaded.save_pretrained(tmp_path / "again")  # whole again
    assert (tmp_path / "again" / "model.safetensors").stat().st_size == size["whole"]


def test_bfloat16_language_model_keeps_head_and_sam_in_float32(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    mixed = FrozenQwenSAMModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert mixed.vlm.dtype == torch.bfloat16 and mixed.mask_head.classifier.weight.dtype == torch.float32
    with torch.no_grad():
        output = mixed(**inputs)
    assert output.sam_pred_masks[0].dtype == torch.float32 and torch.isfinite(output.sam_pred_masks[0]).all()


# ---- refusals ------------------------------------------------------------------------------


def without_image(batch):
    batch["input_ids"] = torch.where(batch["input_ids"] == IMAGE_TOKEN, 1, batch["input_ids"])


def other_grid(batch):
    batch["image_grid_thw"] = torch.tensor([[1, 6, 6]])


def no_phrase(batch):
    batch["mask_ids"] = torch.full_like(batch["mask_ids"], -1)


def more_phrases_than_tokens(batch):
    batch["mask_ids"] = torch.where(batch["mask_ids"] >= 0, batch["mask_ids"] + 9, -1)


def phrase_without_token(batch):
    batch["mask_ids"] = torch.where(batch["mask_ids"] == 1, 2, batch["mask_ids"])


def phrase_in_the_prefix(batch):
    batch["mask_ids"][0, 1] = 0


def other_pixels(batch):
    batch["pixel_values"] = batch["pixel_values"][:-4]


def missing_grid(batch):
    del batch["image_grid_thw"]


def missing_sizes(batch):
    del batch["original_sizes"]


def odd_sam_image(batch):
    batch["sam_pixel_values"] = batch["sam_pixel_values"][..., :32]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (without_image, "shows no image"),
        (other_grid, "Image token count 6 .* does not match"),
        (no_phrase, "marks no phrase"),
        (more_phrases_than_tokens, "11 phrases but only 5 tokens"),
        (phrase_without_token, "Phrase 1 of row 0 has no token"),
        (phrase_in_the_prefix, "in its prefix"),
        (other_pixels, r"`pixel_values` must be \[24"),
        (missing_grid, "infer_image_grid"),
        (missing_sizes, "use_sam=False"),
        (odd_sam_image, r"`sam_pixel_values` must be \[B, 3, 64, 64\]"),
    ],
)
def test_what_does_not_fit_is_refused(model, inputs, spoil, message):
    spoil(inputs)
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_labels_of_another_number_of_phrases_are_refused(model):
    batch = collate([sample(0)])
    batch["labels"][0] = batch["labels"][0][:1]
    with pytest.raises(ValueError, match="2 phrases, but 1 masks"):
        model(**batch)
    batch["labels"][0] = torch.zeros(4, 30, 40)
    with pytest.raises(ValueError, match="no token in `mask_ids`"):
        model(**batch)


def test_features_of_another_image_are_refused(model, inputs):
    with torch.no_grad():
        features = model(**inputs, return_features=True).features
        other = collate([sample(1, grid=(4, 8))], labels=False)
        with pytest.raises(ValueError, match="`features` belong to prefixes"):
            model(**other, features=features)


def test_spans_must_lie_in_the_answer_and_apart(model, answer):
    with pytest.raises(ValueError, match=f"has {len(answer.output_ids)} tokens"):
        model.ground(answer, [(3, len(answer.output_ids) + 1)])
    with pytest.raises(ValueError, match="overlaps"):
        model.ground(answer, [(0, 3), (2, 4)])
