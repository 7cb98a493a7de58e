"""What the page says: problems in the words of its labels, and no file for longer than it is wanted."""

import re
import shutil
import time
from pathlib import Path

# Names of a request, and what the page calls them.
LABELS = {
    "inputs.images": "the images", "inputs.image": "the image", "inputs.video": "the video",
    "inputs.question": "the question", "inputs.phrases": "the phrases", "inputs.points": "the points",
    "inputs.stl": "the STL file", "inputs.text": "the description", "inputs.calibration": "calibration.json",
    "parameters.max_new_tokens": "the longest answer", "parameters.num_frames": "the number of frames",
    "parameters.candidates": "the number of candidates", "parameters.model": "the model",
    "parameters.confidence": "the least confidence", "inputs": "what you give",
}  # fmt: skip
# Where the page has other words than the request for what is missing.
NOTHING = {
    "ask": "Give a video or images: one of them, not both.",
    "reconstruct": "Give images or a video: one of them, not both.",
    "cad": "Give a file, views or a description: one of them.",
}
NAME = re.compile(r"`((?:inputs|parameters)(?:\.[a-z_]+)?)(?:\[(\d+)\])?(?:\.(CAM_[A-Z_]+))?(?:\.(\w+))?`")


class Problem(Exception):
    """Why a question of the page cannot be answered, for people."""


def of_page(task: str, message: str) -> str:
    """What the endpoint says of a request, in the page's words."""
    if message.startswith("`inputs` must hold one of"):
        return NOTHING.get(task, "Something is missing.")
    said = NAME.sub(_label, message)
    return said[:1].upper() + said[1:]


def _label(found: re.Match) -> str:
    name, number, camera, part = found.groups()
    label = LABELS.get(name, name.partition(".")[2].replace("_", " ") or name)
    if number is not None:
        label = f"{label.removeprefix('the ').rstrip('s')} {int(number) + 1}"
    if camera is not None:
        label = f"{label} of {camera}" if name == "inputs.calibration" else f"the image {camera}"
    return f"{part} in {label}" if part is not None else label


def remove_old(folder: Path, seconds: float) -> None:
    """Remove folders of answers that are older."""
    for path in folder.iterdir():
        try:
            if time.time() - path.stat().st_mtime > seconds:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:  # somebody else did
            continue


def keep_removing(folder: Path, seconds: float) -> None:
    """`remove_old`, again and again, until the program ends."""
    while folder.is_dir():
        remove_old(folder, seconds)
        time.sleep(max(1.0, seconds / 4))


def as_code(text: str) -> str:
    """Text of others as Markdown that shows it as it is: between more backticks than it has in a row."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return f"{'`' * (longest + 1)} {text} {'`' * (longest + 1)}"
