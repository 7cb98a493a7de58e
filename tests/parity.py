"""Numerical parity with the published implementations: `python -m tests.parity ARCH REFERENCE_DIR`.

A reference folder holds *suites*: folders with a `cases.json`, one `case_*.safetensors` per case (`input.*`, `output.*`
and `intermediate.*` tensors made by the published code) and usually a small checkpoint in its published layout. The
harness

1. converts each checkpoint with `convert_weights`, as a user would,
2. loads the result through transformers' Auto classes in a process that cannot import the source tree, so that the
   code in the converted folder is what runs,
3. runs every case and compares **every** stored tensor that is not an input, and the numbers of `cases.json` that are
   results, and the other `.json` files of results beside them.

What is stored and not produced is a failure, except what `cases.json` marks as optional, derived or an upstream bug.

An architecture takes part with a module `tests/parity_adapters/ARCH.py`:

    def conversions(suite) -> dict[str, dict]
        # The checkpoints of a suite: {name: arguments of convert_weights.convert}, {} if it has none.
    def run_case(case, models) -> Result | None
        # Isolated process. None: this case needs no converted model, see run_function_case.
    def run_function_case(case) -> Result | None                                                    # optional
        # The library's own process, for functions that do not ship with the weights (losses, metrics).

Both look at what a case contains (`case.inputs`, `case.meta`, `case.expected`), never at its name, and read every
setting from the case, from what lies beside the checkpoint or from the checkpoint itself (`published_overrides`).
Whatever keeps one case from being compared, a conversion of its own included, fails that case and no other. With
`PARITY_TRACEBACK=1` in the environment it is printed in full.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import json
import os
import re
import sys
import tempfile
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .isolated import isolated
from .parity_cases import Case, Suite, find_suites
from .parity_results import ConversionFailed, Models, Result, Row, compare_case

ROOT = Path(__file__).resolve().parent.parent
SOURCE_MODULES = ("configuration_dsr", "processing_dsr", "modeling_dsr")


def adapters() -> list[str]:
    return sorted(path.stem for path in (ROOT / "tests" / "parity_adapters").glob("*.py") if path.stem != "__init__")


def load_adapter(arch: str):
    if arch not in adapters():
        raise ValueError(f"no parity adapter for {arch!r}; there are adapters for {', '.join(adapters())}.")
    return importlib.import_module(f"tests.parity_adapters.{arch}")


def describe(error: BaseException) -> str:
    if isinstance(error, ConversionFailed):
        return str(error)
    text = " ".join(str(error).split())
    return f"did not run: {type(error).__name__}: {text[:300]}"


def case_rows(function, case: Case, *arguments) -> list[Row] | None:
    """The rows of one case that `function` runs, None if it declines. Whatever goes wrong is a row of this case."""
    if case.broken:
        return [failed_case(case, case.broken)]
    try:
        if case.expected and all((case.excuse(tensor) or (False,))[0] for tensor in case.expected):
            return compare_case(case, Result())  # nothing of it is to be reproduced
        result = function(case, *arguments)
        return None if result is None else compare_case(case, result)
    except Exception as error:
        if os.environ.get("PARITY_TRACEBACK"):
            traceback.print_exc()
        return uncompared(case, describe(error))


def uncompared(case: Case, reason: str) -> list[Row]:
    """A failure for every stored result, or one for the case if they cannot be read."""
    try:
        return compare_case(case, None, reason)
    except Exception as error:
        return [failed_case(case, f"{reason}; {describe(error)}" if reason != describe(error) else reason)]


def failed_case(case: Case, reason: str) -> Row:
    return Row(case.suite.name, case.name, "(all)", None, "", False, reason)


def convert_suite(adapter, suite: Suite, arch: str, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Convert the suite's checkpoints with the real converter; (folder by name, reason by name of what failed)."""
    from convert_weights import convert

    folders, failures = {}, {}
    for name, arguments in adapter.conversions(suite).items():
        output = folder / re.sub(r"\W", "_", f"{suite.name}_{name}")
        try:
            convert(arguments.pop("arch", arch), output=output, progress=False, **arguments)
        except Exception as error:
            if os.environ.get("PARITY_TRACEBACK"):
                traceback.print_exc()
            failures[name] = describe(error).replace("did not run", "conversion failed")
        else:
            folders[name] = str(output)
    return folders, failures


