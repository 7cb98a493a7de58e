"""What a conversion did with every tensor, printed and saved as `conversion_report.json`."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

REPORT_NAME = "conversion_report.json"
ACTIONS = ("loaded", "transformed", "copied", "initialised")


@dataclass
class Report:
    """Outcome of a conversion.

    Attributes:
        architecture: name of the architecture.
        model_class: class that loads the folder.
        sources: per source its name, location and files; per file name, bytes and sha256 (None in a dry run).
        tensors: by name in the output: `action`, `from`, `shape`, `dtype` and the `file` that holds it.
        tied: stored name by the name that shares it.
        dropped: reason by `source:key`.
        notes: remarks of the architecture, such as a processor that could not be written.
        outputs: bytes and sha256 of every file of the folder but the report itself; empty for a dry run.
        versions: of the libraries in use.
    """

    architecture: str
    model_class: str
    sources: list[dict]
    tensors: dict[str, dict]
    tied: dict[str, str]
    dropped: dict[str, str]
    notes: list[str]
    outputs: dict[str, dict] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, dict]:
        """Tensors, parameters and percentage of parameters by action, of the tensors stored."""
        total = sum(math.prod(tensor["shape"]) for tensor in self.tensors.values())
        rows = {}
        for action in ACTIONS:
            sizes = [math.prod(tensor["shape"]) for tensor in self.tensors.values() if tensor["action"] == action]
            percent = round(100 * sum(sizes) / total, 4) if total else 0.0
            rows[action] = {"tensors": len(sizes), "parameters": sum(sizes), "percent": percent}
        rows["total"] = {"tensors": len(self.tensors), "parameters": total, "percent": 100.0 if total else 0.0}
        return rows

    @property
    def stages(self) -> dict[str, dict]:
        """The same by source, for what was read, and by action, for what was not."""
        total = sum(math.prod(tensor["shape"]) for tensor in self.tensors.values())
        names = [source["name"] for source in self.sources]
        rows: dict[str, dict] = {name: {"tensors": 0, "parameters": 0} for name in (*names, "copied", "initialised")}
        for tensor in self.tensors.values():
            read = tensor["action"] in ("loaded", "transformed")
            row = rows[re.findall(r"(\w+):", tensor["from"])[0] if read else tensor["action"]]
            row["tensors"] += 1
            row["parameters"] += math.prod(tensor["shape"])
        for row in rows.values():
            row["percent"] = round(100 * row["parameters"] / total, 4) if total else 0.0
        return rows

    def save(self, folder: Path) -> None:
        content = {**asdict(self), "summary": self.summary, "stages": self.stages}
        (folder / REPORT_NAME).write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        path = Path(folder) / REPORT_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {folder} is no converted model.")
        try:
            content = json.loads(path.read_text())
            content.pop("summary", None)
            content.pop("stages", None)
            return cls(**content)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no conversion report: {error}.") from None

    def table(self, details: bool = False) -> str:
        """The summary as text; with `details` also a line per tensor."""
        lines = [f"{self.architecture}: {self.model_class}"]
        for source in self.sources:
            files = source["files"]
            size = sum(file["bytes"] for file in files)
            lines.append(f"  from {source['name']} = {source['location']} ({len(files)} files, {_gigabytes(size)})")
        if details:
            lines.append("")
            for name, tensor in self.tensors.items():
                origin = f"{tensor['action']:<11} {name} {tensor['dtype']} {tensor['shape']}"
                lines.append(f"  {origin}  <-  {tensor['from']}")
            lines += [f"  {'tied':<11} {alias}  =  {name}" for alias, name in self.tied.items()]
            lines += [f"  {'dropped':<11} {key}: {reason}" for key, reason in self.dropped.items()]
        lines += ["", f"  {'':<12}{'tensors':>9}{'parameters':>17}{'percent':>10}"]
        for action, row in self.summary.items():
            lines.append(f"  {action:<12}{row['tensors']:>9}{row['parameters']:>17,}{row['percent']:>9.2f}%")
        if len(self.sources) > 1:
            lines += ["", f"  {'stage':<12}{'tensors':>9}{'parameters':>17}{'percent':>10}"]
            for name, row in self.stages.items():
                lines.append(f"  {name:<12}{row['tensors']:>9}{row['parameters']:>17,}{row['percent']:>9.2f}%")
        reasons: dict[str, int] = {}
        for reason in self.dropped.values():
            # Of hundreds of keys that an earlier source or key serves, the details are in the saved report.
            reason = "not used: the target is served already" if reason.startswith("not used:") else reason
            reasons[reason] = reasons.get(reason, 0) + 1
        lines.append(f"  {'dropped':<12}{len(self.dropped):>9}  source entries")
        lines += [f"      {count:>7}  {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
