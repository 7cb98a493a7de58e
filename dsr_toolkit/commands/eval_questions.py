"""Ask a DSR model the questions of a benchmark about videos, with the published frames, prompts and settings, and score
its answers by the published rule and by a strict one. An interrupted run goes on in the same folder."""

from pathlib import Path

from ..console import loading_libraries
from ..model_check import check_dtype, check_model
from ..outputs import sha256_of

TASKS = {
    "dsr-bench": "questions about dynamic space: DSR-Bench",
    "vlm4d": "questions about motion: VLM4D",
    "sti-bench": "estimates about stretches of time: STI-Bench",
    "vsi-bench": "questions about indoor space: VSI-Bench",
}


def add_arguments(parser, task: str) -> None:
    parser.add_argument("questions", metavar="FILE", help="the published table: parquet, JSON or lines of JSON")
    parser.add_argument("--videos", metavar="DIR", help="folder of the videos (default: videos beside FILE)")
    parser.add_argument("--model", metavar="REPO_OR_DIR", help="a converted DSR model")
    parser.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--count", type=int, metavar="N", help="the first N questions only")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="predictions.jsonl and result.json")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of a run with other settings")
    parser.set_defaults(benchmark=task)


def run(args) -> None:
    from ..evaluation.video_benchmarks import read_questions

    questions = read_questions(args.benchmark, args.questions, args.videos)[: args.count]
    check_dtype(args.dtype)
    check_model(args.model, "dsr")
    with loading_libraries():
        from ..evaluation.video_questions import evaluate, table
        from ..loading import load, resolve

    source, _ = resolve(args.model, "dsr")
    model, processor = load(source, "dsr", args.dtype, args.device)
    settings = {"model": str(source), "dtype": args.dtype, "questions": sha256_of(Path(args.questions))}
    print(table(evaluate(model, processor, args.benchmark, questions, args.output, settings, args.overwrite)))
