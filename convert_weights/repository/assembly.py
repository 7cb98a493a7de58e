"""`hub`: every converted model in one folder, as one Hub repository.

`dsr` is at the root, the others are in subfolders. The code is at the root alone, where `from_pretrained(repo,
subfolder=…)` looks for it; all else that a model needs is in its own folder. `hub_report.json` lists the models, every
file's sha256, the terms of the sources, and the tensors that several models hold in common.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from ..architectures.registry import architecture
from ..containers import SafetensorsFile
from ..conversion import OTHER_FILES
from ..remote_code import code_files
from ..report import REPORT_NAME, Report
from ..staging import Staging, check_output, resolve_output
from ..streams import PIECE
from ..verification import check_layout, check_tensors
from ..writer import READ_SIZE, Hasher, sha256_of
from .card import licence_file, make_card
from .files import ROOT, beside_files, path_in_repository
from .licences import Terms, terms
from .report import CARD, HUB_REPORT, HubReport

EVALUATIONS = ".eval_results"
AUTO_CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")


def assemble(
    models: Mapping[str, str | Path],
    output: str | Path,
    *,
    licenses: dict[str, str] | None = None,
    evaluations: Mapping[str, str | Path] | None = None,
    link: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> HubReport:
    """
    Put converted folders together into one Hub repository.

    Every file is checked against the sha256 of its conversion report while it is copied. `output` appears complete or
    not at all; a run that was killed is continued by the same call, without copying finished files again.

    Args:
        models: converted folder by name. `"dsr"` goes to the root, any other name is a subfolder's.
        output: folder to make; it must not exist, or be empty. A link stands for the folder that it leads to.
        licenses: what is known of sources' licences, by `"MODEL.SOURCE"`.
        evaluations: YAML files of measured results in the Hub's format, by model; they go to `.eval_results/`. Nothing
            is written there otherwise.
        link: hard links in place of copies of the weights: no space is needed, but what is changed in one file in place
            is changed in both.
        overwrite: replace a repository that an earlier call assembled, if nothing else is there and nothing was
            changed, the card included.
        progress: show a progress bar.

    Raises:
        ValueError: a folder, name, licence or result is not what it should be; a file is not what its report says.
        OSError: a file is missing, the disk is full, `output` exists or is in use.
    """
    from tqdm.auto import tqdm

    folders = {name: Path(folder).expanduser() for name, folder in models.items()}
    output, replaceable = Path(output), written_files if overwrite else None
    check_output(output, replaceable)
    for name, folder in folders.items():
        if resolve_output(output) in (folder.resolve(), *folder.resolve().parents):
            raise ValueError(f"`output` {output} holds {folder}, which is model `{name}`: choose another output.")
    reports = _check_models(folders)
    results = _read_evaluations(evaluations or {}, folders)
    beside = beside_files()
    all_terms = _check_terms(reports, licenses or {})
    common = _common_layouts(reports)
    report = HubReport(
        models={name: _describe(name, folders[name], found) for name, found in reports.items()},
        terms=[asdict(one) for one in all_terms],
    )
    card = make_card(report.models, all_terms, {name: found.sources for name, found in reports.items()})
    jobs = list(_copies(folders, reports))
    with Staging(output, _fingerprint(reports, card, beside, results, link), replaceable) as staging:
        _check_space(staging, jobs, link)
        total = sum(facts["bytes"] for _, _, facts in jobs)
        bar = tqdm(total=total, unit="B", unit_scale=True, desc="assembling", disable=not progress)
        hashes: dict[str, dict[str, str]] = {name: {} for name in reports}
        with bar:
            for name, file, facts in jobs:
                target = path_in_repository(name, file)
                if target not in staging.finished:
                    digests = _place(folders[name] / file, staging.folder / target, facts, common, link)
                    staging.finish(target, sha256=facts["sha256"], tensors=digests)
                hashes[name] |= staging.finished[target]["tensors"]
                bar.update(facts["bytes"])
        report.shared = _find_shared(reports, hashes)
        _write_others(staging.folder, reports, card, all_terms, beside, results)
        for path in sorted(staging.folder.rglob("*")):
            target = path.relative_to(staging.folder).as_posix()
            if path.is_file():
                known = staging.finished.get(target)
                digest = known["sha256"] if known else sha256_of(path)
                report.files[target] = {"bytes": path.stat().st_size, "sha256": digest}
        report.card = report.files.pop(CARD)
        report.save(staging.folder)
        staging.commit()
    return report


def written_files(folder: Path) -> dict[str, dict]:
    """Bytes and sha256, by name, of the files that an assembly wrote into a folder."""
    report = HubReport.load(folder)
    return {**report.files, HUB_REPORT: {}} | ({CARD: report.card} if report.card else {})


# --------------------------------------------------------------------------------------
# Checks before anything is written
# --------------------------------------------------------------------------------------


def _check_models(folders: dict[str, Path]) -> dict[str, Report]:
    """Conversion reports by model, the root first; folders' headers are read and compared with them."""
    if ROOT not in folders:
        raise ValueError(
            f"`models` must name the one at the root, `{ROOT}=DIR`, got {sorted(folders)}. A single model of another "
            "kind needs no assembling: its converted folder is a Hub repository as it is."
        )
    reports = {}
    for name in sorted(folders, key=lambda name: name != ROOT):
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise ValueError(f"`models`: {name!r} cannot be a subfolder's name: letters, digits and `_` only.")
        report = reports[name] = Report.load(folders[name])
        architecture(report.architecture)
        if name == ROOT and report.architecture != ROOT:
            raise ValueError(f"`models`: `{ROOT}` must be a {ROOT} model, {folders[name]} holds {report.architecture}.")
        problems = []
        files = {}
        for file in {tensor["file"] for tensor in report.tensors.values()}:
            if not (folders[name] / file).is_file():
                raise FileNotFoundError(errno.ENOENT, "is missing", str(folders[name] / file))
            files[file] = SafetensorsFile(folders[name] / file)
        problems += check_tensors(folders[name], report, files)
        problems += check_layout(folders[name], report, files)
        if problems:
            raise ValueError(f"{folders[name]} is not in order, convert it again:\n" + "\n".join(problems[:10]))
    return reports


