"""The examples of README.md, model_card.md and docs/ run as they stand, with tiny models and the carried clip."""

import re
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from convert_weights import assemble
from dsr_toolkit.cli import COMMANDS, build_parser, main
from dsr_toolkit.demo.clip import CLIP
from dsr_toolkit.tiny import build

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "model_card.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))

# Names in the examples, and what stands for them here.
MODELS = {
    "dsr": "dsr",
    "pi3": "pi3",
    "page4d": "page4d",
    "flmm": "frozen_qwen_sam",
    "cadrille": "cadrille",
    "scene": "scene_qformer",
}
CAMERAS = ("FRONT", "FRONT_RIGHT", "FRONT_LEFT", "BACK", "BACK_LEFT", "BACK_RIGHT")
PICTURES = ("street", *(f"CAM_{camera}" for camera in CAMERAS))

LEFT_BY_COMMANDS = {
    "scene/colmap": f"reconstruct {CLIP} --frames 4 --model {{pi3}} --edge-tolerance 0 -o scene".split()
    + ["--format", "colmap,glb"],
    "answers/results.parquet": f"batch ask {CLIP} --model {{dsr}} -o answers --set max_new_tokens=2".split()
    + ["--question", "Which way does the camera move?"],
}


def examples(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


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


def in_time(page: str):
    """The README's examples run with the quick tests, those of the other pages with the slow ones."""
    return pytest.param(page, marks=() if page in ("README.md", "model_card.md") else pytest.mark.slow)


@pytest.mark.parametrize("page", [in_time(page) for page in PAGES if examples(page, "python")])
def test_python_examples_run_in_order(page, tiny_models, pictures, capsys):
    names = {}
    for left, command in LEFT_BY_COMMANDS.items():  # what a command of the page leaves for its Python
        if left in (ROOT / page).read_text():
            assert main([part.format(**tiny_models) for part in command]) == 0
    for example in examples(page, "python"):
        for name, folder in tiny_models.items():
            example = example.replace(f"OWNER/{name}", str(folder))
        exec(example.replace("video.mp4", str(CLIP)), names)
    assert len(capsys.readouterr().out.splitlines()) >= len(examples(page, "python"))


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page, "bash")])
def test_commands_of_the_examples_have_these_arguments_and_name_their_extra(page):
    lines = "\n".join(examples(page, "bash")).replace("\\\n", " ").splitlines()
    commands = [line.split("&&")[-1] for line in lines if re.search(r"(^|&& )dsr ", line)]
    for line in commands:
        words = re.findall(r'"[^"]*"|\S+', re.split(r"\s#", line)[0])
        arguments = [word.strip('"') for word in words]
        assert arguments[1] in COMMANDS, line
        if arguments[1] != "convert":  # its parser is its own, tests/convert_weights tries it
            needed = build_parser().parse_args(arguments[1:]).needs
            assert needed is None or f"`{needed}`" in (ROOT / page).read_text(), f"{line}: name the extra `{needed}`"


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    kept = [c for c in title.strip().lower() if c in " -_" or unicodedata.category(c)[0] in "LN"]
    return "".join(kept).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / name if name else ROOT / page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in map(slug, titles), target


def test_the_readme_is_short_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    missing = [page for page in PAGES if page != "README.md" and f"({page})" not in text]
    assert not missing
