"""DSR: the tiny Qwen-VL and π³'s encoder, put together by the converter, then taught to look and to answer."""

from ...recipe import Recipe, Stage

QUESTIONS = "dsr_toolkit.training.space_questions"
ARGUMENTS = {
    "per_device_eval_batch_size": 16,
    "weight_decay": 0.02,
    "adam_beta2": 0.98,
    "optim": "adamw_torch_fused",
    "bf16": True,
    "eval_steps": 250,
    "save_steps": 250,
    "dataloader_num_workers": 1,
}
SHOWN = {
    "evaluation": {"rows": f"{QUESTIONS}:world_rows", "seed": 900_431, "count": 192},
    "measure": f"{QUESTIONS}:measure",
    "show": f"{QUESTIONS}:show",
}

RECIPE = Recipe(
    name="tiny/dsr",
    description="A tiny DSR that answers questions about motion in clips of the space world.",
    requires=["tiny/pi3", "tiny/qwen_vl"],
    stages=[
        Stage(name="assemble", make="dsr_toolkit.tiny.space_models:dsr_of_parts"),
        # Where things are and how the camera moves: a dozen numbers an answer, which teach more than a letter does.
        Stage(
            name="look",
            model={"stage": "assemble", "attention": "eager"},
            data={
                "rows": f"{QUESTIONS}:ClipQuestions",
                "seed": 431,
                "options": {"count": 0, "wished": False, "tracks": True},
            },
            freeze="all",
            learning_rates={"geometry_encoder": 5e-4},
            arguments={
                **ARGUMENTS,
                "max_steps": 1000,
                "per_device_train_batch_size": 12,
                "learning_rate": 1.5e-3,
                "lr_scheduler_type": "constant_with_warmup",
                "warmup_steps": 50,
            },
        ),
        Stage(
            name="answer",
            model={"stage": "look", "attention": "eager"},
            data={"rows": f"{QUESTIONS}:ClipQuestions", "seed": 432, "options": {"count": 12, "tracks": True}},
            freeze="all",
            learning_rates={"geometry_encoder": 5e-4},
            arguments={
                **ARGUMENTS,
                "max_steps": 2000,
                "per_device_train_batch_size": 6,
                "learning_rate": 1.5e-3,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 50,
            },
            **SHOWN,
        ),
    ],
)
