"""Stages that learn from rewards: programs are sampled, run and judged, and the better ones made likelier (GRPO)."""

from collections.abc import Callable
from pathlib import Path

from ..extras import needs
from .journal import Journal, draw_rewards
from .recipe import Stage, find

SURFACE_SAMPLES = 256  # the value is made of validity and intersection over union; points are for distances
# The command line's, of Cadrille's published training by rewards, which also kept 4 of each 16 programs.
PUBLISHED = {
    "learning_rate": 3e-5,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 16,
    "num_train_epochs": 1,
    "num_generations": 16,
    "num_iterations": 3,
    "epsilon": 0.1,
    "beta": 0.0,
    "loss_type": "dr_grpo",
    "max_completion_length": 400,
    "logging_steps": 1,
    "save_steps": 200,
}
DEFAULTS = {"bf16": False, "gradient_checkpointing": False}  # GRPOConfig's own are a GPU's


def cad_reward(programs: list[str], rows: list[dict]) -> list[float]:
    """[`dsr_toolkit.cad.reward`] of programs for rows whose part is the mesh "part" or, if they have none, "mesh"."""
    from ..cad import reward

    meshes = [row.get("part", row.get("mesh")) for row in rows]
    if any(mesh is None for mesh in meshes):
        raise ValueError(
            'Rewards need the true part of every row: a "mesh", or a "part" beside "cloud", "views" or "text".'
        )
    return reward(programs, meshes, samples=SURFACE_SAMPLES).values


def reward_arguments(output_dir: Path, settings: dict):
    """TRL's `GRPOConfig`."""
    import dataclasses

    needs("train", "Training by rewards")
    from trl import GRPOConfig

    settings = {**DEFAULTS, **settings}
    unknown = sorted(set(settings) - {field.name for field in dataclasses.fields(GRPOConfig)})
    if unknown:
        raise ValueError(f"`arguments` of a stage with a reward has what TRL's GRPOConfig has not: {unknown}.")
    return GRPOConfig(output_dir=str(output_dir), **settings)


def reward_trainer(stage: Stage, model, processor, rows, arguments, folder: Path):
    """The trainer of a [`Stage`] with a `reward`. Rows are those of `stage.data`, and must have an end."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from .preferences import parts_grpo_trainer

    if rows.endless:
        raise ValueError(f"stage {stage.name!r}: rewards need `data` with a `count`.")
    options = dict(stage.collator_options)
    reward: Callable = find(stage.reward or "")
    trainer = parts_grpo_trainer(
        model, processor, rows, reward, arguments, show=options.pop("modality", "points"), options=options
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(Journal(folder))
    return trainer


def finish(trainer, processor, folder: Path) -> dict[str, float]:
    """Save the processor beside the model and draw the rewards; their mean in the first and last tenth of the
    steps."""
    processor.save_pretrained(folder / "model")
    return draw_rewards(folder)
