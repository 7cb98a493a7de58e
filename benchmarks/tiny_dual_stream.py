"""
Does the second stream of multi-view PAGE-4D help on moving scenes, and does the mask? Short trainings of the tiny
recipe with each of them on and off, three seeds each, measured on the same held-out clips in which everything moves.

    python -m benchmarks.tiny_dual_stream OUT --page4d DIR

Writes OUT/figures.json and prints mean and spread (standard deviation over the seeds).
"""

import argparse
import json
import statistics
from pathlib import Path

from dsr_toolkit.training import load_recipe, train

SEEDS = (1, 2, 3)
NO_STREAMS = {"start:options.enable_dual_stream": False, "start:options.enable_dynamic_mask": True}
# Neither the trunk nor attention hears of the mask: strengths are cut to nothing.
NO_MASK = {"start:options.mask_loss_weight": 0.0, "start:options.lambda_clamp_value": 1e-9}
VARIANTS = {
    "two streams, mask": {},
    "two streams": NO_MASK,
    "one stream, mask": NO_STREAMS,
    "one stream": {**NO_STREAMS, **NO_MASK},
}
PAIRS = (("two streams, mask", "one stream, mask"), ("two streams", "one stream"))
FIGURES = ("abs_rel", "rotation_error_median", "mask_iou")


def settings(seed: int, steps: int, size: int) -> dict:
    return {
        "start:options.seed": seed,
        "seed": seed,
        "max_steps": steps,
        "eval_steps": steps,
        "save_steps": steps,
        "warmup_steps": 20,
        "data.seed": 130 + seed,
        "data.options.size": size,
        "evaluation.options.size": size,
        "evaluation.options.scenes": {"moving": 1.0},
        "evaluation.count": 64,
        "dataloader_num_workers": 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--page4d", type=Path, required=True, help="folder of the tiny PAGE-4D")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--size", type=int, default=56, help="of the pictures, in pixels")
    options = parser.parse_args()
    found: dict = {name: [] for name in VARIANTS}
    for name, seed in [(name, seed) for pair in PAIRS for seed in SEEDS for name in pair]:
        recipe = load_recipe("tiny/page4d_multiview")
        recipe = recipe.changed({**settings(seed, options.steps, options.size), **VARIANTS[name]})
        folder = options.output / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"
        metrics = train(recipe, folder, folder.exists(), finished={"tiny/page4d": options.page4d}).metrics
        found[name].append({figure: metrics[figure] for figure in FIGURES})
        print(name, seed, found[name][-1], flush=True)
        (options.output / "figures.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, runs in found.items():
        each = [[run[figure] for run in runs] for figure in FIGURES]
        told = [f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}" for values in each]
        print(f"{name:<20}" + "".join(f"{figure} {text:<20}" for figure, text in zip(FIGURES, told)))


if __name__ == "__main__":
    main()
