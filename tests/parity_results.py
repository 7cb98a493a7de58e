"""What a parity adapter gets and gives, and how it is compared with what a case stores. `tests.parity` runs them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable

import torch

from .parity_cases import GRADIENT_NORMS, Case, Tolerance, find_tolerance

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
