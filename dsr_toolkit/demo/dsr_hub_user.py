"""A program as a user of the Hub repository would write it: transformers' Auto classes and nothing of this library.

    python -P dsr_hub_user.py MODEL VIDEO QUESTION OUTPUT.npz

Run by `dsr demo`. Its imports of this library's modules are made to fail, whether the library is installed or not, so
that the code in the model's folder is what runs.
"""

import importlib.abc
import json
import sys

LIBRARY = {"configuration_dsr", "processing_dsr", "modeling_dsr", "convert_weights", "dsr_toolkit"}


class LibraryIsHidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in LIBRARY:
            raise ModuleNotFoundError(f"No module named {name!r}: this process knows transformers alone", name=name)


sys.meta_path.insert(0, LibraryIsHidden())

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402
from transformers.video_utils import load_video  # noqa: E402

repo, video, question, output = sys.argv[1:]

processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True, dtype="auto", device_map=device)

frames, metadata = load_video(video, num_frames=processor.num_frames)
messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=[prompt], videos=[frames], video_metadata=[metadata], return_tensors="pt").to(device)

with torch.no_grad():
    outputs = model(**inputs, output_geometry_attentions=True, logits_to_keep=1)
    tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
answer = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

attentions, sizes = outputs.geometry_attentions, {"num_frames": [len(frames)]}
heat = processor.post_process_geometry_attentions(attentions, target_sizes=[frames.shape[1:3]], **sizes)[0]
per_token = processor.post_process_geometry_attentions(attentions, target_sizes=[(1, 1)], per_token=True, **sizes)[0]
np.savez(
    output,
    frames=frames,
    numbers=metadata.frames_indices,
    heat=heat.cpu().numpy(),
    per_token=per_token[:, :, 0, 0].cpu().numpy(),
    logits=outputs.logits[0, -1].float().cpu().numpy(),
    texts=json.dumps(
        {
            "answer": answer,
            "labels": [f"{index / metadata.fps:.2f} s" for index in metadata.frames_indices],
            "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
        }
    ),
)
