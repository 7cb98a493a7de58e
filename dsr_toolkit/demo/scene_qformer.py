"""Six cameras of a drawn street become scene tokens, and a language model reads them."""

from pathlib import Path

from ..commands.scene import describe, look, read_scene
from ..console import RANDOM_WEIGHTS, step
from ..tiny import build
from .surround import write

TITLE = "Scene Q-Former: six cameras to scene tokens"
PROMPT = "<image>\nWhat is around the car?"


def run(folder: Path, model: str | None = None) -> dict:
    """Draw, convert, look, ask."""
    import torch
    from transformers import AutoModelForImageTextToText

    from ..loading import load

    random_weights = model is None
    if random_weights:
        model = build("scene_qformer", folder)
    scene = read_scene(write(folder / "street"))
    with step("Reading six cameras"):
        qformer, processor = load(str(model), "scene_qformer")
        summary, picture = look(qformer, processor, scene)
    picture.save(folder / "attention.png")
    print(describe(summary))
    answer = None
    if qformer.config.text_config is not None and processor.tokenizer is not None:
        reader = AutoModelForImageTextToText.from_pretrained(model).eval()
        calibration = {name: scene[name] for name in ("cam_intrinsics", "cam_extrinsics")}
        inputs = processor(scene["images"], PROMPT, **(calibration if processor.needs_calibration else {}))
        with torch.inference_mode():
            ids = reader.generate(**inputs, max_new_tokens=16, do_sample=False)
        answer = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"Q: {PROMPT.splitlines()[-1]}\nA: {answer}")
    if random_weights:
        print(RANDOM_WEIGHTS)
    print(f"   {folder / 'attention.png'}")
    return {
        "model": str(model),
        "random_weights": random_weights,
        "summary": summary,
        "prompt": PROMPT,
        "answer": answer,
        "picture": "attention.png",
    }
