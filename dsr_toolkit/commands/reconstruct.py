"""Cameras, depth and coloured points of a scene, from images or video.

INPUT is a folder of images, an image, a video, or a folder of synchronised views (time_00/view0.png, …), which gives
one cloud per time. Whatever the formats, OUT gets overview.png and reconstruct.json. World coordinates are the model's
own; cameras look along z, x right and y down.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from ..console import RANDOM_WEIGHTS_NOTICE, say, step
from ..extras import needs
from ..reconstruction.writers import FORMATS

HELP = "cameras, depth and points from images or video"
KINDS = ("pi3", "page4d")
REPORT = "reconstruct.json"


def add_arguments(parser) -> None:
    parser.add_argument(
        "input", metavar="INPUT", help="a folder of images, an image, a video, or time_XX/viewY folders"
    )
    parser.add_argument(
        "-o", "--output", default="dsr-reconstruct", metavar="OUT", help="where to write (default: dsr-reconstruct)"
    )
    parser.add_argument(
        "--model", default="pi3", metavar="MODEL",
        help="a converted π³, Pi3X or PAGE-4D (folder or repository), or pi3 or page4d "
        "for a tiny random one (default: pi3)"
    )  # fmt: skip
    parser.add_argument(
        "--format", default="glb,html", metavar="LIST", help=f"any of {', '.join(FORMATS)}, or all (default: glb,html)"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--interval", type=int, metavar="N", help="every Nth frame (default: 10 of a video, else 1)")
    choice.add_argument("--fps", type=float, metavar="RATE", help="frames per second of a video")
    choice.add_argument("--frames", type=int, metavar="N", help="N frames, evenly spread")
    parser.add_argument(
        "--window", type=int, metavar="W", help="for long videos: so many frames at a time, in bounded memory"
    )
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
        "--confidence", type=float, default=0.1, metavar="C", help="leave out points below it, 0 … 1 (default: 0.1)"
    )
    parser.add_argument(
        "--edge-tolerance", type=float, default=0.03, metavar="E",
        help="leave out points where depth jumps by this part of it; 0 keeps them (default: 0.03)",
    )  # fmt: skip
    parser.add_argument(
        "--max-points", type=int, default=1_000_000, metavar="N", help="in glb, html and colmap (default: 1000000)"
    )
    parser.add_argument(
        "--original-size", action="store_true", help="maps at the size of the images, not of the model's input"
    )
    parser.add_argument(
        "--point-source",
        choices=("depth", "points"),
        default="depth",
        help="PAGE-4D: which head makes the points (default: depth)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT whatever it holds")
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--device", help='"cpu", "cuda", … (default: a GPU if there is one)')


def run(args) -> None:
    source, output = Path(args.input), Path(args.output)
    formats = (
        FORMATS if args.format == "all" else tuple(name.strip() for name in args.format.split(",") if name.strip())
    )
    _check(args, source, output, formats)
    with step("Loading libraries"):
        from transformers import AutoConfig

        from modeling_dsr.frames import read_frames

        from ..loading import load, resolve
        from ..reconstruction.inputs import count_frames, is_multiview, multiview_files, multiview_frames

    multiview = is_multiview(source)
    if multiview:
        if args.interval or args.fps or args.frames or args.window:
            raise ValueError(
                "--interval, --fps, --frames and --window are for one sequence; INPUT holds synchronised views."
            )
        times = multiview_files(source)
        frames, total = multiview_frames(times), sum(map(len, times.values()))
    else:
        total = count_frames(source, args.interval, args.fps, args.frames)
        frames = read_frames(source, interval=args.interval, fps=args.fps, num_frames=args.frames)
    if total == 0:
        raise ValueError(f"{args.input!r} holds no image; expected files ending in .png, .jpg or .jpeg, or a video.")

    named = args.model in KINDS and not Path(args.model).is_dir()
    tiny = args.model if named else "pi3"
    tiny = "page4d_multiview" if multiview and tiny == "page4d" else tiny
    model_source, is_random = resolve(None if named else args.model, tiny)
    kind = AutoConfig.from_pretrained(model_source).model_type
    if kind not in KINDS:
        raise ValueError(f"{args.model} holds a {kind!r} model where one of {', '.join(KINDS)} is needed.")
    with step(f"Loading {model_source}"):
        model, processor = load(model_source, kind, dtype=args.dtype, device=args.device)
    if is_random:
        say(RANDOM_WEIGHTS_NOTICE)

    partial, cache = output.with_name(f".{output.resolve().name}.partial"), windows_folder(output)
    if args.window is not None:
        wishes = {name: getattr(args, name) for name in PREDICTION}
        _reuse(cache, {"model": str(model_source), **wishes})
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if multiview:
            report = _multiview(model, processor, times, list(frames), partial, formats, args)
        else:
            report = _sequence(model, processor, frames, total, partial, formats, args, cache)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if args.window is not None:
            say(f"What was predicted so far is kept in {cache}: the same command goes on from there.")
        raise
    report = {"model": str(model_source), "kind": kind, "random_weights": is_random, "input": str(source), **report}
    (partial / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    os.rename(partial, output)
    shutil.rmtree(cache, ignore_errors=True)
    print(f"{report['views']} views, {report['points']:,} points")
    if report["points"] == 0:
        say("No point is to be trusted: lower --confidence, or keep points at edges with --edge-tolerance 0.")
    if is_random:
        print("(random weights: neither cameras nor points mean anything)")
    for path in sorted(output.rglob("*")):
        if path.is_file() and "colmap" not in path.relative_to(output).parts[:-1]:
            print(f"   {path}")
    if "colmap" in formats:
        print(f"   {output / ('*/' if multiview else '') / 'colmap'}")


# What decides a window's prediction beside its frames; with anything else changed, an interrupted run goes on where it
# was.
PREDICTION = ("confidence", "edge_tolerance", "original_size", "point_source", "dtype")


def windows_folder(output: Path) -> Path:
    """Where windows are kept until the run ends: beside OUT, for everybody to see."""
    return output.with_name(f"{output.resolve().name}.windows")


def _check(args, source: Path, output: Path, formats: tuple[str, ...]) -> None:
    """Everything that can be wrong before anything is loaded."""
    if not source.exists():
        raise ValueError(f"there is no folder, image or video at {args.input!r}.")
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(
            f"--format takes {', '.join(FORMATS)} or all, with commas; got {', '.join(unknown) or 'nothing'}."
        )
    for name in ("interval", "fps", "frames", "window", "max_points"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}.")
    if args.overlap is not None and args.window is None:
        raise ValueError("--overlap goes with --window.")
    if args.window is not None:
        args.overlap = max(1, args.window // 4) if args.overlap is None else args.overlap
        if not 0 < args.overlap < args.window:
            raise ValueError(f"--overlap must be at least 1 and less than --window {args.window}, got {args.overlap}.")
        if args.loops:
            needs("geometry", "Closing loops (--no-loops does without)", "scipy")
    if not 0 <= args.confidence < 1:
        raise ValueError(f"--confidence must be in 0 … 1, got {args.confidence}.")
    if args.edge_tolerance < 0:
        raise ValueError(f"--edge-tolerance must not be negative, got {args.edge_tolerance}.")
    if output.exists() and not args.overwrite:
        if not output.is_dir():
            raise ValueError(f"{output} is a file; choose a folder with -o.")
        if any(output.iterdir()) and not (output / REPORT).is_file():
            raise ValueError(
                f"{output} holds something else than an earlier reconstruction; choose another -o, or --overwrite."
            )


def _reuse(cache: Path, key: dict) -> None:
    """Keep what an interrupted run left in `cache` if it had the same `key`."""
    text, file = json.dumps(key, sort_keys=True), cache / "key.json"
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        done = sum(1 for path in cache.iterdir() if path.is_dir() and not path.name.endswith(".partial"))
        say(f"Going on with an interrupted run: {done} windows are in {cache}; what fits its frames is used again.")
        return
    if cache.exists() and not file.is_file():
        raise ValueError(f"windows would be kept in {cache}, which holds something else; choose another -o.")
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")


def _predict(model, processor, frames: list, args, num_views: int | None = None) -> list:
    from ..reconstruction import predict

    return predict(
        model, processor, [frame.image for frame in frames], [frame.name for frame in frames],
        [frame.time for frame in frames],
        confidence=args.confidence, edge_tolerance=args.edge_tolerance or None, original_size=args.original_size,
        point_source=args.point_source, num_views=num_views,
    )  # fmt: skip


def _sequence(model, processor, frames, total: int, folder: Path, formats, args, cache: Path) -> dict:
    """One scene: views go to the writers as soon as they are known."""
    from tqdm.auto import tqdm

    from ..reconstruction.windows import reconstruct_windows

    def predict(some: list) -> list:
        return _predict(model, processor, some, args)

    joins: dict = {}
    if args.window is None:
        say(f"Looking at {total} frames together …")
        views = predict(list(frames))
    else:
        frames = tqdm(frames, total=total, unit="frame", desc="Looking at windows")
        views = reconstruct_windows(
            predict, frames, args.window, args.overlap, cache, loops=args.loops, report=joins, total=total
        )
    views = tqdm(views, total=total, unit="frame", desc="Writing")
    return _write(views, folder, formats, args, _about(model, args)) | joins


def _about(model, args):
    """What writers are told of the scene."""
    from ..reconstruction.inputs import is_video
    from ..reconstruction.writers import OWN_SCALE, About

    metric = getattr(model.config, "variant", None) == "pi3x"
    return About(Path(args.input).resolve().name, "metres" if metric else OWN_SCALE, seconds=is_video(Path(args.input)))


def _multiview(model, processor, times: dict, frames: list, folder: Path, formats, args) -> dict:
    """All times and views together, so that they share a world; a folder of files per time, a trajectory per view."""
    from ..reconstruction.writers.tables import TumWriter

    each, reports = len(frames) // len(times), {}
    say(f"Looking at {len(times)} times × {each} views together …")
    # A model that was not made for views sees them as one sequence.
    knows_views = getattr(model.config, "is_multiview", False)
    views = _predict(model, processor, frames, args, each if knows_views else None)
    if views[0].dynamic is None:
        say("This model has no dynamic mask: what moves is not coloured apart.")
    about = replace(_about(model, args), root=views[0].camera_to_world)
    files = []
    if "tum" in formats:
        for number in range(each):
            writer = TumWriter(folder, 0, about, f"trajectory_view{number}.tum")
            for view in views[number::each]:
                writer.add(view)
            files += writer.finish()
    formats = tuple(name for name in formats if name != "tum")
    for number, name in enumerate(times):
        (folder / name).mkdir()
        here = replace(about, title=f"{about.title}, {name}")
        reports[name] = _write(views[number * each : (number + 1) * each], folder / name, formats, args, here)
    whole = {key: sum(report[key] for report in reports.values()) for key in ("views", "points")}
    return whole | {"times": reports, "files": [path.name for path in files]}


def _write(views, folder: Path, formats, args, about) -> dict:
    """
    Every view to every writer. A format that fails costs nothing but its own files, and is named in the report.
    """
    from ..reconstruction.pictures import Overview
    from ..reconstruction.writers import open_writers

    writers = open_writers(folder, formats, args.max_points, about) if formats else {}
    overview, failed, files, count, points = Overview(about.unit), {}, [], 0, 0

    def attempt(name: str, work) -> list:
        try:
            return work() or []
        except (OSError, ValueError) as error:
            failed[name] = str(error)
            writers.pop(name)
            say(f"{name} cannot be written: {error} The other formats go on.")
            return []

    for view in views:
        view = view.finite()
        for name, writer in list(writers.items()):
            attempt(name, lambda: writer.add(view))
        overview.add(view)
        count, points = count + 1, points + int(view.mask.sum())
    for name, writer in list(writers.items()):
        files += attempt(name, writer.finish)
    overview.picture().save(folder / "overview.png")
    report = {"views": count, "points": points, "unit": about.unit}
    report["files"] = [path.name for path in [*files, folder / "overview.png"]]
    return report | ({"failed": failed} if failed else {})
