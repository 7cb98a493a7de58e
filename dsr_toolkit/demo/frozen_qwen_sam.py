"""FrozenQwenSAM marks phrases in a frame of the carried clip."""

from pathlib import Path

from ..console import step
from ..tiny import build
from .clip import CLIP

TITLE = "FrozenQwenSAM: masks for phrases"
PHRASES = ("the red ball", "the floor")


def run(folder: Path, model: str | None = None) -> dict:
    """Convert, load, segment two phrases at once, draw attention, coarse and refined masks."""
    from PIL import Image

    from modeling_dsr.frames import decode_video
    from modeling_dsr.frozen_qwen_sam_grounding import segment_phrases

    from ..commands.segment import debug_sheet, tensor_table, write_result
    from ..loading import load

    random_weights = model is None
    if random_weights:
        model = build("frozen_qwen_sam", folder)
    with step("Loading it"):
        network, processor = load(str(model), "frozen_qwen_sam")
    frames, _ = decode_video(CLIP, 2)
    image = Image.fromarray(frames[0])
    with step(f"Looking for {', '.join(PHRASES)}"):
        found = segment_phrases(network, processor, image, list(PHRASES))
    records = write_result(processor, image, found["result"], folder)
    debug_sheet(processor, image, found["output"], list(PHRASES)).save(folder / "debug.png")
    print(tensor_table(found["inputs"], found["output"]))
    if random_weights:
        print("(random weights: the masks mean nothing)")
    print(f"   {folder / 'debug.png'}\n   {model}  loads with AutoModel.from_pretrained(…, trust_remote_code=True)")
    return {
        "model": str(model),
        "random_weights": random_weights,
        "video": CLIP.name,
        "phrases": [{"phrase": record["phrase"], "score": record["score"]} for record in records],
        "picture": "overlay.png",
    }
