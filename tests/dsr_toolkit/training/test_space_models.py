"""Qwen-VL, DSR, SAM and FrozenQwenSAM in the space world: words, rows, and miniatures of their recipes."""

import re

import numpy as np
import pytest
import torch

from dsr_toolkit.evaluation import world_dsr, world_frozen_qwen_sam
from dsr_toolkit.evaluation.multiple_choice import extract_letter_strict
from dsr_toolkit.tiny.space_models import (
    NUMBERS,
    build_qwen_vl,
    dsr_of_parts,
    frozen_qwen_sam_of_parts,
    marks_of_slots,
    space_tokenizer,
)
from dsr_toolkit.training import space_reasoning
from dsr_toolkit.training.geometry import build_pi3
from dsr_toolkit.training.recipe import load_recipe, recipe_names
from dsr_toolkit.training.run import make_model
from dsr_toolkit.training.space_cells import CellCollator, CellsDSRForConditionalGeneration, cell_rows
from dsr_toolkit.training.space_cells import build as build_cells
from dsr_toolkit.training.space_cells import measure as measure_cells
from dsr_toolkit.training.space_looking import (
    GuidedDSRForConditionalGeneration,
    LookingDSRForConditionalGeneration,
    measure_looking,
)
from dsr_toolkit.training.space_masks import PromptCollator, build_sam, prompt_rows
from dsr_toolkit.training.space_masks import measure as measure_sam
from dsr_toolkit.training.space_phrases import PlacedPhrases, measure_masks, measure_places, phrase_rows, place
from dsr_toolkit.training.space_questions import (
    SLOTS,
    ClipQuestions,
    EachQuestion,
    SlotCollator,
    measure,
    world_rows,
)
from dsr_toolkit.training.space_readings import READS, reads_of
from dsr_toolkit.worlds.space import SpaceWorld
from dsr_toolkit.worlds.space.facts import Facts
from modeling_dsr.dsr_collator import DSRCollator
from modeling_dsr.dsr_outputs import DSRVisionFeatures
from modeling_dsr.frozen_qwen_sam_outputs import FrozenQwenSAMOutput
from modeling_dsr.modeling_pi3 import Pi3Model

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "layers": 2,
    "heads": 2,
    "vision_width": 32,
    "vision_layers": 1,
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of a small Qwen-VL, π³ and SAM by the names of their recipes."""
    torch.manual_seed(0)
    root, folders = tmp_path_factory.mktemp("parts"), {}
    built = {
        "tiny/qwen_vl": build_qwen_vl(**SMALL),
        "tiny/pi3": build_pi3(width=32, encoder_layers=1, layers=2, heads=2, head_width=32),
        "tiny/sam": build_sam(width=32, layers=1, prompt_width=32),
    }
    for name, (model, processor) in built.items():
        folders[name] = root / name.split("/")[-1]
        model.save_pretrained(folders[name])
        processor.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def dsr(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dsr") / "model"
    dsr_of_parts(parts, folder)
    return make_model({"path": str(folder), "attention": "eager"}, {})


@pytest.fixture(scope="module")
def frozen_qwen_sam(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fqs") / "model"
    frozen_qwen_sam_of_parts(parts, folder, mask_head_channels=8, mask_head_stages=2, mask_head_size=16)
    return make_model({"path": str(folder)}, {})


def steps(model, batch, count, rate):
    """Losses of `count` steps on one batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(count):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


# ---- words and rows -----------------------------------------------------------------------


def test_words_and_numbers_are_one_token_each():
    tokenizer, rows = space_tokenizer(), ClipQuestions(71, count=30)
    row = rows[0]
    for text in (*row["question"], *row["answer"]):
        words = re.findall(r"\d\d |[A-Za-z]+|:\n|[?.,:]|\n", text)
        assert len(tokenizer(text).input_ids) <= len(words), text
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert all(len(tokenizer(number).input_ids) == 1 for number in NUMBERS)


def test_answers_of_a_clip_are_true_and_end_with_the_letter_of_the_option():
    rows, seen = ClipQuestions(72, count=10, open_share=0.0), set()
    for index in range(6):
        row, sample = rows[index], rows.world[index]
        for wish in rows.candidates(Facts(sample.scene, rows.world.settings.margins)):
            assert wish.key in wish.kind.answers
        assert row["question"][0] == sample.questions[0].prompt
        assert extract_letter_strict(row["answer"][0]) == sample.questions[0].letter
        for question, answer in zip(row["question"], row["answer"]):
            first, second, letter = re.fullmatch(r"(\d\d) (\d\d) ([AB])", answer).groups()
            option = question.splitlines()[2 + "AB".index(letter)]
            if question.startswith(("How does the distance between", "From the first to the last frame, how does")):
                ratio = int(second) / int(first)
                word = "larger" if ratio > 1.2 else "smaller" if ratio < 0.83 else "same"
                wordings = {"larger": "larger|grows|increases", "smaller": "smaller|shrinks|decreases"}
                assert re.search(wordings.get(word, "same|hardly|constant"), option)
                seen.add(word)
    assert len(seen) > 1


