"""Packed rows as trainers announce them: each sample as if it were alone; and questions without labels."""

import copy

import pytest
import torch

from modeling_dsr.dsr_token_layout import sample_ids_from_mask, select_question_tokens
from modeling_dsr.modeling_cadrille import CadrilleForConditionalGeneration
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration
from tests.modeling_dsr import cad_samples, dsr_samples


@pytest.fixture(scope="module")
def dsr():
    torch.manual_seed(0)
    return DSRForConditionalGeneration(dsr_samples.tiny_config()).eval()


@pytest.fixture(scope="module")
def cadrille():
    torch.manual_seed(0)
    return CadrilleForConditionalGeneration(cad_samples.cadrille_config()).eval()


def packed(samples: list[dict]) -> tuple[dict, list[int]]:
    """One row with positions that begin again, as TRL packs, without an attention mask."""
    lengths = [len(sample["input_ids"]) for sample in samples]
    row = {
        "input_ids": torch.cat([sample["input_ids"] for sample in samples])[None],
        "labels": torch.cat([sample["labels"] for sample in samples])[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
    }
    for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
        if name in samples[0]:
            row[name] = torch.cat([sample[name] for sample in samples])
    return row, lengths


def test_packed_samples_of_dsr_do_not_see_each_other(dsr):
    samples = [dsr_samples.sample(i, videos=((2, 4, 4),), words=4 + i, answer=3) for i in range(3)]
    row, lengths = packed(samples)
    with torch.no_grad():
        together = dsr(**row)
        alone = [dsr(**dsr_samples.collate([sample], with_labels=True)) for sample in samples]
        bounds = {name: value for name, value in row.items() if name != "position_ids"}
        bounds["cu_seq_lens_q"] = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
        by_lengths = dsr(**bounds)
    for found, one in zip(together.logits[0].split(lengths), alone):
        torch.testing.assert_close(found, one.logits[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(by_lengths.logits, together.logits)
    assert together.loss.item() == pytest.approx(sum(one.loss.item() for one in alone) / 3, rel=1e-5)


def test_packed_text_of_cadrille_does_not_see_its_neighbours(cadrille):
    rows = [torch.tensor(cad_samples.words(i, 5 + i)) for i in range(3)]
    row, lengths = packed([{"input_ids": ids, "labels": ids} for ids in rows])
    with torch.no_grad():
        together = cadrille(**row)
        alone = [cadrille(input_ids=ids[None], labels=ids[None]) for ids in rows]
    for found, one in zip(together.logits[0].split(lengths), alone):
        torch.testing.assert_close(found, one.logits[0], atol=2e-5, rtol=1e-4)
    weights = [length - 1 for length in lengths]
    expected = sum(one.loss.item() * weight for one, weight in zip(alone, weights)) / sum(weights)
    assert together.loss.item() == pytest.approx(expected, rel=1e-5)


def test_parts_cannot_be_packed(cadrille):
    inputs = cad_samples.cadrille_inputs("p")
    positions = torch.arange(inputs["input_ids"].shape[1])[None] % 5
    with pytest.raises(ValueError, match="cannot be packed"):
        cadrille(**{**inputs, "position_ids": positions, "attention_mask": None})


def test_left_padding_is_no_packing(dsr):
    samples = [dsr_samples.sample(i, words=4 + 2 * i, answer=2) for i in range(2)]
    batch = dsr_samples.collate(samples, "left", with_labels=True)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        expected = dsr(**batch).loss
        found = dsr(**batch, position_ids=positions.expand(3, -1, -1)).loss
    torch.testing.assert_close(found, expected)


def test_published_questions_without_labels_hold_no_answer():
    """DPO, GRPO, label smoothing and losses of one's own: the same tokens as with labels."""
    config = dsr_samples.tiny_config(question_scope="published")
    samples = [dsr_samples.sample(i, videos=((2, 4, 4),), words=5 + i, answer=2 + i) for i in range(2)]
    batch = dsr_samples.collate(samples, "right", with_labels=True)
    numbers = sample_ids_from_mask(batch["attention_mask"], batch["input_ids"])
    expected = select_question_tokens(batch["input_ids"], numbers, batch["labels"], config)
    assert torch.equal(select_question_tokens(batch["input_ids"], numbers, None, config), expected)


def test_published_prompts_keep_their_header_at_inference():
    config = dsr_samples.tiny_config(question_scope="published")
    sample = dsr_samples.sample(0, videos=((2, 4, 4),), words=5)
    ids = sample["input_ids"][None]
    mask = select_question_tokens(ids, torch.ones_like(ids), None, config)
    assert mask[0, -1] and mask[0, -2] and not mask[0, -3]


def test_features_behind_the_merger_cannot_train_it(dsr):
    model = copy.deepcopy(dsr).train()
    sample = dsr_samples.collate([dsr_samples.sample(0, videos=((2, 4, 4),), answer=2)], with_labels=True)
    with torch.no_grad():
        features = model.get_video_features(sample.pop("pixel_values_videos"), sample.pop("video_grid_thw"))
    with pytest.raises(ValueError, match="merger would not train"):
        model(**sample, mm_encoder_outputs={"video": features})
    model.model.geometry_selection.spatial_merger.requires_grad_(False)
    assert model(**sample, mm_encoder_outputs={"video": features}).loss.isfinite()
