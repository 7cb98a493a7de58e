"""FrozenQwenSAM by the published way: Qwen-VL frozen, a new mask head on its attention, SAM's decoder refining."""

from ...recipe import Recipe, Stage
from .sam import mask_arguments

PHRASES = "dsr_toolkit.training.space_phrases"

RECIPE = Recipe(
    name="tiny/frozen_qwen_sam",
    description="A tiny FrozenQwenSAM that finds the things of the space world by phrases.",
    requires=["tiny/qwen_vl", "tiny/sam"],
    stages=[
        Stage(
            name="assemble",
            make="dsr_toolkit.tiny.space_models:frozen_qwen_sam_of_parts",
            options={"mask_head_channels": 16, "mask_head_stages": 3, "mask_head_size": 32},
        ),
        Stage(
            name="train",
            model={"stage": "assemble"},
            data={"rows": f"{PHRASES}:phrase_rows", "seed": 421, "options": {"most": 4}},
            evaluation={"rows": f"{PHRASES}:phrase_rows", "seed": 900_421, "count": 64},
            freeze="published",
            measure=f"{PHRASES}:measure_masks",
            show=f"{PHRASES}:show_masks",
            arguments=mask_arguments(steps=1200, batch=8, measured=16, every=200),
        ),
    ],
)
