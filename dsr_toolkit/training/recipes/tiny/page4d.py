"""PAGE-4D from the tiny π³: the same rooms, and a mask of what moves, which cameras and depth are taught to trust."""

from ...recipe import Recipe, Stage

GEOMETRY = "dsr_toolkit.training.geometry"


def video_stage(
    name: str,
    model: dict,
    size: int,
    batch: int,
    steps: int,
    rate: float,
    seed: int,
    every: int,
    moments: tuple[int, int] = (2, 4),
    old_rate: float = 0.5,
    scenes: dict | None = None,
) -> Stage:
    """
    A training on videos of the easy space world.

    Args:
        moments: least and largest number of frames. scenes: what is different there, see [`GeometryClips`].
        old_rate: learning rate of what came from π³, as a share of `rate`.
    """
    rows = f"{GEOMETRY}:GeometryClips"
    options = {"size": size, "moments": list(moments), "group": batch, "scenes": scenes}
    return Stage(
        name=name,
        model=model,
        data={"rows": rows, "seed": seed, "options": options},
        evaluation={"rows": rows, "seed": 900_001, "count": 32, "options": {"size": size, "moments": [8, 8]}},
        collator=f"{GEOMETRY}:page4d_inputs",
        learning_rates={r"^(encoder|aggregator\.(frame|global)_blocks\.[012])\b": rate * old_rate},
        arguments={
            "max_steps": steps,
            "per_device_train_batch_size": batch,
            "per_device_eval_batch_size": 8,
            "learning_rate": rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 50,
            "weight_decay": 0.05,
            "adam_beta2": 0.95,
            "eval_steps": every,
            "save_steps": every,
            "dataloader_num_workers": 1,
        },
        measure=f"{GEOMETRY}:measure",
        show=f"{GEOMETRY}:show",
    )


SETTINGS = {
    "mask_layer": 2,
    "masked_layers": [2, 3],
    "mask_alpha": 1.0,
    # The published 64 would close patches of which the mask is hardly sure.
    "mask_scale": 8.0,
    "mask_hidden_channels": 64,
    "mask_loss_weight": 4.0,
    # Twice the published weight: rotations are what is learned last.
    "camera_loss_weight": 10.0,
    # The trunk learns from the mask too: here nothing else tells it what moves.
    "detach_mask_input": False,
    "enable_point": False,
    "camera_depth": 1,
    "camera_num_heads": 4,
    "camera_mlp_ratio": 1.0,
    "dpt_features": 24,
    "dpt_out_channels": [24, 32, 48, 48],
    "dpt_hidden_channels": 16,
    "layer_scale_init": 0.1,
}

RECIPE = Recipe(
    name="tiny/page4d",
    description="A tiny PAGE-4D that knows the space world: depth, cameras and what moves.",
    requires=["tiny/pi3"],
    stages=[
        Stage(name="start", make=f"{GEOMETRY}:page4d_from_pi3", options={"size": 112, **SETTINGS}),
        # Cameras that go far around the room: between frames that differ by 10° rotations are not learned from nothing,
        # nor while what is new disturbs the features of π³ in which they can be read.
        video_stage(
            "cameras", {"stage": "start"}, size=56, batch=8, steps=700, rate=1e-3, seed=110, every=350,
            moments=(4, 4), old_rate=0.05, scenes={"orbit": [40.0, 160.0]},
        ),
        video_stage("train", {"stage": "cameras"}, size=112, batch=4, steps=800, rate=8e-4, seed=111, every=400),
    ],
)  # fmt: skip
