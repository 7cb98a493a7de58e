"""`python -m convert_weights ARCH --source NAME=PATH_OR_HUB_ID … --output DIR` converts; `hub --model NAME=DIR …
--output REPO` puts converted folders together, `verify DIR` checks either, `publish REPO ORG/NAME` uploads."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .architectures.registry import ARCHITECTURES
from .places import check_suffix, place_of


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 the folder or a source is faulty."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m convert_weights", description=__doc__.replace("`", ""))
    commands = parser.add_subparsers(required=True, metavar="ARCH | hub | verify | publish")
    for name in ARCHITECTURES:
        _add_architecture(commands, name)
    _add_hub(commands)
    verify = commands.add_parser("verify", help="check a converted folder or an assembled repository")
    verify.add_argument("folder", type=Path, metavar="DIR")
    verify.add_argument("--files-only", action="store_true", help="of a repository: do not load and run its models")
    verify.set_defaults(run=_verify)
    _add_publish(commands)
    return parser


def _add_architecture(commands, name: str) -> None:
    command = commands.add_parser(name, help=f"convert checkpoints to a {name} folder")
    command.add_argument(
        "--source",
        action="append",
        required=True,
        type=_named,
        metavar="NAME=PATH_OR_HUB_ID",
        help="a checkpoint: file, folder, [datasets/]OWNER/NAME[@REVISION][:PATH], or a .json key list for a dry run",
    )
    command.add_argument("--output", type=Path, metavar="DIR", help="folder to make (not needed for a dry run)")
    command.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: as in the sources")
    command.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="such as 5GB or 500MB (default: 5GB)")
    command.add_argument(
        "--config", type=Path, metavar="JSON", help="configuration overrides, nested as in config.json"
    )
    command.add_argument(
        "--dry-run", action="store_true", help="print what would be done with every tensor, write nothing"
    )
    command.add_argument("--overwrite", action="store_true", help="replace what an earlier conversion wrote, no more")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=_convert, arch=name)


def _add_hub(commands) -> None:
    command = commands.add_parser("hub", help="assemble converted folders into one Hub repository")
    command.add_argument(
        "--model",
        action="append",
        required=True,
        type=_named,
        metavar="NAME=DIR",
        help="a converted folder; `dsr` goes to the root, any other name is its subfolder's",
    )
    command.add_argument("--output", type=Path, required=True, metavar="REPO", help="folder to make")
    command.add_argument(
        "--license",
        action="append",
        default=[],
        type=_named,
        metavar="MODEL.SOURCE=ID",
        help="licence of a source, such as mit, where it is not the one that its publisher's card gives or is unknown",
    )
    command.add_argument(
        "--eval-results",
        action="append",
        default=[],
        type=_named,
        metavar="MODEL=YAML",
        help="measured results in the Hub's format, for .eval_results/",
    )
    command.add_argument("--link", action="store_true", help="hard links to the weights in place of copies")
    command.add_argument("--overwrite", action="store_true", help="replace what an earlier assembly wrote, no more")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=_hub)


def _add_publish(commands) -> None:
    command = commands.add_parser(
        "publish", help="upload an assembled repository in one commit; without --upload, list what would be sent"
    )
    command.add_argument("folder", type=Path, metavar="REPO", help="what `hub` made")
    command.add_argument("repo_id", metavar="ORG/NAME", help="repository on the Hub, made if it does not exist")
    command.add_argument("--upload", action="store_true", help="send; otherwise nothing leaves this machine")
    command.add_argument("--yes", action="store_true", help="agree that the weights' terms allow this; asked otherwise")
    command.add_argument("--private", action="store_true", help="make it a private repository")
    command.add_argument("--tag", metavar="NAME", help="tag of the release, such as v1.0")
    command.add_argument("--prune", action="store_true", help="delete files there that are not of this release")
    command.add_argument("--message", metavar="TEXT", help="of the commit")
    command.set_defaults(run=_publish)


def _named(argument: str) -> tuple[str, str]:
    name, separator, location = argument.partition("=")
    if not (name and separator and location):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {argument!r}")
    return name, location


def _convert(options: argparse.Namespace) -> int:
    if options.output is None and not options.dry_run:
        raise ValueError("`--output DIR` is needed, unless `--dry-run` is given.")
    sources, overrides = _once("--source", options.source), _read_overrides(options.config)
    for name, location in sources.items():
        path, _, on_the_hub = place_of(name, location)  # refuses before torch is imported
        if not on_the_hub and path.is_file():
            check_suffix(path)
    from .conversion import convert

    report = convert(
        options.arch,
        sources,
        options.output or Path(),
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        config_overrides=overrides,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
        progress=not options.quiet,
    )
    print(report.table(details=options.dry_run))
    return 0


def _once(option: str, named: list[tuple[str, str]]) -> dict[str, str]:
    if len(dict(named)) < len(named):
        raise ValueError(f"`{option}` names a {option[2:]} twice: {[name for name, _ in named]}.")
    return dict(named)


def _hub(options: argparse.Namespace) -> int:
    from .repository.assembly import assemble

    report = assemble(
        _once("--model", options.model),
        options.output,
        licenses=_once("--license", options.license),
        evaluations=_once("--eval-results", options.eval_results),
        link=options.link,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    print(f"{options.output}:\n{report.table()}")
    return 0


def _read_overrides(path: Path | None) -> dict:
    if path is None:
        return {}
    try:
        overrides = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"`--config` {path} is not valid JSON: {error}.") from None
    if not isinstance(overrides, dict):
        raise ValueError(
            f"`--config` {path} must hold an object such as config.json, got a {type(overrides).__name__}."
        )
    return overrides


def _verify(options: argparse.Namespace) -> int:
    from . import verify
    from .verification import unchecked

    problems = verify(options.folder, load=not options.files_only)
    for problem in problems:
        print(problem, file=sys.stderr)
    outside = unchecked(options.folder)
    limits = f" (not checked: the text of {', '.join(outside)})" if outside else ""
    print(f"{options.folder}: {f'{len(problems)} problems' if problems else 'complete and unchanged'}{limits}")
    return 1 if problems else 0


def _publish(options: argparse.Namespace) -> int:
    from .repository.publish import publish

    done = publish(
        options.folder,
        options.repo_id,
        private=options.private,
        tag=options.tag,
        upload=options.upload,
        agree=lambda plan: options.yes or _ask(plan),
        prune=options.prune,
        message=options.message,
    )
    print(done.table())
    print(f"published: {done.url}" if done.url else "nothing was sent: `--upload` sends")
    return 0


def _ask(plan) -> bool:
    """Show the terms and ask; nobody there means no."""
    if not sys.stdin.isatty():
        return False
    print(plan.table())
    return input("Do these terms allow you to publish the weights? [y/N] ").strip().lower() in ("y", "yes")


if __name__ == "__main__":
    sys.exit(main())
