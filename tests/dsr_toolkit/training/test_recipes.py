"""Recipes: what a run leaves, that it repeats itself, and that an interruption changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoProcessor, TrainerCallback, TrainerState

from dsr_toolkit.cli import main
from dsr_toolkit.training import Recipe, Stage, journal, load_recipe, make_rows, run, train
from dsr_toolkit.training.journal import Journal, read_log
from dsr_toolkit.training.run import _begin as begin
from dsr_toolkit.training.run import last_whole_checkpoint, training_arguments

TOYS = "tests.dsr_toolkit.training.toys"
ROOT = Path(__file__).parents[3]
ARGUMENTS = {
    "max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1, "save_steps": 2,
    "eval_steps": 3, "use_cpu": True, "gradient_accumulation_steps": 2,
}  # fmt: skip


def recipe(**changes) -> Recipe:
    stage = {
        "model": {"build": f"{TOYS}:build"},
        "data": {"rows": f"{TOYS}:rows", "seed": 1},
        "evaluation": {"rows": f"{TOYS}:rows", "seed": 2, "count": 5},
        "collator": f"{TOYS}:collator",
        "measure": f"{TOYS}:measure",
        "show": f"{TOYS}:show",
        "arguments": ARGUMENTS,
    }
    return Recipe(name="toy", description="Planes.", stages=[Stage(**{**stage, **changes})])


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in read_log(folder / "train") if "loss" in entry]


@pytest.fixture
def unseen(monkeypatch):
    """Runs draw no curves, which takes longer than their training; `finished` has them."""
    monkeypatch.setattr(run, "draw_curves", lambda folder: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    return output, train(recipe(), output)


def test_a_run_leaves_a_model_that_loads_and_its_story(finished):
    output, trained = finished
    model = AutoModel.from_pretrained(trained.model)
    assert model.config.model_type == "pi3"
    AutoProcessor.from_pretrained(trained.model)
    card = (trained.model / "README.md").read_text()
    assert "dsr train --recipe toy" in card and "right" in card and (trained.model / "curves-train.png").is_file()
    assert (output / "train" / "curves.png").stat().st_size > 1000
    shown = [json.loads(line) for line in (output / "train" / "samples" / "step-6.jsonl").read_text().splitlines()]
    assert len(shown) == 4 and (output / "train" / "samples" / shown[0]["picture"]).is_file()


def test_curves_are_redrawn_while_a_run_goes_on_but_not_at_every_evaluation(tmp_path, monkeypatch):
    now, pictures = [0.0], []
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(journal, "draw_curves", lambda folder: pictures.append(now[0]))
    kept = Journal(tmp_path)
    for now[0] in (5.0, 31.0, 40.0, 61.0, 62.0):
        kept.on_evaluate(None, TrainerState(), None)
    assert pictures == [31.0, 62.0]


def test_terms_and_measures_are_logged(finished):
    output, trained = finished
    assert [step for step, _ in losses(output)] == [1, 2, 3, 4, 5, 6]
    first = read_log(output / "train")[0]
    assert "loss_points" in first or any(name.startswith("loss_") for name in first)
    assert set(trained.metrics) >= {"loss", "ratio_median", "right"}
    assert 0 <= trained.metrics["right"] <= 1


def test_the_recipe_of_a_run_repeats_it(finished, unseen, tmp_path):
    output, _ = finished
    again = train(load_recipe(str(output / "recipe.json")), tmp_path / "again")
    assert losses(tmp_path / "again") == losses(output)
    same = AutoModel.from_pretrained(again.model).state_dict()
    assert all(
        torch.equal(value, same[name])
        for name, value in AutoModel.from_pretrained(output / "model").state_dict().items()
    )


def files() -> Recipe:
    """Of six rows, shuffled in each epoch: the fifth of eight steps is the second of the second epoch."""
    without = dict.fromkeys(("evaluation", "measure", "show"))
    data = {"rows": f"{TOYS}:rows", "seed": 1, "count": 6}
    arguments = {**ARGUMENTS, "max_steps": 8, "gradient_accumulation_steps": 1}
    return recipe(**without, data=data, arguments=arguments)


def test_a_resumed_run_ends_like_an_uninterrupted_one(finished, unseen, tmp_path, monkeypatch):
    assert_resumed(recipe(), losses(finished[0]), tmp_path, monkeypatch)


def test_a_run_resumed_within_its_second_epoch_draws_the_noise_of_that_epoch(unseen, tmp_path, monkeypatch):
    train(files(), tmp_path / "whole")
    assert_resumed(files(), losses(tmp_path / "whole"), tmp_path, monkeypatch)


def assert_resumed(recipe: Recipe, whole: list, tmp_path, monkeypatch):
    """Interrupted after its fifth step and resumed from its fourth, a run has the losses `whole`."""

    class Interrupted(Exception):
        pass

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise Interrupted

    plain = run.make_trainer

    def stopping(*args):
        trainer = plain(*args)
        trainer.add_callback(Stop())
        return trainer

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(run, "make_trainer", stopping)
        train(recipe, tmp_path / "out")
    assert last_whole_checkpoint(tmp_path / "out" / "train" / "checkpoints").endswith("checkpoint-4")
    train(recipe, tmp_path / "out", resume=True)
    assert losses(tmp_path / "out") == whole


def test_a_checkpoint_that_was_not_finished_is_not_taken(tmp_path):
    for step, text in ((2, "{}"), (4, '{"global_'), (6, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


@pytest.mark.slow
def test_kill_9_and_resume_by_the_command(tmp_path):
    """Killed at a random moment: the resumed run's losses equal those of a run without a break, step for step."""
    file = tmp_path / "toy.json"
    file.write_text(recipe().changed({"max_steps": "40", "save_steps": "3"}).to_json())
    command = [sys.executable, "-m", "dsr_toolkit.cli", "train", "--recipe", str(file), "--output"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, cwd=ROOT, env=environment)
    process = subprocess.Popen([*command, str(tmp_path / "broken")], cwd=ROOT, env=environment)
    while len(losses(tmp_path / "broken")) < 11:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "broken" / "done.json").exists()
    subprocess.run([*command, str(tmp_path / "broken"), "--resume"], check=True, cwd=ROOT, env=environment)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


