"""Turn a part into a CAD solid: a mesh, a point cloud, views or a text becomes a CadQuery program, checked and executed
in confinement. Of several candidates the one whose solid comes closest to the input is kept."""

import json
from pathlib import Path

from ..console import RANDOM_WEIGHTS_NOTICE, say, step

HELP = "turn a mesh, point cloud, views or text into a CAD solid"
NEEDS = "cad"
MESHES, CLOUDS, PICTURES = (
    (".stl", ".ply", ".obj", ".step", ".stp"),
    (".npy", ".xyz", ".txt"),
    (".png", ".jpg", ".jpeg"),
)
NOT_GENERATED = "not generated: the program was given with --programs"
RANDOM = "random weights: the program means nothing"
MODEL_TYPES = ("cadrille", "cad_recode")


def add_arguments(parser) -> None:
    parser.add_argument(
        "input", nargs="*", metavar="INPUT",
        help="a mesh (stl, ply, obj, step), a cloud (npy, xyz), or a picture of 1, 2 or 4 views, or these views",
    )  # fmt: skip
    parser.add_argument("--text", help="a description of the part, instead of INPUT (Cadrille)")
    parser.add_argument(
        "-o", "--output", default="part.step", metavar="FILE", help="the STEP file (default: part.step)"
    )
    parser.add_argument(
        "--model", metavar="REPO_OR_DIR", help="a converted Cadrille or CAD-Recode; default: a tiny random one"
    )
    parser.add_argument(
        "--programs", nargs="+", metavar="FILE", help="use these programs (.py, .json list) instead of a model"
    )
    parser.add_argument("--candidates", type=int, default=8, metavar="N", help="programs to choose from (default: 8)")
    parser.add_argument("--batch-size", default="auto", metavar="N", help='programs at a time, or "auto" (default)')
    parser.add_argument(
        "--views", action="store_true", help="show a mesh as rendered views instead of points (Cadrille)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="of the sampled candidates (default: 1.0)")
    parser.add_argument("--max-new-tokens", type=int, default=768, metavar="N", help="longest program (default: 768)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="for each program (default: 5)")
    parser.add_argument(
        "--allow-missing", nargs="+", default=(), metavar="NAME", help='confinements this machine may lack, or "all"'
    )
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--device", help='"cpu", "cuda", "cuda:1" (default: a GPU if there is one)')
    parser.add_argument("--attn", metavar="NAME", help="attention implementation: sdpa, eager, flash_attention_2, …")


def run(args) -> int:
    output = Path(args.output)
    if output.suffix.lower() not in (".step", ".stp"):
        raise ValueError(f"-o must name a STEP file (.step), got {args.output!r}.")
    if bool(args.input) == bool(args.text):
        raise ValueError("give either INPUT files or --text.")
    if args.candidates < 1:
        raise ValueError(f"--candidates must be at least 1, got {args.candidates}.")
    if args.batch_size != "auto" and not (args.batch_size.isdigit() and int(args.batch_size) > 0):
        raise ValueError(f'--batch-size must be "auto" or a positive number, got {args.batch_size!r}.')
    with step("Loading libraries"):
        from ..cad import Sandbox, SandboxLimits
        from ..cad.candidates import best_candidate, judge_programs

    kind, part = read_input(args.input) if args.input else ("text", args.text)
    if args.programs:
        programs, label, source = read_programs(args.programs), NOT_GENERATED, None
        say(f"({NOT_GENERATED})")
    else:
        programs, label, source = generate(args, kind, part)
    allow = "all" if "all" in args.allow_missing else args.allow_missing
    with step("Starting the sandbox"):
        sandbox = Sandbox(limits=SandboxLimits(seconds=args.timeout), allow_missing=allow)
    with sandbox:
        if sandbox.missing:
            say(f"Running without: {', '.join(sandbox.missing)}")
        with step(f"Running {len(programs)} programs"):
            candidates = judge_programs(programs, sandbox, part if kind in ("mesh", "cloud") else None, seed=args.seed)
        best = best_candidate(candidates)
        files = write_outputs(output, sandbox, candidates, best, kind, part, label, source)
    for number, candidate in enumerate(candidates):
        distance = f"  chamfer x1000 {1000 * candidate.chamfer:.4f}" if candidate.chamfer is not None else ""
        mark = "*" if number == best else " "
        print(f"{mark} {number}: {candidate.code}{distance}  {candidate.execution.message}".rstrip())
    if label:
        print(f"({label})")
    for path in files:
        print(f"   {path}")
    return 0 if best is not None else 1


# --------------------------------------------------------------------------------------
# Input
# --------------------------------------------------------------------------------------


def read_input(paths: list[str]) -> tuple[str, object]:
    """("mesh", TriangleMesh), ("cloud", array `[P, 3]`) or ("views", picture)."""
    import numpy as np

    from modeling_dsr.cad_files import load_part
    from modeling_dsr.cad_views import compose_views
    from modeling_dsr.image_reader import read_image

    files = [Path(path) for path in paths]
    for path in files:
        if not path.is_file():
            raise ValueError(f"there is no file at {str(path)!r}.")
    suffixes = {path.suffix.lower() for path in files}
    if suffixes <= set(PICTURES):
        views = [read_image(path) for path in files]
        return "views", views[0] if len(views) == 1 else compose_views(views)
    if len(files) > 1:
        raise ValueError("one mesh or cloud at a time; only pictures come in several.")
    if not suffixes <= set(MESHES + CLOUDS):
        raise ValueError(f"{files[0].name!r}: expected one of {', '.join(MESHES + CLOUDS + PICTURES)}.")
    cloud = load_part(files[0])
    if not isinstance(cloud, np.ndarray):
        return "mesh", cloud
    if not np.isfinite(cloud).all():
        raise ValueError(f"{files[0].name!r} holds NaN or infinite coordinates. Remove those points.")
    return "cloud", cloud[:, :3]


def read_programs(paths: list[str]) -> list[str]:
    """Programs of .py files and of .json files that hold a list of texts."""
    programs = []
    for path in map(Path, paths):
        if not path.is_file():
            raise ValueError(f"there is no file at {str(path)!r}.")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            programs.append(text)
            continue
        try:
            listed = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if not isinstance(listed, list) or not all(isinstance(program, str) for program in listed):
            raise ValueError(f"{path} must hold a list of programs as texts.")
        programs += listed
    if not programs:
        raise ValueError("--programs holds no program.")
    return programs


def generate(args, kind: str, part) -> tuple[list[str], str | None, str]:
    """Candidate programs of the model, what must be said about them, and where it came from."""
    from tqdm.auto import tqdm
    from transformers import AutoConfig

    from ..cad.candidates import generate_programs
    from ..loading import load, resolve

    source, is_random = resolve(args.model, "cadrille")
    model_type = AutoConfig.from_pretrained(source).model_type
    if model_type not in MODEL_TYPES:
        raise ValueError(f"{source} holds a {model_type!r} model; programs are written by {' and '.join(MODEL_TYPES)}.")
    if model_type == "cad_recode" and (kind not in ("mesh", "cloud") or args.views):
        raise ValueError("CAD-Recode reads points alone; use a Cadrille model for views and text.")
    with step(f"Loading {source}"):
        model, processor = load(source, model_type, args.dtype, args.device, args.attn)
    if is_random:
        say(RANDOM_WEIGHTS_NOTICE)
    samples = {
        "mesh": {"meshes": part}, "cloud": {"point_clouds": part}, "views": {"images": part}, "text": {"text": part}
    }[kind]  # fmt: skip
    if kind == "mesh" and args.views:
        samples["modality"] = "views"
    inputs = processor(**samples, seed=args.seed)
    with tqdm(total=args.candidates, desc="programs", unit="program") as bar:
        programs = generate_programs(
            model, processor, inputs, args.candidates, args.batch_size, args.max_new_tokens, args.temperature,
            seed=args.seed, progress=bar.update,
        )  # fmt: skip
    return programs, RANDOM if is_random else None, source


# --------------------------------------------------------------------------------------
# Output
# --------------------------------------------------------------------------------------


def write_outputs(output: Path, sandbox, candidates, best, kind, part, label, source) -> list[Path]:
    """STEP, STL and program of the best candidate in the input's place and size, a picture and a report of all."""
    from modeling_dsr.cad_solids import TriangleMesh

    from ..cad.candidates import placement_onto, unit_points
    from ..cad.metrics import normalize_prediction
    from ..cad.pictures import part_sheet

    output.parent.mkdir(parents=True, exist_ok=True)
    files = []
    report = {
        "input": kind, "model": str(source) if source else None, "generated": source is not None, "note": label,
        "best": best,
        "candidates": [
            {"code": c.code, "message": c.execution.message, "chamfer": c.chamfer, "seconds": c.execution.seconds,
             "program": c.program}
            for c in candidates
        ],
    }  # fmt: skip
    lines = [label] if label else []
    solid = None
    if best is not None:
        chosen = candidates[best]
        scale, offset = 1.0, (0.0, 0.0, 0.0)
        if kind in ("mesh", "cloud"):
            low, high = part.bounds if kind == "mesh" else (part.min(0), part.max(0))
            scale, offset = placement_onto(chosen.execution, low, high)
        exported, step_file = sandbox.step(chosen.execution, scale, offset)
        if step_file is None:
            raise ValueError(f"the STEP file could not be written ({exported.code}): {exported.message}.")
        solid = chosen.mesh
        placed = TriangleMesh(chosen.execution.vertices, chosen.execution.faces).moved(scale, offset)
        report |= {"scale": scale, "offset": list(map(float, offset)), "volume": chosen.execution.volume * scale**3}
        files += [output, output.with_suffix(".stl"), output.with_suffix(".py")]
        files[0].write_bytes(labelled_step(step_file, label))
        files[1].write_bytes(stl_bytes(placed, label))
        files[2].write_text((f"# {label}\n" if label else "") + chosen.program.rstrip() + "\n", encoding="utf-8")
        if chosen.chamfer is not None:
            lines.append(f"chamfer distance x1000: {1000 * chosen.chamfer:.4f} (best of {len(candidates)})")
    else:
        counts = {code: sum(c.code == code for c in candidates) for code in sorted({c.code for c in candidates})}
        lines.append("no candidate is a valid solid: " + ", ".join(f"{n} {code}" for code, n in counts.items()))
    shown = {"mesh": lambda: normalize_prediction(part), "cloud": lambda: unit_points(part), "views": lambda: part}
    picture = part_sheet(shown[kind]() if kind in shown else None, solid, output.stem, tuple(lines))
    files += [output.with_suffix(".png"), output.with_suffix(".json")]
    picture.save(files[-2])
    files[-1].write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return files


def labelled_step(content: bytes, label: str | None) -> bytes:
    """The STEP file with the label as a comment behind its first line."""
    if not label:
        return content
    first, rest = content.split(b"\n", 1)
    return first + b"\n/* " + label.encode("ascii", "replace") + b" */\n" + rest


def stl_bytes(mesh, label: str | None) -> bytes:
    """A binary STL file; the label stands in its header of 80 bytes."""
    import numpy as np

    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    triangles = np.zeros(len(mesh.faces), record)
    triangles["normal"] = mesh.face_normals()[0]
    triangles["corners"] = mesh.vertices[mesh.faces]
    header = (label or "binary STL").encode("ascii", "replace")[:80].ljust(80)
    return header + np.uint32(len(triangles)).tobytes() + triangles.tobytes()
