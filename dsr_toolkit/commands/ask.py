"""Ask DSR about videos and images.

Prints the answers, and writes answer.json and a picture of where the geometry tokens looked. Media are encoded once,
whatever the number of questions.
"""

import time
from pathlib import Path

from ..console import TokenProgress, loading_libraries, say, step
from ..media_check import check_images, check_videos
from ..model_check import check_dtype, check_model
from ..outputs import Output, add_output_arguments, free_folder

ARCHITECTURES = ("dsr",)
HELP = "ask about a video or image"
TITLE = "Where the {} geometry tokens looked"
PIXELS = ("pixel_values", "pixel_values_videos")  # replaced by the features that the towers make of them


def add_arguments(parser) -> None:
    parser.add_argument("questions", nargs="+", metavar="QUESTION", help="one or more questions")
    parser.add_argument("--video", action="append", default=[], metavar="FILE", help="a video; may be repeated")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="an image; may be repeated")
    parser.add_argument("--model", metavar="REPO_OR_DIR", help="a converted DSR model; default: the tiny one")
    parser.add_argument("--frames", type=int, metavar="N", help="frames of each video (default: the model's, 32)")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="longest answer (default: 128)")
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16")
    parser.add_argument("--device", help='"cpu", "cuda:1", or "auto" for all GPUs (default: a GPU if there is one)')
    parser.add_argument("--attn", metavar="NAME", help="attention implementation: sdpa, eager, flash_attention_2, …")
    add_output_arguments(parser, "dsr-ask")


def run(args) -> None:
    if not args.video and not args.image:
        raise ValueError("give at least one --video FILE or --image FILE to ask about.")
    for question in args.questions:
        if not question.strip():
            raise ValueError("a question is empty; write what you want to know, in quotes.")
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}.")
    for path in args.video + args.image:
        if not Path(path).is_file():
            raise ValueError(f"there is no file at {path!r}.")
    check_dtype(args.dtype)
    check_model(args.model, *ARCHITECTURES)
    check_images(args.image)
    check_videos(args.video)
    output = Output(
        args.output or free_folder("dsr-ask"),
        "answer.json",
        names=("attention*.png",),
        inputs=args.video + args.image,
        overwrite=args.overwrite,
    )
    with loading_libraries():
        from ..loading import load, resolve
    source, stand_in = resolve(args.model, "dsr")
    with step(f"Loading {source}"):
        model, processor = load(source, "dsr", dtype=args.dtype, device=args.device, attn_implementation=args.attn)
    if stand_in:
        say(stand_in.notice)

    media = read_media(args.video, args.image, processor.num_frames if args.frames is None else args.frames)
    results = answer(model, processor, media, args.questions, args.max_new_tokens)
    with output:
        write_answers(output, processor, media, results, args.questions, source, stand_in)


def write_answers(output: Output, processor, media, results, questions: list[str], source: str, stand_in) -> None:
    """Print the answers as they come, and write their pictures and answer.json."""
    report = {"model": str(source), "stand_in": stand_in and stand_in.remark, "media": describe(media), "answers": []}
    for number, result in enumerate(results, 1):
        name = "attention" if len(questions) == 1 else f"attention-{number}"
        pictures = draw(processor, media, result, output.path(name), stand_in and stand_in.remark)
        pictures = output.publish(*(picture.name for picture in pictures)) if pictures else []
        print(f"Q: {result['question']}\nA: {result['answer']}")
        for picture in pictures:
            print(f"   {picture}")
        report["answers"].append(
            {key: result[key] for key in ("question", "answer", "seconds", "next_tokens")}
            | {"pictures": [picture.name for picture in pictures]}
        )
    if stand_in:
        print(f"({stand_in.remark})")
    print(f"   {output.report(report)}")


def read_media(videos: list[str], images: list[str], num_frames: int) -> list[dict]:
    """Decode images, then videos, in the order they will stand in the prompt."""
    from modeling_dsr.frames import decode_video
    from modeling_dsr.image_reader import read_image

    media = []
    for path in images:
        media.append({"kind": "image", "path": path, "image": read_image(path)})
    for path in videos:
        with step(f"Reading {path}"):
            frames, metadata = decode_video(path, num_frames)
        media.append({"kind": "video", "path": path, "frames": frames, "metadata": metadata})
    return media