def test_stages_follow_each_other_and_finished_ones_are_kept(unseen, tmp_path):
    first = recipe(evaluation=None, measure=None, show=None).changed({"max_steps": 1}).stages[0]
    copy = Stage(name="copy", make=f"{TOYS}:copy_model", options={"source": "train"})
    second = Stage(name="more", model={"stage": "copy"}, data=first.data, collator=first.collator,
                   freeze="without_encoder", arguments=first.arguments,
                   learning_rates={"point_decoder": 1e-2})  # fmt: skip
    chain = Recipe(name="chain", description="", stages=[first, copy, second])
    train(chain, tmp_path / "out")
    one, two = (AutoModel.from_pretrained(tmp_path / "out" / name / "model") for name in ("copy", "more"))
    moved = {n for (n, a), b in zip(one.named_parameters(), two.parameters()) if not torch.equal(a, b)}
    assert moved and not any(name.startswith("encoder.") for name in moved)

    # A step of Adam moves a parameter by its rate.
    def step(part):
        return max(
            (a - b).abs().max().item() for (n, a), b in zip(one.named_parameters(), two.parameters()) if part in n
        )

    assert step("point_decoder") == pytest.approx(1e-2, rel=0.05) and step("conf_head") == pytest.approx(1e-3, rel=0.05)
    written = (tmp_path / "out" / "more" / "done.json").stat().st_mtime_ns
    train(chain, tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "more" / "done.json").stat().st_mtime_ns == written


