"""CAD-Recode's own programs of parts, run and compared with the part: what comes closer becomes likelier."""

from dsr_toolkit.training.recipe import Recipe, Stage

RECIPE = Recipe(
    name="grpo/cad_recode",
    description="CadQuery programs of simple parts from point clouds, rewarded by how close their solids come.",
    requires=["tiny/cad_recode"],
    stages=[
        Stage(
            name="rewarded",
            model={"recipe": "tiny/cad_recode", "attention": "eager"},
            data={
                "rows": "dsr_toolkit.training.parts_rows:PartRows",
                "seed": 3000,
                "count": 16,
                "options": {"num_points": 1024, "part": True},
            },
            collator_options={"normalization": "program"},
            reward="dsr_toolkit.training.rewards:cad_reward",
            arguments={
                "max_steps": 60,
                "per_device_train_batch_size": 64,
                "num_generations": 8,
                "max_completion_length": 64,
                "learning_rate": 1e-4,
                "lr_scheduler_type": "constant",
                "beta": 0.0,
                "loss_type": "dr_grpo",
                "temperature": 1.0,
                "logging_steps": 1,
                "save_steps": 20,
            },
        )
    ],
)
