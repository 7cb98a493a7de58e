"""`dsr demo --world` and `dsr eval world`: what is written, and what is refused before any work."""

import json

import pytest
from PIL import Image

from dsr_toolkit.cli import main
from dsr_toolkit.training.geometry import build_pi3


def test_a_world_is_shown(tmp_path, capsys):
    assert main(["demo", "--world", "space", "--seed", "3", "--count", "2", "-o", str(tmp_path / "out")]) == 0
    pages = [tmp_path / "out" / f"space_3_{number:03d}.png" for number in range(2)]
    assert capsys.readouterr().out.split() == [str(page) for page in pages]
    assert all(min(Image.open(page).size) > 500 for page in pages)
    report = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert (report["world"], report["seed"], report["count"]) == ("space", 3, 2)


@pytest.mark.parametrize(
    "arguments", [["pi3", "--world", "space"], ["--world", "space", "--count", "0"], ["--seed", "1"]]
)
def test_what_does_not_go_with_a_world_is_refused(arguments, tmp_path):
    assert main(["demo", *arguments, "-o", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def small_pi3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pi3")
    model, processor = build_pi3(32, 1, 2, 2, 32, size=28, picture_size=28)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_a_model_is_measured_on_a_seed(small_pi3, tmp_path, capsys):
    file = tmp_path / "figures.json"
    command = ["eval", "world", "pi3", "--model", small_pi3, "--seed", "7", "--count", "2", "--json", str(file)]
    assert main(command) == 0
    found = json.loads(file.read_text())
    assert (found["model_type"], found["seed"], found["count"]) == ("pi3", 7, 2)
    assert {"abs_rel_ratio", "rotation_error_median"} <= set(found["metrics"])
    shown = capsys.readouterr().out
    assert "pi3, 2 samples of seed 7" in shown and f"{found['metrics']['abs_rel_ratio']:.4g}" in shown
    assert main(command) == 2  # exists
    assert main([*command, "--overwrite"]) == 0
    file.write_text('{"mine": 1}')
    assert main([*command, "--overwrite"]) == 2
    assert file.read_text() == '{"mine": 1}'


def test_numbers_are_checked_before_work(tmp_path, capsys):
    assert main(["eval", "world", "pi3", "--seed", "1", "--allow-missing", "all"]) == 2
    assert "pi3 writes none" in capsys.readouterr().err
    assert main(["eval", "world", "pi3", "--seed", "-1"]) == 2
    assert main(["eval", "world", "pi3", "--seed", "1", "--count", "0"]) == 2
    assert "--count at least 1" in capsys.readouterr().err
