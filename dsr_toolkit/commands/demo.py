"""See true answers, without a network: the tiny models that this library trained on its worlds look at samples that
they never saw, and what they say stands beside what is true. overview.png shows all of it on one page."""

import importlib

from ..demo import SECTIONS
from ..outputs import Output, add_output_arguments, free_folder
from ..worlds import WORLDS, contact_sheet, make_world

HELP = "see the tiny models at work, offline"
REPORT, OVERVIEW = "demo.json", "overview.png"
HEADING = "Computed by `dsr demo`. Each model was trained from nothing by `dsr train --recipe tiny`, on other samples."


def add_arguments(parser) -> None:
    choice = f"what to show: {', '.join(SECTIONS)} (default: all)"
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=choice)
    parser.add_argument("--model", metavar="REPO_OR_DIR", help="use this converted model; its own code is run")
    parser.add_argument("--world", metavar="NAME", choices=list(WORLDS), help=f"show a world: {', '.join(WORLDS)}")
    parser.add_argument("--seed", type=int, metavar="N", help="of the world (default: 0)")
    parser.add_argument("--count", type=int, metavar="K", help="samples of the world, a page each (default: 1)")
    add_output_arguments(parser, "dsr-demo")


def run(args) -> None:
    if args.world is not None:
        _show_world(args)
        return
    if args.seed is not None or args.count is not None:
        raise ValueError("--seed and --count go with --world.")
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
        names=[*(f"{name}/*" for name in names), OVERVIEW],
        overwrite=args.overwrite,
    )
    from ..demo import page
    from ..loading import resolve
    from ..tiny.shipped import shipped

    report, panels = {}, []
    with output:
        output.clear()
        for name in names:
            section = importlib.import_module(SECTIONS[name])
            print(f"\n== {section.TITLE}")
            if not (args.sections or model or name in shipped()):
                reason = f"no trained model of this kind is carried; `dsr demo {name}` shows what random weights give"
                print(f"   Not shown: {reason}.")
                report[name] = {"not_trained": reason}
                panels.append(page.not_trained(section.TITLE, reason))
                continue
            if model is None:
                print(f"   {resolve(None, name)[1].remark}")
            folder = output.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            report[name], panel = section.run(folder, model)
            panels.append(panel)
            output.adopt(name)
            output.report(report)
        remark = HEADING if model is None else f"Computed by `dsr demo --model {model}`."
        page.overview(panels, remark).save(output.path(OVERVIEW), optimize=True)
        (picture,) = output.publish(OVERVIEW)
        target = output.report(report)
    print(f"\n{picture}")
    print(target)


def _show_world(args) -> None:
    """A contact sheet of each of a world's first samples."""
    if args.sections or args.model is not None:
        raise ValueError("--world shows samples of a world alone: no section, no --model.")
    seed, count = args.seed or 0, 1 if args.count is None else args.count
    if count < 1:
        raise ValueError(f"--count must be at least 1, got {count}.")
    world = make_world(args.world, seed)
    folder = args.output or free_folder("dsr-demo")
    output = Output(folder, REPORT, names=[f"{args.world}_*.png"], overwrite=args.overwrite)
    with output:
        for index in range(count):
            name = f"{args.world}_{seed}_{index:03d}.png"
            contact_sheet(args.world, world[index]).save(output.path(name))
            print(output.publish(name)[0])
        output.report({"world": args.world, "seed": seed, "count": count})


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
