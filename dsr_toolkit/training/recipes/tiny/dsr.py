"""DSR: the tiny Qwen-VL and π³'s encoder, put together by the converter, then taught to look and to answer."""

from ...recipe import Recipe, Stage

CELLS, QUESTIONS = "dsr_toolkit.training.space_cells", "dsr_toolkit.training.space_questions"
GUIDED = f"{QUESTIONS}:GuidedDSRForConditionalGeneration"
SHOWN = {
    "evaluation": {"rows": f"{QUESTIONS}:world_rows", "seed": 900_431, "count": 192},
    "measure": f"{QUESTIONS}:measure",
    "show": "dsr_toolkit.training.answers:show",
}


def arguments(steps: int, batch: int, warmup: int, schedule: str = "constant_with_warmup") -> dict:
    """Of each of the three trainings."""
    return {
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
            learning_rates={"position_embeddings": 2e-3, "geometry_encoder": 5e-4, "visual\\.blocks": 5e-4},
            arguments=arguments(steps=600, batch=16, warmup=30) | {"learning_rate": 4e-3},
        ),
        # Geometry tokens learn to read the cells of the things that a question names, and to tell where these are in
        # every frame and how the camera moves.
        Stage(
            name="look",
            model={"stage": "see", "attention": "eager", "class": GUIDED},
            data={
                "rows": f"{QUESTIONS}:ClipQuestions",
                "seed": 431,
                "options": {"count": 4, "wished": False, "guided": True},
            },
            collator=f"{QUESTIONS}:SlotCollator",
            freeze="all",
            learning_rates={"geometry_encoder": 7e-4},
            arguments=arguments(steps=2000, batch=8, warmup=50),
        ),
        Stage(
            name="answer",
            model={"stage": "look", "attention": "eager"},
            data={"rows": f"{QUESTIONS}:ClipQuestions", "seed": 432, "options": {"count": 10, "slot_share": 0.5}},
            collator=f"{QUESTIONS}:SlotCollator",
            freeze="all",
            learning_rates={"geometry_encoder": 7e-4},
            arguments=arguments(steps=1200, batch=6, warmup=50, schedule="cosine"),
            **SHOWN,
        ),
    ],
)
