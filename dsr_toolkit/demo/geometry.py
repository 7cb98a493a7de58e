"""Frames of the demo clip become cameras, depth and points, by π³ or PAGE-4D, beside what is true."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_dsr.pictures import heat_colours

from ..commands import reconstruct
from ..console import step
from ..evaluation.world_geometry import clip_errors
from .clip import CLIP, FPS, sample
from .page import Panel, Text, aside, cloud_picture, lit
from .shown import choose, facts, measured

FRAMES = 8


def show(kind: str, title: str, folder: Path, model: str | None) -> tuple[dict, Panel]:
    """Reconstruct, compare with the truth, and name the pictures."""
    source, stand_in = choose(model, kind)
    parser = argparse.ArgumentParser()
    reconstruct.add_arguments(parser)
    output = folder / "scene"
    # Tiny models are full of small edges, and what lies at edges is left out.
    wishes = ["--edge-tolerance", "0"] if stand_in else []
    arguments = [str(CLIP), "-o", str(output), "--model", source, "--frames", str(FRAMES), "--format", "glb,html,npz"]
    with step(f"Reconstructing {FRAMES} frames"):
        reconstruct.run(parser.parse_args([*arguments, *wishes]))
    with np.load(output / "geometry.npz") as file:
        found = dict(file)
    truth = true_maps(np.round(found["times"] * FPS).astype(int), found["depth"].shape[1:3])
    errors = compare(found, truth)
    said = told(errors, measured(kind, stand_in, "abs_rel_ratio", "rotation_error_median"))
    for line in said:
        print(f"   {line}")
    panel = Panel(title, stand_in.remark if stand_in else source, pictures(found, truth, errors), list(map(Text, said)))
    files = {"picture": "scene/overview.png", "page": "scene/scene.html", "scene": "scene/scene.glb"}
    return {**facts(source, stand_in), "frames": FRAMES, "clip": errors, **files}, panel


def true_maps(numbers: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """What is true of frames of the clip, its maps at the nearest pixels of `size`."""
    clip = sample()
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, clip.depth.shape[1:]))
    maps = {name: getattr(clip, name)[numbers][:, rows][:, :, columns] for name in ("images", "depth", "dynamic")}
    scale = np.array([size[1] / clip.depth.shape[2], size[0] / clip.depth.shape[1], 1.0])
    return maps | {"poses": clip.poses[numbers], "intrinsics": clip.intrinsics[numbers] * scale[:, None]}


def compare(found: dict, truth: dict) -> dict:
    """Errors of the clip, as `dsr eval world` counts them, but of pixels: what moves is told apart pixel by pixel."""
    prediction = {"depths": found["depth"], "poses": found["camera_to_world"]}
    if "dynamic" in found:
        prediction["dynamic"] = found["dynamic"]
    errors = clip_errors(prediction, {"depths": truth["depth"], "poses": truth["poses"], "dynamic": truth["dynamic"]})
    told = {
        "abs_rel": errors["abs_rel"],
        "abs_rel_constant": errors["abs_rel_constant"],
        "scale": errors["scale"],
        "rotation_error_median": float(np.median(errors["rotation_errors"])),
        "rotation_still_median": float(np.median(errors["true_rotations"])),
    }
    if "union" in errors:
        told["mask_iou"] = errors["intersection"] / max(1, errors["union"])
    return told


def told(errors: dict, figures: dict | None) -> list[str]:
    lines = [
        f"Depth is off by {errors['abs_rel']:.1%} on this clip; the best constant by {errors['abs_rel_constant']:.0%}. "
        f"Cameras turn by {errors['rotation_still_median']:.1f}° between frames and are off by "
        f"{errors['rotation_error_median']:.1f}° (medians)."
    ]
    if "mask_iou" in errors:
        lines.append(f"What moves is found with an IoU of {errors['mask_iou']:.2f}.")
    if figures is not None:
        mask = f", what moves {figures['metrics']['mask_iou']:.2f} IoU" if "mask_iou" in figures["metrics"] else ""
        lines.append(
            f"On {figures['count']} fresh clips: depth {figures['abs_rel_ratio']:.1f} times "
            f"better than the best constant, cameras off by {figures['rotation_error_median']:.1f}°{mask}."
        )
    return lines


def pictures(found: dict, truth: dict, errors: dict) -> list[list[tuple[str, Image.Image]]]:
    """Rows: two frames with true and found depth (and what moves), and the points from aside."""
    near, far = np.percentile(truth["depth"], [1, 99])
    shade = lambda depth: Image.fromarray(  # noqa: E731
        heat_colours(1 - np.log(np.maximum(depth, 1e-6) / near) / np.log(far / near)).astype(np.uint8)
    )
    first, last = 1, len(truth["images"]) - 2
    rows = []
    if "dynamic" in found:
        rows.append(
            [
                (caption, picture)
                for number in (first, last)
                for caption, picture in (
                    ("a frame", Image.fromarray(truth["images"][number])),
                    ("moves, true", lit(truth["images"][number], truth["dynamic"][number])),
                    ("moves, found", lit(truth["images"][number], found["dynamic"][number] >= 0.5)),
                )
            ]
        )
    rows.append(
        [
            (caption, picture)
            for number in (first, last)
            for caption, picture in (
                ("a frame", Image.fromarray(truth["images"][number])),
                ("depth, true", shade(truth["depth"][number])),
                ("depth, found", shade(errors["scale"] * found["depth"][number])),
            )
        ]
    )
    if "dynamic" not in found:
        rows.append(clouds(found, truth, errors["scale"]))
    return rows


def clouds(found: dict, truth: dict, scale: float) -> list[tuple[str, Image.Image]]:
    """True points and those found, in the frame of the first camera, seen from aside and above."""
    height, width = truth["depth"].shape[1:]
    rays = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
    seen = []
    for depth, pose, intrinsics in zip(truth["depth"], truth["poses"], truth["intrinsics"]):
        local = (rays - intrinsics[:2, 2]) / intrinsics[[0, 1], [0, 1]] * depth[..., None]
        local = np.concatenate([local, depth[..., None]], -1)
        seen.append(local @ pose[:3, :3].T + pose[:3, 3])
    true = [*_from_first(np.stack(seen), truth["poses"][0], 1.0, np.ones_like(truth["dynamic"]), truth["images"])]
    mine = [*_from_first(found["points"], found["camera_to_world"][0], scale, found["mask"], truth["images"])]
    camera = aside(np.eye(4), np.array([0, 0, float(np.median(truth["depth"]))]))
    return [
        ("points, true", cloud_picture(*true, camera, 0.75, (480, 300))),
        ("points, found", cloud_picture(*mine, camera, 0.75, (480, 300))),
    ]


def _from_first(points, pose, scale: float, mask, images) -> tuple[np.ndarray, np.ndarray]:
    """Points `[N, 3]` in the frame of a camera, scaled, and their colours."""
    local = (points[mask] - pose[:3, 3]) @ pose[:3, :3]
    return scale * local, images[mask]
