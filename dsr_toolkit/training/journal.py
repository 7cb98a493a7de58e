"""What a training leaves to be read: a log, curves, predictions."""

import json
import time
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import TrainerCallback

from ..console import say

LOG, CURVES, REWARDS, SAMPLES = "log.jsonl", "curves.png", "rewards.png", "samples"
REDRAW_AFTER = 30.0  # seconds: a picture takes one or two, more than many an evaluation
HIDDEN = ("flos", "runtime", "per_second", "epoch", "step", "grad_norm", "learning_rate", "minutes")


class Journal(TrainerCallback):
    """Writes each log of Trainer as a line of JSON, tells it, and redraws curves at evaluations, at most
    every half minute; the end of a stage draws them in any case."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.start = self.drawn = time.monotonic()
        self.before = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        """A resumed run forgets what was logged after its checkpoint."""
        self.start = time.monotonic()
        entries = [entry for entry in read_log(self.folder) if entry["step"] <= state.global_step]
        self.before = entries[-1]["minutes"] if entries else 0.0
        if state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(entry) + "\n" for entry in entries)
            (self.folder / LOG).write_text(lines, encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        minutes = self.before + (time.monotonic() - self.start) / 60
        entry = {"step": state.global_step, "minutes": round(minutes, 3), **logs}
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        shown = {k: v for k, v in logs.items() if isinstance(v, (int, float)) and not any(h in k for h in HIDDEN)}
        figures = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        say(f"  step {state.global_step}/{state.max_steps}  {minutes:.1f} min  {figures}")

    def on_evaluate(self, args, state, control, **kwargs):
        if state.is_world_process_zero and time.monotonic() - self.drawn > REDRAW_AFTER:
            draw_curves(self.folder)
            self.drawn = time.monotonic()

    def keep_samples(self, step: int, shown: list[dict]) -> None:
        """Predictions of one evaluation: `samples/step-N.jsonl`, with pictures beside it."""
        folder = self.folder / SAMPLES
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for number, sample in enumerate(shown):
            line = {}
            for name, value in sample.items():
                if isinstance(value, Image.Image):
                    file = f"step-{step}-{number}-{name}.png"
                    value.save(folder / file)
                    value = file
                line[name] = value
            lines.append(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        (folder / f"step-{step}.jsonl").write_text("".join(lines), encoding="utf-8")


def read_log(folder: Path) -> list[dict]:
    """Entries of a log; a last line that a killed run left unfinished is dropped."""
    path = Path(folder) / LOG
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def draw_curves(folder: Path) -> Path | None:
    """`curves.png` of a log: training and evaluation loss and every figure, each in a panel of its own."""
    entries = read_log(folder)
    series: dict[str, list[tuple[int, float]]] = {}
    for entry in entries:
        for name, value in entry.items():
            if (
                isinstance(value, (int, float))
                and not any(hidden in name for hidden in HIDDEN)
                and name != "train_loss"
            ):
                series.setdefault(name, []).append((entry["step"], value))
    if not series:
        return None
    from matplotlib.figure import Figure

    panels = sorted({name.removeprefix("eval_") for name in series}, key=lambda name: (name != "loss", name))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        for name, label in ((panel, "training"), (f"eval_{panel}", "held out")):
            if name in series:
                axes.plot(*zip(*series[name]), label=label, marker="." if len(series[name]) < 30 else None)
        axes.set_title(panel, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    path = Path(folder) / CURVES
    figure.savefig(path, dpi=110)
    return path


def draw_rewards(folder: Path) -> dict[str, float]:
    """`rewards.png` of a log: the mean reward of each step, and smoothed; and its mean in the first and last tenth."""
    points = [(entry["step"], entry["reward"]) for entry in read_log(folder) if "reward" in entry]
    if not points:
        return {}
    from matplotlib.figure import Figure

    steps, values = map(list, zip(*points))
    window = max(1, len(values) // 10)
    smooth = np.convolve(values, np.full(window, 1 / window), "valid")
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, values, alpha=0.3)
    axes.plot(steps[window - 1 :], smooth)
    axes.set_xlabel("step")
    axes.set_ylabel("mean reward")
    axes.grid(alpha=0.3)
    figure.savefig(Path(folder) / REWARDS, dpi=110)
    return {"reward_first_tenth": float(smooth[0]), "reward_last_tenth": float(smooth[-1])}
