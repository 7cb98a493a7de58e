"""Make a finished run's model one of those that the package carries.

    python -m dsr_toolkit.training.ship RUN …     # folders of `dsr train --recipe tiny/NAME --output RUN`
    python -m dsr_toolkit.training.ship --code    # after files of the models' code came or went
    python -m dsr_toolkit.training.ship --figures NAME …   # measure carried models anew, after their world changed
    python -m dsr_toolkit.training.ship --table   # the figures of all that are carried, for docs/tiny.md

`dsr_toolkit/assets/tiny/NAME` is then a converted folder like any other. Weights are stored in float16 and computed in
float32, which `config.json` says, so nothing but half the size comes of it. The code is the package's own: links in the
source tree, files in a wheel. Figures are measured on seeds that no recipe trains on, of the folder as it is carried.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import statistics
from contextlib import ExitStack
from pathlib import Path

from ..console import say, step
from ..tiny import model_type_of, shipped
from .journal import read_log

LARGEST = 8_000_000  # bytes of a model's weights
SMALL = 64  # numbers, from which a tensor is worth halving: means and scales stay as they are
SEED, BATCHES, BATCH = 20_261_201, 8, 24  # the first seed, how many, and samples of each
# Left out: what takes long and no figure here needs.
QUICK = {"world_geometry": {"frames": ()}, "world_cad": {"candidates": (1,)}}
CURVES_WIDTH, CURVES_COLOURS = 1000, 32
CURVES_FROM_DOCS = "../dsr_toolkit/assets/tiny"

FIGURES_TEXT = """\
## Figures

Means over {batches} runs of `dsr eval world {name} --seed {seed} … --count {count}`, samples that it was never trained
on, with the standard deviation of such a run:

| figure | mean ± sd | to be reached |
|---|---|---|
{rows}

Weights are stored in float16 and computed in float32.

"""


def ship(run: str | Path, measured: bool = True) -> Path:
    """Put the model of a finished run to the others; returns its folder."""
    run = Path(run)
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    name = recipe["name"].split("/")[-1]
    if name not in shipped.MODELS:
        raise ValueError(f"{run} is a run of {recipe['name']!r}; carried are {', '.join(shipped.MODELS)}.")
    source, target = run / "model", shipped.FOLDER / name
    if not (source / shipped.WEIGHTS).is_file():
        raise ValueError(f"{source} holds no {shipped.WEIGHTS}: the run is not finished.")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".md", ".jinja", ".txt", ".model") and path.is_file():
            shutil.copyfile(path, target / path.name)
        elif path.name.startswith("curves"):
            _small_picture(path, target / path.name)
    (target / "recipe.json").write_text(json.dumps(recipe, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_weights(source, target)
    link_code(target)
    if measured:
        with step(f"Measuring {name}"):
            found = measure(name) | trained(run, recipe)
        (target / shipped.FIGURES).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        _add_figures(target / "README.md", name, found)
    return target


def write_weights(source: Path, target: Path) -> None:
    """Weights in half precision, and a configuration that has them computed in float32."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / shipped.WEIGHTS)
    for key, tensor in tensors.items():
        fits = tensor.is_floating_point() and float(tensor.abs().max()) < torch.finfo(torch.float16).max
        if fits and tensor.numel() >= SMALL:
            tensors[key] = tensor.half()
    save_file(tensors, target / shipped.WEIGHTS, metadata={"format": "pt"})
    (target / shipped.WEIGHTS).chmod(0o644)
    size = (target / shipped.WEIGHTS).stat().st_size
    if size > LARGEST:
        raise ValueError(f"{target} has weights of {size:,} bytes; {LARGEST:,} are allowed.")
    path = target / "config.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for part in (record, *(value for value in record.values() if isinstance(value, dict))):
        if part is record or "dtype" in part:
            part["dtype"] = "float32"
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def link_code(folder: Path) -> list[str]:
    """Links to the code that a model needs, and to no other; returns the names."""
    from convert_weights.remote_code import code_files

    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    files = code_files([model_type])
    for path in folder.glob("*.py"):
        path.unlink()
    for name, path in files.items():
        (folder / name).symlink_to(os.path.relpath(path, folder))
    return sorted(files)


def measure(name: str) -> dict:
    """
    Figures of a carried model on samples of `BATCHES` seeds, and how much they spread from one to the next.

    Returns:
        `{"model_type", "seed" (the first), "seeds" (how many), "count" (samples of each), "metrics" (means), "sd"
        (standard deviation of the figures with a target)}`.
    """
    model, processor, evaluation, options = open_evaluation(name)
    with ExitStack() as stack:
        if "candidates" in options:  # programs are run: in one sandbox, which a busy machine does not hurry
            from ..cad import Sandbox, SandboxLimits

            options = options | {"sandbox": stack.enter_context(Sandbox(limits=SandboxLimits(seconds=60.0)))}
        runs = [evaluation.evaluate(model, processor, SEED + n, BATCH, **options)["metrics"] for n in range(BATCHES)]
    spread = {one: statistics.stdev(shipped.figure(run, one) for run in runs) for one in shipped.MODELS[name].targets}
    about = {"model_type": model.config.model_type, "seed": SEED, "seeds": BATCHES, "count": BATCH}
    return {**about, "metrics": _means(runs), "sd": spread}


