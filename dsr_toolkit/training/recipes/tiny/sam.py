"""A SAM from nothing: masks of the space world's things from boxes and rough masks."""

from ...recipe import Recipe, Stage

MASKS = "dsr_toolkit.training.space_masks"


def mask_arguments(steps: int, batch: int, measured: int, every: int) -> dict:
    """Of a training of masks: rows of a step, rows measured at a time, and steps from one measurement to the next."""
    return {
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": measured,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 50,
        "weight_decay": 0.02,
        "adam_beta2": 0.98,
        "optim": "adamw_torch_fused",
        "eval_steps": every,
        "save_steps": every,
        "dataloader_num_workers": 1,
    }


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
            arguments=mask_arguments(steps=500, batch=12, measured=32, every=250),
        )
    ],
)
