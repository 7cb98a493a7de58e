"""
`python -m benchmarks [NAME …] [--json FILE] [--list]`: run benchmarks, print their ratios, mark missed targets.

Those called `full.…` take models of the published sizes, minutes and up to 14 GB: they run when they are named.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import sys
import traceback
from pathlib import Path

import torch

import benchmarks
from benchmarks import harness
from benchmarks.harness import format_rows, machine

GPU_MEMORY = 75e9  # bytes; cards that are sold as 80 GB have a little less
GPU_ROW_SECONDS = 12.0  # of timing for a row, so that all of them take less than eight minutes


def discover() -> dict[str, object]:
    """{NAME: module} of every benchmark in this package, by name."""
    names = [info.name for info in pkgutil.iter_modules(benchmarks.__path__) if not info.name.startswith("_")]
    modules = [importlib.import_module(f"benchmarks.{name}") for name in names if name != "harness"]
    return {module.NAME: module for module in sorted((m for m in modules if hasattr(m, "NAME")), key=lambda m: m.NAME)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="benchmarks to run, or prefixes such as `dsr`; default all but `full`"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--seconds", type=float, metavar="N", help="begin no more rounds of a row after N seconds")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="small models in the benchmarks of published sizes: a trial")
    size.add_argument(
        "--gpu", action="store_true", help="the benchmarks of published sizes, sized for one GPU of 80 GB"
    )
    parser.add_argument(
        "--original", type=Path, metavar="PATH", help="hold against the published code itself, from a clone in PATH"
    )
    options = parser.parse_args(arguments)
    found = chosen(discover(), options, parser)
    if options.list:
        print("\n".join(found))
        return 0
    settings = {name: asked(module, options) for name, module in found.items()}
    if options.gpu:
        options.seconds = options.seconds or GPU_ROW_SECONDS
    if options.seconds is not None:
        harness.ROW_SECONDS = options.seconds

    print(machine(), flush=True)
    rows, failed = [], []
    for name, module in found.items():
        print(f"{name}: {module.__doc__.strip().splitlines()[0]}", file=sys.stderr, flush=True)
        try:
            rows += module.run(**settings[name])
        except Exception:  # one broken benchmark does not take the others' numbers away
            traceback.print_exc()
            failed.append(name)
    print(format_rows(rows))
    if failed:
        print(f"failed: {', '.join(failed)}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if failed else 0


def chosen(found: dict, options, parser) -> dict:
    """The benchmarks that are asked for; what cannot be is refused by the parser."""
    for wanted in options.names:
        if not any(name == wanted or name.startswith(wanted + ".") for name in found):
            parser.error(f"no benchmark {wanted!r}; there are {', '.join(found)}")
    if options.gpu:
        found = {name: module for name, module in found.items() if "gpu" in getattr(module, "SIZES", ())}
        if not options.list and not torch.cuda.is_available():
            parser.error(
                f"--gpu needs a CUDA device of {GPU_MEMORY / 1e9:.0f} GB, and torch finds none here. On a CPU the same "
                "benchmarks run as `python -m benchmarks full`."
            )
        if not options.list and torch.cuda.get_device_properties(0).total_memory < GPU_MEMORY:
            parser.error(
                f"--gpu needs a CUDA device of {GPU_MEMORY / 1e9:.0f} GB; {torch.cuda.get_device_name()} has less."
            )
    if options.names:
        keep = lambda name: any(name == wanted or name.startswith(wanted + ".") for wanted in options.names)  # noqa: E731
        return {name: module for name, module in found.items() if keep(name)}
    return {name: module for name, module in found.items() if options.gpu or not name.startswith("full.")}


def asked(module, options) -> dict:
    """
    What `run` of a benchmark is called with.

    Raises:
        ValueError: it does not know an option.
    """
    size = "gpu" if options.gpu else "small" if options.small else None
    given = {"size": size, "original": str(options.original) if options.original else None}
    given = {name: value for name, value in given.items() if value is not None}
    unknown = given.keys() - inspect.signature(module.run).parameters.keys()
    if unknown:
        flags = {"size": "--small", "original": "--original"}
        raise SystemExit(f"{module.NAME} has no {flags[min(unknown)]}: name benchmarks that do, such as `full.pi3`.")
    return given


if __name__ == "__main__":
    sys.exit(main())