def _check_terms(reports: dict[str, Report], given: dict[str, str]) -> list[Terms]:
    found = [one for name, r in reports.items() for one in terms(name, r.architecture, r.sources, given)]
    known = [f"{one.model}.{one.source}" for one in found]
    if unknown := sorted(given.keys() - set(known)):
        raise ValueError(f"`licenses` names {unknown}, which are no MODEL.SOURCE; there are {known}.")
    if odd := [value for value in given.values() if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", value)]:
        raise ValueError(f"`licenses` must be identifiers as the Hub writes them, such as cc-by-nc-4.0, got {odd}.")
    return found


def _read_evaluations(evaluations: Mapping[str, str | Path], folders: dict[str, Path]) -> dict[str, str]:
    """Text of the files of `.eval_results/`, parsed by huggingface_hub and written again.

    Raises:
        ValueError: not the Hub's format, a value that is no finite number, or no date of the measurement.
    """
    import yaml
    from huggingface_hub import eval_result_entries_to_yaml, parse_eval_result_entries

    texts = {}
    for name, path in evaluations.items():
        if name not in folders:
            raise ValueError(f"`evaluations` names {name!r}, which is no model here; there are {sorted(folders)}.")
        try:
            entries = parse_eval_result_entries(yaml.safe_load(Path(path).read_text()))
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path} is not in the Hub's format of results, a list of {{dataset: {{id, task_id}}, value, date}}: "
                f"{error!r}."
            ) from None
        if not entries:
            raise ValueError(f"{path} holds no result.")
        for entry in entries:
            number = isinstance(entry.value, (int, float)) and not isinstance(entry.value, bool)
            if not (number and math.isfinite(entry.value)):
                raise ValueError(
                    f"{path}: {entry.dataset_id} has the value {entry.value!r}, expected a measured number."
                )
            if not entry.date:
                raise ValueError(f"{path}: {entry.dataset_id} has no `date`: only what was measured is published.")
            entry.date = str(entry.date)
        texts[f"{EVALUATIONS}/{name}.yaml"] = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
    return texts


def _describe(name: str, folder: Path, report: Report) -> dict:
    """A model's record in the report."""
    auto_map = json.loads((folder / "config.json").read_text()).get("auto_map", {})
    loads = [auto for auto in AUTO_CLASSES if auto_map.get(auto, "").endswith(f".{report.model_class}")]
    if not loads:
        raise ValueError(
            f"{folder / 'config.json'}: `auto_map` names no Auto class for {report.model_class}: {auto_map}."
        )
    sizes: Counter = Counter()
    for tensor in report.tensors.values():
        sizes[tensor["dtype"]] += _nbytes(tensor)
    return {
        "subfolder": "" if name == ROOT else name,
        "architecture": report.architecture,
        "model_class": report.model_class,
        "auto_class": loads[0],
        "processor": "processor_config.json" in report.outputs,
        "parameters": sum(math.prod(tensor["shape"]) for tensor in report.tensors.values()),
        "bytes": sum(sizes.values()),
        "dtype": sizes.most_common(1)[0][0],
    }


def _nbytes(tensor: dict) -> int:
    return math.prod(tensor["shape"]) * getattr(torch, tensor["dtype"]).itemsize


# --------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------


def _copies(folders: dict[str, Path], reports: dict[str, Report]):
    """(model, file, bytes and sha256) of everything that is taken over as it is: all but code and report."""
    for name, report in reports.items():
        for file, facts in report.outputs.items():
            if not file.endswith(".py"):
                yield name, file, facts


