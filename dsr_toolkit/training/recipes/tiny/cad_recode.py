"""CAD-Recode learns to write the programs of the parts world from points, first from 64 of them and then from 128."""

from dsr_toolkit.training.parts_rows import TRAINING_FAMILIES
from dsr_toolkit.training.recipe import Recipe, Stage

NUM_POINTS = 128
ROWS = {
    "data": {
        "rows": "dsr_toolkit.training.parts_rows:PartRows",
        "seed": 1000,
        "options": {"num_points": 1024, "families": list(TRAINING_FAMILIES)},
    },
    "evaluation": {
        "rows": "dsr_toolkit.training.parts_rows:PartRows", "seed": 2000, "count": 64, "options": {"num_points": 1024}
    },
    "collator_options": {"normalization": "program", "noise_std": 0.0},
    "measure": "dsr_toolkit.training.parts_rows:measure",
    "show": "dsr_toolkit.training.parts_rows:show",
}  # fmt: skip
ARGUMENTS = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "warmup_steps": 100,
    "weight_decay": 0.05,
    "adam_beta2": 0.98,
    "optim": "adamw_torch_fused",
    "bf16": True,
    "eval_steps": 500,
    "save_steps": 500,
    "dataloader_num_workers": 1,
}

RECIPE = Recipe(
    name="tiny/cad_recode",
    description="CadQuery programs of simple parts (boxes, plates with holes, brackets, flanges, …) from point clouds.",
    stages=[
        Stage(
            name="coarse",
            model={"build": "dsr_toolkit.tiny.cad_models:build_cad_recode", "options": {"num_points": 64}},
            **ROWS,
            arguments={
                **ARGUMENTS,
                "max_steps": 2500,
                "learning_rate": 1.5e-3,
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr": 5e-4},
            },
        ),
        Stage(
            name="finer",
            make="dsr_toolkit.tiny.cad_models:with_more_points",
            options={"stage": "coarse", "num_points": NUM_POINTS},
        ),
        Stage(
            name="fine",
            model={"stage": "finer", "attention": "eager"},
            **ROWS,
            arguments={**ARGUMENTS, "max_steps": 600, "learning_rate": 8e-4, "lr_scheduler_type": "cosine"},
        ),
    ],
)
