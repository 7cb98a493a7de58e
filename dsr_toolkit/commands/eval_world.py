"""How well a model knows the world that the tiny models learn, on samples of a seed of your choice: fresh ones, if it
was not trained on them. Depth and cameras of π³ and PAGE-4D, answers of the scene Q-Former, programs of Cadrille and
CAD-Recode."""

import importlib
import json
from pathlib import Path

from ..console import loading_libraries
from ..extras import needs
from ..model_check import check_dtype, check_model

HELP = "a model on fresh samples of the world that the tiny models learn"
# Model, as `--model`'s default is named → module with `evaluate(model, processor, seed, count)`, its Auto class if
# another than usual, and the extra that it needs.
EVALUATIONS = {
    "pi3": ("world_geometry", None, None),
    "page4d": ("world_geometry", None, None),
    "page4d_multiview": ("world_geometry", None, None),
    "dsr": ("world_dsr", "AutoModelForImageTextToText", None),
    "frozen_qwen_sam": ("world_frozen_qwen_sam", None, None),
    "scene_qformer": ("world_scene", "AutoModelForImageTextToText", None),
    "cadrille": ("world_cad", None, "cad"),
    "cad_recode": ("world_cad", None, "cad"),
}
KEYS = {"model_type", "seed", "count", "metrics"}


def add_arguments(parser) -> None:
    parser.add_argument("kind", metavar="MODEL_TYPE", choices=list(EVALUATIONS), help=", ".join(EVALUATIONS))
    parser.add_argument("--model", metavar="REPO_OR_DIR", help="a converted model (default: the tiny one)")
    parser.add_argument("--seed", type=int, required=True, metavar="N", help="of the world")
    parser.add_argument("--count", type=int, default=64, metavar="K", help="samples (default: 64)")
    parser.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    parser.add_argument("--dtype", default="float32", help="auto, float32, bfloat16 or float16 (default: float32)")
    parser.add_argument(
        "--allow-missing",
        nargs="+",
        metavar="NAME",
        help='cadrille, cad_recode: confinements of programs that this machine may lack, or "all"',
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE, if this command wrote it")


def run(args) -> None:
    if args.seed < 0 or args.count < 1:
        raise ValueError(f"--seed must be at least 0 and --count at least 1, got {args.seed} and {args.count}.")
    if args.json is not None:
        _check_target(args.json, args.overwrite)
    module, auto_class, extra = EVALUATIONS[args.kind]
    options = {}
    if args.allow_missing is not None:
        if extra != "cad":
            raise ValueError(f"--allow-missing is for models that write programs, {args.kind} writes none.")
        options["allow_missing"] = "all" if "all" in args.allow_missing else args.allow_missing
    if extra is not None:
        needs(extra, f"dsr eval world {args.kind}")
    from ..tiny import model_type_of

    model_type = model_type_of(args.kind)
    check_dtype(args.dtype)
    check_model(args.model, model_type)
    with loading_libraries():
        from ..loading import load, resolve
    source, _ = resolve(args.model, args.kind if args.model is None else model_type)
    model, processor = load(source, model_type, args.dtype, args.device, auto_class=auto_class)
    evaluation = importlib.import_module(f"..evaluation.{module}", __package__)
    found = evaluation.evaluate(model, processor, args.seed, args.count, **options)
    print(table(found))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(args.json)


def table(found: dict) -> str:
    """A line per figure; those inside others are named with them, as in `by_frames.2.abs_rel`."""
    rows = list(_flat(found["metrics"]))
    width = max(len(name) for name, _ in rows)
    head = f"{found['model_type']}, {found['count']} samples of seed {found['seed']}"
    return "\n".join([head, *(f"  {name:<{width}}  {_number(value)}" for name, value in rows)])


def _flat(metrics: dict, prefix: str = ""):
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _number(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check_target(path: Path, overwrite: bool) -> None:
    """Refuse what is in the way, before any work."""
    if path.is_dir():
        raise ValueError(f"--json {path} is a folder; name a file.")
    if not path.exists():
        return
    if not overwrite:
        raise ValueError(f"--json {path} exists; name another file, or replace it with --overwrite.")
    try:
        ours = KEYS <= set(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise ValueError(f"--json {path} was not written by this command; it stays. Name another file.")
