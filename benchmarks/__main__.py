"""`python -m benchmarks [NAME …] [--json FILE] [--list]`: run benchmarks, print their ratios, mark missed targets."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import traceback
from pathlib import Path

import benchmarks
from benchmarks.harness import format_rows, machine


def discover() -> dict[str, object]:
    """{NAME: module} of every benchmark in this package, by name."""
    names = [info.name for info in pkgutil.iter_modules(benchmarks.__path__) if not info.name.startswith("_")]
    modules = [importlib.import_module(f"benchmarks.{name}") for name in names if name != "harness"]
    return {module.NAME: module for module in sorted((m for m in modules if hasattr(m, "NAME")), key=lambda m: m.NAME)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="benchmarks to run, or prefixes such as `dsr`; default all"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args(arguments)
    found = discover()
    for wanted in options.names:
        if not any(name == wanted or name.startswith(wanted + ".") for name in found):
            parser.error(f"no benchmark {wanted!r}; there are {', '.join(found)}")
    if options.names:
        keep = lambda name: any(name == wanted or name.startswith(wanted + ".") for wanted in options.names)  # noqa: E731
        found = {name: module for name, module in found.items() if keep(name)}
    if options.list:
        print("\n".join(found))
        return 0

    print(machine(), flush=True)
    rows, failed = [], []
    for name, module in found.items():
        print(f"{name}: {module.__doc__.strip().splitlines()[0]}", file=sys.stderr, flush=True)
        try:
            rows += module.run()
        except Exception:  # one broken benchmark does not take the others' numbers away
            traceback.print_exc()
            failed.append(name)
    print(format_rows(rows))
    if failed:
        print(f"failed: {', '.join(failed)}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