def test_slots_tell_where_masks_are_and_nothing_of_things_that_are_not_named():
    row, sample = ClipQuestions(73, count=12)[0], SpaceWorld(73, 4, 112, 112, difficulty="easy")[0]
    seen = set()
    for question, slots in zip(row["question"], row["slots"]):
        named = sorted((question.find(name), thing) for thing, name in enumerate(sample.names) if name in question)
        for (_, thing), across in zip(named, (slots[:4], slots[12:16])):
            for frame in range(4):
                assert abs(across[frame] - place(sample.instances[frame] == thing + 1)[0]) < 9
        assert (slots[12] == -1) == (len(named) == 1)
        looks = sample.poses[:, :2, 2]  # seen from above
        turns = np.degrees(np.arctan2(looks[:, 1], looks[:, 0])) - 3.6 * (np.array(slots[24:28]) - 50)
        assert np.abs((turns + 180) % 360 - 180).max() < 2
        seen.add(len(named))
    assert {1, 2} <= seen


def test_every_first_phrase_is_followed_by_the_place_of_its_mask():
    row, sample = PlacedPhrases(74)[3], SpaceWorld(74, 1, 112, 112, difficulty="easy", questions=0)[3]
    places = {" ".join(f"{v:02d}" for v in place(phrase.mask)) for phrase in sample.phrases(0)}
    told = re.findall(r"\d\d \d\d \d\d", row["answer"])
    assert len(told) == len(places) and set(told) == places


def test_a_video_with_many_questions_is_the_same_as_that_many_rows(dsr):
    model, processor = dsr
    rows = [ClipQuestions(75, count=3)[index] for index in range(2)]
    together, apart = processor.training_collator()(rows), EachQuestion(processor)(rows)
    assert len(together["pixel_values_videos"]) * 3 == len(apart["pixel_values_videos"])
    with torch.no_grad():
        one, other = model.eval()(**together), model(**apart)
    assert torch.allclose(one.logits, other.logits, atol=1e-4)
    assert torch.allclose(one.loss, other.loss, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"answer": ["01 02 A"]}, "as many answers as questions"),
        ({"video": None, "image": np.zeros((28, 28, 3), np.uint8)}, "about one video alone"),
    ],
)
def test_rows_of_many_questions_that_do_not_fit_are_refused(dsr, change, message):
    row = {**ClipQuestions(75, count=2)[0], **change}
    with pytest.raises(ValueError, match=message):
        dsr[1].training_collator()([row])


def test_the_converter_takes_what_trainings_write(parts, dsr):
    """π³ under this library's names, and a processor in one file, as transformers 5 writes it."""
    model, processor = dsr
    pi3 = Pi3Model.from_pretrained(parts["tiny/pi3"])
    own = pi3.encoder.state_dict()
    found = model.model.geometry_encoder.state_dict()
    assert set(own) == set(found) and all(torch.equal(own[name], found[name]) for name in own)
    assert model.config.geometry_config.num_attention_heads == pi3.config.encoder_config.num_attention_heads == 2
    assert processor.video_processor.size["longest_edge"] == 112**2
    assert processor.image_processor.size["longest_edge"] == 224**2
    assert processor.num_geometry_tokens == model.config.num_geometry_tokens == SLOTS == 30


def test_geometry_tokens_have_the_tracks_of_what_is_named_first_as_labels(dsr):
    processor, row = dsr[1], ClipQuestions(75, count=3, open_share=0.0)[0]
    batch = SlotCollator(processor)([row])
    assert batch["slots"].shape == (3, SLOTS) and batch["slot_cells"].shape == (3, SLOTS, 32)
    for told, slots in zip(batch["slots"], row["slots"]):
        known = [processor.tokenizer.decode(one) for one in told[told >= 0]]
        assert known == [NUMBERS[number] for number in slots if number >= 0]
        assert ((told == -100) == (torch.tensor(slots) == -1)).all()
    assert "slots" not in SlotCollator(processor)([world_rows(75)[0]])  # a row of an evaluation


