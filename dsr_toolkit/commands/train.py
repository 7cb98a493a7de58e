"""Train a model by a recipe: from nothing, or from a converted folder. Curves, predictions, checkpoints and a card come
with it.

An interrupted run goes on with --resume and ends as if nothing had happened."""

from pathlib import Path

from ..console import say

HELP = "train or fine-tune a model"
NEEDS = "train"


def add_arguments(parser) -> None:
    parser.add_argument(
        "--recipe", required=True, metavar="NAME", help="a recipe, a group of them (all, in order), or a recipe.json"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="a new folder for everything that comes of it"
    )
    parser.add_argument("--resume", action="store_true", help="go on where the run in --output stopped")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="another value: an argument of Trainer (max_steps=100), a part of a stage (data.seed=7); STAGE:KEY for "
        "one stage; may be repeated",
    )


def run(args) -> None:
    from ..training import load_recipe, recipe_names, train

    settings = {}
    for setting in args.settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, got {setting!r}.")
        settings[key] = value
    groups = {name.split("/")[0] for name in recipe_names()}
    if args.recipe not in groups:
        trained = train(load_recipe(args.recipe).changed(settings), args.output, resume=args.resume)
        print(trained.model)
        return
    finished = {}
    for name in recipe_names(args.recipe):
        folder = Path(args.output) / name.split("/")[1]
        say(f"== {name}")
        recipe = load_recipe(name).changed(settings)
        finished[name] = train(recipe, folder, resume=args.resume and folder.exists(), finished=finished).model
        print(finished[name])
