"""Cameras, depth or points of π³ or PAGE-4D against truth, by the published protocols.

FOLDER is in the layout of TUM RGB-D, Bonn, Sintel or KITTI, a folder with condition.npz and numbered images, or one of
time_XX/viewY with geometry.npz. Frames are brought to size as in each model's published evaluation. Sequences that an
interrupted run has scored are not scored again.
"""

from __future__ import annotations

import csv
from pathlib import Path

from ..console import loading_libraries, say, step
from ..model_check import check_dtype, check_model
from ..outputs import Output, earlier_report, readable_json

DEPTH_METRICS = ("abs_rel", "sq_rel", "rmse", "log_rmse", "delta_1", "delta_2", "delta_3")
TASKS = {
    "relpose": ("camera motion: ATE, RPE", ("ate", "rpe_trans", "rpe_rot")),
    "video-depth": ("depth, one alignment per sequence", DEPTH_METRICS),
    "mono-depth": ("depth, each image by itself", DEPTH_METRICS),
    "points": ("point maps: accuracy, completeness, normals", (
        "accuracy", "accuracy_median", "completeness", "completeness_median", "normal_consistency",
        "normal_consistency_median",
    )),
}  # fmt: skip
NEEDS = {"relpose": "geometry", "points": "geometry"}  # extras
TRUTH = {
    "relpose": ("poses",),
    "video-depth": ("depth",),
    "mono-depth": ("depth",),
    "points": ("poses", "depth", "intrinsics"),
}
ALIGNMENTS = ("scale", "scale_shift", "median", "lstsq", "metric")
SUMMARIES = ("report.md", "metrics.json", "sequences.csv")  # files beside the report and a picture of each sequence
MAX_FRAMES = 120  # of a sequence, as published
FEWEST_FRAMES = 3  # of a trajectory that can be aligned


def add_arguments(parser, task: str) -> None:
    from ..datasets.geometry import LAYOUTS

    parser.add_argument("folder", metavar="FOLDER", help="sequences with truth")
    parser.add_argument(
        "--model", default="pi3", metavar="MODEL",
        help="a converted π³, Pi3X or PAGE-4D (folder or repository), or pi3 or page4d "
        "for the tiny one of its kind (default: pi3)"
    )  # fmt: skip
    parser.add_argument("--layout", choices=LAYOUTS, help="of FOLDER (default: what it looks like)")
    parser.add_argument(
        "--sequences", nargs="+", metavar="NAME", help="only these (default: those that the protocol scores)"
    )
    parser.add_argument(
        "--max-frames",
        type=int,
        default=MAX_FRAMES,
        metavar="N",
        help=f"of a sequence, from its start (default: {MAX_FRAMES})",
    )
    if task.endswith("depth"):
        parser.add_argument(
            "--align",
            choices=ALIGNMENTS,
            help="of depths to the truth (default: what the model's own evaluation does: "
            + ("scale)" if task == "video-depth" else "π³ scale, PAGE-4D median)"),
        )
    if task == "relpose":
        parser.add_argument("--window", type=int, metavar="W", help="so many frames at a time (default: all together)")
        parser.add_argument(
            "--overlap", type=int, metavar="K", help="frames that neighbouring windows share (default: W / 4)"
        )
        parser.add_argument(
            "--no-loops",
            dest="loops",
            action="store_false",
            help="with --window: do not look for places that are seen again",
        )
    parser.add_argument(
        "--point-source", choices=("depth", "points"), default="points" if task == "points" else "depth",
        help="PAGE-4D: the head to score (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--device", help='"cpu", "cuda", … (default: a GPU if there is one)')
    parser.add_argument(
        "-o", "--output", default=f"dsr-eval-{task}", metavar="DIR", help=f"where to write (default: dsr-eval-{task})"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the files of an evaluation with other settings"
    )