class _NoSourceTree(importlib.abc.MetaPathFinder):
    """Makes the library's own modules unimportable, so that a folder's remote code must stand alone."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in SOURCE_MODULES:
            raise ImportError(f"{fullname} is not importable here: converted folders must bring their own code")
        return None


def worker(job: str) -> None:
    """Body of the isolated process: run the cases of `job`, write a line of JSON as each is done."""
    sys.meta_path.insert(0, _NoSourceTree())
    task = json.loads(Path(job).read_text())
    adapter = load_adapter(task["arch"])
    with open(task["answers"], "a") as answers:
        for index, suite in enumerate(find_suites(Path(task["reference"]))):
            models = Models(task["folders"].get(str(index), {}), task["failures"].get(str(index)))
            for case in suite.cases:
                if [index, case.name] not in task["left"]:
                    continue
                rows = case_rows(adapter.run_case, case, models)
                answer = {"suite": index, "case": case.name, "rows": rows and [asdict(row) for row in rows]}
                print(json.dumps(answer), file=answers, flush=True)


def run_isolated(task: dict[str, Any], folder: Path) -> dict[tuple[int, str], list[Row] | str | None]:
    """
    Run `worker` in a process of its own, without the source tree and with a code cache of its own.

    Returns:
        By suite and case: rows, None where the adapter declined, or why the process died. Another process then goes on
        with the cases behind; of two that die without a case between them, the second one's reason is that of all.
    """
    job, answers = folder / "job.json", folder / "answers.jsonl"
    found: dict[tuple[int, str], list[Row] | str | None] = {}
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import transformers.modeling_utils; "
    process = isolated("-c", code + "from tests import isolated, parity; isolated.serve(parity.worker)")
    left = [tuple(case) for case in task["cases"]]
    while left:
        answers.unlink(missing_ok=True)
        job.write_text(json.dumps({**task, "left": left, "answers": str(answers)}))
        status, printed = process.run(job)
        if os.environ.get("PARITY_TRACEBACK"):
            print(printed, file=sys.stderr)
        lines = answers.read_text().splitlines() if answers.exists() else []
        for line in map(json.loads, lines):
            rows = line["rows"]
            found[line["suite"], line["case"]] = rows and [Row(**row) for row in rows]
        left = [case for case in left if case not in found]
        if left and not status:
            raise RuntimeError(f"the isolated process left out {left}")
        died = " ".join(printed[-600:].split())
        for case in left if not lines else left[:1]:
            found[case] = f"its process died ({status}): {died}"
        left = [case for case in left if case not in found]
    return found


def run_parity(arch: str, reference: str | Path) -> list[Row]:
    """Convert, load and run every case below `reference`; one row per stored result, in the order of the cases."""
    reference = Path(reference).resolve()
    if not reference.is_dir():
        raise ValueError(f"the reference folder {reference} does not exist.")
    adapter = load_adapter(arch)
    suites = find_suites(reference)
    with tempfile.TemporaryDirectory(prefix="parity_") as temporary:
        folder, folders, failures, refused = Path(temporary), {}, {}, {}
        for index, suite in enumerate(suites):
            try:
                folders[str(index)], failures[str(index)] = convert_suite(adapter, suite, arch, folder)
            except Exception as error:  # it cannot be told what to convert
                if os.environ.get("PARITY_TRACEBACK"):
                    traceback.print_exc()
                refused[index] = describe(error).replace("did not run", "conversion failed")
        # JSON files of results beside the suites may concern the code that any of them converts to.
        converted = [found for found in folders.values() if found]
        converted.sort(key=lambda found: not any(architecture_of(folder) == arch for folder in found.values()))
        first = next(iter(converted), {})
        folders = {index: found or ({} if failures[index] else first) for index, found in folders.items()}
        cases = [(i, case.name) for i, suite in enumerate(suites) if i not in refused for case in suite.cases]
        task = {"arch": arch, "reference": str(reference), "folders": folders, "failures": failures, "cases": cases}
        found = run_isolated(task, folder)
    rows = []
    for index, suite in enumerate(suites):
        for case in suite.cases:
            answer = found.get((index, case.name), refused.get(index))
            if answer is None:
                here = getattr(adapter, "run_function_case", lambda case: None)
                answer = case_rows(here, case) or uncompared(case, "")
            rows += uncompared(case, answer) if isinstance(answer, str) else answer
    return rows


def architecture_of(folder: str | Path) -> str:
    return json.loads((Path(folder) / "conversion_report.json").read_text())["architecture"]


def format_table(rows: list[Row]) -> str:
    """The rows as text, and a last line with their numbers."""
    words = {True: "pass", False: "FAIL", None: "-"}
    table = [("suite", "case", "tensor", "max abs diff", "tolerance", "", "")]
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference:.2e}"
        table.append((row.suite, row.case, row.tensor, difference, row.tolerance, words[row.passed], row.note))
    widths = [max(len(line[column]) for line in table) for column in range(6)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths)) + f"  {line[6]}" for line in table]
    passed, failed = (sum(row.passed is value for row in rows) for value in (True, False))
    lines.append(f"{passed} passed, {failed} failed, {len(rows) - passed - failed} not compared")
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__.split("\n")[0])
    parser.add_argument("arch", metavar="ARCH", help=f"one of: {', '.join(adapters())}")
    parser.add_argument("reference", metavar="REFERENCE_DIR", help="folder laid out like reference/ARCH")
    options = parser.parse_args(arguments)
    try:
        rows = run_parity(options.arch, options.reference)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_table(rows))
    return 0 if any(row.passed for row in rows) and not any(row.passed is False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