def answer(model, processor, media: list[dict], questions: list[str], max_new_tokens: int = 128):
    """
    Answer each question about the same media, greedily.

    The vision tower and the geometry encoder run once. For each question one pass over the prompt records where its
    geometry tokens look and which words may come first; then the answer is generated.

    Yields:
        For each question a dict with `question`, `answer`, `seconds`, `next_tokens` (the likeliest first tokens and
        their probabilities), `logits` of the first token `[vocabulary]`, and `geometry_attentions` (None without
        geometry).
    """
    import torch

    prompts = [prompt_of(processor, media, question) for question in questions]
    with step(f"Encoding {len(media)} file(s)"), torch.no_grad():
        encoded = process(processor, media, prompts[0]).to(model.device)
        features = encode(model, encoded)
    for number, (question, prompt) in enumerate(zip(questions, prompts), 1):
        start = time.perf_counter()
        with step(f"Answering question {number} of {len(questions)}"), torch.no_grad():
            inputs = encoded if number == 1 else reprocess(processor, media, prompt, encoded).to(model.device)
            inputs = {name: value for name, value in inputs.items() if name not in PIXELS}
            first = model(
                **inputs,
                mm_encoder_outputs=features,
                output_geometry_attentions=True,
                logits_to_keep=1,
                use_cache=False,
            )
            tokens = model.generate(
                **inputs,
                mm_encoder_outputs=features,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                streamer=TokenProgress(),
            )
        logits = first.logits[0, -1].float().cpu()
        likeliest = logits.softmax(-1).topk(5)
        yield {
            "question": question,
            "answer": processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip(),
            "seconds": round(time.perf_counter() - start, 2),
            "next_tokens": [
                (processor.decode([token]), round(probability, 5))
                for token, probability in zip(likeliest.indices.tolist(), likeliest.values.tolist())
            ],
            "logits": logits,
            "geometry_attentions": first.geometry_attentions,
        }


def prompt_of(processor, media: list[dict], question: str) -> str:
    """One user turn that shows all media and asks."""
    content = [{"type": medium["kind"]} for medium in media] + [{"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def process(processor, media: list[dict], prompt: str):
    """The model's inputs for a prompt about all media."""
    images = [medium["image"] for medium in media if medium["kind"] == "image"]
    videos = [medium for medium in media if medium["kind"] == "video"]
    return processor(
        text=[prompt],
        images=images or None,
        videos=[video["frames"] for video in videos] or None,
        video_metadata=[video["metadata"] for video in videos] or None,
        return_tensors="pt",
    )


def reprocess(processor, media: list[dict], prompt: str, encoded):
    """The inputs for a further prompt; videos, which take long to resize, are described by what is known of them."""
    if any(medium["kind"] == "image" for medium in media):
        return process(processor, media, prompt)
    known = {name: encoded[name] for name in ("video_grid_thw", "second_per_grid_ts")}
    return processor(text=[prompt], **known, return_tensors="pt")


def encode(model, inputs) -> dict:
    """What the model computes of media before it sees a question."""
    features = {}
    if "pixel_values" in inputs:
        features["image"] = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    if "pixel_values_videos" in inputs:
        features["video"] = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    return features


def draw(processor, media: list[dict], result: dict, path: Path, remark: str | None = None) -> list[Path]:
    """One picture per medium that geometry tokens read; none where there are no geometry tokens."""
    from ..pictures import attention_sheet, shrink

    if result["geometry_attentions"] is None:
        say("No geometry tokens were used (images need a model with geometry_for_images), so there is no picture.")
        return []
    read = [medium for medium in media if medium["kind"] == "video" or processor.geometry_for_images]
    paths = []
    for number, (medium, probabilities) in enumerate(zip(read, result["geometry_attentions"]), 1):
        if medium["kind"] == "image":
            frames, labels = shrink([medium["image"]]), [Path(medium["path"]).name]
        else:
            metadata, frames = medium["metadata"], shrink(medium["frames"])
            labels = [f"{index / metadata.fps:.2f} s" for index in metadata.frames_indices]
        heat, per_token = heat_of(processor, probabilities, frames)
        lines = [Path(medium["path"]).name, f"Question: {result['question']}", f"Answer: {result['answer']}"]
        lines += [remark] if remark else []
        if len(read) > 1:
            lines.insert(1, f"{heat.sum():.1%} of the attention fell on this file; colours show how it spread inside.")
        picture = attention_sheet(frames, heat, per_token, labels, TITLE.format(len(per_token)), lines)
        paths.append(path.with_name(f"{path.name}{f'-{number}' if len(read) > 1 else ''}.png"))
        picture.save(paths[-1])
    return paths


def heat_of(processor, probabilities, frames):
    """Attention per pixel `[T, H, W]` and per token and frame `[K, T]` of one medium, as numpy arrays."""
    arguments = {"num_frames": [len(frames)]}
    heat = processor.post_process_geometry_attentions([probabilities], target_sizes=[frames.shape[1:3]], **arguments)[0]
    shares = processor.post_process_geometry_attentions([probabilities], [(1, 1)], per_token=True, **arguments)[0]
    return heat.cpu().numpy(), shares[:, :, 0, 0].cpu().numpy()


def describe(media: list[dict]) -> list[dict]:
    """What was read, for answer.json."""
    described = []
    for medium in media:
        entry = {"kind": medium["kind"], "path": str(medium["path"])}
        if medium["kind"] == "video":
            metadata = medium["metadata"]
            entry |= {"fps": metadata.fps, "frames": [int(index) for index in metadata.frames_indices]}
        described.append(entry)
    return described
