"""A SAM from nothing: masks of the space world's things from boxes and rough masks."""

from ...recipe import Recipe, Stage

MASKS = "dsr_toolkit.training.space_masks"

RECIPE = Recipe(
    name="tiny/sam",
    description="A tiny SAM that draws the coloured things of the space world within boxes.",
    stages=[
        Stage(
            name="train",
            model={"build": f"{MASKS}:build_sam"},
            data={"rows": f"{MASKS}:prompt_rows", "seed": 401},
            evaluation={"rows": f"{MASKS}:prompt_rows", "seed": 900_401, "count": 96},
            collator=f"{MASKS}:PromptCollator",
            measure=f"{MASKS}:measure",
            arguments={
                "max_steps": 500,
                "per_device_train_batch_size": 12,
                "per_device_eval_batch_size": 32,
                "learning_rate": 2e-3,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 50,
                "weight_decay": 0.02,
                "adam_beta2": 0.98,
                "optim": "adamw_torch_fused",
                "eval_steps": 250,
                "save_steps": 250,
                "dataloader_num_workers": 1,
            },
        )
    ],
)
