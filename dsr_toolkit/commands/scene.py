"""Scene tokens of six surround cameras: prints a summary, answers questions and paints where the queries look.

FOLDER holds one image per camera, named CAM_FRONT.jpg and so on, and for models that read it calibration.json:
{"CAM_FRONT": {"intrinsics": [[…]], "extrinsics": [[…]]}, …}, intrinsics in pixels of the image, extrinsics camera →
vehicle in metres. Or it is a nuScenes folder; --sample then names the sample.
"""

import json
from pathlib import Path

from ..console import loading_libraries, say, step
from ..media_check import check_images, list_images
from ..model_check import check_dtype, check_model
from ..outputs import Output, add_output_arguments, free_folder

ARCHITECTURES = ("scene_qformer",)
HELP = "scene tokens of six surround cameras"
READER = "AutoModelForImageTextToText"  # a scene Q-Former with its language model


def add_arguments(parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="six images by camera name, or a nuScenes folder")
    parser.add_argument("--model", metavar="REPO_OR_DIR", help="a converted scene Q-Former; default: the tiny one")
    parser.add_argument("--sample", metavar="TOKEN", help="sample of a nuScenes folder (default: the first)")
    parser.add_argument(
        "--ask",
        action="append",
        metavar="QUESTION",
        help="ask the language model; may be repeated (default: no question)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="length of an answer (default: 64)")
    parser.add_argument(
        "--query", type=int, action="append", metavar="N", help="paint this query; may be repeated (default: all)"
    )
    parser.add_argument("--layer", type=int, default=-1, metavar="N", help="decoder layer to paint (default: the last)")
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--device", help='"cpu", "cuda", … (default: a GPU if there is one)')
    add_output_arguments(parser, "dsr-scene")


def run(args) -> None:
    check_dtype(args.dtype)
    check_model(args.model, *ARCHITECTURES)
    output = Output(
        args.output or free_folder("dsr-scene"),
        "scene.json",
        names=("attention.png",),
        inputs=[args.folder],
        overwrite=args.overwrite,
    )
    scene = read_scene(Path(args.folder), args.sample)
    check_images(scene["images"].values())
    with loading_libraries():
        from ..loading import load, resolve
    source, stand_in = resolve(args.model, "scene_qformer")
    with step(f"Loading {source}"):
        model, processor = load(
            source, "scene_qformer", args.dtype, args.device, auto_class=READER if args.ask else None
        )
    if stand_in:
        say(stand_in.notice)
    with step("Reading the scene"):
        summary, picture = look(getattr(model, "scene_qformer", model), processor, scene, args.query, args.layer)
    answers = {}
    if args.ask:
        with step("Answering"):
            answers = dict(zip(args.ask, ask(model, processor, scene, args.ask, args.max_new_tokens)))
    report = {"model": str(source), "stand_in": stand_in and stand_in.remark, "scene": scene["name"], **summary}
    if args.ask:
        report["answers"] = answers
    with output:
        picture.save(output.path("attention.png"))
        written = [*output.publish(), output.report(report)]
    print(describe(summary))
    for question, answer in answers.items():
        print(f"Q: {question}\nA: {answer}")
    if stand_in:
        print(f"({stand_in.remark})")
    for path in written:
        print(f"   {path}")


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
    images = {path.stem: path for path in list_images(folder)}
    if not images:
        raise ValueError(f"{folder} holds no images; one per camera is needed, named CAM_FRONT.jpg and so on.")
    scene = {"images": images, "cam_intrinsics": None, "cam_extrinsics": None, "name": folder.name}
    described = folder / "calibration.json"
    if described.is_file():
        try:
            cameras = json.loads(described.read_text(encoding="utf-8-sig"))
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


def ask(model, processor, scene: dict, questions: list[str], max_new_tokens: int = 64) -> list[str]:
    """Answers of a scene Q-Former with a language model about one scene, which is read once."""
    from ..scenes import answer_questions, scene_tokens

    tokens = scene_tokens(model, processor, *([scene[name]] for name in ("images", "cam_intrinsics", "cam_extrinsics")))
    return answer_questions(model, processor, questions, tokens.expand(len(questions), -1, -1), max_new_tokens)


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
