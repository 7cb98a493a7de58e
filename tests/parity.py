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
import subprocess
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Iterable

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
    path: Path | None  # the stored tensors, or a file of results in JSON, whose content is `meta["content"]`
    broken: str = ""  # why there is nothing to read

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
        if isinstance(listed, list):
            entries = [(case.get("name", f"case {index}"), case) for index, case in enumerate(listed)]
        else:
            entries = list(listed.items())
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
                cases.append(Case(self, path.stem, *_json_results(path)))
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


def _json_results(path: Path) -> tuple[dict[str, Any], Path, str]:
    try:
        return {"content": json.loads(path.read_text())}, path, ""
    except ValueError as error:
        return {"content": {}}, path, f"no JSON: {error}"


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


class ConversionFailed(ValueError):
    """A checkpoint that a case needs could not be converted."""


def published_overrides(
    published: dict[str, Any], fields: dict[str, str], only: dict[str, Any] | None = None, known: Iterable[str] = ()
) -> dict[str, Any]:
    """
    Overrides for the converter from settings that lie beside a checkpoint.

    Args:
        published: the settings, by their published names.
        fields: our name by published name; a setting that is absent is left to the converter.
        only: settings that this library has in one way, with that one.
        known: settings that shapes tell, or that do not bear on results. Names that begin with `_` are remarks.

    Raises:
        ValueError: a setting has a value that the library does not have, or a name that nobody knows.
    """
    only = only or {}
    for name, value in published.items():
        if name in only and value != only[name]:
            raise ValueError(f"the reference has {name} = {value!r}, this library has {only[name]!r} alone")
        if not (name in fields or name in only or name in known or name.startswith("_")):
            raise ValueError(f"the reference has a setting that its adapter does not know: {name} = {value!r}")
    return {ours: published[theirs] for theirs, ours in fields.items() if theirs in published}


def rows_like(stored: torch.Tensor, found: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """`found` with a row per beam where `stored` has them, and one per sample where it has not."""
    rows, wanted = found.shape[axis], stored.shape[axis]
    if rows < wanted and wanted % rows == 0:
        return found.repeat_interleave(wanted // rows, axis)
    if rows > wanted and rows % wanted == 0:
        groups = found.unflatten(axis, (wanted, rows // wanted))
        first = groups.narrow(axis + 1, 0, 1)
        if bool((groups == first).all()):  # the beams of a sample are alike: it is stored once
            return first.squeeze(axis + 1)
    return found


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
    """The converted checkpoints of a suite, loaded through the Auto classes and kept.

    Args:
        folders: converted folders by name.
        failures: why others could not be converted, by name.
    """

    def __init__(self, folders: dict[str, str | Path], failures: dict[str, str] | None = None, isolated: bool = True):
        self.folders = {name: Path(folder) for name, folder in folders.items()}
        self.failures = failures or {}
        self.isolated = isolated
        self._loaded: dict[Any, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.folders or name in self.failures

    def __len__(self) -> int:
        return len(self.folders) + len(self.failures)

    def folder(self, name: str = "model") -> Path:
        if name in self.failures:
            raise ConversionFailed(self.failures[name])
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
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.parity import worker; worker({str(job)!r})"
    left = [tuple(case) for case in task["cases"]]
    while left:
        answers.unlink(missing_ok=True)
        job.write_text(json.dumps({**task, "left": left, "answers": str(answers)}))
        process = subprocess.run(
            [sys.executable, "-P", "-c", code], cwd="/", env=environment, capture_output=True, text=True
        )
        if os.environ.get("PARITY_TRACEBACK"):
            print(process.stderr, file=sys.stderr)
        lines = answers.read_text().splitlines() if answers.exists() else []
        for line in map(json.loads, lines):
            rows = line["rows"]
            found[line["suite"], line["case"]] = rows and [Row(**row) for row in rows]
        left = [case for case in left if case not in found]
        if left and not process.returncode:
            raise RuntimeError(f"the isolated process left out {left}")
        died = " ".join(process.stderr[-600:].split())
        for case in left if not lines else left[:1]:
            found[case] = f"its process died ({process.returncode}): {died}"
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
