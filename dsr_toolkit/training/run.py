"""Recipes carried out: stage after stage, resumed where they stopped, with everything beside the model that tells of
it."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoProcessor,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

import modeling_dsr  # noqa: F401  registers this library's classes: the code inside a model's folder is never run

from ..console import say, step
from ..datasets.streaming import stream
from ..extras import needs
from .adapters import add_adapter, auto_class, is_adapter, load_adapter, save_adapter
from .card import write_card
from .feature_cache import FeatureCache
from .journal import Journal, draw_curves
from .recipe import Recipe, Stage, find
from .rewards import finish, reward_arguments, reward_trainer
from .rows import Rows
from .trainer import SpatialTrainer

STREAM_BUFFER = 1000  # rows that wait to be shuffled
RECIPE, MODEL, METRICS, DONE = "recipe.json", "model", "metrics.json", "done.json"
PART = ".part"  # behind the name of a file that is being written
# What a recipe need not say again.
DEFAULTS = {
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 50,
    "save_total_limit": 2,
    "remove_unused_columns": False,
    "dataloader_pin_memory": False,
}


@dataclass
class Trained:
    """A finished recipe: the folder of its model (weights, processor, code, card) and the figures of its last
    evaluation."""

    model: Path
    metrics: dict[str, float]


def train(
    recipe: Recipe,
    output: str | Path,
    resume: bool = False,
    finished: dict[str, Path] | None = None,
) -> Trained:
    """
    Carry out a recipe.

    Args:
        recipe: its stages are run in order, each into a folder of its name in `output`.
        output: a new folder; `output/model` will be the result, `output/recipe.json` repeats the run.
        resume: go on in `output`, where the same recipe stopped: finished stages are kept, the others continue from
            their last whole checkpoint and end as if nothing had happened.
        finished: {recipe's name: folder of its model} of required recipes that were run already; the others are run
            first, into `output/requires`.
    """
    from .recipe import load_recipe

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        PartialState()  # the processes know each other before one of them writes
    output = Path(output)
    _begin(recipe, output, resume)
    folders = dict(finished or {})
    used = {stage.model.get("recipe") for stage in recipe.stages}
    for name in recipe.requires:
        if name not in folders and (name in used or any(stage.make for stage in recipe.stages)):
            folder = output / "requires" / name.split("/")[-1]
            say(f"Recipe {recipe.name} needs {name}:")
            folders[name] = train(load_recipe(name), folder, resume=folder.exists(), finished=folders).model
    for stage in recipe.stages:
        folders[stage.name] = _run_stage(recipe, stage, output / stage.name, folders, resume)
    last = output / recipe.stages[-1].name
    metrics = _read_json(last / METRICS) or {}
    if _is_main() and not (output / DONE).exists():
        shutil.copytree(folders[recipe.stages[-1].name], output / MODEL, dirs_exist_ok=True)
        write_card(recipe, output)
        _write_json(output / DONE, {"metrics": metrics})
    _wait()
    return Trained(output / MODEL, metrics)


def _begin(recipe: Recipe, output: Path, resume: bool) -> None:
    needs("train", "Training")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; choose a folder.")
    earlier = _read_json(output / RECIPE)
    if earlier is not None and not resume:
        raise ValueError(f"--output {output} holds a run already; choose another folder, or go on with --resume.")
    if earlier is None and output.is_dir() and any(path.name != RECIPE + PART for path in output.iterdir()):
        raise ValueError(f"--output {output} is not empty and holds no run of `dsr train`; choose another folder.")
    if earlier is not None and earlier != json.loads(recipe.to_json()):
        raise ValueError(
            f"--resume: {output / RECIPE} differs from the recipe asked for. Repeat the settings of that run, or pass "
            "the file itself as --recipe."
        )
    _wait()
    if _is_main():
        output.mkdir(parents=True, exist_ok=True)
        _write(output / RECIPE, recipe.to_json())
    _wait()


def _run_stage(recipe: Recipe, stage: Stage, folder: Path, folders: dict[str, Path], resume: bool) -> Path:
    done = folder / DONE
    if resume and done.is_file():
        say(f"Stage {stage.name} is finished.")
        return folder / MODEL
    if stage.make is not None:
        with step(f"{recipe.name}, stage {stage.name}: {stage.make}"):
            if _is_main():
                shutil.rmtree(folder / MODEL, ignore_errors=True)  # of an interrupted run: nothing but ours is there
                folder.mkdir(parents=True, exist_ok=True)
                set_seed(0)  # of what is new in it
                find(stage.make)(folders, folder / MODEL, **stage.options)
                _write_json(done, {})
            _wait()
        return folder / MODEL
    arguments = training_arguments(stage, folder / "checkpoints")
    set_seed(arguments.seed)
    model, processor = make_model(stage.model, folders)
    if stage.freeze is not None:
        model.freeze(stage.freeze)
    if stage.lora is not None:
        model = add_adapter(model, **stage.lora)
    cache = None if stage.feature_cache is None else FeatureCache(stage.feature_cache)
    if cache is not None:
        towers = cache.attach(model)
        say(f"Features of {', '.join(towers)} are kept in {stage.feature_cache}.")
    if stage.reward is None:
        trainer = make_trainer(stage, model, processor, arguments, folder, cache)
    else:
        trainer = reward_trainer(stage, model, processor, make_rows(stage.data), arguments, folder)
    checkpoint = last_whole_checkpoint(arguments.output_dir) if resume else None
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    say(
        f"{recipe.name}, stage {stage.name}: {type(model).__name__}, {trained:,} of {total:,} parameters train"
        + (f", from {checkpoint}" if checkpoint else "")
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = {}
    if stage.evaluation is not None:
        metrics = {k.removeprefix("eval_"): v for k, v in trainer.evaluate().items() if k.startswith("eval_")}
    trainer.save_model(str(folder / MODEL))
    if _is_main() and stage.reward is not None:
        metrics = finish(trainer, processor, folder)
    if _is_main() and stage.lora is not None:
        save_adapter(model, folder / MODEL, _source(stage.model, folders), stage.model.get("subfolder"))
    if _is_main():
        draw_curves(folder)
        _write_json(folder / METRICS, metrics)
        _write_json(done, {"steps": trainer.state.global_step})
    _wait()
    return folder / MODEL


def training_arguments(stage: Stage, output_dir: Path) -> TrainingArguments:
    """Trainer's arguments of a stage. On the CPU each process computes with one thread unless OMP_NUM_THREADS says
    so."""
    settings = {**DEFAULTS, **stage.arguments}
    if not torch.accelerator.is_available():
        settings.setdefault("use_cpu", True)  # or bf16 is refused
        if settings.get("bf16") and not has_bfloat16():
            say("This processor has no bfloat16 arithmetic, which would take many times as long: float32 instead.")
            settings["bf16"] = False
    if stage.data.get("stream"):
        settings.setdefault("accelerator_config", {"dispatch_batches": False})
    if settings.get("eval_strategy") is None and stage.evaluation is not None and settings.get("eval_steps"):
        settings["eval_strategy"] = "steps"
    if stage.reward is None:
        arguments = TrainingArguments(output_dir=str(output_dir), **settings)
    else:
        arguments = reward_arguments(output_dir, settings)
    if arguments.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # contended threads cost up to ten times
    return arguments


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16; architectures name that differently."""
    return any(value is True for name, value in torch.cpu.get_capabilities().items() if "bf16" in name)


def make_trainer(
    stage: Stage, model, processor, arguments: TrainingArguments, folder: Path, cache: FeatureCache | None = None
) -> SpatialTrainer:
    rows = make_rows(stage.data)
    streamed = bool(stage.data.get("stream"))
    if (rows.endless or streamed) and arguments.max_steps <= 0:
        reason = "have no end" if rows.endless else "are a stream"
        raise ValueError(f"stage {stage.name!r}: its rows {reason}, so `max_steps` is needed.")
    if rows.endless and streamed:
        raise ValueError(f"stage {stage.name!r}: a stream needs rows with an end, so a `count`.")
    if streamed:
        rows = stream(rows).shuffle(seed=arguments.seed, buffer_size=STREAM_BUFFER)
    journal = Journal(folder)
    collator = make_collator(stage, processor)
    trainer = SpatialTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=None if stage.evaluation is None else make_rows(stage.evaluation),
        data_collator=collator,
        processing_class=processor,
        callbacks=[journal],
        learning_rates=stage.learning_rates,
        measure=find(stage.measure) if stage.measure else None,
        show=find(stage.show) if stage.show else None,
        shown=stage.shown,
        on_shown=journal.keep_samples,
        feature_cache=cache,
    )
    trainer.remove_callback(PrinterCallback)  # the journal tells the same, in fewer words
    return trainer


