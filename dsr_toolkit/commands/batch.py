"""Answer many items at once: a table with a row for each, and a folder for each that has pictures, clouds or solids.

INPUT is a file, a folder, a glob in quotes, a manifest (.jsonl, .csv, .parquet) or the name of a data set; what a row
may say stands in docs/batch.md. An item that cannot be answered is a row with an error. What was interrupted goes on
with --resume.
"""

import json

from ..console import say
from ..model_check import check_dtype, check_model

HELP = "answer a folder, a manifest or a data set"
TASKS = ("ask", "reconstruct", "segment", "cad", "scene")


def add_arguments(parser) -> None:
    parser.add_argument("what", choices=TASKS, metavar="TASK", help=f"one of {', '.join(TASKS)}")
    parser.add_argument("input", metavar="INPUT", help="file, folder, glob, manifest or data set (OWNER/NAME)")
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="a new folder (default: dsr-batch, or the next free dsr-batch-N)"
    )
    parser.add_argument("--resume", action="store_true", help="go on where a run into -o stopped")
    parser.add_argument("--model", metavar="REPO_OR_DIR", help="a repository of models; default: tiny ones")
    parser.add_argument("--split", default="train", help="of a data set (default: train)")
    parser.add_argument(
        "--question", action="append", metavar="TEXT", help="ask this of items without a question; may be repeated"
    )
    parser.add_argument(
        "--phrase", action="append", metavar="TEXT", help="look for this in images without phrases; may be repeated"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="parameters",
        help="a parameter of the task for every item, such as max_new_tokens=64; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where workers run (default: local)"
    )
    parser.add_argument("--address", help="with --engine ray: of a running cluster (default: this machine alone)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes with a model (default: 1)")
    parser.add_argument(
        "--gpus-per-worker", type=float, default=0.0, metavar="G",
        help="GPUs of each, or a part of one (default: what --device says)",
    )  # fmt: skip
    parser.add_argument("--chunk", type=int, default=16, metavar="N", help="items at a time for a worker (default: 16)")
    parser.add_argument("--max-batch", type=int, default=16, metavar="N", help="rows of a batch (default: 16)")
    parser.add_argument("--readers", type=int, default=4, metavar="N", help="threads that read media (default: 4)")
    parser.add_argument(
        "--allow-missing", nargs="+", default=(), metavar="NAME",
        help='confinements of CAD programs this machine may lack, or "all"',
    )  # fmt: skip
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--device", help='"cpu", "cuda", … (default: a GPU if there is one)')


def run(args) -> int:
    from ..extras import needs

    if args.resume and not args.output:
        raise ValueError("--resume goes with -o, the folder of the run that goes on.")
    check_dtype(args.dtype)
    check_model(args.model)
    parameters = read_parameters(args.parameters)
    if args.what == "cad" and parameters.setdefault("execute", True):
        needs("cad", "dsr batch cad (without --set execute=false)")
    if args.engine == "ray":
        needs("scale", "dsr batch --engine ray")
    from ..batch.run import Batch, run_batch
    from ..outputs import free_folder

    if args.model is None:
        say("No --model, so the tiny models answer that are carried along. Use --model REPO_OR_DIR for others.")
    batch = Batch(
        task=args.what, input=args.input, output=args.output or free_folder("dsr-batch"), model=args.model,
        split=args.split, parameters=parameters, defaults=read_defaults(args), device=args.device, dtype=args.dtype,
        allow_missing=tuple(args.allow_missing), chunk_size=args.chunk, max_batch=args.max_batch, readers=args.readers,
        engine=args.engine, workers=args.workers, gpus=args.gpus_per_worker, address=args.address, resume=args.resume,
    )  # fmt: skip
    report = run_batch(batch)
    print(f"{report['done']} items, {report['errors']} with an error\n   {batch.output}/results.parquet")
    return 1 if report["errors"] == report["done"] else 0


def read_parameters(given: list[str]) -> dict:
    """`NAME=VALUE`; a value is JSON, or a text where it is none."""
    parameters = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--set takes NAME=VALUE, got {text!r}.")
        try:
            parameters[name] = json.loads(value)
        except ValueError:
            parameters[name] = value
    return parameters


def read_defaults(args) -> dict:
    """Inputs of items that bring none of their own."""
    from ..batch.columns import COLUMNS

    defaults = {}
    for option, column, given in (("--question", "question", args.question), ("--phrase", "phrases", args.phrase)):
        if not given:
            continue
        kind = COLUMNS[args.what].get(column)
        if kind is None:
            raise ValueError(f"{option} means nothing to {args.what}.")
        if kind == "text" and len(given) > 1:
            raise ValueError(f"{option} can be given once for {args.what}.")
        defaults[column] = given if kind == "texts" else given[0]
    return defaults
