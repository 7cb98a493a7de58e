"""FrozenQwenSAM marks phrases in a frame of the carried clip."""

from pathlib import Path

import numpy as np

from ..console import step
from .clip import CLIP, sample
from .page import Panel, Text, lit
from .shown import choose, facts, measured

TITLE = "FrozenQwenSAM: masks for phrases"
PHRASES = ("the red ball", "the green box", "the box behind the red ball")


def run(folder: Path, model: str | None = None) -> tuple[dict, Panel]:
    """Load, segment phrases at once, compare with the true masks, draw attention, coarse and refined masks."""
    from PIL import Image

    from modeling_dsr.frames import decode_video
    from modeling_dsr.frozen_qwen_sam_grounding import segment_phrases

    from ..commands.segment import debug_sheet, tensor_table, write_result
    from ..loading import load

    source, stand_in = choose(model, "frozen_qwen_sam")
    with step("Loading it"):
        network, processor = load(source, "frozen_qwen_sam")
    frames, _ = decode_video(CLIP, 2)
    image = Image.fromarray(frames[0])
    with step(f"Looking for {', '.join(PHRASES)}"):
        found = segment_phrases(network, processor, image, list(PHRASES))
    records = write_result(processor, image, found["result"], folder)
    debug_sheet(processor, image, found["output"], list(PHRASES)).save(folder / "debug.png")
    print(tensor_table(found["inputs"], found["output"]))
    true = {phrase.text: phrase.mask for phrase in sample().phrases(0)}
    masks = dict(zip(PHRASES, found["result"]["masks"].numpy()))
    ious = {phrase: iou(masks[phrase], true[phrase]) for phrase in PHRASES}
    said = [Text("; ".join(f'"{phrase}": IoU {value:.2f}' for phrase, value in ious.items()) + " with the true mask.")]
    if figures := measured("frozen_qwen_sam", stand_in, "ciou"):
        said.append(Text(f"On phrases of {figures['count']} fresh pictures: cIoU {figures['ciou']:.2f}."))
    for line in said:
        print(f"   {line.text}")
    print(f"   {folder / 'debug.png'}\n   {source}  loads with AutoModel.from_pretrained(…, trust_remote_code=True)")
    row = [("a frame", image), *((f'"{phrase}"', lit(frames[0], masks[phrase])) for phrase in PHRASES)]
    report = {
        **facts(source, stand_in),
        "video": CLIP.name,
        "phrases": [
            {"phrase": record["phrase"], "score": record["score"], "iou": ious[record["phrase"]]} for record in records
        ],
        "picture": "overlay.png",
    }
    return report, Panel(TITLE, stand_in.remark if stand_in else source, [row], said)


def iou(found: np.ndarray, true: np.ndarray) -> float:
    return float((found & true).sum() / max(1, (found | true).sum()))
