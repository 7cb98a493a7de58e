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


def test_photos_in_a_folder_that_is_named_as_ours_stay(tmp_path):
    """Windows that are predicted one after another are kept in OUT/windows while they are; houses have windows too."""
    (tmp_path / "house" / "windows").mkdir(parents=True)
    for number in range(2):
        photo(tmp_path / "house" / "windows" / f"{number}.png", number)
    (tmp_path / "house" / "windows" / "key.json").write_text('{"mine": 1}')
    photos = contents(tmp_path / "house" / "windows")
    command = ["reconstruct", str(tmp_path / "house" / "windows"), "-o", str(tmp_path / "house"), "--format", "tum"]
    assert main(command) == 0
    assert main([*command, "--overwrite", "--window", "2", "--overlap", "1", "--no-loops"]) == 2
    assert contents(tmp_path / "house" / "windows") == photos


def test_results_of_one_run_are_the_input_of_the_next(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(2):
        photo(tmp_path / "photos" / f"{number}.png", number)
    out = tmp_path / "out"
    assert main(["reconstruct", str(tmp_path / "photos"), "-o", str(out), "--format", "nerfstudio"]) == 0
    images = contents(out / "nerfstudio")
    again = ["reconstruct", str(out / "nerfstudio" / "images"), "-o", str(out), "--overwrite", "--format"]
    assert main([*again, "nerfstudio"]) == 2
    assert main([*again, "tum"]) == 0
    assert contents(out / "nerfstudio").items() >= {k: v for k, v in images.items() if k.startswith("images/")}.items()


@pytest.mark.parametrize("kind", ["bmp", "tif", "webp"])
def test_cameras_and_views_come_in_every_format(tmp_path, kind):
    from dsr_toolkit.commands.scene import read_scene
    from dsr_toolkit.reconstruction.inputs import multiview_files

    for place in ("car", "time_0", "time_1"):
        (tmp_path / place).mkdir()
        for number in (10, 2):
            photo(tmp_path / place / f"view{number}.{kind}", number)
            (tmp_path / place / f"._view{number}.{kind}").write_text("litter")
        (tmp_path / place / "Thumbs.db").write_text("litter")
    assert list(read_scene(tmp_path / "car")["images"]) == ["view2", "view10"]
    files = {name: [path.name for path in views] for name, views in multiview_files(tmp_path).items()}
    assert files == {name: [f"view2.{kind}", f"view10.{kind}"] for name in ("time_0", "time_1")}


def test_a_mark_at_the_beginning_of_a_text_is_no_part_of_it(tmp_path):
    from dsr_toolkit.datasets.geometry import read_trajectory
    from dsr_toolkit.datasets.programs import Programs
    from dsr_toolkit.datasets.questions import Questions
    from dsr_toolkit.evaluation.video_benchmarks import _table

    def write(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        return tmp_path / name

    write("parts.py", "result = 1")
    assert Programs(write("rows.jsonl", '{"program_file": "parts.py"}'))[0]["program"] == "result = 1"
    rows = '{"video": "a.mp4", "question": "What?", "answer": "A ball."}'
    assert Questions(write("questions.jsonl", rows))[0]["question"] == "What?"
    assert _table(write("table.json", "[1]")) == [1]
    assert read_trajectory(write("poses.txt", "1 0 0 0 0 0 0 1\n"))[1] == [1.0]


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
