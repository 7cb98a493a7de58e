"""The examples of README.md and model_card.md run as they stand, with a tiny model and the carried clip."""

import re
from pathlib import Path

import pytest

from dsr_toolkit.demo.clip import CLIP
from dsr_toolkit.tiny import build

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    return {name: build(name, tmp_path_factory.mktemp("readme")) for name in ("dsr", "pi3", "page4d", "cadrille")}


@pytest.mark.parametrize("page", ["README.md", "model_card.md"])
def test_python_examples_run_in_order(page, tiny_models, capsys):
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
