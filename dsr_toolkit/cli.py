"""`dsr`: the command line of the library.

A subcommand is a module of `dsr_toolkit.commands` with `HELP`, `add_arguments(parser)` and `run(args)`. Importing one
must be quick, so that `dsr --help` is; torch and transformers are imported when it runs. A module without
`add_arguments` stands for a program with a parser of its own: its `run` gets the arguments as they are. One that cannot
do without an extra has `NEEDS`, its name: that is looked for before anything else. One that takes models of certain
types has `ARCHITECTURES`, their names: where the command is the whole process, the files of others are not imported.
"""

import argparse
import importlib
import os
import sys

from .console import say
from .extras import needs

COMMANDS = ("demo", "ask", "reconstruct", "segment", "cad", "scene", "batch", "train", "eval", "convert", "serve")


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns 0, or 2 when the input was wrong, which is told in one message without a traceback."""
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser(words[0] if words else "")
    args, rest = parser.parse_known_args(argv)
    if rest and not args.passes_on:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if args.needs:
            needs(args.needs, " ".join(["dsr", args.command, *filter(None, [getattr(args, "task", None)])]))
        if argv is None and args.architectures:
            os.environ.setdefault("DSR_ARCHITECTURES", ",".join(args.architectures))
        return args.run(rest if args.passes_on else args) or 0
    except (ValueError, OSError, ImportError) as error:
        say(f"dsr {args.command}: error: {error}")
        return 2
    except KeyboardInterrupt:
        say(f"dsr {args.command}: interrupted")
        if argv is None:  # as a command: everything is closed; taking torch down in order takes seconds more
            sys.stdout.flush()
            os._exit(130)
        return 130


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Of all subcommands; where `command` is the one that was called, only that one knows its arguments."""
    parser = argparse.ArgumentParser(prog="dsr", description="Spatial models for video and images.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f".commands.{name}", __package__)
        passes_on = not hasattr(module, "add_arguments")
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.__doc__, add_help=not passes_on)
        known = {"needs": getattr(module, "NEEDS", None), "architectures": getattr(module, "ARCHITECTURES", None)}
        subparser.set_defaults(run=module.run, passes_on=passes_on, **known)
        if not passes_on and command in (None, name):
            module.add_arguments(subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
