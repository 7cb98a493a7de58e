"""`dsr train ARCH`: fine-tuning of a converted model on files, with the published freezing, rates and schedules."""

from . import rewards
from .recipe import Recipe, Stage

ROWS = "dsr_toolkit.datasets.rows:rows"
COMMON = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,  # below 1: a share of all steps
    "logging_steps": 10,
    "save_steps": 200,
}
# Per architecture what is measured and shown of data that are held out.
_HERE = "dsr_toolkit.training"
_PROGRAMS = {"measure": f"{_HERE}.parts_rows:measure_solids", "show": f"{_HERE}.parts_rows:show"}
_GEOMETRY = {"measure": f"{_HERE}.geometry:measure", "show": f"{_HERE}.geometry:show"}
MEASURED: dict[str, dict] = {
    "dsr": {"measure": f"{_HERE}.answers:measure", "show": f"{_HERE}.answers:show"},
    "pi3": _GEOMETRY,
    "page4d": _GEOMETRY,
    "frozen_qwen_sam": {
        "measure": f"{_HERE}.space_phrases:measure_masks",
        "show": f"{_HERE}.space_phrases:show_masks",
    },
    "cadrille": _PROGRAMS,
    "cad_recode": _PROGRAMS,
    "scene_qformer": {"measure": f"{_HERE}.surround:measure", "show": f"{_HERE}.surround:show"},
}
# The published preset of `freeze`, rates by parameter, and arguments. Where a model's publication names no rate, that
# of the nearest kin stands, and the recipe.json of a run says which it was.
PUBLISHED: dict[str, dict] = {
    "dsr": {
        "freeze": "published",
        "learning_rates": {"merger": 1e-6},
        "arguments": {"learning_rate": 2e-7, "weight_decay": 0.01},
    },
    "pi3": {
        "freeze": "without_encoder",
        "learning_rates": {},
        "arguments": {"learning_rate": 5e-5, "weight_decay": 0.05, "adam_beta2": 0.95, "max_grad_norm": 1.0},
    },
    "page4d": {
        "freeze": "page4d",
        "learning_rates": {"spatial_mask_head": 2e-5},
        "arguments": {"learning_rate": 1e-5, "weight_decay": 0.01},
    },
    "frozen_qwen_sam": {
        "freeze": "published",
        "learning_rates": {},
        "arguments": {"learning_rate": 1e-4, "weight_decay": 0.01},
    },
    "cadrille": {"freeze": "all", "learning_rates": {}, "arguments": {"learning_rate": 2e-4, "weight_decay": 0.01}},
    "cad_recode": {"freeze": "all", "learning_rates": {}, "arguments": {"learning_rate": 2e-4, "weight_decay": 0.01}},
    "scene_qformer": {
        "freeze": "stage1",
        "learning_rates": {},
        "arguments": {"learning_rate": 1e-4, "weight_decay": 0.01},
    },
}
LORA_RATE = 1e-4
REWARDED = ("cadrille", "cad_recode")


def fine_tuning(
    architecture: str,
    data: str,
    model: str,
    lora: str | None = None,
    evaluation: str | None = None,
    options: dict | None = None,
    subfolder: str | None = None,
    rewarded: bool = False,
) -> Recipe:
    """
    The recipe that fine-tunes a converted model on files.

    Args:
        architecture: a model type. data, evaluation: paths, see [`dsr_toolkit.datasets.rows`]; of what is held out, the
            first 100 rows are measured. model: a folder or OWNER/NAME. lora: a preset of
                [`dsr_toolkit.training.adapters`];
            None: the parameters of the published preset in full. options: of the reader.
        rewarded: of the CAD models: programs are sampled and judged by `dsr_toolkit.cad.reward` against the meshes of
            the data (TRL's GRPO).
    """
    if architecture not in PUBLISHED:
        raise ValueError(f"`architecture` must be one of {', '.join(PUBLISHED)}, got {architecture!r}.")
    published = PUBLISHED[architecture]
    arguments = {**COMMON, **published["arguments"]}
    if lora is not None:
        arguments["learning_rate"] = LORA_RATE
    if rewarded:
        if architecture not in REWARDED or evaluation is not None:
            raise ValueError(f"Rewards are for {' and '.join(REWARDED)}, and take no evaluation data.")
        arguments = rewards.PUBLISHED
    source = {"rows": ROWS, "options": {"kind": architecture, "path": data, **(options or {})}}
    held_out = None
    if evaluation is not None:
        from ..datasets.rows import rows

        count = min(100, len(rows(0, architecture, evaluation, **(options or {}))))
        held_out = {"rows": ROWS, "options": {**source["options"], "path": evaluation}, "count": count}
        arguments["eval_steps"] = arguments["save_steps"]
    stage = Stage(
        model={"path": model, **({"subfolder": subfolder} if subfolder else {})},
        data=source,
        evaluation=held_out,
        freeze=None if lora else published["freeze"],
        lora=None if lora is None else {"preset": lora},
        learning_rates={} if lora else published["learning_rates"],
        arguments=arguments,
        reward="dsr_toolkit.training.rewards:cad_reward" if rewarded else None,
        **(MEASURED[architecture] if held_out else {}),
    )
    return Recipe(name=f"{architecture} fine-tuning", description=f"Fine-tuned on {data}.", stages=[stage])