def make_collator(stage: Stage, processor):
    """The function from rows to inputs that `collator` of a [`Stage`] names."""
    collate = find(stage.collator) if stage.collator else type(processor).training_collator
    return collate(processor, **stage.collator_options)


def make_rows(data: dict) -> Rows:
    """The rows that `data` of a [`Stage`] describes."""
    unknown = sorted(set(data) - {"rows", "seed", "count", "options", "stream"})
    if unknown or "rows" not in data:
        raise ValueError(
            f"`data` must have `rows` and may have `seed`, `count`, `options`, `stream`, got {sorted(data)}."
        )
    seed = data.get("seed", 0)
    return Rows(find(data["rows"])(seed=seed, **data.get("options", {})), seed, data.get("count"))


def make_model(spec: dict, folders: dict[str, Path]):
    """(model, processor) as `model` of a [`Stage`] says."""
    kinds = [kind for kind in ("path", "build", "stage", "recipe") if kind in spec]
    if len(kinds) != 1:
        raise ValueError(f"`model` must have one of `path`, `build`, `stage`, `recipe`, got {sorted(spec)}.")
    if kinds == ["build"]:
        model, processor = find(spec["build"])(**spec.get("options", {}))
        return model, processor
    source = _source(spec, folders)
    if is_adapter(source):
        model = load_adapter(source, dtype=spec.get("dtype", "float32")).merge_and_unload()
        return model, AutoProcessor.from_pretrained(source)
    options = {"subfolder": spec["subfolder"]} if spec.get("subfolder") else {}
    loads = find(spec["class"]) if "class" in spec else auto_class(AutoConfig.from_pretrained(source, **options))
    attention = {"attn_implementation": spec["attention"]} if "attention" in spec else {}
    model = loads.from_pretrained(source, dtype=spec.get("dtype", "float32"), **attention, **options)
    return model, AutoProcessor.from_pretrained(source, **options)