def test_cells_say_what_they_show():
    row = cell_rows(81, frames=4)[0]
    assert len(row["words"]) == 2 * 4 * 4 and row["video"].shape == (4, 112, 112, 3)
    sample = SpaceWorld(81, 4, 112, 112, difficulty="easy", questions=0)[0]
    for number, word in enumerate(row["words"]):
        t, y, x = np.unravel_index(number, (2, 4, 4))
        cell = sample.instances[2 * t : 2 * t + 2, 28 * y : 28 * y + 28, 28 * x : 28 * x + 28]
        shown = {name for thing, name in enumerate(sample.names) if (cell == thing + 1).mean() >= 0.35}
        if word not in (None, " room"):
            assert any(word.strip() in name.split() for name in shown)
        assert word != " room" or (cell > 0).mean() < 0.06


def test_miniature_vision_learns_the_words_of_cells(dsr):
    torch.manual_seed(0)
    model, processor = build_cells(**SMALL)
    rows = [cell_rows(82)[index] for index in range(4)]
    batch = CellCollator(processor)(rows)
    assert steps(model.train(), batch, 25, 5e-3)[-1] < 2
    with torch.no_grad():
        assert np.mean(measure_cells(model, processor, rows, batch, model(**batch))["colours"]) > 0.8
    videos = CellCollator(dsr[1])([cell_rows(82, frames=4)[0]])
    cells = CellsDSRForConditionalGeneration(dsr[0].config)(**videos)
    assert cells.logits.shape[0] == len(videos["labels"]) == 32 and cells.loss.isfinite()
    assert cells.numbers.shape == videos["numbers"].shape == (32, 10)
    columns, rows = videos["numbers"][:, 8:].T.tolist()  # where each of 4 × 4 cells is, in hundredths of the picture
    assert columns == [12, 37, 62, 87] * 8 and rows == sorted([12, 37, 62, 87] * 4) * 2


def of_class(kind, dsr):
    model = kind(dsr[0].config)
    model.load_state_dict(dsr[0].state_dict())
    model.config._attn_implementation = "eager"
    model.freeze("all")
    return model