def test_rows_have_fresh_noise_each_epoch_and_the_same_when_repeated():
    rows = make_rows({"rows": f"{TOYS}:rows", "seed": 1, "count": 3})
    seeds = [row["seed"] for row in (rows[i] for i in range(3))]
    assert len(set(seeds)) == 3 and [rows[i]["seed"] for i in range(3)] == seeds
    rows.set_epoch(1)
    assert not set(seeds) & {rows[i]["seed"] for i in range(3)}


def test_a_model_whose_parts_others_hold_is_not_shown_by_one_process(tmp_path):
    """Under FSDP2 and ZeRO-3 the first process would wait for the others for ever."""
    from dsr_toolkit.training import make_trainer, training_arguments
    from tests.dsr_toolkit.training.toys import build

    (stage,), shown = recipe().stages, []
    trainer = make_trainer(stage, *build(), training_arguments(stage, tmp_path / "checkpoints"), tmp_path)
    trainer.on_shown = lambda step, samples: shown.append(len(samples))
    assert "eval_right" in trainer.evaluate() and shown == [4]
    next(trainer.model.parameters()).ds_id = 0  # as DeepSpeed marks them
    assert "eval_right" in trainer.evaluate() and shown == [4]


def test_workers_that_outlive_an_epoch_draw_the_noise_of_the_next():
    rows = make_rows({"rows": f"{TOYS}:rows", "seed": 1, "count": 3})
    loader = torch.utils.data.DataLoader(rows, batch_size=3, num_workers=1, persistent_workers=True, collate_fn=list)
    for epoch in range(3):
        rows.set_epoch(epoch)
        (batch,) = loader
        assert [row["seed"] for row in batch] == [rows[i]["seed"] for i in range(3)]


def test_a_run_that_was_killed_while_it_began_begins_again(tmp_path):
    (tmp_path / "recipe.json.part").write_text('{"name": "to')
    begin(recipe(), tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]
    assert load_recipe(str(tmp_path / "recipe.json")).to_json() == recipe().to_json()


def test_settings_reach_arguments_and_parts_of_stages():
    changed = recipe().changed({"max_steps": "3", "data.seed": "9", "train:shown": "1", "data.options.size": "large"})
    stage = changed.stages[0]
    assert (stage.arguments["max_steps"], stage.data["seed"], stage.shown) == (3, 9, 1)
    assert stage.data["options"] == {"size": "large"}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"colour": "red"}, "neither a field"),
        ({"other:max_steps": "1"}, "no stage 'other'"),
        ({"name.x": "1"}, "has no parts"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        recipe().changed(settings)


def test_outputs_are_never_overwritten(finished, tmp_path):
    with pytest.raises(ValueError, match="holds a run already"):
        train(recipe(), finished[0])
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        train(recipe(), tmp_path)
    with pytest.raises(ValueError, match="differs from the recipe"):
        train(recipe().changed({"seed": 3}), finished[0], resume=True)


def test_a_rate_for_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="find no trainable parameter: \\['nowhere'\\]"):
        train(recipe(learning_rates={"nowhere": 1.0}), tmp_path / "out")


def test_rows_without_an_end_need_steps(tmp_path):
    with pytest.raises(ValueError, match="`max_steps` is needed"):
        train(recipe().changed({"max_steps": -1}), tmp_path / "out")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="speaks of processors without a GPU")
@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_where_the_processor_has_it(native, monkeypatch, tmp_path, capsys):
    """Without, a product of matrices took 26 times as long on an AMD EPYC with AVX2."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    arguments = training_arguments(Stage(make="a:b", arguments={"bf16": True, "max_steps": 1}), tmp_path)
    assert arguments.bf16 == native
    assert ("no bfloat16 arithmetic" in "".join(capsys.readouterr())) == (not native)


def test_the_command_tells_what_there_is(capsys, tmp_path):
    assert main(["train", "--recipe", "nothing", "--output", str(tmp_path / "out")]) == 2
    assert "There is no recipe 'nothing'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
