"""What `dsr cad` writes: a report that grows with the work, and the solid of the best candidate with its pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modeling_dsr.cad_files import STEP_SUFFIXES
from modeling_dsr.cad_solids import TriangleMesh

from ..console import say
from ..outputs import Output
from .candidates import Candidate, placement_onto, unit_points
from .metrics import normalize_prediction
from .part_files import labelled_step, stl_bytes
from .pictures import part_sheet
from .viewer import viewer_page


class PartReport:
    """
    The report of a part, on disk from the first program on: text, code and message of every candidate.

    Args:
        output: of the command; its report is written anew with every piece of news.
        kind, part: the input, as `part_input` read it.
        facts: what else the report says.
    """

    def __init__(self, output: Output, kind: str, part, facts: dict):
        self.output, self.kind, self.part = output, kind, part
        self.step_suffix = next(Path(name).suffix for name in output.names if Path(name).suffix in STEP_SUFFIXES)
        self.content = {"input": kind, **facts, "best": None, "candidates": []}

    def add_programs(self, programs: list[str], repairs: int | None = None) -> None:
        for program in programs:
            entry = {"program": program, "code": None, "message": "", "chamfer": None}
            self.content["candidates"].append({**entry, **({} if repairs is None else {"repairs": repairs})})
        self.output.report(self.content)

    def add_outcome(self, number: int, candidate: Candidate) -> None:
        execution = candidate.execution
        self.content["candidates"][number] |= {
            "code": candidate.code, "message": execution.message, "notes": list(execution.notes),
            "chamfer": candidate.chamfer, "seconds": execution.seconds,
        }  # fmt: skip
        self.output.report(self.content)

    # ---- the best ------------------------------------------------------------------------

    def write_best(self, sandbox, candidates: list[Candidate], best: int | None, label: str | None) -> list[Path]:
        """STEP, STL and program in the input's place and size, picture and page; what cannot be made is said."""
        name, files, lines = Path(self.output.report_name).stem, [], [label] if label else []
        placed = None
        if best is not None:
            chosen = candidates[best]
            scale, offset = self._placement(chosen)
            found = chosen.execution
            placed = TriangleMesh(found.vertices, found.faces).moved(scale, offset)
            volume = found.volume * scale**3
            self.content |= {
                "best": best,
                "scale": scale,
                "offset": [float(value) for value in offset],
                "volume": volume,
            }
            text = (f"# {label}\n" if label else "") + chosen.program.rstrip() + "\n"
            files.append(self.output.write_text(f"{name}.py", text))
            files.append(self._write(f"{name}.stl", stl_bytes(placed, label)))
            self.output.report(self.content)
            exported, step = sandbox.step(found, scale, offset)
            if step is None:
                problem = f"There is no STEP file: {exported.code}, {exported.message}."
                say(problem)
                self.content["step_problem"] = problem
            else:
                files.insert(0, self._write(f"{name}{self.step_suffix}", labelled_step(step, label)))
            lines += [
                f"sizes are in {'millimetres' if self.kind == 'mesh' else 'the units of the program or the cloud'}"
            ]
            lines += list(found.notes)
            if chosen.chamfer is not None:
                lines.append(f"chamfer distance x1000: {1000 * chosen.chamfer:.4f} (best of {len(candidates)})")
        else:
            counts = {code: sum(c.code == code for c in candidates) for code in sorted({c.code for c in candidates})}
            lines.append("no candidate is a valid solid: " + ", ".join(f"{n} {code}" for code, n in counts.items()))
        files += self._draw(name, None if best is None else candidates[best].mesh, placed, tuple(lines))
        files.append(self.output.report(self.content))
        return files

    def _placement(self, chosen: Candidate) -> tuple[float, np.ndarray]:
        if self.kind not in ("mesh", "cloud"):
            return 1.0, np.zeros(3)
        return placement_onto(chosen.execution, *self._bounds())

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return tuple(self.part.bounds) if self.kind == "mesh" else (self.part.min(0), self.part.max(0))

    def _draw(self, name: str, solid, placed, lines: tuple[str, ...]) -> list[Path]:
        shown = {
            "mesh": lambda: normalize_prediction(self.part), "cloud": lambda: unit_points(self.part),
            "views": lambda: self.part,
        }  # fmt: skip
        target = shown[self.kind]() if self.kind in shown else None
        sizes = np.subtract(*self._bounds()[::-1]) if self.kind in ("mesh", "cloud") else None
        solid_sizes = None if placed is None else np.ptp(placed.vertices, axis=0)
        part_sheet(target, solid, name, lines, sizes, solid_sizes).save(self.output.path(f"{name}.png"))
        page = viewer_page(self.part if self.kind in ("mesh", "cloud") else None, placed, name, lines)
        return [*self.output.publish(f"{name}.png"), self.output.write_text(f"{name}.html", page)]

    def _write(self, name: str, content: bytes) -> Path:
        self.output.path(name).write_bytes(content)
        return self.output.publish(name)[0]


def candidates_table(candidates: list[Candidate], best: int | None) -> list[str]:
    """A line for each."""
    lines = []
    for number, candidate in enumerate(candidates):
        distance = f"  chamfer x1000 {1000 * candidate.chamfer:.4f}" if candidate.chamfer is not None else ""
        mended = "" if candidate.repairs is None else f"  (repair of {candidate.repairs})"
        told = "; ".join(filter(None, [candidate.execution.message, *candidate.execution.notes]))
        lines.append(f"{'*' if number == best else ' '} {number}: {candidate.code}{distance}{mended}  {told}".rstrip())
    return lines
