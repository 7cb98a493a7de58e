"""Frames of the demo clip become cameras and points, by π³ or PAGE-4D."""

from pathlib import Path

from ..commands import reconstruct
from ..console import step
from ..tiny import build
from .clip import CLIP

FRAMES = 6


def show(kind: str, folder: Path, model: str | None) -> dict:
    """Convert, reconstruct, and name the pictures."""
    import argparse

    random_weights = model is None
    model = model or build(kind, folder)
    parser = argparse.ArgumentParser()
    reconstruct.add_arguments(parser)
    output = folder / "scene"
    # Random weights are full of edges, and what lies at edges is left out.
    wishes = ["--edge-tolerance", "0"] if random_weights else []
    with step(f"Reconstructing {FRAMES} frames"):
        arguments = [
            str(CLIP),
            "-o",
            str(output),
            "--model",
            str(model),
            "--frames",
            str(FRAMES),
            "--format",
            "glb,html",
        ]
        reconstruct.run(parser.parse_args([*arguments, *wishes]))
    if random_weights:
        print("(random weights: neither cameras nor points mean anything)")
    files = {"picture": "scene/overview.png", "page": "scene/scene.html", "scene": "scene/scene.glb"}
    return {"model": str(model), "random_weights": random_weights, "frames": FRAMES, **files}
