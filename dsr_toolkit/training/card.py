"""The card of a trained model: what it learnt from, how, and the figures that were measured."""

import json
from pathlib import Path

from .journal import CURVES, read_log
from .recipe import Recipe

TEMPLATE = """\
---
library_name: transformers
tags:
- spatial
---

# {title}

{description}

## Training

Made by `dsr train --recipe {name} --output DIR`; `recipe.json` beside this card repeats the run. Stages:

| stage | rows | steps | minutes |
|---|---|---|---|
{stages}

{figures}{curves}
"""


def write_card(recipe: Recipe, output: Path) -> None:
    """`README.md`, `recipe.json` and the curves of every stage in `output/model`."""
    model = output / "model"
    stages, pictures, figures = [], [], ""
    for stage in recipe.stages:
        folder = output / stage.name
        entries = read_log(folder)
        if stage.make is not None:
            stages.append(f"| {stage.name} | {stage.make} | | |")
            continue
        last = entries[-1] if entries else {"step": 0, "minutes": 0}
        rows = f"{stage.data['rows']}, seed {stage.data.get('seed', 0)}"
        stages.append(f"| {stage.name} | {rows} | {last['step']} | {last['minutes']:.1f} |")
        if (folder / CURVES).is_file():
            name = f"curves-{stage.name}.png"
            (model / name).write_bytes((folder / CURVES).read_bytes())
            pictures.append(f"![Curves of stage {stage.name}]({name})")
        figures = _figures(stage, folder) or figures
    text = TEMPLATE.format(
        title=recipe.name,
        name=recipe.name,
        description=recipe.description,
        stages="\n".join(stages),
        figures=figures,
        curves="\n".join(pictures),
    )
    (model / "README.md").write_text(text, encoding="utf-8")
    (model / "recipe.json").write_text(recipe.to_json(), encoding="utf-8")


def _figures(stage, folder: Path) -> str:
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    told = {k: v for k, v in metrics.items() if isinstance(v, float) and "runtime" not in k and "per_second" not in k}
    if not told:
        return ""
    source = stage.evaluation
    if source is None:  # a stage with a reward
        lines = ["Of the programs that were sampled for the rows of the training:", ""]
    else:
        lines = [f"Measured on {source['count']} rows of {source['rows']}, seed {source.get('seed', 0)}:", ""]
    lines += ["| figure | value |", "|---|---|"] + [f"| {name} | {value:.4g} |" for name, value in told.items()]
    return "\n".join(lines) + "\n\n"
