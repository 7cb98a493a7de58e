"""Cameras, depth and coloured points of a scene, from images or video.

INPUT is a folder of images, an image, a video, or a folder of synchronised views (time_00/view0.png, …), which gives
one cloud per time. Of several scenes - a folder of such folders and videos, or a manifest (.txt with a path per line,
.json or .jsonl with input, name, cameras, depths) - each gets a folder of its own in OUT, and one that fails does not
end the rest.

Whatever the formats, OUT gets overview.png and reconstruct.json. World coordinates are the model's own, in a scale of
its own (Pi3X: metres), or those of the cameras that are known beforehand. Cameras look along z, x right and y down.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

from ..console import loading_libraries, say, step
from ..extras import needs
from ..media_check import check_media
from ..model_check import check_dtype, check_model
from ..outputs import Output, add_output_arguments
from ..reconstruction.formats import FORMATS, check_formats
from ..reconstruction.scenes import MANIFESTS, find_scenes

ARCHITECTURES = ("pi3", "page4d")
HELP = "cameras, depth and points from images or video"
NAME, REPORT, WINDOWS = "dsr-reconstruct", "reconstruct.json", "windows"
# What each format writes, so that anything in its way is seen before the work.
FILES = {
    "glb": "scene.glb",
    "html": "scene.html",
    "ply": "cloud.ply",
    "npz": "geometry.npz",
    "colmap": "colmap/*",
    "colmap-text": "colmap/*",
    "nerfstudio": "nerfstudio/*",
    "rrd": "scene.rrd",
    "depth-video": "*.mp4",
    "tum": "*.tum",
}


def add_arguments(parser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="a folder of images, an image, a video, time_XX/viewY folders, or several of these: a "
        "folder of them, or a manifest",
    )
    add_output_arguments(parser, NAME, "OUT")
    parser.add_argument(
        "--model",
        default="pi3",
        metavar="MODEL",
        help="a converted π³, Pi3X or PAGE-4D (folder or repository), or pi3 or page4d "
        "for the tiny one of its kind (default: pi3)",
    )
    parser.add_argument(
        "--format", default="glb,html", metavar="LIST", help=f"any of {', '.join(FORMATS)}, or all (default: glb,html)"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--interval", type=int, metavar="N", help="every Nth frame (default: 10 of a video, else 1)")
    choice.add_argument("--fps", type=float, metavar="RATE", help="frames per second of a video")
    choice.add_argument("--frames", type=int, metavar="N", help="N frames, evenly spread")
    windows = parser.add_argument_group("long videos")
    windows.add_argument("--window", type=int, metavar="W", help="so many frames at a time, in bounded memory")
    windows.add_argument(
        "--overlap", type=int, metavar="K", help="frames that neighbouring windows share (default: W / 4)"
    )
    windows.add_argument(
        "--no-loops", dest="loops", action="store_false", help="do not look for places that are seen again"
    )
    windows.add_argument(
        "--overlap-prior",
        dest="prior",
        action="store_true",
        help="Pi3X: tell each window what the one before said of the frames that they share",
    )
    known = parser.add_argument_group(
        "what is known beforehand (Pi3X reads it; with other models it places and judges)"
    )
    known.add_argument(
        "--cameras",
        metavar="PATH",
        help="a COLMAP model (folder, binary or text), transforms.json, a TUM trajectory (.txt: time and "
        "camera-to-world), or .npz (poses, intrinsics, depths in the order of the images). Images are matched by name, "
        "trajectories by time; some may be missing. The result stands in the world and unit of these cameras",
    )
    known.add_argument(
        "--depths",
        metavar="DIR",
        help="depth maps named as the images: 16-bit .png, .npy, .npz, in the unit of the cameras",
    )
    known.add_argument(
        "--depth-scale",
        type=float,
        default=1000.0,
        metavar="S",
        help="what 16-bit maps store for a length of 1 (default: 1000)",
    )
    parser.add_argument(
        "--confidence", type=float, default=0.1, metavar="C", help="leave out points below it, 0 … 1 (default: 0.1)"
    )
    parser.add_argument(
        "--edge-tolerance",
        type=float,
        default=0.03,
        metavar="E",
        help="leave out points where depth jumps by this part of it; 0 keeps them (default: 0.03)",
    )
    parser.add_argument(
        "--max-points",
        type=int,
        default=1_000_000,
        metavar="N",
        help="in glb, html, colmap, nerfstudio and rrd (default: 1000000)",
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
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--device", help='"cpu", "cuda", … (default: a GPU if there is one)')


def run(args) -> int:
    formats = _formats(args.format)
    _check(args)
    folder = Path(args.output) if args.output else _default_folder()
    place = lambda path: None if path is None else Path(path)  # noqa: E731
    Output(folder, REPORT, names=(), inputs=[args.input], overwrite=args.overwrite)  # refuses before libraries load
    scenes = find_scenes(Path(args.input), place(args.cameras), place(args.depths))
    with loading_libraries():
        from transformers import AutoConfig

        from ..loading import load, resolve
        from ..reconstruction.inputs import is_multiview
        from ..reconstruction.run import Options, Reconstructor

    outputs = [_output(folder / scene.name, scene, formats, args.overwrite) for scene in scenes]
    several = any(scene.name for scene in scenes)
    whole = Output(folder, REPORT, names=(), inputs=[Path(args.input)], overwrite=args.overwrite) if several else None

    named = args.model in ARCHITECTURES and not Path(args.model).is_dir()
    tiny = args.model if named else "pi3"
    tiny = "page4d_multiview" if tiny == "page4d" and is_multiview(scenes[0].source) else tiny
    source, stand_in = resolve(None if named else args.model, tiny)
    kind = AutoConfig.from_pretrained(source).model_type
    if kind not in ARCHITECTURES:
        raise ValueError(f"{args.model} holds a {kind!r} model where one of {', '.join(ARCHITECTURES)} is needed.")
    with step(f"Loading {source}"):
        model, processor = load(source, kind, dtype=args.dtype, device=args.device)
    if stand_in:
        say(stand_in.notice)
    wishes = {name: getattr(args, name) for name in Options.__dataclass_fields__ if name != "formats"}
    work = Reconstructor(model, processor, Options(formats, **wishes))
    if args.prior and not work.reads_conditions:
        raise ValueError(f"--overlap-prior needs a Pi3X with conditioning; {args.model} reads images alone.")

    about = {"model": str(source), "kind": kind, "stand_in": stand_in and stand_in.remark}
    reports, failed = {}, {}
    for scene, output in zip(scenes, outputs):
        if several:
            say(f"\n{scene.name} ({len(reports) + len(failed) + 1} of {len(scenes)})")
        try:
            reports[scene.name] = _one(work, scene, output, about, args.dtype)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            if not several:
                raise
            say(f"{scene.name} failed: {error}")
            failed[scene.name] = str(error)
    if whole is not None:
        with whole:
            names = {name: {"views": report["views"], "points": report["points"]} for name, report in reports.items()}
            whole.report({**about, "input": args.input, "scenes": names, "failed": failed})
        print(f"{len(reports)} of {len(scenes)} scenes; {folder / REPORT}")
    if stand_in:
        print(f"({stand_in.remark})")
    return 1 if failed or any("failed" in report for report in reports.values()) else 0


def _one(work, scene, output: Output, about: dict, dtype: str) -> dict:
    """One scene to its folder."""
    cache = output.folder / WINDOWS
    if work.options.window is not None:
        wishes = {name: getattr(work.options, name) for name in work.options.PREDICTION}
        # A model or a file that has changed since makes other windows.
        known = [_state(Path(path)) for path in (about["model"], scene.cameras, scene.depths) if path is not None]
        _reuse(cache, {"model": about["model"], "dtype": dtype, "known": known, **wishes})
    done = False
    try:
        with output:
            report = work.scene(scene, output.work, cache)
            output.publish(*report.pop("written"))
            shutil.rmtree(output.work)  # what a format that failed has left
            output.work.mkdir()
            output.report({**about, "input": str(scene.source), **report})
        done = True
    finally:
        if done and _holds_windows(cache):
            shutil.rmtree(cache)
        elif not done and _holds_windows(cache):
            say(f"What was predicted so far is kept in {cache}: the same command goes on from there.")
    print(f"{report['views']} views, {report['points']:,} points")
    if report["points"] == 0:
        say("No point is to be trusted: lower --confidence, or keep points at edges with --edge-tolerance 0.")
    for line in _shown(output):
        print(f"   {line}")
    return report


def _shown(output: Output) -> list[str]:
    """Files, and folders of many files in their place."""
    names = sorted({*output.written, REPORT})
    return list(dict.fromkeys(str(output.folder / _folder_of(name)) for name in names))


def _folder_of(name: str) -> str:
    parts = Path(name).parts
    place = next((n for n, part in enumerate(parts[:-1]) if part in ("colmap", "nerfstudio")), None)
    return name if place is None else str(Path(*parts[: place + 1]))


def _output(folder: Path, scene, formats: tuple[str, ...], overwrite: bool) -> Output:
    names = ["overview.png", *(FILES[name] for name in formats)]
    names += [f"*/{name}" for name in names if scene.source.is_dir()]  # times of synchronised views have folders
    inputs = [path for path in (scene.source, scene.cameras, scene.depths) if path is not None]
    return Output(folder, REPORT, names=names, inputs=inputs, overwrite=overwrite)


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(name.strip() for name in text.split(",") if name.strip())
    if text == "all":
        formats = FORMATS
        try:
            check_formats(FORMATS)
        except ImportError as error:
            formats = tuple(name for name in FORMATS if name != "rrd")
            say(f"Without rrd: {error}")
    check_formats(formats)
    return formats


def _default_folder() -> Path:
    """dsr-reconstruct, or the next one that is free; a run that was interrupted there goes on."""
    number, folder = 1, Path(NAME)
    while folder.is_symlink() or (
        folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} != {WINDOWS})
    ):
        number += 1
        folder = Path(f"{NAME}-{number}")
    return folder


def _check(args) -> None:
    """Everything that can be wrong before anything is loaded."""
    check_dtype(args.dtype)
    if args.model not in ARCHITECTURES or Path(args.model).is_dir():
        check_model(args.model, *ARCHITECTURES)
    if not Path(args.input).exists():
        raise ValueError(f"there is no folder, image or video at {args.input!r}.")
    if Path(args.input).is_file() and Path(args.input).suffix.lower() not in MANIFESTS:
        check_media(args.input)
    for name in ("interval", "fps", "frames", "window", "max_points", "depth_scale"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}.")
    if args.window is None and (args.overlap is not None or args.prior):
        raise ValueError(f"{'--overlap' if args.overlap is not None else '--overlap-prior'} goes with --window.")
    if args.window is not None:
        args.overlap = max(1, args.window // 4) if args.overlap is None else args.overlap
        if not 0 < args.overlap < args.window:
            raise ValueError(f"--overlap must be at least 1 and less than --window {args.window}, got {args.overlap}.")
        if args.loops:
            needs("geometry", "Closing loops (--no-loops does without)", "scipy")
    if args.cameras or args.depths:
        needs("geometry", "Comparing with known cameras", "evo", "scipy")
    if not 0 <= args.confidence < 1:
        raise ValueError(f"--confidence must be in 0 … 1, got {args.confidence}.")
    if args.edge_tolerance < 0:
        raise ValueError(f"--edge-tolerance must not be negative, got {args.edge_tolerance}.")


def _state(path: Path) -> list:
    """Tells files from an earlier state of themselves; a repository's name is only a name."""
    if not path.exists():
        return [str(path)]
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return [[str(one.resolve()), one.stat().st_size, one.stat().st_mtime_ns] for one in files]


def _holds_windows(cache: Path) -> bool:
    """Whether a folder is what [`_reuse`] made, and not a folder of that name that somebody else has."""
    try:
        key = json.loads((cache / "key.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not cache.is_symlink() and isinstance(key, dict) and {"model", "dtype", "known"} <= key.keys()


def _reuse(cache: Path, key: dict) -> None:
    """Keep what an interrupted run left in `cache` if it had the same `key`."""
    text, file = json.dumps(key, sort_keys=True), cache / "key.json"
    if os.path.lexists(cache) and not _holds_windows(cache):
        raise ValueError(f"windows would be kept in {cache}, which holds something else; choose another -o.")
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        done = sum(1 for path in cache.iterdir() if path.is_dir() and not path.name.endswith(".partial"))
        say(f"Going on with an interrupted run: {done} windows are in {cache}; what fits its frames is used again.")
        return
    if cache.exists():
        say(f"An interrupted run with other settings left windows in {cache}: they are removed.")
        shutil.rmtree(cache)
    cache.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
