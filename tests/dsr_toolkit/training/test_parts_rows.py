"""CAD-Recode and Cadrille in the parts world: tokens, untrained models, rows, and a miniature of the recipe."""

import numpy as np
import pytest
import torch

from dsr_toolkit.tiny.cad_inputs import cad_tokenizer
from dsr_toolkit.tiny.cad_models import build_cad_recode, build_cadrille, with_more_points
from dsr_toolkit.tiny.cad_sight import build_sight, give_sight
from dsr_toolkit.tiny.cad_tokens import NUMBERS
from dsr_toolkit.training.parts_rows import TRAINING_FAMILIES, PartRows, measure, outermost_points, show
from dsr_toolkit.training.recipe import load_recipe
from dsr_toolkit.worlds.parts import PartsWorld

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_points": 16,
    "num_surface_samples": 64,
}

PLAIN = {"normalization": "program", "noise_std": 0.0}


@pytest.fixture(scope="module")
def recode():
    torch.manual_seed(0)
    model, processor = build_cad_recode(**SMALL)
    return model.eval(), processor


@pytest.fixture(scope="module")
def cadrille(recode):
    model, processor = build_cadrille(*recode, embed_dim=32)
    return model.eval(), processor


def test_numbers_and_phrases_are_one_token_each_and_nothing_is_lost():
    tokenizer, world = cad_tokenizer(), PartsWorld(0, num_points=0)
    assert type(tokenizer).__name__ == "Qwen2Tokenizer"
    for number in NUMBERS:
        assert len(tokenizer(f"({number},").input_ids) == 3
    lengths = []
    for index in range(200):
        for text in (world[index].program, world[index].text):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert tokenizer.decode(ids) == text
            lengths.append(len(ids))
    assert max(lengths) < 64


def test_neighbouring_numbers_start_alike(recode):
    model, processor = recode
    vectors = model.get_input_embeddings().weight[processor.tokenizer.convert_tokens_to_ids(list(NUMBERS))]
    alike = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    assert alike.diagonal(1).min() > 0.7 > alike.triu(20).max()


def test_cadrille_begins_with_what_cad_recode_knows(recode, cadrille):
    batch = recode[1].training_collator(**PLAIN)([PartRows(0, num_points=64)[i] for i in range(2)])
    ids = batch["input_ids"].masked_fill(batch["point_token_mask"], cadrille[0].config.point_token_id)
    with torch.no_grad():
        wanted = recode[0](**batch).logits
        found = cadrille[0](
            input_ids=ids,
            attention_mask=batch["attention_mask"],
            point_clouds=batch["point_cloud"],
            point_token_mask=batch["point_token_mask"],
        ).logits
    seen = batch["attention_mask"].bool()
    assert torch.equal(found[seen], wanted[seen])


def test_rows_show_parts_as_the_pattern_says_and_labels_are_the_programs(cadrille):
    model, processor = cadrille
    rows = PartRows(0, shown=["points", "views", "text"], num_points=64, oversampling=1)
    some = [rows[index] for index in range(6)]
    assert [set(row) for row in some[3:]] == [{"cloud", "program"}, {"views", "program"}, {"text", "program"}]
    assert some[1]["views"].size == (268, 134)  # two views
    batch = processor.training_collator(**PLAIN)(some)
    assert batch["is_pc"].tolist() == [True, False, False] * 2 and batch["is_img"].tolist() == [False, True, False] * 2
    assert batch["video_grid_thw"][1].tolist() == [1, 10, 20]
    for labels, row in zip(batch["labels"], some):
        assert processor.tokenizer.decode(labels[labels >= 0]).strip().removesuffix("<|im_end|>") == row["program"]
    with torch.no_grad():
        found = measure(model, processor, some, batch, model(**batch))
    assert found["tokens_right"][1] == (batch["labels"] >= 0).sum() and len(found["programs_right_views"]) == 2
    parts = [found[f"tokens_right_{kind}"][1] for kind in ("cloud", "views", "text")]
    assert min(parts) > 0 and sum(parts) == found["tokens_right"][1]
    batch = processor.training_collator(**PLAIN)(some[:3])
    assert [sorted(line) for line in show(model, processor, some[:3], batch)] == [["program", "true"]] * 2 + [
        ["program", "text", "true"]
    ]


def test_a_wrong_pattern_or_family_is_named():
    with pytest.raises(ValueError, match='`shown` must name "points", "views" or "text", got'):
        PartRows(0, shown=["mesh"])
    with pytest.raises(ValueError, match="`families` must name box"):
        PartRows(0, families=["sphere"])


def test_hard_families_come_more_often_in_training():
    rows = PartRows(0, num_points=0, families=TRAINING_FAMILIES, shown=["text"])
    brackets = np.mean([rows[index]["text"].startswith("A bracket") for index in range(600)])
    assert 3 / 14 - 0.06 < brackets < 3 / 14 + 0.06


