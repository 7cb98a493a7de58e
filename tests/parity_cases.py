"""Reference folders: suites and cases, and the tolerance that they give each tensor. `tests.parity` runs them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

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
