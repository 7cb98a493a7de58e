"""Load the models of a repository as a user would, and run each once: transformers alone, nothing of this library.

    python -P smoke.py JOB.json

Run by `convert_weights verify` from a folder that is not the source tree. Imports of this library's modules are made to
fail, whether it is installed or not, so that the code in the repository is what runs. The job names `source` (a folder
or Hub id), `models` (records of the repository's report, by name), `answers` (a file to write after each model: "" or
what went wrong) and, optionally, `outputs` (a folder for each model's output tensors).
"""

import importlib.abc
import json
import os
import sys
import traceback
from pathlib import Path

LIBRARY = {"configuration_dsr", "processing_dsr", "modeling_dsr", "convert_weights", "dsr_toolkit", "hub", "tests"}


class LibraryIsHidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in LIBRARY:
            raise ModuleNotFoundError(f"No module named {name!r}: this process knows transformers alone", name=name)


if __name__ == "__main__":
    sys.meta_path.insert(0, LibraryIsHidden())

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")


def pictures(count, height=84, width=112):
    noise = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in noise]


def dsr(processor, model):
    content = [{"type": "video"}, {"type": "text", "text": "Does it move?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    frames = np.stack([np.asarray(picture) for picture in pictures(4)])
    return processor(text=[prompt], videos=[frames], do_sample_frames=False, return_tensors="pt")


def geometry(processor, model):
    pixel_values = processor(pictures(4))["pixel_values"]
    if getattr(model.config, "is_multiview", False):  # made for synchronised views: two times of two
        pixel_values = pixel_values.unflatten(1, (2, 2))
    return {"pixel_values": pixel_values}


def frozen_qwen_sam(processor, model):
    return processor(images=pictures(1)[0], phrases=["a thing"])


def points(processor, model):
    return processor(point_clouds=[np.random.default_rng(0).random((400, 3))])


def scene_qformer(processor, model):
    images = dict(zip(CAMERAS, pictures(6)))
    eye = {
        "cam_intrinsics": np.tile(np.diag([60.0, 60, 1]), (6, 1, 1)),
        "cam_extrinsics": np.tile(np.eye(4), (6, 1, 1)),
    }
    prompt = {"text": f"{processor.image_token} What is ahead?"} if getattr(processor, "tokenizer", None) else {}
    return processor(images, **prompt, **eye)


INPUTS = {
    "dsr": dsr,
    "pi3": geometry,
    "page4d": geometry,
    "frozen_qwen_sam": frozen_qwen_sam,
    "cadrille": points,
    "cad_recode": points,
    "scene_qformer": scene_qformer,
}


def run(source, record, device):
    """Load one model and its processor, run it, and return its floating-point outputs by name."""
    place = {"subfolder": record["subfolder"]} if record["subfolder"] else {}
    auto_class = getattr(transformers, record["auto_class"])
    model, info = auto_class.from_pretrained(
        source, trust_remote_code=True, dtype="auto", device_map=device, output_loading_info=True, **place
    )
    problems = {kind: sorted(names)[:5] for kind, names in info.items() if names}
    if record["model_class"] not in model.config.architectures:
        problems.pop("unexpected_keys", None)  # a base model leaves its head's weights where they are
    assert not problems, f"loading reports {problems}"
    assert type(model).__module__.startswith("transformers_modules."), f"{type(model)} is not the repository's code"
    assert type(model).__name__ == record["model_class"], f"loads {type(model).__name__}, not {record['model_class']}"
    if not record["processor"]:
        return {}
    processor = transformers.AutoProcessor.from_pretrained(source, trust_remote_code=True, **place)
    assert type(processor).__module__.startswith("transformers_modules."), f"{type(processor)} is not its code"
    torch.manual_seed(0)
    inputs = INPUTS[record["architecture"]](processor, model)
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    found = {}
    for name, value in outputs.items():
        parts = value if isinstance(value, (tuple, list)) else [value]
        for index, part in enumerate(parts):
            if isinstance(part, torch.Tensor) and part.is_floating_point():
                found[f"{name}.{index}" if part is not value else name] = part
    assert found, f"{record['model_class']} returned no tensor: {list(outputs)}"
    broken = [name for name, tensor in found.items() if not torch.isfinite(tensor).all()]
    assert not broken, f"outputs {broken} hold NaN or infinite values"
    return found


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    answers = {}
    for name, record in job["models"].items():
        Path(job["answers"]).write_text(json.dumps({**answers, name: None}))  # None: begun, should the process die
        try:
            found = run(job["source"], record, device)
            if job.get("outputs"):
                torch.save({key: tensor.cpu() for key, tensor in found.items()}, f"{job['outputs']}/{name}.pt")
            answers[name] = ""
        except Exception as error:
            traceback.print_exc()
            answers[name] = f"{type(error).__name__}: {error}"
        Path(job["answers"]).write_text(json.dumps(answers))
    sys.stdout.flush()
    os._exit(0)  # without the interpreter's slow end: everything is written


if __name__ == "__main__":
    main()
