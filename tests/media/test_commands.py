"""`dsr reconstruct` on folders as people have them."""

import json

import numpy as np
import pytest
from PIL import Image

from dsr_toolkit.cli import main


def photo(path, seed=0, size=(56, 42)):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_photos_are_never_overwritten(tmp_path, capsys, options):
    (tmp_path / "photos").mkdir()
    photo(tmp_path / "photos" / "1.png")
    before = contents(tmp_path)
    assert main(["reconstruct", str(tmp_path / "photos"), "-o", str(tmp_path / "photos"), *options]) == 2
    assert "choose another" in capsys.readouterr().err.lower() and contents(tmp_path) == before


def test_unreadable_photos_are_named_all_at_once_before_the_work(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        photo(tmp_path / "photos" / f"{number}.png", number)
    for number in (3, 4):
        (tmp_path / "photos" / f"{number}.png").write_bytes((tmp_path / "photos" / "0.png").read_bytes()[:200])
    assert main(["reconstruct", str(tmp_path / "photos"), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "2 of 5 images cannot be read" in said and "3.png" in said and "4.png" in said
    assert not (tmp_path / "out").exists()


def test_results_beside_the_photos_and_again(tmp_path, capsys):
    (tmp_path / "proj" / "images").mkdir(parents=True)
    for number in (2, 10, 1):
        photo(tmp_path / "proj" / "images" / f"{number}.webp", number)
    (tmp_path / "proj" / "notes.txt").write_text("mine")
    command = ["reconstruct", str(tmp_path / "proj" / "images"), "-o", str(tmp_path / "proj"), "--format", "ply,tum"]
    photos = contents(tmp_path / "proj" / "images")
    assert main(command) == 0
    assert main(command) == 2
    assert main([*command, "--overwrite"]) == 0
    assert contents(tmp_path / "proj" / "images") == photos
    assert (tmp_path / "proj" / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "proj" / "reconstruct.json").read_text())["views"] == 3


def test_what_is_transparent_is_no_point(tmp_path):
    (tmp_path / "cut").mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (56, 56, 4), dtype=np.uint8)
        pixels[..., 3] = 255
        pixels[:28, :, 3] = 0
        Image.fromarray(pixels).save(tmp_path / "cut" / f"{number}.png")
    options = ["--format", "npz", "--confidence", "0", "--edge-tolerance", "0", "--original-size"]
    assert main(["reconstruct", str(tmp_path / "cut"), "-o", str(tmp_path / "out"), *options]) == 0
    mask = np.load(tmp_path / "out" / "geometry.npz")["mask"]
    assert not mask[:, :27].any() and mask[:, 29:].any()
