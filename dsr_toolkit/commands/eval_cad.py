"""CadQuery programs against meshes: Chamfer distance, intersection over union by exact booleans, invalidity ratio, and
why programs failed."""

import csv
from dataclasses import asdict
from pathlib import Path

from ..console import loading_libraries, printable, say, step
from ..outputs import Output, add_output_arguments, free_folder

HELP = "CadQuery programs against meshes"
NEEDS = "cad"
REPORT = "metrics.json"
FILES = (REPORT, "report.md", "samples.csv", "histograms.png")
METRICS = (  # key, title, key of the number of shapes it is over
    ("mean_iou", "mean IoU, as published", "mean_iou_shapes"),
    ("median_iou", "median IoU, as published", "mean_iou_shapes"),
    ("mean_iou_of_all", "mean IoU, failed and open ones count 0", "mean_iou_of_all_shapes"),
    ("median_iou_of_all", "median IoU, failed and open ones count 0", "mean_iou_of_all_shapes"),
    ("mean_chamfer", "mean chamfer distance x1000", "chamfer_shapes"),
    ("median_chamfer", "median chamfer distance x1000", "chamfer_shapes"),
    ("invalidity_ratio", "invalidity ratio, %", "shapes"),
)
FRAME_WORDS = {
    "unit_cube": "in the unit cube already, taken as they are",
    "own": "in units of their own, each moved and scaled into the unit cube",
}


def add_arguments(parser) -> None:
    parser.add_argument(
        "predictions", metavar="PROGRAMS", help="folder of SHAPE.py, or SHAPE+K.py for several samples of a shape"
    )
    parser.add_argument("ground_truth", metavar="MESHES", help="folder of SHAPE.stl (ply, obj, step), nested or not")
    add_output_arguments(parser, "dsr-eval-cad")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted evaluation in -o")
    parser.add_argument(
        "--frame", choices=("unit_cube", "own"), help="how the true shapes lie: normalised, taken as they are, or in "
        "units of their own, and moved and scaled like predictions (default: the convention of a published test set, "
        "known by the name of its folder, else own)",
    )  # fmt: skip
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
    if args.resume and args.output is None:
        raise ValueError("--resume needs -o, the folder of the interrupted evaluation.")
    folder = Path(args.output) if args.output else free_folder("dsr-eval-cad")
    inputs = (predictions, ground_truth)
    output = Output(folder, REPORT, names=FILES, inputs=inputs, overwrite=args.overwrite)
    with loading_libraries():
        from tqdm.auto import tqdm

        from ..cad import Sandbox, SandboxLimits
        from ..evaluation.cad import declared_frame, evaluate, pair_files, summarize
        from ..evaluation.cad_journal import Journal, digest

    pairs, without_program = pair_files(predictions, ground_truth)
    frame = args.frame or declared_frame(ground_truth)
    say(f"True shapes of {ground_truth}: {FRAME_WORDS[frame]}.")
    settings = {
        "frame": frame, "check_solids": args.check_solids, "seed": args.seed, "timeout": args.timeout,
        "policy": not args.no_policy,
    }  # fmt: skip
    journal = Journal(folder, settings, args.resume)
    digests = [digest(*pair) for pair in pairs]
    waiting = [(name, pair) for name, pair in zip(digests, pairs) if name not in journal.known]
    if len(waiting) < len(pairs):
        say(f"{len(pairs) - len(waiting)} of {len(pairs)} programs were measured before.")
    allow = "all" if "all" in args.allow_missing else args.allow_missing
    limits = SandboxLimits(seconds=args.timeout)
    with step("Starting the sandbox"):
        sandbox = Sandbox(workers=args.workers, limits=limits, policy=not args.no_policy, allow_missing=allow)
    journal.open()
    names = iter([name for name, _ in waiting])
    with sandbox, tqdm(total=len(pairs), initial=len(pairs) - len(waiting), desc="programs", unit="program") as bar:
        if sandbox.missing:
            say(f"Running without: {', '.join(sandbox.missing)}")

        def note(sample) -> None:
            journal.add(name := next(names), sample)
            journal.known[name] = sample
            bar.update()

        evaluate([pair for _, pair in waiting], sandbox, args.check_solids, args.seed, note, frame)
    samples = [journal.known[name] for name in digests]
    summary = summarize(samples, without_program, frame)
    with output:
        for line in write_report(output, samples, {"ground_truth": str(ground_truth), **summary}):
            print(line)
    journal.finish()


def write_report(output: Output, samples, summary: dict) -> list[str]:
    """metrics.json, samples.csv, report.md and histograms.png; returns the lines to print."""
    from ..cad.pictures import histograms

    title = f"{summary['shapes']} shapes, {summary['programs']} programs"
    lines = [f"| {title} | | shapes |", "|---|---|---|"]
    lines += [f"| {words} | {_number(summary[key])} | {summary[count]} |" for key, words, count in METRICS]
    for key in (
        "open_predictions", "shapes_without_true_volume", "shapes_without_program", "unreadable_ground_truth"
    ):  # fmt: skip
        if summary[key]:
            lines.append(f"| {key.replace('_', ' ')} | {summary[key]} | |")
    lines += ["", f"True shapes: {FRAME_WORDS[summary['ground_truth_frame']]}."]
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
    output.write_text("report.md", "\n".join(lines) + "\n")
    with open(output.path("samples.csv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(samples[0])))
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in asdict(sample).items()} for sample in samples)
    output.publish("samples.csv")
    chamfer = [min(value, 5.0) for value in summary["best_chamfer"]]
    panels = [("chamfer x1000, best of a shape, up to 5", chamfer), ("IoU, best of a shape", summary["best_iou"])]
    histograms(panels, title).save(output.path("histograms.png"))
    output.publish("histograms.png")
    output.report(summary)
    return [*lines, "", *(f"   {output.folder / name}" for name in ("report.md", REPORT, *FILES[2:]))]


def _cell(value):
    """A text as a cell that no spreadsheet takes for a formula, and no terminal for more than text."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
