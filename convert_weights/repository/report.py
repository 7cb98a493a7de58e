"""What an assembled repository consists of: `hub_report.json`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path

from .card import count, licence_table, size
from .licences import Terms

HUB_REPORT = "hub_report.json"
CARD = "README.md"


@dataclass
class HubReport:
    """What a repository consists of; saved as `hub_report.json` at its root.

    Attributes:
        models: by name: `subfolder` ("" is the root), `architecture`, `model_class`, `auto_class` that loads it,
            `processor` (whether it has one), `parameters`, `bytes` of its weights, `dtype` of most of them.
        terms: model, source, location and licence of every source.
        shared: tensors that several models hold, by sha256 of dtype, shape and bytes: `dtype`, `shape`, `bytes`, and
            the names `in` each model.
        files: bytes and sha256 by path of every file but this report and the card.
        card: bytes and sha256 of `README.md` as it was written; it may be edited, and is not checked against them.
        notes: remarks.
    """

    models: dict[str, dict]
    terms: list[dict]
    shared: dict[str, dict] = field(default_factory=dict)
    files: dict[str, dict] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    card: dict = field(default_factory=dict)

    @property
    def all_terms(self) -> list[Terms]:
        return [Terms(**one) for one in self.terms]

    @property
    def model_types(self) -> set[str]:
        return {model["architecture"] for model in self.models.values()}

    @property
    def shared_bytes(self) -> int:
        """Bytes that the repository holds more than once: all copies but the first."""
        return sum(entry["bytes"] * (len(entry["in"]) - 1) for entry in self.shared.values())

    def save(self, folder: Path) -> None:
        (folder / HUB_REPORT).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> HubReport:
        path = Path(folder) / HUB_REPORT
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {folder} is no repository made by `convert_weights hub`.")
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no report of a repository: {error}.") from None

    def table(self) -> str:
        """Models, terms and shared tensors as text."""
        lines = []
        for name, model in self.models.items():
            place = model["subfolder"] or "(root)"
            numbers = f"{count(model['parameters']):>9} {size(model['bytes']):>9} {model['dtype']}"
            lines.append(f"  {place:<16} {numbers}  {model['auto_class']} -> {model['model_class']}")
        total = sum(facts["bytes"] for facts in self.files.values())
        lines.append(f"  {len(self.files)} files, {size(total)}")
        lines += ["", *(f"  {line}" for line in licence_table(self.all_terms).splitlines())]
        lines += ["", f"  identical tensors in several models: {len(self.shared)}, {self.shared_bytes:,} bytes again"]
        pairs: Counter = Counter()
        tensors: Counter = Counter()
        for entry in self.shared.values():
            for pair in combinations(entry["in"], 2):
                pairs[pair] += entry["bytes"]
                tensors[pair] += 1
        for (one, other), nbytes in pairs.most_common():
            lines.append(f"    {one} and {other}: {tensors[one, other]} tensors, {nbytes:,} bytes")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])