def _source(spec: dict, folders: dict[str, Path]) -> str:
    """The folder or repository of a `model` that is loaded and not built."""
    if "path" in spec:
        return spec["path"]
    name = spec.get("stage") or spec.get("recipe")
    if name is None:
        raise ValueError("A model that is built from nothing has no base for an adapter; train it in full.")
    if name not in folders:
        raise ValueError(f"`model` refers to {name!r}, which is no earlier stage or required recipe.")
    return str(folders[name])


def launch_file(name: str) -> Path:
    """A configuration for `accelerate launch --config_file`: "ddp", "fsdp2" or "zero3"."""
    files = {file.stem: file for file in (Path(__file__).parent / "launch").glob("*.yaml")}
    if name not in files:
        raise ValueError(f"`name` must be one of {', '.join(sorted(files))}, got {name!r}.")
    return files[name]


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint that was written to its end: Trainer's state comes last."""
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        if path.name.split("-")[-1].isdecimal() and _read_json(path / "trainer_state.json") is not None:
            found.append((int(path.name.split("-")[-1]), path))
    return str(max(found)[1]) if found else None


def _read_json(path: Path):
    """None where there is no such file, or one that was not finished."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_json(path: Path, content) -> None:
    _write(path, json.dumps(content, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    """The file appears whole or not at all: a run that is killed here can be resumed."""
    part = path.with_name(path.name + PART)
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _is_main() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def _wait() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
