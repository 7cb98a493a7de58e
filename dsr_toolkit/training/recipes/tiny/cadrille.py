"""Cadrille takes over what the tiny CAD-Recode knows of programs and points, and learns to read views and text."""

from dsr_toolkit.training.parts_rows import TRAINING_FAMILIES
from dsr_toolkit.training.recipe import Recipe, Stage

ROWS = "dsr_toolkit.training.parts_rows:PartRows"
# Points are known, text is learnt soon: what is left goes to the views.
SHOWN = ["views", "text", "views", "points"]

RECIPE = Recipe(
    name="tiny/cadrille",
    description="CadQuery programs of simple parts (boxes, plates with holes, brackets, …) from points, views or text.",
    requires=["tiny/cad_recode"],
    stages=[
        Stage(name="start", make="dsr_toolkit.tiny.cad_models:cadrille_of_cad_recode"),
        Stage(
            name="inputs",
            model={"stage": "start", "attention": "eager"},
            data={
                "rows": ROWS,
                "seed": 1001,
                "options": {
                    "shown": SHOWN,
                    "num_points": 1024,
                    "families": list(TRAINING_FAMILIES),
                    "oversampling": 2,
                },
            },
            evaluation={
                "rows": ROWS,
                "seed": 2001,
                "count": 128,
                "options": {"shown": SHOWN, "num_points": 1024},
            },
            collator_options={"normalization": "program", "noise_std": 0.0},
            learning_rates={"visual": 2e-3},
            measure="dsr_toolkit.training.parts_rows:measure",
            show="dsr_toolkit.training.parts_rows:show",
            arguments={
                "max_steps": 6000,
                "per_device_train_batch_size": 16,
                "per_device_eval_batch_size": 32,
                "learning_rate": 1e-3,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 100,
                "weight_decay": 0.05,
                "adam_beta2": 0.98,
                "optim": "adamw_torch_fused",
                "bf16": True,
                "eval_steps": 1000,
                "save_steps": 500,
                "dataloader_num_workers": 1,
            },
        ),
    ],
)
