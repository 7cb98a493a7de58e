"""Training on transformers' `Trainer`: recipes, and the pieces that they are made of.

A recipe is a plain record ([`Recipe`], a list of [`Stage`]); it says which model, which rows, which freezing, rates and
arguments, how to measure and what to show. It lives in `dsr_toolkit/training/recipes/GROUP/NAME.py` as `RECIPE`, is
listed in `ORDER` of its group, and runs as

    dsr train --recipe GROUP/NAME --output DIR [--resume] [--set max_steps=10]

or from Python:

    from dsr_toolkit.training import load_recipe, train
    trained = train(load_recipe("tiny/pi3").changed({"max_steps": 100}), "out")   # trained.model, trained.metrics

A new recipe, from nothing but functions ("package.module:function", called by name, so that the record stays plain):

    RECIPE = Recipe(
        name="tiny/pi3",
        description="π³ that knows the space world.",
        stages=[
            Stage(
                model={"build": "mine:build", "options": {"width": 96}},   # (model, processor); the seed is set before
                data={"rows": "mine:rows", "seed": 0, "options": {"frames": 4}},   # rows(seed=…, frames=…)[i] -> dict
                evaluation={"rows": "mine:rows", "seed": 1_000_000, "count": 128},
                collator="mine:collator",     # collator(processor)(rows) -> model's inputs; default: the processor's
                own learning_rates={"encoder": 1e-4},
                arguments={"max_steps": 2000, "per_device_train_batch_size": 8, "learning_rate": 1e-3,
                           "lr_scheduler_type": "cosine", "warmup_steps": 100, "eval_steps": 500, "save_steps": 500,
                           "dataloader_num_workers": 1},
                measure="mine:measure",       # (model, processor, rows, inputs, outputs) -> {"abs_rel": [one a sample]}
                show="mine:show",             # (model, processor, rows, inputs) -> [{"image": PIL, "answer": "…"}, …]
            ),
        ],
    )

Rows are dictionaries. A world without an end is read in order: sample i of the training is row i, so a resumed run sees
what an uninterrupted one would have. Every row carries "seed", from which a collator draws its noise.

The output folder has `recipe.json`, and per stage `log.jsonl`, `curves.png`, `samples/`, `checkpoints/`,
`metrics.json`; `model/` is the result, with processor, code and card, and loads with `AutoModel.from_pretrained(…)`.
"""

from .adapters import add_adapter, load_adapter, merge_adapter, save_adapter
from .architectures import fine_tuning
from .feature_cache import FeatureCache
from .measures import Measures
from .recipe import Recipe, Stage, load_recipe, recipe_names
from .rows import Mapped, Rows
from .run import Trained, launch_file, make_collator, make_model, make_rows, make_trainer, train, training_arguments
from .trainer import SpatialTrainer

__all__ = [
    "FeatureCache",
    "add_adapter",
    "fine_tuning",
    "launch_file",
    "load_adapter",
    "make_collator",
    "merge_adapter",
    "save_adapter",
    "Mapped",
    "Measures",
    "Recipe",
    "Rows",
    "SpatialTrainer",
    "Stage",
    "Trained",
    "load_recipe",
    "make_model",
    "make_rows",
    "make_trainer",
    "recipe_names",
    "train",
    "training_arguments",
]
