"""
Cadrille takes over what the tiny CAD-Recode knows of programs and points, and learns to read views and text. Its vision
tower has learnt before to say where in space lies what it sees.
"""

from dsr_toolkit.training.parts_rows import TRAINING_FAMILIES
from dsr_toolkit.training.recipe import Recipe, Stage

ROWS = "dsr_toolkit.training.parts_rows:PartRows"
BATCH = 16
# Each batch shows its parts in one way: in a mixed one all rows are padded to the length of the longest, 128 points.
SHOWN = ["views", "text", "views", "points", "views"]
# Views take longer to draw than to learn from: they are drawn coarsely, and come four times.
DRAWING = {"families": list(TRAINING_FAMILIES), "oversampling": 2, "segments": 24, "repeats": 4}
SEEN = (5, 10)  # tokens of a picture of two views, rows and columns
ARGUMENTS = {
    "per_device_eval_batch_size": 32,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.02},
    "weight_decay": 0.05,
    "adam_beta2": 0.98,
    "optim": "adamw_torch_fused",
    "bf16": True,
    "save_steps": 250,
    "dataloader_num_workers": 1,
}

RECIPE = Recipe(
    name="tiny/cadrille",
    description="CadQuery programs of simple parts (boxes, plates with holes, brackets, …) from points, views or text.",
    requires=["tiny/cad_recode"],
    stages=[
        Stage(
            name="see",
            model={"build": "dsr_toolkit.tiny.cad_sight:build_sight"},
            data={"rows": ROWS, "seed": 1002, "options": {"shown": ["views"], "seen": SEEN, **DRAWING}},
            evaluation={"rows": ROWS, "seed": 2002, "count": 64, "options": {"shown": ["views"], "seen": SEEN}},
            collator="dsr_toolkit.tiny.cad_sight:SightCollator",
            measure="dsr_toolkit.tiny.cad_sight:measure",
            arguments={
                **ARGUMENTS,
                "per_device_train_batch_size": 32,
                "max_steps": 1000,
                "learning_rate": 2e-3,
                "warmup_steps": 50,
                "eval_steps": 500,
            },
        ),
        Stage(name="start", make="dsr_toolkit.tiny.cad_models:cadrille_of_cad_recode", options={"sight": "see"}),
        Stage(
            name="inputs",
            model={"stage": "start", "attention": "eager"},
            data={
                "rows": ROWS,
                "seed": 1001,
                "options": {"shown": [kind for kind in SHOWN for _ in range(BATCH)], "num_points": 1024, **DRAWING},
            },
            evaluation={
                "rows": ROWS,
                "seed": 2001,
                "count": 96,
                "options": {"shown": ["points", "views", "text"], "num_points": 1024},
            },
            collator_options={"normalization": "program", "noise_std": 0.0},
            learning_rates={"visual": 1e-3},
            measure="dsr_toolkit.training.parts_rows:measure",
            show="dsr_toolkit.training.parts_rows:show",
            arguments={
                **ARGUMENTS,
                "per_device_train_batch_size": BATCH,
                "max_steps": 4000,
                "learning_rate": 6e-4,
                "warmup_steps": 100,
                "eval_steps": 1000,
            },
        ),
    ],
)
