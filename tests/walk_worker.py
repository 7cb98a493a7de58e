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


def main():
    answers = {}
    for step in (image_text_pipeline,):
        try:
            answers[step.__name__] = ["", step()]
        except Exception:  # each step is told of
            answers[step.__name__] = [traceback.format_exc()[-3000:], None]
    Path(JOB["answers"]).write_text(json.dumps(answers))


main()
