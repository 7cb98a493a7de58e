"""Show the library at work, without a network: tiny published-layout checkpoints go through the real converter, the
result is loaded as from the Hub, and each architecture shows what it does. The tiny weights are random."""

import importlib
import json
import shutil
from pathlib import Path

from ..console import RANDOM_WEIGHTS_NOTICE, say
from ..demo import SECTIONS

HELP = "see the library at work, offline"
REPORT = "demo.json"


def add_arguments(parser) -> None:
    choice = f"what to show: {', '.join(SECTIONS)} (default: all)"
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=choice)
    parser.add_argument("--model", metavar="REPO_OR_DIR", help="use this converted model; its own code is run")
    parser.add_argument("-o", "--output", default="dsr-demo", metavar="DIR", help="where to write (default: dsr-demo)")


def run(args) -> None:
    names = args.sections or list(SECTIONS)
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        raise ValueError(f"there is no section {', '.join(unknown)}; choose from {', '.join(SECTIONS)}.")
    model = args.model
    if model is not None:
        names, model = _section_of(model, args.sections)
    output = Path(args.output)
    earlier = _prepare(output)
    if model is None:
        say(RANDOM_WEIGHTS_NOTICE)
    for name in names:
        section = importlib.import_module(SECTIONS[name])
        print(f"\n== {section.TITLE}")
        folder = output / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        earlier[name] = section.run(folder, model)
        (output / REPORT).write_text(json.dumps(earlier, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{output / REPORT}")


def _section_of(model: str, sections: list[str]) -> tuple[list[str], str | None]:
    """The section that shows the kind of `model`, and where to load it from: None, the tiny one, if out of reach."""
    from transformers import AutoConfig

    from ..loading import resolve

    wanted = sections or ["dsr"]
    source, is_random = resolve(model, wanted[0])
    if is_random:
        return wanted, None
    kind = AutoConfig.from_pretrained(source).model_type
    if kind not in SECTIONS or (sections and sections != [kind]):
        raise ValueError(f"{model} holds a {kind!r} model; sections asked for: {', '.join(wanted)}.")
    return [kind], source


def _prepare(output: Path) -> dict:
    """Make the output folder; one that is not empty must be an earlier demo's, whose report is returned."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; choose a folder with -o.")
    report = output / REPORT
    if report.is_file():
        return json.loads(report.read_text(encoding="utf-8"))
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty and not an earlier demo's; choose another folder with -o.")
    output.mkdir(parents=True, exist_ok=True)
    report.write_text("{}\n", encoding="utf-8")
    return {}
