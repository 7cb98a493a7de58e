"""CadQuery programs against meshes: Chamfer distance, intersection over union by exact booleans, invalidity ratio, and
why programs failed."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

from ..console import say, step

HELP = "CadQuery programs against meshes"
NEEDS = "cad"
METRICS = (
    ("mean_chamfer", "mean chamfer distance x1000"), ("median_chamfer", "median chamfer distance x1000"),
    ("mean_iou", "mean IoU"), ("median_iou", "median IoU"), ("invalidity_ratio", "invalidity ratio, %"),
)  # fmt: skip


def add_arguments(parser) -> None:
    parser.add_argument(
        "predictions", metavar="PROGRAMS", help="folder of SHAPE.py, or SHAPE+K.py for several samples of a shape"
    )
    parser.add_argument("ground_truth", metavar="MESHES", help="folder of SHAPE.stl (ply, obj, step), nested or not")
    parser.add_argument(
        "-o", "--output", default="dsr-eval-cad", metavar="DIR", help="where to write (default: dsr-eval-cad)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="programs at a time (default: one per core)")
    parser.add_argument(
        "--timeout", type=float, default=3.0, metavar="SECONDS", help="for each program (default: 3, as published)"
    )
    parser.add_argument(
        "--check-solids", action="store_true", help="also count solids that the geometry kernel calls invalid as such"
    )
    parser.add_argument("--no-policy", action="store_true", help="run programs of any form, in the same confinement")
    parser.add_argument(
        "--allow-missing", nargs="+", default=(), metavar="NAME", help='confinements this machine may lack, or "all"'
    )
    parser.add_argument("--seed", type=int, default=0)


def run(args) -> None:
    predictions, ground_truth = Path(args.predictions), Path(args.ground_truth)
    for folder in (predictions, ground_truth):
        if not folder.is_dir():
            raise ValueError(f"there is no folder {str(folder)!r}.")
    with step("Loading libraries"):
        from tqdm.auto import tqdm

        from ..cad import Sandbox, SandboxLimits
        from ..evaluation.cad import evaluate, pair_files, summarize

    pairs, without_program = pair_files(predictions, ground_truth)
    allow = "all" if "all" in args.allow_missing else args.allow_missing
    limits = SandboxLimits(seconds=args.timeout)
    with step("Starting the sandbox"):
        sandbox = Sandbox(workers=args.workers, limits=limits, policy=not args.no_policy, allow_missing=allow)
    with sandbox, tqdm(total=len(pairs), desc="programs", unit="program") as bar:
        if sandbox.missing:
            say(f"Running without: {', '.join(sandbox.missing)}")
        samples = evaluate(pairs, sandbox, args.check_solids, args.seed, lambda: bar.update())
    summary = summarize(samples, without_program)
    for line in write_report(Path(args.output), samples, summary):
        print(line)


def write_report(output: Path, samples, summary: dict) -> list[str]:
    """metrics.json, samples.csv, report.md and histograms.png; returns the lines to print."""
    from ..cad.pictures import histograms

    output.mkdir(parents=True, exist_ok=True)
    lines = [f"| {summary['shapes']} shapes, {summary['programs']} programs | |", "|---|---|"]
    lines += [f"| {title} | {_number(summary[key])} |" for key, title in METRICS]
    for key in ("shapes_with_solid_but_no_iou", "shapes_without_program", "unreadable_ground_truth"):
        if summary[key]:
            lines.append(f"| {key.replace('_', ' ')} | {summary[key]} |")
    lines += ["", "| outcome | programs | % |", "|---|---|---|"]
    lines += [f"| {code} | {count} | {100 * count / len(samples):.2f} |" for code, count in summary["codes"].items()]
    lines += [
        "",
        "| worst shapes counted as invalid | invalidity ratio, % | mean chamfer distance x1000 |",
        "|---|---|---|",
    ]
    lines += [
        f"| {s['skip']} | {s['invalidity_ratio']:.3f} | {_number(s['mean_chamfer'])} |" for s in summary["skipped"]
    ]
    (output / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (output / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    with open(output / "samples.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(samples[0])))
        writer.writeheader()
        writer.writerows(asdict(sample) for sample in samples)
    chamfer = [min(value, 5.0) for value in summary["best_chamfer"]]
    panels = [("chamfer x1000, best of a shape, up to 5", chamfer), ("IoU, best of a shape", summary["best_iou"])]
    histograms(panels, f"{summary['shapes']} shapes").save(output / "histograms.png")
    return [
        *lines,
        "",
        *(f"   {output / name}" for name in ("report.md", "metrics.json", "samples.csv", "histograms.png")),
    ]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
