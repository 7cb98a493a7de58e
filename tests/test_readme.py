"""The examples of README.md and model_card.md run as they stand, with a tiny model and the carried clip."""

import re
from pathlib import Path

import pytest
from PIL import Image

from convert_weights import assemble
from dsr_toolkit.demo.clip import CLIP
from dsr_toolkit.tiny import build

ROOT = Path(__file__).parents[1]


# Names in the examples, and what stands for them here.
MODELS = {
    "dsr": "dsr",
    "pi3": "pi3",
    "page4d": "page4d",
    "flmm": "frozen_qwen_sam",
    "cadrille": "cadrille",
    "scene": "scene_qformer",
}
PICTURES = ("street", "front", "fr", "fl", "back", "bl", "br")


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    folders = {name: build(kind, tmp_path_factory.mktemp("readme")) for name, kind in MODELS.items()}
    repository = tmp_path_factory.mktemp("readme") / "repository"  # the examples use its root and a subfolder
    assemble({name: folders[name] for name in ("dsr", "pi3")}, repository, progress=False)
    return folders | {"dsr": repository}


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The image files that the examples name, where they look for them."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(PICTURES):
        Image.new("RGB", (160, 120), (30 * number, 90, 200 - 20 * number)).save(f"{name}.jpg")


@pytest.mark.parametrize("page", ["README.md", "model_card.md"])
def test_python_examples_run_in_order(page, tiny_models, pictures, capsys):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert examples
    names = {}
    for example in examples:
        for name, folder in tiny_models.items():
            example = example.replace(f"OWNER/{name}", str(folder))
        exec(example.replace("video.mp4", str(CLIP)), names)
    assert len(capsys.readouterr().out.splitlines()) >= len(examples)


@pytest.mark.parametrize("page", ["README.md", "model_card.md"])
def test_links_inside_the_repository_lead_somewhere(page):
    text = (ROOT / page).read_text()
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings
        elif "://" not in target:
            assert (ROOT / target).exists()
