"""SCALING.md and its plots, made of the points that were measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks.mv_memory_bank import exponent
from benchmarks.scaling.curves import CURVES

FOLDER = Path(__file__).resolve().parent
POINTS, PAGE = FOLDER / "points.json", FOLDER.parent / "SCALING.md"
BUSY = 0.2  # cores at work before a curve begins above which other work ran

HEAD = """\
# As work grows

Time and peak memory above the weights against the amount of work, on small models with random weights. Exponents are
slopes of least-squares lines through the logarithms of all points, and of the last three (`late`), where what grows
slowly no longer hides what grows fast; `theory` is the exponent for large counts, so that a fit at small counts may lie
below it. `python -m benchmarks.scaling` measures what is missing and writes this page.

The column on a GPU's memory is computed from sizes at the published ones, for one GPU of 80 GB; it was not measured.

"""


def write_page(points: dict) -> None:
    lines = [HEAD, *_machines(points)]
    lines += [
        "| curve | counts | time: all | late | theory | memory: all | late | theory | why |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, curve in CURVES.items():
        if name not in points:
            lines.append(f"| {name} | {_span(curve.counts)} {curve.axis} | not measured yet | | {curve.time:g} | | | "
                         f"{curve.memory:g} | {curve.reason} |")  # fmt: skip
            continue
        found = points[name]
        fits = [_fits(found["counts"], found[kind]) for kind in ("seconds", "memory")]
        lines.append(
            f"| {name} | {_span(found['counts'])} {curve.axis} | {fits[0][0]} | {fits[0][1]} | {curve.time:g} | "
            f"{fits[1][0]} | {fits[1][1]} | {curve.memory:g} | {curve.reason} |"
        )
    lines += ["", "## Where a GPU's memory would end", "", "| curve | one GPU of 80 GB |", "|---|---|"]
    lines += [f"| {name} | {curve.limit()} |" for name, curve in CURVES.items()]
    lines += ["", "## Plots", ""]
    for name in points:
        draw(name, points[name])
        lines += [f"![{name}](scaling/{name.replace('.', '_')}.png)", ""]
    PAGE.write_text("\n".join(lines).rstrip() + "\n")


def _machines(points: dict) -> list[str]:
    if not points:
        return ["No curve is measured yet.", ""]
    said = [f"{'; '.join(sorted({found['machine'] for found in points.values()}))}."]
    busy = [f"{name} ({found['load']})" for name, found in points.items() if found["load"] > BUSY]
    if busy:
        said.append(f"Beside other work on the machine (busy cores before), hence preliminary: {', '.join(busy)}.")
    return [*said, ""]


def _span(counts) -> str:
    return f"{counts[0]} … {counts[-1]}"


def _fits(counts: list[int], values: list[float]) -> tuple[str, str]:
    """Exponents through all points and through the last three."""
    values = [max(value, 1e-6) for value in values]  # a call may need no memory of its own
    return f"{exponent(counts, values):.2f}", f"{exponent(counts[-3:], values[-3:]):.2f}"


def draw(name: str, found: dict) -> None:
    """Two small panels, time and memory, beside the line that theory gives through the last point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curve, counts = CURVES[name], found["counts"]
    figure, panels = pyplot.subplots(1, 2, figsize=(6.4, 2.6), layout="constrained")
    memory = [value / 2**20 for value in found["memory"]]
    for panel, values, slope, label in (
        (panels[0], found["seconds"], curve.time, "seconds"),
        (panels[1], memory, curve.memory, "MiB above the weights"),
    ):
        panel.plot(counts, values, marker="o")
        theory = [values[-1] * (count / counts[-1]) ** slope for count in counts]
        panel.plot(counts, theory, linestyle="--", linewidth=1, color="grey", label=f"exponent {slope:g}")
        panel.set(xscale="log", yscale="log", xlabel=curve.axis, ylabel=label)
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.minorticks_off()
        panel.grid(True, alpha=0.3)
        panel.legend(fontsize=7)
    figure.suptitle(name, fontsize=9)
    figure.savefig(FOLDER / f"{name.replace('.', '_')}.png", dpi=80)
    pyplot.close(figure)
