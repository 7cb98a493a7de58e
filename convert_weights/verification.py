"""`verify`: does a converted folder still hold what the conversion wrote, and does this library load it?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from .architectures.registry import model_class
from .containers import SafetensorsFile
from .recipe import skeleton
from .remote_code import check_code, code_files
from .report import REPORT_NAME, Report
from .streams import PIECE, is_finite
from .writer import INDEX_NAME, sha256_of

UNCHECKED = ("README.md", ".gitattributes")  # of a person's or the Hub's own making, and nothing loads them
FOREIGN_FOLDERS = (".git", ".cache")  # of the tools that fetch a folder


def verify_folder(folder: str | Path, *, progress: bool = True) -> list[str]:
    """
    Check a converted folder. Of a repository that `convert_weights hub` assembled, see `verify_repository`.

    Hashes and sizes of all files against the conversion report; names, shapes and dtypes of tensors, every number
    finite; the index; the code against this library; the model that `config.json` describes, built without storage,
    against the tensors.

    Returns:
        What is wrong, one line each, naming file and key; empty if all is well.

    Raises:
        FileNotFoundError: the folder has no conversion report.
    """
    from tqdm.auto import tqdm

    folder = Path(folder)
    report = Report.load(folder)
    problems: list[str] = []
    files: dict[str, SafetensorsFile] = {}
    total = sum(facts["bytes"] for facts in report.outputs.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="verifying", disable=not progress) as bar:
        for name, facts in report.outputs.items():
            problems += check_file(folder / name, facts, files)
            bar.update(facts["bytes"])
    problems += check_unexpected(folder, {*report.outputs, REPORT_NAME}, REPORT_NAME)
    problems += check_tensors(folder, report, files)
    problems += check_code(folder, code_files([report.architecture]))
    problems += check_layout(folder, report, files)
    return problems


def check_unexpected(folder: Path, known: set[str], report: str) -> list[str]:
    """Files that nobody wrote on record: a library, an adapter's configuration or a module changes what is loaded."""
    problems = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() and not path.is_symlink():
            continue
        if name.parts[0] not in (*UNCHECKED, *FOREIGN_FOLDERS) and name.as_posix() not in known:
            problems.append(f"{path}: not in {report}.")
    return problems


def unchecked(folder: str | Path) -> list[str]:
    """Names of files in a folder that no check here looks into."""
    return [name for name in UNCHECKED if (Path(folder) / name).exists()]


def check_file(path: Path, facts: dict, files: dict[str, SafetensorsFile]) -> list[str]:
    """Size and hash; of weights also the header, and that every number is finite. Weights are read once."""
    if not path.is_file():
        return [f"{path}: missing."]
    problems: list[str] = []
    if path.suffix != ".safetensors":
        digest = sha256_of(path)
    else:
        try:
            files[path.name] = file = SafetensorsFile(path)
        except ValueError as error:
            return [str(error)]
        digest, problems = _read_weights(file)
    if path.stat().st_size != facts["bytes"]:
        problems.append(f"{path}: {path.stat().st_size} bytes, expected {facts['bytes']}.")
    elif digest != facts["sha256"]:
        problems.append(f"{path}: sha256 is {digest}, expected {facts['sha256']}.")
    return problems


def _read_weights(file: SafetensorsFile) -> tuple[str, list[str]]:
    """sha256 and non-finite tensors, piece by piece and in the order of the file."""
    digest, problems = hashlib.sha256(), []
    with open(file.path, "rb") as handle:
        digest.update(handle.read(file.data_start))
    for key in file.tensors:
        flat = file.read(key).reshape(-1)
        pieces = flat.split(max(1, PIECE // flat.dtype.itemsize)) if flat.numel() else ()
        finite = True
        for piece in pieces:
            digest.update(piece.view(torch.uint8).numpy())
            finite = finite and is_finite(piece)
        if not finite:
            problems.append(f"{file.path}: `{key}` holds NaN or infinite values.")
    return digest.hexdigest(), problems


def check_tensors(folder: Path, report: Report, files: dict[str, SafetensorsFile]) -> list[str]:
    """Names, shapes and dtypes in the headers, against the report and the index."""
    problems, found = [], {}
    for name, file in files.items():
        for key, info in file.tensors.items():
            found[key] = (name, list(info.shape), str(info.dtype).removeprefix("torch."))
    for key, tensor in report.tensors.items():
        expected = (tensor["file"], tensor["shape"], tensor["dtype"])
        if tensor["file"] in files and found.get(key) != expected:
            problems.append(f"{folder / tensor['file']}: `{key}` is {found.get(key, 'missing')}, expected {expected}.")
    for key in sorted(found.keys() - report.tensors.keys()):
        problems.append(f"{folder / found[key][0]}: `{key}` is not in {REPORT_NAME}.")
    index = folder / INDEX_NAME
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
        except (ValueError, KeyError) as error:
            return [*problems, f"{index}: no checkpoint index ({error!r})."]
        if weight_map != {key: tensor["file"] for key, tensor in report.tensors.items()}:
            problems.append(f"{index}: does not list the tensors of {REPORT_NAME}.")
    elif len({tensor["file"] for tensor in report.tensors.values()}) > 1:
        problems.append(f"{index}: missing.")
    return problems


def check_layout(folder: Path, report: Report, files: dict[str, SafetensorsFile]) -> list[str]:
    """The tensors against the model that the configuration describes."""
    try:
        model = model_class(report.architecture, report.model_class)
        layout = skeleton(model, getattr(model, "config_class").from_pretrained(folder))
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        return [f"{folder / 'config.json'}: does not make a {report.model_class} ({error})."]
    found = {key: info.shape for file in files.values() for key, info in file.tensors.items()}
    problems = [f"`{key}`: the model has no such tensor." for key in sorted(found.keys() - layout.tensors.keys())]
    problems += [f"`{key}`: the model needs it." for key in layout.tensors if key not in found]
    for key, info in layout.tensors.items():
        if key in found and found[key] != info.shape:
            problems.append(f"`{key}` is {list(found[key])}, the model expects {list(info.shape)}.")
    return [f"{folder}: {problem}" for problem in problems]
