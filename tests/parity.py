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

Both look at what a case contains (`case.inputs`, `case.meta`, `case.expected`), never at its name. With
`PARITY_TRACEBACK=1` in the environment, what keeps a case from running is printed in full.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Iterator

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
SOURCE_MODULES = ("configuration_dsr", "processing_dsr", "modeling_dsr")

# Files beside the cases that are part of a checkpoint or describe one, and hold no results.
CHECKPOINT_FILES = re.compile(
    r"(cases|keys|config|generation_config|(video_)?preprocessor_config|processor_config|tokenizer(_config)?|"
    r"special_tokens_map|added_tokens|vocab|chat_template|.*\.index)\.json"
)
GRADIENT_NORMS = ("grad_norms", "gradient_norms")  # {parameter: L2 norm of its gradient, null for no gradient}


# --------------------------------------------------------------------------------------
# Suites and cases
# --------------------------------------------------------------------------------------


@dataclass
class Case:
    """One case: what `cases.json` says of it (`meta`) and its stored tensors."""

    suite: Suite
    name: str
    meta: dict[str, Any]
    path: Path | None  # the stored tensors; None for a file of results in JSON, whose content is `meta`

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.path) if self.path is not None and self.path.suffix == ".safetensors" else {}

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Tensors stored as `input.*`, without the prefix, over those of the cases it shares inputs with."""
        shared = {}
        for key in ("other_inputs_from", "inputs_shared_with"):
            if isinstance(self.meta.get(key), str):
                shared |= self.suite.case(self.meta[key]).inputs
        return shared | {name[6:]: tensor for name, tensor in self.tensors.items() if name.startswith("input.")}

    @cached_property
    def expected(self) -> dict[str, torch.Tensor | None]:
        """Everything to compare: stored results, and the gradient norms that `cases.json` lists."""
        results = {name: tensor for name, tensor in self.tensors.items() if not name.startswith("input.")}
        for key in GRADIENT_NORMS:
            for parameter, norm in (self.meta.get(key) or {}).items():
                results[f"{key}.{parameter}"] = None if norm is None else torch.tensor(norm, dtype=torch.float64)
        return results

    @property
    def is_json(self) -> bool:
        return self.path is not None and self.path.suffix == ".json"

    def excuse(self, tensor: str) -> tuple[bool, str] | None:
        """(whether it must stay uncompared, reason) if `cases.json` exempts a tensor, else None."""
        short = tensor.split(".", 1)[-1]

        def names(value) -> bool:
            return isinstance(value, (list, dict)) and (short in value or tensor in value)

        bug, parity = self.meta.get("upstream_bug"), self.meta.get("parity")
        if bug is True or names(bug):
            return True, "upstream bug, not reproduced"
        if parity == "optional" or names(self.meta.get("optional")) or self.meta.get("optional") is True:
            return False, "optional"
        if self.meta.get("derived") or self.meta.get("derived_only"):
            return False, "derived, not an upstream output"
        if "parity_required" in self.meta and not names(self.meta["parity_required"]):
            return False, "not among parity_required"
        if "OPTIONAL" in json.dumps((self.meta.get("tensors") or {}).get(tensor, "")):
            return False, "optional"
        return None


@dataclass
class Suite:
    """A folder with cases; `document` is its `cases.json`, {} if it holds only other files of results."""

    name: str
    folder: Path
    document: dict[str, Any]

    @cached_property
    def cases(self) -> list[Case]:
        listed = self.document.get("cases", self.document)
        entries = [(case["name"], case) for case in listed] if isinstance(listed, list) else list(listed.items())
        cases = []
        for name, meta in entries:
            if not isinstance(meta, dict) or name.startswith("_"):
                continue
            path = self.folder / meta.get("file", f"case_{name}.safetensors")
            if listed is not self.document or path.exists() or "file" in meta or "tensors" in meta:
                cases.append(Case(self, name, meta, path))
        known = {case.path for case in cases}
        for path in sorted(self.folder.glob("case_*.safetensors")):
            if path not in known:  # stored, but not described: compared all the same
                cases.append(Case(self, path.stem.removeprefix("case_"), {}, path))
        for path in sorted(self.folder.glob("*.json")):
            if not CHECKPOINT_FILES.fullmatch(path.name):
                cases.append(Case(self, path.stem, {"content": json.loads(path.read_text())}, path))
        return cases

    def files(self, pattern: str) -> list[Path]:
        """Files below the folder that match `pattern`, without those of suites in subfolders; for checkpoints."""
        nested = [path.parent for path in self.folder.rglob("cases.json") if path.parent != self.folder]
        found = sorted(self.folder.rglob(pattern))
        return [path for path in found if not any(folder in path.parents for folder in nested)]

    def case(self, name: str) -> Case:
        for case in self.cases:
            if case.name == name:
                return case
        raise ValueError(f"{self.folder / 'cases.json'} refers to a case {name!r} that it does not define.")


def find_suites(reference: Path) -> list[Suite]:
    """All suites below `reference`, itself included."""
    suites = []
    for folder in sorted({path.parent for path in reference.rglob("*.json")}):
        path = folder / "cases.json"
        name = folder.name if folder == reference else str(folder.relative_to(reference))
        suite = Suite(name, folder, json.loads(path.read_text()) if path.exists() else {})
        suites += [suite] if suite.cases else []
    if not suites:
        raise ValueError(f"{reference} holds no cases.json; expected a folder laid out like reference/ARCH.")
    return suites


# --------------------------------------------------------------------------------------
# Tolerances
# --------------------------------------------------------------------------------------


@dataclass
class Tolerance:
    """|found - stored| ≤ atol + rtol·|stored| + rtol_of_max·max|stored|, and mean|found - stored| ≤ mean_abs if
    given."""

    atol: float = 0.0
    rtol: float = 0.0
    rtol_of_max: float = 0.0
    mean_abs: float | None = None
    bounds_exact: bool = False  # elements at ±max|stored| (clamped ones) must be equal

    def __str__(self) -> str:
        parts = [f"{self.atol:.0e}"] if self.atol or not (self.rtol or self.rtol_of_max) else []
        parts += [f"{self.rtol:.0e}·|x|"] if self.rtol else []
        parts += [f"{self.rtol_of_max:.0e}·max|x|"] if self.rtol_of_max else []
        text = " + ".join(parts) if self != Tolerance() else "exact"
        return text + (f", mean {self.mean_abs:.0e}" if self.mean_abs is not None else "")


NUMBER = r"(\d+(?:\.\d*)?(?:e[-+]?\d+)?)"
FIELDS = {"atol": "atol", "abs": "atol", "max_abs": "atol", "rtol": "rtol", "rel": "rtol", "mean_abs": "mean_abs"}
SPECIAL = {"loss", "losses", "grad", "grads", "int", "integer", "ids", "id", "positions", "bool"}


def tolerance_from_text(text: str) -> Tolerance | None:
    """Tolerance written as prose ("atol 2e-4 rtol 1e-4", "1e-3 relative", "exact", "rtol 2e-3, atol
    2e-4*max|grad|")."""
    found, values = False, Tolerance()
    for key, number, of_max in re.findall(rf"\b(atol|rtol)\s+{NUMBER}(\s*\*\s*max)?", text):
        setattr(values, "rtol_of_max" if of_max else key, float(number))
        found = True
    if not found and (match := re.search(rf"{NUMBER}\s+relative", text)):
        values.rtol_of_max, found = float(match[1]), True
    if not found and (match := re.search(rf"(?<![\w.]){NUMBER}\s*$", text.strip())):
        values.atol, found = float(match[1]), True
    values.bounds_exact = "bounds exact" in text
    return values if found or re.search(r"\bexact\b", text) else None


def tolerance_entries(spec: Any) -> list[tuple[str, Tolerance]]:
    """(selector, tolerance) pairs of any form that a `cases.json` uses; the selector "" is for everything."""
    if isinstance(spec, bool) or spec is None:
        return []
    if isinstance(spec, (int, float)):
        return [("", Tolerance(atol=float(spec)))]
    if isinstance(spec, str):
        entries = []
        for clause in spec.split(";"):
            tolerance = tolerance_from_text(clause)
            selector = re.split(rf"\b(?:atol|rtol|exact)\b|{NUMBER}", clause, maxsplit=1)[0].strip()
            entries += [(selector, tolerance)] if tolerance else []
        return entries
    direct = {FIELDS[key]: float(value) for key, value in spec.items() if key in FIELDS}
    entries = [("", Tolerance(**direct))] if direct else []
    for key, value in spec.items():
        if key in FIELDS or key in ("note", "exact"):
            continue
        of_max = key.endswith("_rel_to_max")
        selector = re.sub(r"_(rel_to_max|max_abs|abs)$", "", key)
        for inner, tolerance in tolerance_entries(value):
            if of_max:
                tolerance = Tolerance(rtol_of_max=tolerance.atol)
            entries.append((selector if not inner else f"{selector} {inner}", tolerance))
    return entries


def _words(text: str) -> list[str]:
    words = [word for word in re.split(r"[^a-z0-9]+", text.lower().replace("gradient", "grad")) if word]
    return [re.sub(r"(?<=[a-z]{2}[^s])s$", "", re.sub(r"sses$", "ss", word)) for word in words]


def find_tolerance(case: Case, tensor: str, kind: str | None = None) -> Tolerance | None:
    """Tolerance of a floating-point tensor: the entry of `cases.json` that names it, its kind, or everything.

    Entries are looked for in the case, then in the document. Of several that fit, the exact name wins, then the one
    whose word comes first in the tensor's name. A tensor that none fits takes the one left besides those for losses,
    gradients and integers; the strictest if there are several.

    Args:
        kind: another name to look for (`Result.kinds`), for a tensor whose own says nothing about what it holds.
    """
    keys = ("tolerance", "suggested_tolerance", "suggested_abs_tolerance")
    for holder in (case.meta, case.suite.document):
        entries = [entry for key in keys for entry in tolerance_entries(holder.get(key))]
        if not entries:
            continue
        for name in (tensor, kind) if kind else (tensor,):
            for selector, tolerance in entries:
                if selector in (name, name.split(".", 1)[-1]):
                    return tolerance
            tokens, fitting = _words(name), []
            for selector, tolerance in entries:
                for phrase in re.split(r"/|,|_and_|\band\b", selector):
                    words = _words(phrase)
                    if words and all(word in tokens for word in words):
                        fitting.append((tokens.index(words[0]), -len(words), tolerance))
            if fitting:
                return min(fitting, key=lambda entry: entry[:2])[2]
        general = [tolerance for selector, tolerance in entries if selector in ("", "default")]
        if general:
            return general[0]
        rest = [t for s, t in entries if "." not in s and not SPECIAL & set(re.split(r"[^a-z]+", s.lower()))]
        rest = rest or [tolerance for _, tolerance in entries]
        return min(rest, key=lambda t: t.atol + t.rtol + t.rtol_of_max)
    return None


# --------------------------------------------------------------------------------------
# What an adapter returns
# --------------------------------------------------------------------------------------


@dataclass
class Value:
    """A result that is not a stored tensor: a number, string or (nested) list of them from a JSON file."""

    name: str
    expected: Any
    found: Any
    tolerance: Tolerance = field(default_factory=lambda: Tolerance(rtol=1e-6))  # for floating-point numbers


@dataclass
class Result:
    """What a case gave.

    Args:
        tensors: by stored name (`output.logits`); None stands for "no gradient" in a table of gradient norms.
        where: boolean masks of the elements that mean something, for tensors with padding, broadcast from the left.
        kinds: what a tensor is, where its name does not say it (`{"output.scores": "logits"}`), to find its tolerance.
        values: results out of JSON.
        information: sections of a JSON file that hold no results (versions, settings).
        undefined: {tensor: field of the case in cases.json whose text says why it cannot be compared}.
    """

    tensors: dict[str, torch.Tensor | None] = field(default_factory=dict)
    where: dict[str, torch.Tensor] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    information: tuple[str, ...] = ()
    undefined: dict[str, str] = field(default_factory=dict)


class Models:
    """The converted checkpoints of a suite, loaded through the Auto classes and kept."""

    def __init__(self, folders: dict[str, str | Path], isolated: bool = True):
        self.folders = {name: Path(folder) for name, folder in folders.items()}
        self.isolated = isolated
        self._loaded: dict[Any, Any] = {}

    def folder(self, name: str = "model") -> Path:
        if name not in self.folders:
            raise ValueError(f"the suite has no converted checkpoint {name!r}, only {sorted(self.folders)}")
        return self.folders[name]

    def load(self, auto_class, name: str = "model", **kwargs):
        """`auto_class.from_pretrained` of a converted folder, models in float32 and evaluation mode."""
        key = (auto_class, name, json.dumps(kwargs, sort_keys=True, default=str))
        if key not in self._loaded:
            if auto_class.__name__.startswith("AutoModel"):
                kwargs = {"dtype": torch.float32, **kwargs, "output_loading_info": True}
                loaded, info = auto_class.from_pretrained(self.folder(name), trust_remote_code=True, **kwargs)
                unused = () if auto_class.__name__ != "AutoModel" else ("unexpected_keys",)  # its head's weights
                wrong = {kind: sorted(names) for kind, names in info.items() if names and kind not in unused}
                if wrong:
                    raise ValueError(f"{self.folder(name)} does not load cleanly: {wrong}")
                loaded = loaded.eval()
            else:
                loaded = auto_class.from_pretrained(self.folder(name), trust_remote_code=True, **kwargs)
            ours = auto_class.__name__.startswith(("AutoModel", "AutoProcessor", "AutoConfig"))
            if self.isolated and ours and not type(loaded).__module__.startswith("transformers_modules."):
                raise RuntimeError(f"{type(loaded)} does not come from the converted folder")
            self._loaded[key] = loaded
        return self._loaded[key]

    def module(self, filename: str, attribute: str, name: str = "model"):
        """A function or class of a code file in a converted folder."""
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module(f"{filename}.{attribute}", str(self.folder(name)))


# --------------------------------------------------------------------------------------
# Comparison
# --------------------------------------------------------------------------------------


@dataclass
class Row:
    suite: str
    case: str
    tensor: str
    difference: float | None
    tolerance: str
    passed: bool | None  # None: not compared, for the reason in `note`
    note: str = ""


def compare_tensor(
    expected: torch.Tensor, found: Any, tolerance: Tolerance | None, where=None
) -> tuple[float | None, str]:
    """(largest absolute difference, reason for failure or "")."""
    if not isinstance(found, torch.Tensor):
        found = torch.as_tensor(found)
    found = found.detach().cpu()
    if tuple(found.shape) != tuple(expected.shape):
        return None, f"shape {tuple(found.shape)}, stored {tuple(expected.shape)}"
    if expected.is_floating_point() != found.is_floating_point():
        return None, f"dtype {found.dtype}, stored {expected.dtype}"
    kind = torch.float64 if expected.is_floating_point() else torch.int64
    expected, found = expected.to(kind), found.to(kind)
    if where is not None:
        where = where.bool().reshape(where.shape + (1,) * (expected.ndim - where.ndim)).expand(expected.shape)
        if not where.any():
            return None, "its mask leaves nothing to compare"
        expected, found = expected[where], found[where]
    if expected.numel() == 0:
        return 0.0, ""
    if kind is torch.int64:
        difference = (expected - found).abs().max().item()
        return float(difference), "" if difference == 0 else "integers differ"
    difference = torch.where(expected == found, 0.0, (expected - found).abs())  # equal infinities differ by nothing
    largest = difference.max().item()  # NaN if any is
    if tolerance is None:
        return largest, "cases.json gives no tolerance"
    if torch.isnan(found).any() or torch.isnan(expected).any():
        return float("nan"), "NaN"
    limit = tolerance.atol + tolerance.rtol * expected.abs() + tolerance.rtol_of_max * expected.abs().max()
    if not bool((difference <= limit).all()):
        return largest, "beyond the tolerance"
    if tolerance.mean_abs is not None and not difference.mean() <= tolerance.mean_abs:
        return largest, f"mean difference {difference.mean():.1e}"
    if tolerance.bounds_exact and difference[expected.abs() == expected.abs().max()].max() > 0:
        return largest, "clamped elements differ"
    return largest, ""


def compare_value(value: Value) -> tuple[float | None, Tolerance, str]:
    """(largest difference, tolerance used, reason for failure or ""); strings, integers and None exactly."""

    def leaves(item, path=""):
        if isinstance(item, dict):
            for key, inner in item.items():
                yield from leaves(inner, f"{path}.{key}")
        elif isinstance(item, (list, tuple)):
            yield f"{path}#", len(item)
            for index, inner in enumerate(item):
                yield from leaves(inner, f"{path}.{index}")
        else:
            yield path, item

    expected, found = dict(leaves(value.expected)), dict(leaves(value.found))
    used = value.tolerance if any(isinstance(leaf, float) for leaf in expected.values()) else Tolerance()
    if expected.keys() != found.keys():
        return None, used, f"{value.found!r}, stored {value.expected!r}"
    largest = 0.0
    for path, wanted in expected.items():
        got = found[path]
        if isinstance(wanted, float) and isinstance(got, (int, float)) and not isinstance(got, bool):
            difference, reason = compare_tensor(
                torch.tensor(wanted, dtype=torch.float64),
                torch.tensor(float(got), dtype=torch.float64),
                value.tolerance,
            )
            largest = max(largest, difference)
            if reason:
                return largest, used, f"{path}: {got!r}, stored {wanted!r}".lstrip(":. ")
        elif type(wanted) is not type(got) or wanted != got:
            return None, used, f"{path}: {got!r}, stored {wanted!r}".lstrip(":. ")
    return largest, used, ""


def compare_case(case: Case, result: Result | None, error: str = "") -> list[Row]:
    """One row per stored result; what `result` lacks fails, with `error` as the reason if the case did not run."""
    rows = []
    missing = error or "not produced"

    def add(tensor, difference, tolerance, passed, note=""):
        rows.append(
            Row(
                case.suite.name,
                case.name,
                tensor,
                difference,
                "" if tolerance is None else str(tolerance),
                passed,
                note,
            )
        )

    if case.is_json:
        sections = case.meta["content"]
        keys = (
            [key for key, item in sections.items() if isinstance(item, (dict, list))]
            if isinstance(sections, dict)
            else []
        )
        values = result.values if result else []
        for value in values:
            difference, tolerance, reason = compare_value(value)
            add(value.name, difference, tolerance, not reason, reason)
        for key in keys:
            if result and key in result.information:
                add(key, None, None, None, "information, no results")
            elif not any(value.name.split(".")[0] == key for value in values):
                add(key, None, None, False, missing)
        if not keys and not values:
            add("(all)", None, None, False, missing)
        return rows

    if not case.path.exists():
        add("(all)", None, None, False, f"{case.path.name} is missing")
        return rows
    if not case.expected:
        elsewhere = case.meta.get("expected")  # a file of results, which is a case of its own
        found = isinstance(elsewhere, str) and (case.suite.folder / elsewhere).exists()
        add("(all)", None, None, None if found else False, f"see {elsewhere}" if found else "the case stores no result")
    for tensor, expected in case.expected.items():
        excuse = case.excuse(tensor)
        if excuse and excuse[0]:
            add(tensor, None, None, None, excuse[1])
            continue
        if result is None or tensor not in result.tensors:
            reason = case.meta.get(result.undefined[tensor]) if result and tensor in result.undefined else None
            if isinstance(reason, str) and reason:
                add(tensor, None, None, None, f"cases.json: {reason}")
            elif excuse:
                add(tensor, None, None, None, f"{excuse[1]}; {missing}")
            else:
                add(tensor, None, None, False, missing)
            continue
        found = result.tensors[tensor]
        if expected is None:
            none = found is None or float(found) == 0.0
            add(tensor, None if none else float(found), "no gradient", none, "" if none else "has a gradient")
            continue
        if found is None:
            add(tensor, None, None, False, "no gradient" if tensor.startswith(GRADIENT_NORMS) else missing)
            continue
        tolerance = None
        if expected.is_floating_point():
            tolerance = find_tolerance(case, tensor, result.kinds.get(tensor))
        difference, reason = compare_tensor(expected, found, tolerance, result.where.get(tensor))
        add(tensor, difference, tolerance if expected.is_floating_point() else Tolerance(), not reason, reason)
    for value in result.values if result else []:
        difference, tolerance, reason = compare_value(value)
        add(value.name, difference, tolerance, not reason, reason)
    return rows


# --------------------------------------------------------------------------------------
# Running
# --------------------------------------------------------------------------------------


def adapters() -> list[str]:
    return sorted(path.stem for path in (ROOT / "tests" / "parity_adapters").glob("*.py") if path.stem != "__init__")


def load_adapter(arch: str):
    if arch not in adapters():
        raise ValueError(f"no parity adapter for {arch!r}; there are adapters for {', '.join(adapters())}.")
    return importlib.import_module(f"tests.parity_adapters.{arch}")


def describe(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"did not run: {type(error).__name__}: {text[:300]}"


def run_cases(function, cases: list[Case], *arguments) -> Iterator[tuple[Case, Result | None, str]]:
    """(case, result, reason it did not run) of each; a result of None without reason was declined by `function`."""
    for case in cases:
        if case.expected and all((case.excuse(tensor) or (False,))[0] for tensor in case.expected):
            yield case, Result(), ""  # nothing of it is to be reproduced
            continue
        try:
            yield case, function(case, *arguments), ""
        except Exception as error:  # a case that cannot run is a row of the table, not the end of it
            if os.environ.get("PARITY_TRACEBACK"):
                traceback.print_exc()
            yield case, None, describe(error)


def convert_suite(adapter, suite: Suite, arch: str, folder: Path) -> dict[str, str]:
    """Convert the suite's checkpoints with the real converter; {name: converted folder}."""
    from convert_weights import convert

    folders = {}
    for name, arguments in adapter.conversions(suite).items():
        output = folder / re.sub(r"\W", "_", f"{suite.name}_{name}")
        convert(arguments.pop("arch", arch), output=output, progress=False, **arguments)
        folders[name] = str(output)
    return folders


class _NoSourceTree(importlib.abc.MetaPathFinder):
    """Makes the library's own modules unimportable, so that a folder's remote code must stand alone."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in SOURCE_MODULES:
            raise ImportError(f"{fullname} is not importable here: converted folders must bring their own code")
        return None


def worker(job: str) -> None:
    """Body of the isolated process: run the cases of `job`, write the rows."""
    sys.meta_path.insert(0, _NoSourceTree())
    task = json.loads(Path(job).read_text())
    adapter = load_adapter(task["arch"])
    answer = {"rows": [], "declined": []}
    suites = find_suites(Path(task["reference"]))
    for index, suite in enumerate(suites):
        models = Models(task["folders"].get(str(index), {}))
        cases = [case for case in suite.cases if str(index) not in task["failed"]]
        for case, result, error in run_cases(adapter.run_case, cases, models):
            if result is None and not error:
                answer["declined"].append([index, case.name])
            else:
                answer["rows"].append([index, case.name, [asdict(row) for row in compare_case(case, result, error)]])
    Path(task["answer"]).write_text(json.dumps(answer))


def run_isolated(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run `worker` in a process of its own, without the source tree and with a code cache of its own."""
    job, answer = folder / "job.json", folder / "answer.json"
    job.write_text(json.dumps({**task, "answer": str(answer)}))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.parity import worker; worker({str(job)!r})"
    process = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd="/", env=environment, capture_output=True, text=True
    )
    if process.returncode or not answer.exists():
        raise RuntimeError(f"the isolated process failed:\n{process.stderr[-4000:]}")
    if os.environ.get("PARITY_TRACEBACK"):
        print(process.stderr, file=sys.stderr)
    return json.loads(answer.read_text())


def run_parity(arch: str, reference: str | Path) -> list[Row]:
    """Convert, load and run every case below `reference`; one row per stored result, in the order of the cases."""
    reference = Path(reference).resolve()
    if not reference.is_dir():
        raise ValueError(f"the reference folder {reference} does not exist.")
    adapter = load_adapter(arch)
    suites = find_suites(reference)
    by_case: dict[tuple[int, str], list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="parity_") as temporary:
        folder, folders, failed = Path(temporary), {}, {}
        for index, suite in enumerate(suites):
            try:
                folders[str(index)] = convert_suite(adapter, suite, arch, folder)
            except Exception as error:
                if os.environ.get("PARITY_TRACEBACK"):
                    traceback.print_exc()
                failed[str(index)] = describe(error).replace("did not run", "conversion failed")
        # JSON files of results beside the suites may concern the code that any of them converts to.
        first = next((found for found in folders.values() if found), {})
        folders = {index: found or first for index, found in folders.items()}
        task = {"arch": arch, "reference": str(reference), "folders": folders, "failed": sorted(failed)}
        answer = run_isolated(task, folder)
    for index, name, rows in answer["rows"]:
        by_case[index, name] = [Row(**row) for row in rows]
    for index, suite in enumerate(suites):
        if str(index) in failed:
            cases = [(case, None, failed[str(index)]) for case in suite.cases]
        else:
            declined = [case for case in suite.cases if [index, case.name] in answer["declined"]]
            cases = run_cases(getattr(adapter, "run_function_case", lambda case: None), declined)
        for case, result, error in cases:
            by_case[index, case.name] = compare_case(case, result, error)
    return [row for i, suite in enumerate(suites) for case in suite.cases for row in by_case.get((i, case.name), [])]


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
