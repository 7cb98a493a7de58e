"""Train a model: `dsr train ARCH --data … --model …` fine-tunes a converted one on files in their published formats,
`dsr train --recipe NAME` carries out a recipe. Curves, predictions, checkpoints and a card come with it.

An interrupted run goes on with --resume and ends as if nothing had happened."""

from pathlib import Path

from ..console import say
from ..model_check import check_model

HELP = "train or fine-tune a model"
NEEDS = "train"
TOLD = 20  # problems of a data set that --check names one by one


def add_arguments(parser) -> None:
    parser.add_argument(
        "arch", nargs="?", metavar="ARCH", help="fine-tune a model of this type (dsr, pi3, cadrille, …)"
    )
    parser.add_argument("--recipe", metavar="NAME", help="a recipe, a group of them (all, in order), or a recipe.json")
    parser.add_argument(
        "--data", metavar="PATH", help="with ARCH: the rows to learn from; docs/training.md has formats"
    )
    parser.add_argument("--eval-data", metavar="PATH", help="with ARCH: rows to measure on, in the same format")
    parser.add_argument("--model", metavar="REPO_OR_DIR", help="with ARCH: the converted model to start from")
    parser.add_argument("--lora", metavar="PRESET", help="with ARCH: train a LoRA adapter: attention or linear")
    parser.add_argument(
        "--reward",
        action="store_true",
        help="with cadrille or cad_recode: sample programs, run them, and make the better ones likelier",
    )
    parser.add_argument("--check", action="store_true", help="with ARCH: read the data, say what is wrong, and stop")
    parser.add_argument("-o", "--output", metavar="DIR", help="a new folder for everything that comes of it")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --output stopped")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the result with its card")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="another value: an argument of Trainer (max_steps=100), a part of a stage (data.seed=7); STAGE:KEY for "
        "one stage; may be repeated",
    )


def run(args) -> int | None:
    settings = _settings(args.settings)
    if (args.arch is None) == (args.recipe is None):
        raise ValueError("say either what to fine-tune (ARCH --data … --model …) or a --recipe.")
    if args.arch is not None:
        return _fine_tune(args, settings)
    given = [f"--{name}" for name in ("data", "eval-data", "model", "lora", "reward", "check") if _given(args, name)]
    if given:
        raise ValueError(f"{', '.join(given)} belong to ARCH; a recipe has its own (see --set).")
    _need(args, "output")
    from ..training import load_recipe, recipe_names, train

    groups = {name.split("/")[0] for name in recipe_names()}
    if args.recipe not in groups:
        trained = train(load_recipe(args.recipe).changed(settings), args.output, resume=args.resume)
        _finish(trained, args)
        return None
    if args.push_to_hub:
        raise ValueError("--push-to-hub uploads one model; run the recipes of a group one by one for it.")
    finished = {}
    for name in recipe_names(args.recipe):
        folder = Path(args.output) / name.split("/")[1]
        say(f"== {name}")
        recipe = load_recipe(name).changed(settings)
        finished[name] = train(recipe, folder, resume=args.resume and folder.exists(), finished=finished).model
        print(finished[name])
    return None


def _fine_tune(args, settings: dict) -> int | None:
    _need(args, "data", "model")
    from convert_weights.architectures.registry import ARCHITECTURES

    if args.arch not in ARCHITECTURES:
        raise ValueError(f"ARCH must be one of {', '.join(ARCHITECTURES)}, got {args.arch!r}.")
    check_model(args.model, args.arch)
    for name, path in (("data", args.data), ("eval-data", args.eval_data)):
        if path is not None and not Path(path).exists():
            raise ValueError(f"--{name}: there is no file or folder at {path!r}.")
    if not args.check:
        _need(args, "output")
    from ..training import fine_tuning, train

    model, subfolder = _base(args.model, args.arch)
    recipe = fine_tuning(
        args.arch, args.data, model, args.lora, args.eval_data, subfolder=subfolder, rewarded=args.reward
    ).changed(settings)
    if args.check:
        return _check(recipe, args.arch)
    _finish(train(recipe, args.output, resume=args.resume), args)
    return None


def _base(model: str, arch: str) -> tuple[str, str | None]:
    """Folder or repository, and subfolder, of `--model`: what a recipe and an adapter record is no place in a cache."""
    from ..loading import resolve

    source, _ = resolve(model, arch)
    if Path(model).is_dir() or source == model:
        return source, None
    return "/".join(model.split("/")[:2]), Path(source).name


def _check(recipe, arch: str) -> int:
    """Read every row, and make a batch of each; returns 2 if something is wrong."""
    from transformers import AutoProcessor

    from ..datasets.checks import problems
    from ..training import make_collator, make_rows

    (stage,) = recipe.stages
    where = {"subfolder": stage.model["subfolder"]} if "subfolder" in stage.model else {}
    collate = make_collator(stage, AutoProcessor.from_pretrained(stage.model["path"], **where))
    wrong = 0
    for data in filter(None, (stage.data, stage.evaluation)):
        rows = make_rows(data)
        count = 0
        for problem in problems(arch, rows, collate):
            wrong, count = wrong + 1, count + 1
            if count <= TOLD:
                print(problem)
        more = f", {count - TOLD} more than shown" if count > TOLD else ""
        say(f"{data['options']['path']}: {len(rows)} rows, {count} problems{more}")
    return 2 if wrong else 0


def _finish(trained, args) -> None:
    if args.push_to_hub:
        from huggingface_hub import HfApi

        HfApi().create_repo(args.push_to_hub, exist_ok=True)
        HfApi().upload_folder(repo_id=args.push_to_hub, folder_path=trained.model, commit_message="Trained model")
        say(f"Uploaded to {args.push_to_hub}.")
    print(trained.model)


def _settings(given: list[str]) -> dict[str, str]:
    settings = {}
    for setting in given:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, got {setting!r}.")
        settings[key] = value
    return settings


def _given(args, name: str) -> bool:
    return getattr(args, name.replace("-", "_")) not in (None, False)


def _need(args, *names: str) -> None:
    missing = [f"--{name}" for name in names if not _given(args, name)]
    if missing:
        raise ValueError(f"{' and '.join(missing)} is needed.")
