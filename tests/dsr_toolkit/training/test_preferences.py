"""TRL on these models: SFT with video, DPO on DSR, GRPO on CAD-Recode and Cadrille with points and views."""

import numpy as np
import pytest
import torch
from PIL import Image

from dsr_toolkit.tiny import hub_folder
from dsr_toolkit.training import make_model
from dsr_toolkit.training.preferences import PreferenceCollator, numbered, parts_grpo_trainer
from tests.modeling_dsr.test_training_collators import box, frames, rows_of

trl = pytest.importorskip("trl")
COMMON = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "remove_unused_columns": False,
    "gradient_checkpointing": False,
}


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_sft_learns_from_rows_with_and_without_video(tmp_path):
    model, processor = make_model({"path": str(hub_folder("dsr"))}, {})
    text = {"question": "What is a ball?", "answer": "a round thing"}
    table, collate = numbered([*rows_of("dsr"), text], processor.training_collator())
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=3, learning_rate=2e-3, max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True}, **COMMON,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=table, data_collator=collate,
        processing_class=processor,
    )  # fmt: skip
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.slow
def test_dpo_prefers_what_was_chosen(tmp_path):
    model, processor = make_model({"path": str(hub_folder("dsr"))}, {})
    rows = [
        {"video": frames(4, i), "fps": 2.0, "question": "Does it come nearer?", "chosen": "yes", "rejected": "no never"}
        for i in range(2)
    ]
    table, collate = numbered(rows, PreferenceCollator(processor.training_collator()))
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path),
        max_steps=5,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        max_length=None,
        **COMMON,
    )
    trainer = trl.DPOTrainer(
        model=model, args=arguments, train_dataset=table, processing_class=processor,
        data_collator=collate,
    )  # fmt: skip
    trainer.train()
    found = losses(trainer)
    assert found[0] == pytest.approx(np.log(2), abs=1e-4)  # model and reference are the same at first
    assert found[-1] < found[0] - 0.01


def test_preference_rows_without_a_rejected_answer_are_refused():
    _, processor = make_model({"path": str(hub_folder("dsr"))}, {})
    with pytest.raises(ValueError, match="lacks \\['rejected'\\]"):
        PreferenceCollator(processor.training_collator())([{"question": "?", "chosen": "yes"}])


def letters(programs: list[str], rows: list[dict]) -> list[float]:
    """A reward that a few steps can raise: the share of the letter that the row wants."""
    return [program.count(row["wanted"]) / max(len(program), 1) for program, row in zip(programs, rows)]


@pytest.mark.slow
@pytest.mark.parametrize("kind, field", [("cad_recode", "mesh"), ("cadrille", "mesh"), ("cadrille", "views")])
def test_grpo_raises_the_mean_reward(kind, field, tmp_path):
    model, processor = make_model({"path": str(hub_folder(kind))}, {})
    shown = {"mesh": box(2)} if field == "mesh" else {"views": Image.fromarray(frames(1)[0][:56, :56])}
    rows = [{**shown, "wanted": "e", "seed": i} for i in range(4)]
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=16, num_generations=8,
        max_completion_length=12, learning_rate=5e-3, lr_scheduler_type="constant", beta=0.0, temperature=1.0, seed=0,
        **COMMON,
    )  # fmt: skip
    trainer = parts_grpo_trainer(model, processor, rows, letters, arguments)
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(rewards) == 12
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.05


def test_grpo_scores_what_was_sampled_with_its_own_points(tmp_path):
    """The log-probabilities of the loss are those of the model that reads each sample's own cloud."""
    model, processor = make_model({"path": str(hub_folder("cad_recode"))}, {})
    rows = [{"mesh": box(x), "wanted": "e"} for x in (1, 3)]
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=2,
        max_completion_length=4, **COMMON,
    )  # fmt: skip
    trainer = parts_grpo_trainer(model, processor, rows, letters, arguments)
    model.eval()
    scored = trainer._generate_and_score_completions([{"prompt": str(i)} for i in (0, 0, 1, 1)])
    clouds = processor(meshes=[rows[0]["mesh"], rows[0]["mesh"], rows[1]["mesh"], rows[1]["mesh"]], seed=[0] * 4)
    assert torch.equal(scored["point_cloud"], clouds["point_cloud"])
    ids = torch.cat([scored["prompt_ids"], scored["completion_ids"]], 1)
    ids[0, -2:] = processor.tokenizer.pad_token_id  # after the end of a shorter program
    trainer.media = {"point_cloud": scored["point_cloud"]}
    logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
        model, ids, torch.ones_like(ids), logits_to_keep=2, compute_entropy=True
    )
    assert logps.isfinite().all() and entropies.isfinite().all()
    expected = model(input_ids=ids, point_cloud=clouds["point_cloud"]).logits[1:, -3:-1]
    media = ["<|image_pad|>", "<|video_pad|>", "<|endoftext|>", "<|im_end|>"]
    never = set(processor.tokenizer.convert_tokens_to_ids(media)) - set(trainer.eos_token_ids)
    expected[..., sorted(never)] = -torch.inf
    torch.testing.assert_close(logps[1:], expected.log_softmax(-1).gather(-1, ids[1:, -2:, None])[..., 0])
    assert not torch.equal(scored["point_cloud"][0], scored["point_cloud"][2])
