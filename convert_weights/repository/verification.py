"""`verify REPO`: is an assembled repository whole, and does it work for someone who has nothing else?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ..containers import SafetensorsFile
from ..remote_code import check_code
from ..report import REPORT_NAME, Report
from ..verification import check_file, check_layout, check_tensors, check_unexpected
from .card import check_card
from .files import repository_code
from .report import HUB_REPORT, HubReport

SMOKE = Path(__file__).with_name("smoke.py")
LINES = 12  # of a dead process's last words


def verify_repository(folder: str | Path, *, load: bool = True, progress: bool = True) -> list[str]:
    """
    Check a repository made by `assemble`.

    Hashes and sizes of all files; names, shapes, dtypes and finiteness of tensors; each model's tensors against the
    layout that its configuration describes; the code against this library; the card. With `load`, every model and
    processor is loaded through the Auto classes and run once on made-up input, in a process that cannot import this
    library.

    Returns:
        What is wrong, one line each, naming file and key; empty if all is well.

    Raises:
        FileNotFoundError: the folder has no `hub_report.json`.
    """
    from tqdm.auto import tqdm

    folder = Path(folder)
    report = HubReport.load(folder)
    problems: list[str] = []
    weights: dict[Path, dict[str, SafetensorsFile]] = {}
    total = sum(facts["bytes"] for facts in report.files.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="verifying", disable=not progress) as bar:
        for name, facts in report.files.items():
            path = folder / name
            problems += check_file(path, facts, weights.setdefault(path.parent, {}))
            bar.update(facts["bytes"])
    problems += check_unexpected(folder, {*report.files, HUB_REPORT}, HUB_REPORT)
    for record in report.models.values():
        inside = folder / record["subfolder"]
        problems += _check_model(inside, record, weights.get(inside, {}))
    problems += check_code(folder, repository_code(report.model_types))
    problems += _check_card(folder)
    if load and not problems:  # what is damaged is not worth loading
        problems += try_out(folder, report.models)
    return problems


def _check_model(inside: Path, record: dict, files: dict[str, SafetensorsFile]) -> list[str]:
    try:
        report = Report.load(inside)
    except (OSError, ValueError) as error:
        return [str(error)]
    if (report.architecture, report.model_class) != (record["architecture"], record["model_class"]):
        return [f"{inside / REPORT_NAME}: describes a {report.model_class}, {HUB_REPORT} a {record['model_class']}."]
    missing = [f"{inside / file}: missing." for file in report.outputs if not (inside / file).is_file()]
    return missing + check_tensors(inside, report, files) + check_layout(inside, report, files)


def _check_card(folder: Path) -> list[str]:
    try:
        check_card((folder / "README.md").read_text())
    except (OSError, ValueError) as error:
        return [f"{folder / 'README.md'}: {error}"]
    return []


def try_out(source: str | Path, models: dict[str, dict], outputs: Path | None = None, **environment: str) -> list[str]:
    """
    Load and run every model in a process that cannot import this library.

    Args:
        source: a folder, or a Hub id.
        models: records of `HubReport.models`.
        outputs: folder for each model's output tensors, `NAME.pt`.
        environment: additional variables of the process.
    """
    problems, left = [], dict(models)
    source = str(Path(source).absolute()) if Path(source).is_dir() else str(source)
    while left:
        with tempfile.TemporaryDirectory(prefix="verify-") as work:
            answers = Path(work) / "answers.json"
            job = {"source": source, "models": left, "answers": str(answers), "outputs": outputs and str(outputs)}
            (Path(work) / "job.json").write_text(json.dumps(job))
            variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            variables |= {"HF_MODULES_CACHE": f"{work}/modules", "HF_HUB_OFFLINE": "1", **environment}
            ended = subprocess.run(
                [sys.executable, "-P", SMOKE, f"{work}/job.json"],
                cwd=work,
                env=variables,
                capture_output=True,
                text=True,
            )
            found = json.loads(answers.read_text()) if answers.exists() else {}
        problems += [f"{source}: {name} does not work: {answer}" for name, answer in found.items() if answer]
        done = {name for name, answer in found.items() if answer is not None}
        died = [name for name in left if name not in done][:1]
        if died:  # killed, such as for want of memory; the others get a process of their own
            words = " | ".join(ended.stderr.strip().splitlines()[-LINES:])
            problems.append(f"{source}: the process died ({ended.returncode}) with {died[0]}: {words}")
        left = {name: record for name, record in left.items() if name not in done and name not in died}
    return problems
