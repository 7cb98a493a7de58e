"""Scene tokens of six surround cameras: prints a summary and paints where the queries look over the images.

FOLDER holds one image per camera, named CAM_FRONT.jpg and so on, and for models that read it calibration.json:
{"CAM_FRONT": {"intrinsics": [[…]], "extrinsics": [[…]]}, …}, intrinsics in pixels of the image, extrinsics camera →
vehicle in metres. Or it is a nuScenes folder; --sample then names the sample.
"""

import json
from pathlib import Path

from ..console import RANDOM_WEIGHTS, RANDOM_WEIGHTS_NOTICE, say, step

HELP = "scene tokens of six surround cameras"
IMAGE_KINDS = (".jpg", ".jpeg", ".png", ".webp")


def add_arguments(parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="six images by camera name, or a nuScenes folder")
    parser.add_argument("--model", metavar="REPO_OR_DIR", help="a converted scene Q-Former; default: a tiny random one")
    parser.add_argument("--sample", metavar="TOKEN", help="sample of a nuScenes folder (default: the first)")
    parser.add_argument(
        "--query", type=int, action="append", metavar="N", help="paint this query; may be repeated (default: all)"
    )
    parser.add_argument("--layer", type=int, default=-1, metavar="N", help="decoder layer to paint (default: the last)")
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--device", help='"cpu", "cuda", … (default: a GPU if there is one)')
    parser.add_argument(
        "-o", "--output", default="dsr-scene", metavar="DIR", help="where to write (default: dsr-scene)"
    )


def run(args) -> None:
    scene = read_scene(Path(args.folder), args.sample)
    with step("Loading libraries"):
        from ..loading import load, resolve
    source, is_random = resolve(args.model, "scene_qformer")
    with step(f"Loading {source}"):
        model, processor = load(source, "scene_qformer", dtype=args.dtype, device=args.device)
    if is_random:
        say(RANDOM_WEIGHTS_NOTICE)
    with step("Reading the scene"):
        summary, picture = look(model, processor, scene, args.query, args.layer)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    picture.save(output / "attention.png")
    report = {"model": str(source), "random_weights": is_random, "scene": scene["name"], **summary}
    (output / "scene.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(describe(summary))
    if is_random:
        print(RANDOM_WEIGHTS)
    print(f"   {output / 'attention.png'}\n   {output / 'scene.json'}")


def read_scene(folder: Path, sample: str | None = None) -> dict:
    """`images` by camera name, `cam_intrinsics` and `cam_extrinsics` (None where there are none), `name`."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder at {str(folder)!r}.")
    if any(folder.glob("v1.0-*/sample.json")):
        from ..datasets.nuscenes import NuScenes

        dataset = NuScenes(folder)
        if sample is None:
            samples = dataset.samples()
            if not samples:
                raise ValueError(f"{folder} holds no sample.")
            sample = samples[0]
        return dataset.read(sample) | {"name": sample}
    if sample is not None:
        raise ValueError(
            f"--sample names a sample of a nuScenes folder, and {folder} is none: it has no v1.0-…/sample.json."
        )
    images = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_KINDS}
    scene = {"images": images, "cam_intrinsics": None, "cam_extrinsics": None, "name": folder.name}
    described = folder / "calibration.json"
    if described.is_file():
        try:
            cameras = json.loads(described.read_text(encoding="utf-8"))
            for field in ("intrinsics", "extrinsics"):
                scene[f"cam_{field}"] = {name: camera[field] for name, camera in cameras.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{described} must be {{camera: {{intrinsics: 3×3, extrinsics: 4×4}}}} ({type(error).__name__}: "
                f"{error})."
            ) from error
    return scene


def look(model, processor, scene: dict, queries=None, layer: int = -1):
    """Summary of the scene tokens (numbers alone) and the attention picture."""
    import torch

    layers, count = model.config.num_decoder_layers, model.config.num_queries
    if not -layers <= layer < layers:
        raise ValueError(f"--layer must lie in {-layers} … {layers - 1}, got {layer}.")
    if queries and not all(0 <= query < count for query in queries):
        raise ValueError(f"--query must lie in 0 … {count - 1}, got {queries}.")
    calibration = {name: scene[name] for name in ("cam_intrinsics", "cam_extrinsics")}
    if not processor.needs_calibration:
        calibration = {}
    inputs = processor(scene["images"], **calibration).to(model.device)
    with torch.inference_mode():
        output = model(**inputs, output_attentions=True)
    tokens = output.scene_tokens[0].float()
    directions = torch.nn.functional.normalize(tokens, dim=-1)
    cosine = directions @ directions.T
    shares = output.attentions[layer][0].float()
    shares = (shares if not queries else shares[:, queries]).mean((0, 1)).sum((-2, -1))
    summary = {
        "tokens": list(tokens.shape),
        "cells": list(output.attentions[layer].shape[-3:]),
        "mean_norm": tokens.norm(dim=-1).mean().item(),
        "largest": tokens.abs().max().item(),
        "mean_cosine": ((cosine.sum() - cosine.trace()) / max(len(tokens) * (len(tokens) - 1), 1)).item(),
        "attention": dict(zip(processor.camera_names, shares.tolist())),
    }
    heat = processor.post_process_attentions(output.attentions, layer=layer, queries=queries)[0]
    which = f"queries {', '.join(map(str, queries))}" if queries else f"all {count} queries"
    return summary, processor.paint_attentions(scene["images"], heat, f"Where {which} look, layer {layer % layers + 1}")


def describe(summary: dict) -> str:
    count, width = summary["tokens"]
    cameras, rows, columns = summary["cells"]
    lines = [
        f"{count} scene tokens of {width} numbers, from {cameras} cameras × {rows}×{columns} cells",
        f"norm {summary['mean_norm']:.3g} on average, largest number {summary['largest']:.3g}, "
        f"cosine between tokens {summary['mean_cosine']:.3f} on average",
        "attention: " + ", ".join(f"{name} {share:.1%}" for name, share in summary["attention"].items()),
    ]
    return "\n".join(lines)
