"""DSR: the tiny Qwen-VL and π³'s encoder, put together by the converter, then taught to look and to answer."""

from ...recipe import Recipe, Stage

CELLS, QUESTIONS = "dsr_toolkit.training.space_cells", "dsr_toolkit.training.space_questions"
LOOKING, REASONING = "dsr_toolkit.training.space_looking", "dsr_toolkit.training.space_reasoning"
READ = ["rel_dis/camera", "rel_dir", "rel_ori/camera", "rel_dir_pred/camera"]
SHOWN = {
    "evaluation": {"rows": f"{QUESTIONS}:world_rows", "seed": 900_431, "count": 192},
    "measure": f"{QUESTIONS}:measure",
    "show": "dsr_toolkit.training.answers:show",
}


def arguments(steps: int, batch: int, warmup: int, schedule: str) -> dict:
    """Of each of the trainings."""
    decay = {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}} if schedule == "cosine_with_min_lr" else {}
    return decay | {
        "per_device_eval_batch_size": 16,
        "weight_decay": 0.02,
        "adam_beta2": 0.98,
        "optim": "adamw_torch_fused",
        "bf16": True,
        "eval_steps": 250,
        "save_steps": 250,
        "dataloader_num_workers": 1,
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": 1.5e-3,
        "lr_scheduler_type": schedule,
        "warmup_steps": warmup,
    }


RECIPE = Recipe(
    name="tiny/dsr",
    description="A tiny DSR that answers questions about motion in clips of the space world.",
    requires=["tiny/pi3", "tiny/qwen_vl"],
    stages=[
        Stage(name="assemble", make="dsr_toolkit.tiny.space_models:dsr_of_parts"),
        # Cells of the video, in the language model's eyes and in π³'s, become like the words for what they show, and
        # π³'s tell where it is.
        Stage(
            name="see",
            model={"stage": "assemble", "class": f"{CELLS}:CellsDSRForConditionalGeneration"},
            data={"rows": f"{CELLS}:cell_rows", "seed": 430, "options": {"frames": 4}},
            evaluation={"rows": f"{CELLS}:cell_rows", "seed": 900_430, "count": 64, "options": {"frames": 4}},
            collator=f"{CELLS}:CellCollator",
            measure=f"{CELLS}:measure",
            freeze="all",
            # What π³ knows shall last, but for where its patches are: it seldom asks, and geometry tokens have to know.
            learning_rates={
                "embed_tokens": 0.0,  # the words that cells shall be like stay as they are
                "position_embeddings": 2e-3,
                "geometry_encoder": 5e-4,
                "visual\\.blocks": 5e-4,
            },
            arguments=arguments(steps=800, batch=16, warmup=30, schedule="cosine_with_min_lr")
            | {"learning_rate": 4e-3},
        ),
        # Geometry tokens learn to read the cells of the things that a question names, and to tell where these are in
        # every frame and which way the camera looks. No language model runs.
        Stage(
            name="look",
            model={"stage": "see", "attention": "eager", "class": f"{LOOKING}:LookingDSRForConditionalGeneration"},
            data={"rows": f"{QUESTIONS}:ClipQuestions", "seed": 431, "options": {"count": 10, "wished": False}},
            evaluation={"rows": f"{QUESTIONS}:ClipQuestions", "seed": 900_432, "count": 48},
            collator=f"{QUESTIONS}:SlotCollator",
            measure=f"{LOOKING}:measure_looking",
            freeze="all",
            learning_rates={"embed_tokens": 0.0, "geometry_encoder": 5e-4},
            arguments=arguments(steps=1500, batch=12, warmup=50, schedule="cosine_with_min_lr"),
        ),
        # Meanwhile the language model learns what follows from such numbers, without pictures: first of questions whose
        # answer stands among them, then of all. Of all at once it hardly learns to read a number.
        Stage(
            name="read",
            model={
                "stage": "assemble",
                "attention": "eager",
                "class": f"{REASONING}:ReasoningDSRForConditionalGeneration",
            },
            data={"rows": f"{REASONING}:ToldQuestions", "seed": 434, "options": {"wished": False, "kinds": READ}},
            evaluation={"rows": f"{REASONING}:ToldQuestions", "seed": 900_434, "count": 24, "options": {"kinds": READ}},
            collator=f"{REASONING}:ToldCollator",
            measure=f"{REASONING}:measure_reasoning",
            freeze="all",
            learning_rates={"embed_tokens": 0.0},
            arguments=arguments(steps=500, batch=4, warmup=50, schedule="constant_with_warmup")
            | {"learning_rate": 2e-3},
        ),
        Stage(
            name="reason",
            model={"stage": "read", "attention": "eager", "class": f"{REASONING}:ReasoningDSRForConditionalGeneration"},
            data={"rows": f"{REASONING}:ToldQuestions", "seed": 433, "options": {"wished": False}},
            evaluation={"rows": f"{REASONING}:ToldQuestions", "seed": 900_433, "count": 48},
            collator=f"{REASONING}:ToldCollator",
            measure=f"{REASONING}:measure_reasoning",
            freeze="all",
            learning_rates={"embed_tokens": 0.0},
            arguments=arguments(steps=2000, batch=3, warmup=50, schedule="cosine_with_min_lr")
            | {"learning_rate": 2e-3},
        ),
        Stage(name="join", make=f"{REASONING}:joined"),
        Stage(
            name="answer",
            model={"stage": "join", "attention": "eager", "class": f"{LOOKING}:GuidedDSRForConditionalGeneration"},
            data={"rows": f"{QUESTIONS}:ClipQuestions", "seed": 432, "options": {"count": 10}},
            collator=f"{QUESTIONS}:SlotCollator",
            freeze="all",
            learning_rates={"embed_tokens": 0.0, "geometry_encoder": 2e-4},
            arguments=arguments(steps=500, batch=4, warmup=50, schedule="cosine") | {"learning_rate": 7e-4},
            **SHOWN,
        ),
    ],
)
