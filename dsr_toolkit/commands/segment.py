"""Draw masks for phrases of an image, or for the phrases of an answer about it.

Writes an overlay, one mask per phrase as PNG, and segment.json with scores, boxes and run lengths. IMAGE may be a
showcase manifest (.json): then its phrases are looked up in each of its images.
"""

import json
from pathlib import Path

from ..console import loading_libraries, say, step
from ..media_check import check_images
from ..model_check import check_dtype, check_model
from ..outputs import Output, add_output_arguments, free_folder

ARCHITECTURES = ("frozen_qwen_sam",)
HELP = "masks for phrases of an image, or of an answer about it"


def add_arguments(parser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="an image, or a manifest of images (.json)")
    parser.add_argument(
        "phrases", nargs="*", metavar="PHRASE", help="phrases; with --ask, words of the answer (default: its nouns)"
    )
    parser.add_argument("--ask", metavar="QUESTION", help="answer this, and segment what the answer names")
    parser.add_argument(
        "--look-again", action="store_true", help="with --ask: show the first phrase's region and ask again"
    )
    parser.add_argument("--caption", metavar="TEXT", help="a text that contains the phrases (default: each by itself)")
    parser.add_argument(
        "--debug", action="store_true", help="print the tensors, and draw attention, coarse and refined masks"
    )
    parser.add_argument(
        "--multimask", action="store_true", help="let SAM draw three candidates per phrase and keep the best"
    )
    parser.add_argument("--model", metavar="REPO_OR_DIR", help="a converted model; default: the tiny one")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="longest answer (default: 128)")
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--device", help='"cpu", "cuda", … (default: a GPU if there is one)')
    add_output_arguments(parser, "dsr-segment")


def run(args) -> None:
    path = Path(args.image)
    if not path.is_file():
        raise ValueError(f"there is no file at {args.image!r}.")
    manifest = path.suffix == ".json"
    if not manifest and not args.phrases and args.ask is None:
        raise ValueError('name at least one phrase, or ask with --ask "question".')
    if manifest and (args.phrases or args.ask is not None or args.caption):
        raise ValueError("a manifest brings its own phrases; give an image to ask about or to name phrases of.")
    if args.look_again and args.ask is None:
        raise ValueError("--look-again goes with --ask.")
    if args.caption and args.ask is not None:
        raise ValueError("--caption and --ask exclude each other: with --ask, the answer is the caption.")
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}.")
    jobs = (
        read_manifest(path) if manifest else [{"image": path, "phrases": args.phrases, "ask": args.ask, "folder": "."}]
    )

    check_dtype(args.dtype)
    check_model(args.model, *ARCHITECTURES)
    check_images(job["image"] for job in jobs)
    pictures = ("overlay.png", "mask-*.png", "debug.png")
    output = Output(
        args.output or free_folder("dsr-segment"),
        "segment.json",
        names=[f"{job['folder']}/{name}".removeprefix("./") for job in jobs for name in pictures],
        inputs=[path, *(job["image"] for job in jobs)],
        overwrite=args.overwrite,
    )
    with loading_libraries():
        from ..loading import load, resolve
    source, stand_in = resolve(args.model, "frozen_qwen_sam")
    with step(f"Loading {source}"):
        model, processor = load(source, "frozen_qwen_sam", dtype=args.dtype, device=args.device)
    if stand_in:
        say(stand_in.notice)
    model.config.multimask_output = args.multimask or model.config.multimask_output
    report = {"model": str(source), "stand_in": stand_in and stand_in.remark, "images": []}
    with output:
        for job in jobs:
            folder = output.path(f"{job['folder']}/overlay.png").parent
            report["images"].append(segment(model, processor, job, folder, args, stand_in))
            for target in output.publish():
                print(f"   {target}")
            target = output.report(report)
    print(f"   {target}")


def read_manifest(path: Path) -> list[dict]:
    """Image and phrases of each sample of a showcase manifest whose image is there."""
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content.get("samples"), list):
        raise ValueError(f"{path} is no showcase manifest: it has no list `samples`.")
    jobs = []
    for sample in content["samples"]:
        places = [path.parent / content.get("image_base_dir", "."), path.parent]
        image = next((place / sample["image"] for place in places if (place / sample["image"]).is_file()), None)
        if image is None:
            say(f"{path.name} names {sample['image']!r}, which is not beside it: left out.")
            continue
        words = [phrase["text"] for phrase in sample.get("observed_phrases", [])] or [sample["ground_click"]["text"]]
        jobs.append({"image": image, "phrases": words, "ask": None, "folder": sample["id"]})
    if not jobs:
        raise ValueError(f"{path} names no image that is beside it.")
    return jobs