def test_parts_are_repeated_in_another_order_and_drawn_once(monkeypatch):
    monkeypatch.setattr("dsr_toolkit.training.parts_rows.BLOCK", 9)
    plain, shown = PartRows(5, shown=["text", "text", "points", "points"], num_points=8), 4
    rows = PartRows(5, shown=plain.shown, num_points=8, repeats=3)
    length = 9 // shown * shown
    blocks = [[rows[index] for index in range(start, start + length)] for start in range(0, 4 * length, length)]
    for kinds in zip(*(["cloud" in row for row in block] for block in blocks)):
        assert len(set(kinds)) == 1  # a batch has the same mixture as ever
    programs = [[row["program"] for row in block] for block in blocks]
    first = [plain[index]["program"] for index in range(length)]
    assert all(sorted(block) == sorted(first) for block in programs[:3]) and programs[0] != programs[1]
    assert sorted(programs[3]) == sorted(plain[index]["program"] for index in range(length, 2 * length))
    assert all(any(row is known for known in blocks[0]) for row in blocks[2])


def test_a_model_may_read_more_points_later(recode, tmp_path):
    from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM
    from processing_dsr import CADRecodeProcessor

    recode[0].save_pretrained(tmp_path / "few")
    recode[1].save_pretrained(tmp_path / "few")
    with_more_points({"few": tmp_path / "few"}, tmp_path / "many", stage="few", num_points=32)
    model = CADRecodeForCausalLM.from_pretrained(tmp_path / "many")
    processor = CADRecodeProcessor.from_pretrained(tmp_path / "many")
    assert model.config.num_points == processor.num_points == 32
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), recode[0].state_dict().values()))


@pytest.mark.parametrize("name", ["cad_recode", "cadrille"])
def test_recipes_hold_out_their_evaluation(name):
    for stage in load_recipe(f"tiny/{name}").stages:
        if not stage.make:
            assert stage.data["seed"] != stage.evaluation["seed"] and "families" not in stage.evaluation["options"]


def test_cadrille_may_begin_with_a_tower_that_says_points(recode):
    model, processor = build_cadrille(*recode, embed_dim=32)
    torch.manual_seed(1)
    sight, _ = build_sight(SMALL["hidden_size"], embed_dim=32)
    pixels, grid = torch.randn(200, 1176), torch.tensor([[1, 10, 20]])
    projection = model.model.point_encoder.projection
    give_sight(model.model.visual, sight, projection)
    with torch.no_grad():
        said = sight.head(sight.visual(pixels, grid_thw=grid).pooler_output)
        found = model.model.visual(pixels, grid_thw=grid).pooler_output
    assert torch.allclose(found, projection(said), atol=1e-5)


def test_a_token_says_the_outermost_point_that_it_shows():
    seen = np.full((4, 6, 3), np.nan, np.float32)
    seen[0, 0], seen[1, 1], seen[3, 5] = (1, 2, 3), (-4, 5, 6), (7, 0, 0)
    points = outermost_points(seen, 2, 3)
    assert points[0].tolist() == [-4, 5, 6] and points[5].tolist() == [7, 0, 0] and np.isnan(points[1:5]).all()


@pytest.mark.slow
def test_a_tower_learns_to_see(tmp_path):
    pytest.importorskip("matplotlib")
    from dsr_toolkit.training.run import train

    settings = {"max_steps": 40, "warmup_steps": 5, "eval_steps": 40, "evaluation.count": 16, "save_steps": 40}
    settings |= {"dataloader_num_workers": 0, "learning_rate": 4e-3, "per_device_train_batch_size": 8}
    recipe = load_recipe("tiny/cadrille").changed({key: str(value) for key, value in settings.items()})
    recipe.stages, recipe.requires = recipe.stages[:1], []
    recipe.stages[0].model["options"] = {"hidden_size": 64, "embed_dim": 64}
    metrics = train(recipe, tmp_path / "run").metrics
    # Without sight the mean of all points is the best answer; it lies about 100 away.
    assert metrics["distance_median"] < 70


@pytest.mark.slow
def test_a_miniature_of_the_recipe_learns(tmp_path):
    pytest.importorskip("matplotlib")
    from dsr_toolkit.training.run import train

    settings = {"max_steps": 60, "warmup_steps": 5, "eval_steps": 60, "evaluation.count": 16, "save_steps": 60}
    settings |= {"dataloader_num_workers": 0, "learning_rate": 4e-3}
    recipe = load_recipe("tiny/cad_recode").changed({key: str(value) for key, value in settings.items()})
    recipe.stages = recipe.stages[:1]
    recipe.stages[0].model["options"] = SMALL
    metrics = train(recipe, tmp_path / "run").metrics
    assert metrics["loss"] < 2.5 and metrics["tokens_right"] > 0.4  # untrained: 6.6 and 0