def _code_of(reports: dict[str, Report]) -> dict[str, Path]:
    return code_files({report.architecture for report in reports.values()})


def _fingerprint(reports, card, beside, results, link) -> str:
    content = {
        "models": {name: report.outputs for name, report in reports.items()},
        "card": card,
        "code": {name: sha256_of(path) for name, path in {**_code_of(reports), **beside}.items()},
        "results": results,
        "link": link,
        "assembler": Path(__file__).read_text(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_space(staging: Staging, jobs: list, link: bool) -> None:
    left = [facts["bytes"] for name, file, facts in jobs if path_in_repository(name, file) not in staging.finished]
    needed = OTHER_FILES + (0 if link else sum(left))
    free = shutil.disk_usage(staging.folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free", str(staging.output)
        )


def _place(source: Path, target: Path, facts: dict, common: set[tuple], link: bool) -> dict[str, str]:
    """Copy or link a file, checking its sha256; returns the sha256 of tensors that another model may hold."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # half a copy of an interrupted run
    if not source.is_file():
        raise FileNotFoundError(errno.ENOENT, "is missing", str(source))
    if link and source.suffix == ".safetensors":
        os.link(source, target)
        digest, tensors = _read(source, common, None)
    else:
        with open(target, "wb") as file:
            digest, tensors = _read(source, common, file)
            file.flush()
            os.fsync(file.fileno())
    if digest != facts["sha256"]:
        raise ValueError(f"{source}: sha256 is {digest}, its {REPORT_NAME} says {facts['sha256']}: convert it again.")
    return tensors


def _read(path: Path, common: set[tuple], file) -> tuple[str, dict[str, str]]:
    """sha256 of a file, and of its tensors of a layout in `common`; all is written to `file`, if there is one."""
    whole, tensors = Hasher(), {}  # in a thread: it costs as much as the rest
    try:
        for key, layout, pieces in _pieces(path):
            own = hashlib.sha256(repr(layout).encode()) if layout in common else None
            for data in pieces:
                whole.update(data)
                if own:
                    own.update(data)
                if file:
                    file.write(data)
            if own:
                tensors[key] = own.hexdigest()
    finally:
        digest = whole.hexdigest()
    return digest, tensors


def _pieces(path: Path) -> Iterator[tuple]:
    """A file from its begin to its end: (name, (dtype, shape), pieces) of every tensor; other parts have no name."""
    with open(path, "rb") as file:
        if path.suffix != ".safetensors":
            yield None, None, iter(lambda: file.read(READ_SIZE), b"")
            return
        weights = SafetensorsFile(path)
        yield None, None, [file.read(weights.data_start)]
    for key, info in weights.tensors.items():
        flat = weights.read(key).reshape(-1)
        split = flat.split(max(1, PIECE // flat.dtype.itemsize)) if flat.numel() else ()
        layout = (str(info.dtype).removeprefix("torch."), tuple(info.shape))
        yield key, layout, (piece.view(torch.uint8).numpy() for piece in split)


def _common_layouts(reports: dict[str, Report]) -> set[tuple]:
    """(dtype, shape) of tensors of more than one model: others cannot be identical."""
    counts: Counter = Counter()
    for report in reports.values():
        counts.update({(tensor["dtype"], tuple(tensor["shape"])) for tensor in report.tensors.values()})
    return {layout for layout, models in counts.items() if models > 1}


def _find_shared(reports: dict[str, Report], hashes: dict[str, dict[str, str]]) -> dict[str, dict]:
    """Tensors that several models hold, the largest first."""
    found: dict[str, dict] = {}
    for name, digests in hashes.items():
        for key, digest in digests.items():
            tensor = reports[name].tensors[key]
            facts = {"dtype": tensor["dtype"], "shape": tensor["shape"], "bytes": _nbytes(tensor), "in": {}}
            found.setdefault(digest, facts)["in"].setdefault(name, []).append(key)
    shared = {digest: facts for digest, facts in found.items() if len(facts["in"]) > 1}
    return dict(sorted(shared.items(), key=lambda item: -item[1]["bytes"]))


def _write_others(
    folder: Path,
    reports: dict[str, Report],
    card: str,
    all_terms: list[Terms],
    beside: dict[str, Path],
    results: dict[str, str],
) -> None:
    """Reports of the conversions without the code, the code, the card, terms, handler and measured results."""
    code = _code_of(reports)
    for name, report in reports.items():
        report.outputs = {file: facts for file, facts in report.outputs.items() if not file.endswith(".py")}
        report.save(folder / path_in_repository(name, "."))
    for name, path in {**code, **beside}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
    (folder / CARD).write_text(card)
    (folder / "LICENSE.md").write_text(licence_file(all_terms))
    for name, text in results.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