def trained(run: Path, recipe: dict) -> dict:
    """Steps and minutes of a run's trainings."""
    ends = [entries[-1] for stage in recipe["stages"] if (entries := read_log(run / stage["name"]))]
    return {"steps": sum(end["step"] for end in ends), "minutes": round(sum(end["minutes"] for end in ends), 1)}


def _means(runs: list):
    """Of numbers inside dictionaries alike."""
    if not isinstance(runs[0], dict):
        return statistics.fmean(runs) if isinstance(runs[0], (int, float)) else runs[0]
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: _means([run[name] for run in runs if name in run]) for name in names}


def open_evaluation(name: str):
    """(model, processor, module that evaluates it, options of a quick evaluation) of a carried model."""
    from ..commands.eval_world import EVALUATIONS
    from ..loading import load

    module, auto_class, _ = EVALUATIONS[name]
    folder = str(shipped.FOLDER / name)
    model, processor = load(folder, model_type_of(name), "float32", "cpu", auto_class=auto_class)
    evaluation = importlib.import_module(f"..evaluation.{module}", __package__)
    return model, processor, evaluation, QUICK.get(module, {})


def table() -> str:
    """Markdown: figures of the carried models against their targets, and how they were trained."""
    lines = ["| model | parameters | figure | mean ± sd | to be reached | |", "|---|---|---|---|---|---|"]
    for name in shipped.shipped():
        found = shipped.figures(name)
        head = [f"`{name}`", f"{shipped.parameters(name) / 1e6:.2f} M"]
        for figure, target in shipped.MODELS[name].targets.items():
            verdict = (
                "reached" if shipped.reached(figure, shipped.figure(found["metrics"], figure), target) else "missed"
            )
            lines.append(f"| {' | '.join([*head, figure, _spread(found, figure), _wanted(figure, target), verdict])} |")
            head = ["", ""]
    lines += ["", "| model | command | steps | minutes | curves |", "|---|---|---|---|---|"]
    for name in shipped.shipped():
        found, command = shipped.figures(name), f"`dsr train --recipe tiny/{name} --output DIR`"
        pictures = sorted(path.name for path in (shipped.FOLDER / name).glob("curves*.png"))
        curves = ", ".join(f"[{file[7:-4]}]({CURVES_FROM_DOCS}/{name}/{file})" for file in pictures)
        lines.append(f"| `{name}` | {command} | {found['steps']:,} | {found['minutes']:.0f} | {curves} |")
    return "\n".join(lines) + "\n"


def _spread(found: dict, figure: str) -> str:
    return f"{shipped.figure(found['metrics'], figure):.3g} ± {found['sd'][figure]:.2g}"


def _wanted(figure: str, target: float) -> str:
    return f"{'≤' if figure in shipped.LOWER_IS_BETTER else '≥'} {target:g}"


def _add_figures(card: Path, name: str, found: dict) -> None:
    targets = shipped.MODELS[name].targets.items()
    rows = [f"| {figure} | {_spread(found, figure)} | {_wanted(figure, target)} |" for figure, target in targets]
    told = {"seed": found["seed"], "batches": found["seeds"], "count": found["count"]}
    text = FIGURES_TEXT.format(name=name, rows="\n".join(rows), **told)
    before, heading, after = card.read_text(encoding="utf-8").partition("## Training\n")
    before = before.partition("## Figures\n")[0]  # of an earlier measurement
    card.write_text(before + text + heading + after, encoding="utf-8")


def measure_anew(name: str) -> None:
    """Renew the figures of a carried model; how it was trained stays as it was told."""
    folder = shipped.FOLDER / name
    known = shipped.figures(name)
    with step(f"Measuring {name}"):
        found = measure(name) | {one: known[one] for one in ("steps", "minutes")}
    (folder / shipped.FIGURES).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _add_figures(folder / "README.md", name, found)


def _small_picture(source: Path, target: Path) -> None:
    """A picture of curves with few colours."""
    from PIL import Image

    with Image.open(source) as picture:
        picture = picture.convert("RGB")
        if picture.width > CURVES_WIDTH:
            size = (CURVES_WIDTH, round(picture.height * CURVES_WIDTH / picture.width))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        picture.quantize(CURVES_COLOURS).save(target, optimize=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--no-figures", action="store_true", help="measure nothing, for now")
    parser.add_argument("--code", action="store_true", help="renew the links to the models' code")
    parser.add_argument("--figures", nargs="+", metavar="NAME", default=[], choices=list(shipped.MODELS),
                        help="measure carried models anew")  # fmt: skip
    parser.add_argument("--table", action="store_true", help="print the figures of all that are carried")
    options = parser.parse_args(arguments)
    for run in options.runs:
        folder = ship(run, not options.no_figures)
        say(f"{folder}: {(folder / shipped.WEIGHTS).stat().st_size / 1e6:.2f} MB of weights")
    if options.code:
        for name in shipped.shipped():
            link_code(shipped.FOLDER / name)
    for name in options.figures:
        measure_anew(name)
    if options.table:
        print(table(), end="")


if __name__ == "__main__":
    main()
