"""π³ from nothing, on the easy space world: small pictures, on which most can be learned quickly, then larger ones."""

from ...recipe import Recipe, Stage

GEOMETRY = "dsr_toolkit.training.geometry"


def _stage(name: str, model: dict, size: int, batch: int, steps: int, rate: float, seed: int, every: int) -> Stage:
    rows = f"{GEOMETRY}:GeometryClips"
    return Stage(
        name=name,
        model=model,
        data={"rows": rows, "seed": seed, "options": {"size": size, "moments": [2, 4], "group": batch}},
        evaluation={"rows": rows, "seed": 900_001, "count": 48, "options": {"size": size, "moments": [8, 8]}},
        collator=f"{GEOMETRY}:pi3_inputs",
        arguments={
            "max_steps": steps,
            "per_device_train_batch_size": batch,
            "per_device_eval_batch_size": 8,
            "learning_rate": rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 100,
            "weight_decay": 0.05,
            "adam_beta2": 0.95,
            "eval_steps": every,
            "save_steps": every,
            "dataloader_num_workers": 1,
        },
        measure=f"{GEOMETRY}:measure",
        show=f"{GEOMETRY}:show",
    )


RECIPE = Recipe(
    name="tiny/pi3",
    description="A tiny π³ that knows the space world: depth, points and cameras of rooms with coloured things.",
    stages=[
        _stage(
            "coarse",
            # Cameras weigh ten times as much as published: rotations are what this network learns last.
            {"build": f"{GEOMETRY}:build_pi3", "options": {"camera_loss_weight": 1.0, "normal_loss_weight": 0.0}},
            size=56, batch=6, steps=2000, rate=1e-3, seed=101, every=500,
        ),
        _stage("fine", {"stage": "coarse"}, size=112, batch=4, steps=300, rate=5e-4, seed=102, every=150),
    ],
)  # fmt: skip
