"""Turn a part into a CAD solid: a mesh, a point cloud, views or a text becomes a CadQuery program, checked and executed
in confinement. Of several candidates the one whose solid comes closest to the input is kept."""

import warnings
from pathlib import Path

from ..cad.part_input import kind_of, read_input, read_programs
from ..console import loading_libraries, say, step
from ..model_check import check_dtype, check_model
from ..outputs import Output

ARCHITECTURES = ("cadrille", "cad_recode")
HELP = "turn a mesh, point cloud, views or text into a CAD solid"
NEEDS = "cad"
NOT_GENERATED = "not generated: the program was given with --programs"


def add_arguments(parser) -> None:
    parser.add_argument(
        "input", nargs="*", metavar="INPUT",
        help="a mesh (stl, ply, obj, step), a cloud (npy, xyz), or a picture of 1, 2 or 4 views, or these views",
    )  # fmt: skip
    parser.add_argument("--text", help="a description of the part, instead of INPUT (Cadrille)")
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help="the STEP file; the other files are named after it (default: solid.step, or the next free solid-N.step)",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier run wrote there, and nothing else"
    )
    parser.add_argument(
        "--model", metavar="REPO_OR_DIR", help="a converted Cadrille or CAD-Recode; default: the tiny one"
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
    parser.add_argument(
        "--repair", type=int, default=0, metavar="N",
        help="show the model its failed programs with their errors, in up to N rounds (default: 0)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="for each program (default: 5)")
    parser.add_argument(
        "--allow-missing", nargs="+", default=(), metavar="NAME", help='confinements this machine may lack, or "all"'
    )
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--device", help='"cpu", "cuda", "cuda:1" (default: a GPU if there is one)')
    parser.add_argument("--attn", metavar="NAME", help="attention implementation: sdpa, eager, flash_attention_2, …")


def run(args) -> int:
    if bool(args.input) == bool(args.text):
        raise ValueError("give either INPUT files or --text.")
    for name, least in (("candidates", 1), ("repair", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(args, name)}.")
    if args.batch_size != "auto" and not (args.batch_size.isdigit() and int(args.batch_size) > 0):
        raise ValueError(f'--batch-size must be "auto" or a positive number, got {args.batch_size!r}.')
    if args.programs and args.repair:
        raise ValueError("--repair asks the model, and --programs takes its place: choose one of them.")
    if not args.programs:
        check_dtype(args.dtype)
        check_model(args.model, *ARCHITECTURES)
    kind = kind_of(args.input) if args.input else "text"
    given = read_programs(args.programs) if args.programs else None
    output = output_for(args)
    with loading_libraries():
        from ..cad import Sandbox, SandboxLimits
        from ..cad.candidates import best_candidate
        from ..cad.part_output import PartReport, candidates_table
    kind, part = read_input(kind, args.input) if args.input else (kind, args.text)
    writer = None if given else Writer(args, kind, part)
    label = NOT_GENERATED if given else writer.label
    if given:
        say(f"({label})")
    allow = "all" if "all" in args.allow_missing else args.allow_missing
    with step("Starting the sandbox"):
        sandbox = Sandbox(limits=SandboxLimits(seconds=args.timeout), allow_missing=allow)
    facts = {"model": None if given else str(writer.source), "generated": not given, "note": label}
    with sandbox, output:
        if sandbox.missing:
            say(f"Running without: {', '.join(sandbox.missing)}")
        report = PartReport(output, kind, part, facts)
        programs = given or writer.write(report.add_programs)
        if given:
            report.add_programs(given)
        candidates = judge(programs, sandbox, kind, part, args.seed, report, 0)
        for _ in range(args.repair):
            failed = [number for number, one in enumerate(candidates) if needs_repair(one, number, candidates)]
            if not failed:
                break
            say(f"{len(failed)} programs failed and are shown to the model.")
            for number in failed:
                repaired = writer.repair(candidates[number])
                report.add_programs([repaired], repairs=number)
                found = judge([repaired], sandbox, kind, part, args.seed, report, len(candidates))
                found[0].repairs = number
                candidates += found
        best = best_candidate(candidates)
        files = report.write_best(sandbox, candidates, best, label)
    for line in candidates_table(candidates, best):
        print(line)
    if label:
        print(f"({label})")
    for path in files:
        print(f"   {path}")
    return 0 if best is not None else 1


def output_for(args) -> Output:
    """Where the files go; refuses what is in the way."""
    from ..cad.part_names import free_stem, part_names

    output = Path(args.output) if args.output else Path(f"{free_stem('solid')}.step")
    if output.suffix.lower() not in (".step", ".stp"):
        raise ValueError(f"-o must name a STEP file (.step), got {args.output!r}.")
    names = part_names(output.stem, output.suffix)
    inputs = [*args.input, *(args.programs or ())]
    return Output(output.parent, f"{output.stem}.json", names=names, inputs=inputs, overwrite=args.overwrite)


def judge(programs, sandbox, kind, part, seed, report, first) -> list:
    """Run and measure, with progress, and note what came of each."""
    from tqdm.auto import tqdm

    from ..cad.candidates import judge_programs

    numbers = iter(range(first, first + len(programs)))
    with tqdm(total=len(programs), desc="running", unit="program", disable=len(programs) == 1) as bar:

        def note(candidate) -> None:
            report.add_outcome(next(numbers), candidate)
            bar.update()

        return judge_programs(programs, sandbox, part if kind in ("mesh", "cloud") else None, seed=seed, progress=note)


def needs_repair(candidate, number: int, candidates: list) -> bool:
    """A program that failed and that nothing has been tried for yet."""
    return not candidate.execution.ok and all(other.repairs != number for other in candidates)


class Writer:
    """The model, which writes programs for one part."""

    def __init__(self, args, kind: str, part):
        from transformers import AutoConfig

        from ..loading import load, resolve

        self.args = args
        self.source, stand_in = resolve(args.model, "cadrille")
        self.model_type = AutoConfig.from_pretrained(self.source).model_type
        if self.model_type not in ARCHITECTURES:
            raise ValueError(
                f"{self.source} holds a {self.model_type!r} model; programs are written by "
                f"{' and '.join(ARCHITECTURES)}."
            )
        if self.model_type == "cad_recode" and (kind not in ("mesh", "cloud") or args.views):
            raise ValueError("CAD-Recode reads points alone; use a Cadrille model for views and text.")
        with step(f"Loading {self.source}"):
            self.model, self.processor = load(self.source, self.model_type, args.dtype, args.device, args.attn)
        if stand_in:
            say(stand_in.notice)
        self.label = stand_in and stand_in.remark
        self.samples = {
            "mesh": {"meshes": part}, "cloud": {"point_clouds": part}, "views": {"images": part}, "text": {"text": part}
        }[kind]  # fmt: skip
        if kind == "mesh" and args.views:
            self.samples["modality"] = "views"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            self.inputs = dict(self.processor(**self.samples, seed=args.seed))
        for warning in caught:
            say(f"Note: {warning.message}")

    def write(self, found) -> list[str]:
        """Candidate programs; `found` is called with each piece."""
        from tqdm.auto import tqdm

        with tqdm(total=self.args.candidates, desc="writing", unit="program") as bar:

            def note(programs: list[str]) -> None:
                found(programs)
                bar.update(len(programs))

            return self._generate(self.inputs, self.args.candidates, note)

    def repair(self, candidate) -> str:
        """A program in place of one that failed."""
        from ..cad.repair import repair_inputs

        shown = (candidate.program, candidate.execution)
        inputs = repair_inputs(self.processor, self.model_type, self.samples, *shown, seed=self.args.seed)
        return self._generate(inputs, 1, lambda programs: None)[0]

    def _generate(self, inputs, count, note) -> list[str]:
        from ..cad.candidates import generate_programs

        args = self.args
        return generate_programs(
            self.model, self.processor, inputs, count, args.batch_size, args.max_new_tokens, args.temperature,
            seed=args.seed, progress=note,
        )  # fmt: skip
