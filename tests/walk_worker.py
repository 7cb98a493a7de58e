"""Isolated half of `tests/test_walk_through.py`: an assembled repository, used as its users do.

Run as `python -P walk_worker.py JOB.json`. Imports nothing of the library: pipelines and the endpoint's handler come
from the repository. The job holds `repository`, `requests` of the handler by name, and `answers`, the file to write: by
step, "" or what went wrong, and what it answered.
"""

import importlib.abc
import importlib.util
import json
import sys
import traceback
from pathlib import Path

SOURCE_MODULES = (
    "configuration_dsr", "processing_dsr", "modeling_dsr", "convert_weights", "dsr_toolkit", "hub", "tests"
)  # fmt: skip


class NoSourceTree(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in SOURCE_MODULES:
            raise ImportError(f"{fullname} belongs to the source tree")
        return None


sys.meta_path.insert(0, NoSourceTree())

import numpy as np  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402

JOB = json.loads(Path(sys.argv[1]).read_text())
REPOSITORY = JOB["repository"]


def picture(size=(84, 112)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def build(task, name):
    """A pipeline as transformers makes it of a repository's subfolder."""
    processor = transformers.AutoProcessor.from_pretrained(REPOSITORY, subfolder=name, trust_remote_code=True)
    where = {"model_kwargs": {"subfolder": name}} if name else {}
    parts = {"processor": processor, "tokenizer": getattr(processor, "tokenizer", None)}
    pipe = transformers.pipeline(task, model=REPOSITORY, trust_remote_code=True, **parts, **where)
    assert type(pipe.model).__module__.startswith("transformers_modules."), type(pipe.model)
    return pipe


def image_text_to_text(name):
    pipe = build("image-text-to-text", name)
    text = getattr(pipe.processor, "prompt", "What moves?")
    content = [{"type": "image", "image": picture((268, 268))}, {"type": "text", "text": text}]
    (found,) = pipe(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
    assert isinstance(found["generated_text"], str), found
    return found["generated_text"]


def scene_reconstruction(name):
    scene = build("scene-reconstruction", name)([picture(), picture()])
    assert scene.depth.shape == (2, 84, 112) and scene.depth.isfinite().all()
    return list(scene.points.shape)


def phrase_segmentation(name):
    found = build("phrase-segmentation", name)(picture(), phrases=["a thing", "a wall"])
    assert found["masks"].shape == (2, 84, 112)
    return list(found["masks"].shape)


def cad_generation(name):
    points = np.random.default_rng(0).random((300, 3), dtype=np.float32)
    (program,) = build("cad-generation", name)(points=points, max_new_tokens=4)
    assert isinstance(program, str)
    return program


def handler(*_):
    """Every request answered by the repository's own `handler.py`."""
    specification = importlib.util.spec_from_file_location("handler", Path(REPOSITORY) / "handler.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["handler"] = module
    specification.loader.exec_module(module)
    endpoint = module.EndpointHandler(REPOSITORY)
    return {name: endpoint(request) for name, request in JOB["requests"].items()}


STEPS = [
    (image_text_to_text, ""),
    (image_text_to_text, "cadrille"),
    (scene_reconstruction, "pi3"),
    (scene_reconstruction, "page4d"),
    (phrase_segmentation, "frozen_qwen_sam"),
    (cad_generation, "cadrille"),
    (cad_generation, "cad_recode"),
    (handler, ""),
]


def main():
    answers = {}
    for step, name in STEPS:
        label = f"{step.__name__} {name}".strip()
        try:
            answers[label] = ["", step(name)]
        except Exception:  # each step is told of
            answers[label] = [traceback.format_exc()[-3000:], None]
    Path(JOB["answers"]).write_text(json.dumps(answers))


main()
