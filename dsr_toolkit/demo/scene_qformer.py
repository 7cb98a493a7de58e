"""Six cameras of a street of the surround world become scene tokens, and a language model reads them."""

from pathlib import Path

from ..commands.scene import READER, ask, describe, look, read_scene
from ..console import RANDOM_WEIGHTS, step
from ..tiny import build
from ..worlds.surround import SurroundWorld
from ..worlds.surround_export import write_scene

TITLE = "Scene Q-Former: six cameras to scene tokens"
QUESTION = "What is around the car?"
SEED, SIZE = 3, (448, 800)  # of the world, and of its pictures


def run(folder: Path, model: str | None = None) -> dict:
    """Draw, convert, look, ask."""
    from transformers import AutoConfig

    from ..loading import load

    random_weights = model is None
    if random_weights:
        model = build("scene_qformer", folder)
    scene = read_scene(write_scene(SurroundWorld(SEED, *SIZE)[0], folder / "street"))
    with step("Reading six cameras"):
        auto_class = READER if AutoConfig.from_pretrained(model).text_config is not None else None
        qformer, processor = load(str(model), "scene_qformer", auto_class=auto_class)
        summary, picture = look(getattr(qformer, "scene_qformer", qformer), processor, scene)
    picture.save(folder / "attention.png")
    print(describe(summary))
    answer = None
    if auto_class is not None and processor.tokenizer is not None:
        (answer,) = ask(qformer, processor, scene, [QUESTION], max_new_tokens=16)
        print(f"Q: {QUESTION}\nA: {answer}")
    if random_weights:
        print(RANDOM_WEIGHTS)
    print(f"   {folder / 'attention.png'}")
    return {
        "model": str(model),
        "random_weights": random_weights,
        "summary": summary,
        "question": QUESTION,
        "answer": answer,
        "picture": "attention.png",
    }
