"""Isolated half of `tests/test_walk_through.py`: an assembled repository, used as its users do.

Run as `python -P walk_worker.py JOB.json`. Imports nothing of the library: what runs comes from the
repository. The job holds `repository` and `answers`, the file to write: by step, "" or what went wrong, and the result.
"""

import importlib.abc
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

import base64  # noqa: E402
import io  # noqa: E402

import numpy as np  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402

JOB = json.loads(Path(sys.argv[1]).read_text())
REPOSITORY = JOB["repository"]


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (84, 112, 3), dtype=np.uint8))


def image_text_pipeline():
    """The root's own task, as transformers offers it for any model of this kind."""
    answer = transformers.pipeline("image-text-to-text", model=REPOSITORY, trust_remote_code=True)
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "What moves?"}]
    (found,) = answer(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
    assert isinstance(found["generated_text"], str), found


def points():
    return np.random.default_rng(0).uniform(-1, 1, (300, 3)).astype(np.float32)


def custom_pipelines():
    """Those that the configurations in the subfolders name."""
    calls = {
        "pi3": ("scene-reconstruction", {"scene": [picture()]}),
        "page4d": ("scene-reconstruction", {"scene": [picture()]}),
        "frozen_qwen_sam": ("phrase-segmentation", {"image": picture(), "phrases": ["a block"]}),
        "cadrille": ("cad-generation", {"points": points(), "max_new_tokens": 4}),
        "cad_recode": ("cad-generation", {"points": points(), "max_new_tokens": 4}),
    }
    for name, (task, inputs) in calls.items():
        processor = transformers.AutoProcessor.from_pretrained(REPOSITORY, subfolder=name, trust_remote_code=True)
        options = {"model_kwargs": {"subfolder": name}, "trust_remote_code": True}
        tokenizer = getattr(processor, "tokenizer", None)
        pipe = transformers.pipeline(task, model=REPOSITORY, processor=processor, tokenizer=tokenizer, **options)
        assert type(pipe).__module__.startswith("transformers_modules."), type(pipe)
        assert pipe(**inputs), name


def handler():
    """The endpoint, from the repository's own file, for every task and every model."""
    sys.path.insert(0, REPOSITORY)
    from handler import EndpointHandler

    stream = io.BytesIO()
    picture().save(stream, "PNG")
    image = base64.b64encode(stream.getvalue()).decode()
    cameras = ("FRONT", "FRONT_RIGHT", "FRONT_LEFT", "BACK", "BACK_LEFT", "BACK_RIGHT")
    matrices = {"intrinsics": [[90, 0, 56], [0, 90, 42], [0, 0, 1]], "extrinsics": np.eye(4).tolist()}
    few = {"max_new_tokens": 3}
    requests = [
        ("ask", {"question": "What moves?", "images": [image]}, few),
        ("reconstruct", {"images": [image]}, {"model": "pi3"}),
        ("reconstruct", {"images": [image]}, {"model": "page4d"}),
        ("segment", {"image": image, "phrases": ["a block"]}, {}),
        ("cad", {"points": points().tolist()}, {"model": "cadrille", **few}),
        ("cad", {"points": points().tolist()}, {"model": "cad_recode", **few}),
        (
            "scene",
            {
                "images": {f"CAM_{name}": image for name in cameras},
                "calibration": {f"CAM_{name}": matrices for name in cameras},
            },
            {},
        ),
    ]
    endpoint = EndpointHandler(REPOSITORY)
    for task, inputs, parameters in requests:
        answer = endpoint({"task": task, "inputs": inputs, "parameters": parameters})
        assert answer["task"] == task and json.dumps(answer, allow_nan=False)


def main():
    answers = {}
    for step in (image_text_pipeline, custom_pipelines, handler):
        try:
            answers[step.__name__] = ["", step()]
        except Exception:  # each step is told of
            answers[step.__name__] = [traceback.format_exc()[-3000:], None]
    Path(JOB["answers"]).write_text(json.dumps(answers))


main()