def segment(model, processor, job: dict, folder: Path, args, stand_in) -> dict:
    """One image: run, write pictures, return what segment.json records."""
    from modeling_dsr.frozen_qwen_sam_grounding import grounded_answer, second_look, segment_phrases
    from modeling_dsr.image_reader import read_image

    image = read_image(job["image"])
    record = {"image": str(job["image"])}
    if job["ask"] is None:
        with step(f"Looking for {', '.join(job['phrases'])}"):
            found = segment_phrases(model, processor, image, job["phrases"], args.caption)
    else:
        with step("Answering"):
            found = grounded_answer(
                model, processor, image, job["ask"], job["phrases"] or None, max_new_tokens=args.max_new_tokens
            )
        record |= {"question": job["ask"], "answer": found["answer"]}
        print(f"Q: {job['ask']}\nA: {found['answer']}")
        if not found["phrases"]:
            say(
                "The answer names nothing that the model lists as a noun phrase, so there is no mask. Name words of it "
                "as PHRASE."
            )
            return record | {"phrases": []}
        if args.look_again:
            with step("Looking again"):
                again = second_look(model, processor, job["ask"], found, max_new_tokens=args.max_new_tokens)
            record["second_look"] = again
            print(f"A, on a second look at {[round(value) for value in again['box']]}: {again['answer']}")
    if stand_in:
        print(f"({stand_in.remark})")
    record["phrases"] = write_result(processor, image, found["result"], folder)
    if args.debug:
        print(tensor_table(found["inputs"], found["output"]))
        picture = debug_sheet(processor, image, found["output"], found["phrases"])
        picture.save(folder / "debug.png")
    return record


def write_result(processor, image, result: dict, folder: Path) -> list[dict]:
    """overlay.png, mask-N.png; a record per phrase."""
    from PIL import Image

    from modeling_dsr.pictures import mask_to_rle

    processor.draw_masks(image, result).save(folder / "overlay.png")
    records = []
    for number, phrase in enumerate(result["phrases"]):
        mask = result["masks"][number].numpy()
        Image.fromarray(mask).save(folder / f"mask-{number}.png")
        score, box = result["scores"][number].item(), result["boxes"][number].tolist()
        records.append(
            {
                "phrase": phrase,
                "score": round(score, 4),
                "box": box,
                "mask": f"mask-{number}.png",
                "rle": mask_to_rle(mask),
            }
        )
        print(f"   {phrase}: score {score:.3f}, {mask.mean():.1%} of the image, box {box}")
    return records


def tensor_table(inputs: dict, output) -> str:
    """Names, shapes and ranges of what went in and came out, to see at once where something is off."""
    rows = [("tensor", "shape", "values")]
    for name in ("input_ids", "mask_ids", "pixel_values", "image_grid_thw", "sam_pixel_values"):
        if name in inputs:
            rows.append(
                (name, str(list(inputs[name].shape)), inputs[name].tolist() if name == "image_grid_thw" else "")
            )
    for name in ("mask_attentions", "pred_masks", "prompt_masks", "boxes", "sam_pred_masks"):
        value = getattr(output, name)
        if value is not None:
            rows.append((name, str(list(value[0].shape)), f"{value[0].min():.4g} … {value[0].max():.4g}"))
    for number, embeds in enumerate(output.text_embeds[0]):
        norms = ", ".join(f"{norm:.3f}" for norm in embeds.float().norm(dim=-1).tolist())
        rows.append((f"text_embeds[{number}]", str(list(embeds.shape)), f"norms {norms}"))
    widths = [max(len(str(row[column])) for row in rows) for column in (0, 1)]
    return "\n".join(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip() for row in rows)


def debug_sheet(processor, image, output, phrases: list[str]):
    """Per phrase a row: mean attention over layers and heads, coarse mask, refined mask."""
    import numpy as np
    import torch
    from PIL import Image, ImageDraw

    from ..pictures import overlay

    size = (320, max(1, round(320 * image.height / image.width)))
    frame, title = np.asarray(image.resize(size)), 22
    attention = processor.resize_attention_maps(output.mask_attentions[0].mean(1, keepdim=True), output.pred_masks[0])[
        :, 0
    ]
    maps = (attention, output.pred_masks[0].float().sigmoid(), output.sam_pred_masks[0].float().sigmoid())
    sheet = Image.new("RGB", (3 * size[0], len(phrases) * (size[1] + title)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, phrase in enumerate(phrases):
        for column, (name, values) in enumerate(zip(("attention", "coarse mask", "refined mask"), maps)):
            resized = (
                torch.nn.functional.interpolate(values[row][None, None], size=size[::-1], mode="bilinear")[0, 0]
                .cpu()
                .numpy()
            )
            low, high = (0.0, 1.0) if column else (float(resized.min()), float(resized.max()))
            top = row * (size[1] + title)
            sheet.paste(overlay(frame, resized, low, high), (column * size[0], top + title))
            draw.text((column * size[0] + 4, top + 4), f"{phrase}: {name}", fill=(20, 20, 20))
    return sheet
