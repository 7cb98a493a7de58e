"""Show the library at work, without a network: tiny published-layout checkpoints go through the real converter, the
result is loaded as from the Hub, and each architecture shows what it does. The tiny weights are random."""

import importlib

from ..console import RANDOM_WEIGHTS_NOTICE, say
from ..demo import SECTIONS
from ..outputs import Output, add_output_arguments, free_folder

HELP = "see the library at work, offline"
REPORT = "demo.json"


def add_arguments(parser) -> None:
    choice = f"what to show: {', '.join(SECTIONS)} (default: all)"
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=choice)
    parser.add_argument("--model", metavar="REPO_OR_DIR", help="use this converted model; its own code is run")
    add_output_arguments(parser, "dsr-demo")


def run(args) -> None:
    names = args.sections or list(SECTIONS)
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        raise ValueError(f"there is no section {', '.join(unknown)}; choose from {', '.join(SECTIONS)}.")
    model = args.model
    if model is not None:
        names, model = _section_of(model, args.sections)
    output = Output(
        args.output or free_folder("dsr-demo"),
        REPORT,
        names=[f"{name}/*" for name in names],
        overwrite=args.overwrite,
    )
    if model is None:
        say(RANDOM_WEIGHTS_NOTICE)
    report: dict = {}
    with output:
        output.clear()
        for name in names:
            section = importlib.import_module(SECTIONS[name])
            print(f"\n== {section.TITLE}")
            folder = output.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            report[name] = section.run(folder, model)
            output.adopt(name)
            target = output.report(report)
    print(f"\n{target}")


def _section_of(model: str, sections: list[str]) -> tuple[list[str], str | None]:
    """The section that shows the kind of `model`, and where to load it from."""
    from transformers import AutoConfig

    from ..loading import resolve

    wanted = sections or ["dsr"]
    source, _ = resolve(model, wanted[0])
    kind = AutoConfig.from_pretrained(source).model_type
    if kind not in SECTIONS or (sections and sections != [kind]):
        raise ValueError(f"{model} holds a {kind!r} model; sections asked for: {', '.join(wanted)}.")
    return [kind], source
