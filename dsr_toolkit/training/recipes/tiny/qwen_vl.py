"""A Qwen2.5-VL from nothing: its vision tower learns the words for what it sees, then all of it where in a picture of
the space world the things are that phrases name."""

from ...recipe import Recipe, Stage

CELLS, PHRASES = "dsr_toolkit.training.space_cells", "dsr_toolkit.training.space_phrases"
ARGUMENTS = {
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 50,
    "weight_decay": 0.02,
    "adam_beta2": 0.98,
    "optim": "adamw_torch_fused",
    "bf16": True,
    "eval_steps": 200,
    "save_steps": 200,
    "dataloader_num_workers": 1,
}

RECIPE = Recipe(
    name="tiny/qwen_vl",
    description="A tiny Qwen2.5-VL that knows the words of the space world and where in a picture things are.",
    stages=[
        Stage(
            name="see",
            model={"build": f"{CELLS}:build"},
            data={"rows": f"{CELLS}:cell_rows", "seed": 410},
            evaluation={"rows": f"{CELLS}:cell_rows", "seed": 900_410, "count": 64},
            collator=f"{CELLS}:CellCollator",
            measure=f"{CELLS}:measure",
            arguments={**ARGUMENTS, "max_steps": 400, "learning_rate": 2e-3},
        ),
        Stage(
            name="place",
            model={"stage": "see", "attention": "eager"},
            data={"rows": f"{PHRASES}:PlacedPhrases", "seed": 411},
            evaluation={"rows": f"{PHRASES}:PlacedPhrases", "seed": 900_411, "count": 96},
            collator="modeling_dsr.dsr_collator:DSRCollator",
            measure=f"{PHRASES}:measure_places",
            arguments={**ARGUMENTS, "max_steps": 600, "learning_rate": 1.5e-3},
        ),
    ],
)