def test_guided_geometry_tokens_learn_to_read_the_cells_of_what_they_tell(dsr):
    torch.manual_seed(0)
    rows = ClipQuestions(83, count=2)
    batch = SlotCollator(dsr[1])([rows[0]])
    cells = batch["slot_cells"]
    sample = SpaceWorld(83, 4, 112, 112, difficulty="easy")[0]
    first = min(range(len(sample.names)), key=lambda n: rows[0]["question"][0].find(sample.names[n]) % 10_000)
    shown = (sample.instances == first + 1).reshape(4, 4, 28, 4, 28).mean((2, 4))
    for frame in range(4):  # the first four tokens tell the first thing's place in each frame
        read = cells[0, frame].reshape(2, 4, 4).numpy()
        assert read[frame // 2].any() and not read[1 - frame // 2].any()
        assert shown[frame][read[frame // 2]].min() >= min(0.15, shown[frame].max())
        assert cells[0, 24 + frame].reshape(2, 16).all(1).tolist() == [frame < 2, frame >= 2]  # the camera's heading
    model, plain = of_class(LookingDSRForConditionalGeneration, dsr), of_class(type(dsr[0]), dsr)

    def share():
        plain.load_state_dict(model.state_dict())
        with torch.no_grad():
            given = plain(
                **{k: v for k, v in batch.items() if not k.startswith("slot")}, output_geometry_attentions=True
            )
        weights = torch.stack(given.geometry_attentions).mean(1).flatten(2)
        return float((weights * cells).sum(-1)[cells.any(-1)].mean())

    before = share()
    steps(model.train(), batch, 25, 3e-3)
    assert share() > before + 0.2
    with torch.no_grad():
        off = measure_looking(model, dsr[1], None, batch, model(**batch))
    assert np.mean(off["place_off"]) < 8 and len(off["heading_off"]) == 2 * 4 and len(off["way_off"]) == 2 * 2


def test_looking_alone_has_the_loss_that_looking_adds_to_an_answer(dsr):
    batch = SlotCollator(dsr[1])([ClipQuestions(84, count=3)[index] for index in range(2)])
    with torch.no_grad():
        alone = of_class(LookingDSRForConditionalGeneration, dsr)(**batch).loss
        both = of_class(GuidedDSRForConditionalGeneration, dsr)(**batch).loss
        answer = dsr[0](**{name: value for name, value in batch.items() if not name.startswith("slot")}).loss
    assert torch.allclose(alone + answer, both, atol=1e-4)


def test_a_guided_model_answers(dsr):
    rows = [world_rows(87)[index] for index in range(2)]
    batch = SlotCollator(dsr[1])(rows)
    found = measure(of_class(GuidedDSRForConditionalGeneration, dsr).eval(), dsr[1], rows, batch, None)
    assert len(found["accuracy"]) == 2


def test_a_language_model_that_is_told_numbers_reads_what_it_would_read_of_geometry_tokens(dsr, monkeypatch):
    monkeypatch.setattr(space_reasoning, "KEPT", 32)
    monkeypatch.setattr(space_reasoning, "NOISE", space_reasoning.NOISE * 0)
    torch.manual_seed(0)
    rows = [{**space_reasoning.ToldQuestions(85, count=2, open_share=0.0)[index], "seed": index} for index in range(2)]
    batch = space_reasoning.ToldCollator(dsr[1])(rows)
    told, video = batch["told_ids"], batch["input_ids"] == dsr[1].video_token_id
    assert not (told[video] == dsr[1].video_token_id).any() and torch.equal(told[~video], batch["input_ids"][~video])
    first = dsr[1].tokenizer.convert_tokens_to_ids(NUMBERS[0])
    slots = torch.tensor([one for row in rows for one in row["slots"]])
    slots[:, -2:] = -1  # the camera's way, which is never told
    given = told[video].view(4, -1)[:, 32:] - first
    assert torch.equal(given[slots >= 0], slots[slots >= 0])
    # The whole model, its vision and geometry tokens replaced by the same words.
    model, words = dsr[0], dsr[0].get_input_embeddings()(told)[video].view(4, -1, 64)
    seen = DSRVisionFeatures(
        pooler_output=tuple(words[:, :32]), geometry_features=tuple(words[:, :32]), grid_thw=batch["video_grid_thw"]
    )
    marked = words[:, 32:] + marks_of_slots(SLOTS, 64)
    hook = model.model.geometry_selection.register_forward_hook(lambda module, given, out: (marked, out[1]))
    keys = ("input_ids", "attention_mask", "labels", "second_per_grid_ts")
    with torch.no_grad():
        whole = model.eval()(**{name: batch[name] for name in keys}, mm_encoder_outputs={"video": seen})
        hook.remove()
        alone = of_class(space_reasoning.ReasoningDSRForConditionalGeneration, dsr).eval()(**batch)
    assert torch.allclose(whole.loss, alone.loss, atol=1e-5)


def test_numbers_stand_where_the_language_model_is_told_to_read_them_and_options_where_letters_say(dsr):
    rows = [space_reasoning.ToldQuestions(88, count=12, open_share=0.0)[index] for index in range(16)]
    collate, seen = space_reasoning.ToldCollator(dsr[1]), set()
    batch = collate(rows)
    told = [dsr[1].tokenizer.decode(ids[shown]).strip() for ids, shown in zip(batch["input_ids"], batch["true_option"])]
    for row in rows:
        for kind, question, answer, slots in zip(row["kind"], row["question"], row["answer"], row["slots"]):
            first, last, letter = answer.split()
            assert f"\n{letter} {told.pop(0)}" in question
            if kind in ("rel_dis/camera", "rel_dir/camera"):
                places = [slots[reads[0]] for reads in READS[kind]]
                assert places == [int(first), int(last)]
                seen.add(kind)
    assert len(seen) == 2
    assert reads_of("rel_dir/object", 4, 2) == [[0, 12, 0, 12, -1, -1, -1, -1], [3, 15, 3, 15, -1, -1, -1, -1]]


def test_miniature_language_model_reasons_and_joins_with_other_eyes(dsr, tmp_path):
    torch.manual_seed(0)
    model = of_class(space_reasoning.ReasoningDSRForConditionalGeneration, dsr)
    rows = [space_reasoning.ToldQuestions(86, count=3, open_share=0.0)[index] for index in range(2)]
    batch = space_reasoning.ToldCollator(dsr[1])(rows)
    losses = steps(model.train(), batch, 60, 5e-3)
    assert losses[-1] < 0.1 * losses[0]
    found = space_reasoning.measure_reasoning(model.eval(), dsr[1], rows, batch, model(**batch))
    assert found["accuracy"] == [True] * 6 and max(found["numbers_off"]) == 0
    folders = {"look": tmp_path / "look", "reason": tmp_path / "reason"}
    for folder, one in zip(folders.values(), (dsr[0], model)):
        one.save_pretrained(folder)
        dsr[1].save_pretrained(folder)
    space_reasoning.joined(folders, tmp_path / "model")
    joined = make_model({"path": str(tmp_path / "model")}, {})[0].state_dict()
    looks, reasons = dsr[0].state_dict(), model.state_dict()
    for name, weight in joined.items():
        reasoning = "language_model." in name and "embed_tokens" not in name or "lm_head" in name
        source = reasons if reasoning else looks
        assert torch.equal(weight, source[name]), name


# ---- miniatures ---------------------------------------------------------------------------


def test_recipes_of_the_group_come_after_what_they_need():
    names = recipe_names("tiny")
    for name in ("tiny/qwen_vl", "tiny/sam", "tiny/dsr", "tiny/frozen_qwen_sam"):
        assert all(names.index(needed) < names.index(name) for needed in load_recipe(name).requires)
    compared = load_recipe("tiny/dsr_without_geometry")
    assert "tiny/dsr_without_geometry" not in names
    assert [stage.data for stage in compared.stages] == [load_recipe("tiny/dsr").stages[-1].data]


def test_miniature_dsr_learns_and_reads_its_geometry(dsr):
    torch.manual_seed(0)
    model, processor = dsr
    rows = [world_rows(76)[index] for index in range(4)]
    losses = steps(model.train(), processor.training_collator()(rows), 50, 5e-3)
    assert losses[-1] < 0.1 * losses[0]
    batch = processor.training_collator()(rows)
    found = measure(model.eval(), processor, rows, batch, None)
    assert found["accuracy"] == [True] * 4 and max(found["numbers_off"]) == 0
    with torch.no_grad():
        seen = model(**batch).logits
        with world_dsr.without_geometry(model):
            blind = model(**batch).logits
        assert (seen - blind).abs().max() > 0.1
        assert torch.equal(model(**batch).logits, seen)


def test_world_of_dsr_tells_chance_and_both_accuracies(dsr):
    found = world_dsr.evaluate(dsr[0].eval(), dsr[1], seed=77, count=6)
    metrics = found["metrics"]
    assert found["model_type"] == "dsr" and set(metrics["chance"]) == set(metrics["accuracy_by_type"])
    assert set(metrics["chance"].values()) == {0.5}
    assert 0 <= metrics["accuracy_without_geometry"] <= 1


def test_miniature_qwen_vl_learns_where_things_are(parts):
    torch.manual_seed(0)
    model, processor = build_qwen_vl(**SMALL)
    rows = [PlacedPhrases(78)[index] for index in range(4)]
    batch = DSRCollator(processor)(rows)
    losses = steps(model.train(), batch, 40, 5e-3)
    assert losses[-1] < 0.2 * losses[0]
    with torch.no_grad():
        found = measure_places(model, processor, rows, batch, model(**batch))
    assert np.mean(found["across_off"]) < 5


def test_miniature_sam_draws_what_it_is_shown():
    torch.manual_seed(0)
    model, processor = build_sam(width=32, layers=1, prompt_width=32)
    rows = [prompt_rows(79)[index] for index in range(2)]
    batch = PromptCollator(processor)(rows)
    losses = steps(model.train(), batch, 60, 3e-3)
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        common, union = measure_sam(model, processor, rows, batch, model(**batch))["ciou"]
    assert common / union > 0.6


def test_masks_are_measured_in_training_as_in_evaluation():
    """By the published rule: probabilities are resized, not logits, which would make 3 of these 4 pixels the mask."""
    logits, truth = torch.tensor([[[10.0, -1.0]]]), torch.ones(1, 1, 4, dtype=torch.bool)
    outputs = FrozenQwenSAMOutput(pred_masks=[logits], sam_pred_masks=[logits, -logits])
    found = measure_masks(None, None, None, {"labels": [truth, truth]}, outputs)
    assert found == {"ciou": (4, 8), "giou": [0.5, 0.5], "ciou_coarse": (2, 4), "giou_coarse": [0.5]}
    whole = torch.ones(1, 112, 112)
    assert measure_sam(None, None, None, {"labels": whole}, {"logits": logits})["ciou"] == (66 * 112, 112 * 112)


def test_miniature_frozen_qwen_sam_lowers_its_loss_and_is_measured(frozen_qwen_sam):
    torch.manual_seed(0)
    model, processor = frozen_qwen_sam
    rows = [phrase_rows(80)[index] for index in range(2)]
    losses = steps(model.train(), processor.training_collator()(rows), 25, 3e-3)
    assert losses[-1] < 0.8 * losses[0]
    metrics = world_frozen_qwen_sam.evaluate(model.eval(), processor, seed=80, count=2)["metrics"]
    assert {"name", "it"} <= set(metrics["ciou_by_kind"])
    assert 0 <= metrics["ciou_coarse"] <= 1 and metrics["phrases"] > 4
