"""A Qwen2.5-VL from nothing, which reads phrases and sees where in a picture of the space world their things are."""

from ...recipe import Recipe, Stage

PHRASES = "dsr_toolkit.training.space_phrases"

RECIPE = Recipe(
    name="tiny/qwen_vl",
    description="A tiny Qwen2.5-VL that knows the words of the space world and where in a picture things are.",
    stages=[
        Stage(
            name="train",
            model={"build": "dsr_toolkit.tiny.space_models:build_qwen_vl"},
            data={"rows": f"{PHRASES}:PlacedPhrases", "seed": 411},
            evaluation={"rows": f"{PHRASES}:PlacedPhrases", "seed": 900_411, "count": 96},
            collator="modeling_dsr.dsr_collator:DSRCollator",
            measure=f"{PHRASES}:measure_places",
            arguments={
                "max_steps": 1500,
                "per_device_train_batch_size": 16,
                "per_device_eval_batch_size": 32,
                "learning_rate": 1.5e-3,
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
                "warmup_steps": 50,
                "weight_decay": 0.02,
                "adam_beta2": 0.98,
                "optim": "adamw_torch_fused",
                "bf16": True,
                "eval_steps": 250,
                "save_steps": 250,
                "dataloader_num_workers": 1,
            },
        )
    ],
)