def run(args) -> None:
    if args.max_frames < 1:
        raise ValueError(f"--max-frames must be at least 1, got {args.max_frames}.")
    if args.task == "relpose" and args.max_frames < FEWEST_FRAMES:
        raise ValueError(f"--max-frames must be at least {FEWEST_FRAMES} to align a trajectory, got {args.max_frames}.")
    window = getattr(args, "window", None)
    if getattr(args, "overlap", None) is not None and window is None:
        raise ValueError("--overlap goes with --window.")
    if window is not None:
        args.overlap = max(1, window // 4) if args.overlap is None else args.overlap
        if not 0 < args.overlap < window:
            raise ValueError(f"--overlap must be at least 1 and less than --window {window}, got {args.overlap}.")
    from ..datasets.geometry import find_sequences

    check_dtype(args.dtype)
    named = args.model in ("pi3", "page4d") and not Path(args.model).is_dir()
    check_model(None if named else args.model, "pi3", "page4d")
    sequences = choose(find_sequences(args.folder, args.layout), args.task, args.sequences)
    with loading_libraries():
        from tqdm.auto import tqdm
        from transformers import AutoConfig

        from ..evaluation.geometry import ALIGNMENT, PI3_POINTS_WIDTH, PI3_WIDTH, published_predict
        from ..loading import load, resolve
    source, stand_in = resolve(None if named else args.model, args.model if named else "pi3")
    kind = AutoConfig.from_pretrained(source).model_type
    if kind not in ("pi3", "page4d"):
        raise ValueError(f"{args.model} holds a {kind!r} model where π³ or PAGE-4D is needed.")
    with step(f"Loading {source}"):
        model, processor = load(source, kind, dtype=args.dtype, device=args.device)
    if stand_in:
        say(stand_in.notice)
    about = {"model": str(source), "kind": kind, "stand_in": stand_in and stand_in.remark}
    if args.task.endswith("depth"):
        args.align = about["align"] = args.align or ALIGNMENT[kind, args.task]

    settings = {
        key: str(value)
        for key, value in vars(args).items()
        if key not in ("output", "device", "overwrite") and not callable(value)
    } | {"source": str(source)}
    names = [sequence.name for sequence in sequences]
    done = Results(Path(args.output), settings, names, [args.folder], args.overwrite)
    predict = published_predict(
        model, processor, kind, args.point_source, PI3_POINTS_WIDTH if args.task == "points" else PI3_WIDTH
    )
    with done:
        bar = tqdm(sequences, unit="sequence", desc=args.task)
        for sequence in bar:
            bar.set_postfix_str(sequence.name)
            if sequence.name in done.metrics:
                continue
            try:
                done.add(sequence.name, *score(args, sequence.first(args.max_frames), predict, window))
            except ValueError as error:
                say(f"{sequence.name} is left out: {error}")
        if not done.metrics:
            raise ValueError("no sequence could be scored.")
        for line in report(done, args.task, about):
            print(line)
    if stand_in:
        print(f"({stand_in.remark})")


def choose(sequences: list, task: str, wanted: list[str] | None) -> list:
    """Those that have what the task needs and that the protocol scores."""
    from ..datasets.geometry import SINTEL_DEPTH_SKIPPED, SINTEL_POSE

    if wanted:
        unknown = sorted(set(wanted) - {sequence.name for sequence in sequences})
        if unknown:
            raise ValueError(
                f"there is no sequence {', '.join(unknown)}; there are {', '.join(s.name for s in sequences)}."
            )
        sequences = [sequence for sequence in sequences if sequence.name in wanted]
    elif sequences[0].layout == "sintel":
        skipped = lambda name: name not in SINTEL_POSE if task == "relpose" else name in SINTEL_DEPTH_SKIPPED  # noqa: E731
        left_out = [sequence.name for sequence in sequences if skipped(sequence.name)]
        if left_out:
            say(f"As published, not scored: {', '.join(left_out)} (--sequences scores them).")
        sequences = [sequence for sequence in sequences if not skipped(sequence.name)]
    complete = [s for s in sequences if all(getattr(s, name) is not None for name in TRUTH[task])]
    if task == "relpose":
        short = [sequence.name for sequence in complete if len(sequence.images) < FEWEST_FRAMES]
        complete = [sequence for sequence in complete if len(sequence.images) >= FEWEST_FRAMES]
        if short:
            say(
                f"With fewer than {FEWEST_FRAMES} images, left out: {', '.join(short)} (two positions leave the turn "
                "between both worlds open)."
            )
            sequences = [sequence for sequence in sequences if sequence.name not in short]
    if not complete:
        raise ValueError(f"no sequence has what {task} needs: {', '.join(TRUTH[task])}, and images.")
    if missing := [sequence.name for sequence in sequences if sequence not in complete]:
        say(f"Without {' or '.join(TRUTH[task])}, left out: {', '.join(missing)}.")
    return complete


def score(args, sequence, predict, window: int | None):
    """Metrics of one sequence, and its picture."""
    from modeling_dsr.frames import read_frames

    from ..evaluation import geometry as evaluation
    from ..reconstruction import pictures
    from ..reconstruction.windows import reconstruct_windows

    frames = read_frames(sequence.images)
    if args.task == "mono-depth":
        views = [view for frame in frames for view in predict([frame])]
    elif window is not None:
        views = list(reconstruct_windows(predict, frames, window, args.overlap, loops=args.loops))
    else:
        views = predict(list(frames))
    if args.task == "relpose":
        return evaluation.score_poses(sequence, views), pictures.trajectories(sequence, views)
    if args.task == "points":
        metrics, found, true = evaluation.score_points(sequence, views)
        return metrics, pictures.clouds(found, true)
    metrics, pairs = evaluation.score_depth(sequence, views, args.align, together=args.task == "video-depth")
    return metrics, pictures.depth_errors(views, pairs)


class Results:
    """Metrics by sequence, in an output as they come; where an earlier run had the same settings, this one goes on."""

    REPORT = "sequences.json"

    def __init__(self, folder: Path, settings: dict, names: list[str], inputs: list, overwrite: bool = False):
        earlier = earlier_report(folder / self.REPORT, settings)
        self.settings, self.metrics = settings, earlier.get("metrics", {})
        written = (*SUMMARIES, *(f"{name}.png" for name in names))
        again = overwrite or bool(earlier)
        self.output = Output(folder, self.REPORT, names=written, inputs=inputs, overwrite=again)
        if earlier:
            say(f"Going on with an earlier run: {len(self.metrics)} sequences are scored.")

    def __enter__(self) -> Results:
        self.output.__enter__()
        self.output.keep(*(f"{name}.png" for name in self.metrics))
        return self

    def __exit__(self, *exception) -> None:
        self.output.__exit__(*exception)

    def add(self, name: str, metrics: dict, picture) -> None:
        picture.save(self.output.path(f"{name}.png"))
        self.metrics[name] = metrics
        self.output.publish(f"{name}.png")
        self.output.report({"settings": self.settings, "metrics": self.metrics})


def report(done: Results, task: str, about: dict) -> list[str]:
    """metrics.json, sequences.csv and report.md; returns the lines to print."""
    from ..evaluation.geometry_metrics import average_depth_metrics

    output, names = done.output, TASKS[task][1]
    rows = list(done.metrics.values())
    if task.endswith("depth"):
        average = average_depth_metrics([{k: row[k] for k in (*names, "valid_pixels")} for row in rows])
    else:
        average = {name: sum(row[name] for row in rows) / len(rows) for name in names}
    summary = {"task": task, **about, "sequences": len(rows), "average": average}
    output.write_text("metrics.json", readable_json(summary))
    with open(output.path("sequences.csv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sequence", "frames", *names])
        writer.writerows([name, row["frames"], *(row[key] for key in names)] for name, row in done.metrics.items())
    align = [about["align"]] if "align" in about else []
    head = ["sequence", "frames", *(["align"] if align else []), *names]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in [*done.metrics.items(), ("average", {**average, "frames": sum(row["frames"] for row in rows)})]:
        cells = [name, str(row["frames"]), *align, *(f"{row[key]:.4f}" for key in names)]
        lines.append("| " + " | ".join(cells) + " |")
    output.publish("sequences.csv")
    output.write_text("report.md", "\n".join(lines) + "\n")
    files = (*SUMMARIES, *(f"{name}.png" for name in done.metrics))
    return [*lines, "", *(f"   {output.folder / name}" for name in files)]
