"""Files of known cameras that are damaged: refused in words that name the file, or read as they stand; never a hang, a
crash, or cameras that silently are not there."""

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dsr_toolkit.reconstruction.known import read_cameras
from tests.dsr_toolkit.reconstruction.test_command import true_cameras, write_colmap, write_transforms

COUNT = 6
FORMS = ("colmap", "colmap-text", "colmap-old", "transforms", "trajectory", "npz")
RANDOM_MUTATIONS = 24  # of all files of a form, beside the cuts and those of the count


def write_cameras(form, folder):
    """The path that is read, and the files that it consists of."""
    poses, k = true_cameras(COUNT)
    folder.mkdir()
    if form.startswith("colmap"):
        pycolmap = pytest.importorskip("pycolmap")
        if form == "colmap-old":  # of three files, as versions before 3.12 and we write them
            path = write_colmap(folder / "ours", poses, k, False) / "sparse" / "0"
        else:  # with rigs and frames
            model = pycolmap.Reconstruction(str(write_colmap(folder / "ours", poses, k, False) / "sparse" / "0"))
            path = folder / "theirs"
            path.mkdir()
            (model.write if form == "colmap" else model.write_text)(str(path))
        return path, sorted(path.iterdir())
    path = folder / {"transforms": "transforms.json", "trajectory": "trajectory.txt", "npz": "cameras.npz"}[form]
    if form == "transforms":
        write_transforms(path, poses, k)
    elif form == "npz":
        np.savez(path, poses=poses, intrinsics=np.tile(k, (COUNT, 1, 1)))
    else:
        rows = [[n, *p[:3, 3], *Rotation.from_matrix(p[:3, :3]).as_quat()] for n, p in enumerate(poses)]
        path.write_text("# time tx ty tz qx qy qz qw\n" + "".join(" ".join(map(str, row)) + "\n" for row in rows))
    return path, [path]


def cuts(data):
    """(what was done, bytes), of files that end too early."""
    places = {0, 1, 4, 8, 9, 20, 64, len(data) // 3, len(data) // 2, len(data) - 24, len(data) - 9, len(data) - 2}
    return [(f"cut at {place}", data[:place]) for place in sorted(places) if 0 <= place < len(data) - 1]


def mutations(data, generator, most):
    """(what was done, bytes), of files that are damaged otherwise."""
    found = [("longer", data + b"xx"), ("twice", data + data), ("zeros", bytes(len(data)))]
    for huge in (0, 1, 1 << 31, 1 << 60):
        found.append((f"count {huge}", struct.pack("<Q", huge) + data[8:]))
    for number in range(most):
        first, size = int(generator.integers(len(data))), int(generator.integers(1, 40))
        noise = generator.integers(0, 256, size, np.uint8).tobytes()
        kind, middle = [
            ("noise", noise), ("left out", b""), ("inserted", data[first : first + size] + noise),
            ("largest", b"\xff" * size), ("digits", b"9" * size), ("minus", b"-" + data[first + 1 : first + size]),
        ][number % 6]  # fmt: skip
        found.append((f"{size} bytes {kind} at {first}", data[:first] + middle + data[first + size :]))
    return found


def outcomes(paths):
    worker = "tests.dsr_toolkit.reconstruction.reading_worker"
    done = subprocess.run(
        [sys.executable, "-m", worker], input="\n".join(map(str, paths)), capture_output=True, text=True, check=True
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_of_known_cameras_are_refused_by_name_or_read_as_they_stand(form, tmp_path):
    path, files = write_cameras(form, tmp_path / "whole")
    generator, cases = np.random.default_rng(0), []
    for file in files:
        others = mutations(file.read_bytes(), generator, RANDOM_MUTATIONS // len(files))
        for cut, made in ((True, cuts(file.read_bytes())), (False, others)):
            cases += [(file, what, data, cut) for what, data in made]
    places = [path]
    for number, (file, _, data, _) in enumerate(cases):
        place = tmp_path / f"{number:04d}"
        (shutil.copytree if path.is_dir() else shutil.copy)(path, place / path.name if path.is_dir() else _made(place))
        (place / path.name / file.name if path.is_dir() else place / file.name).write_bytes(data)
        places.append(place / path.name)
    assert len(cases) >= 30
    whole, *found = outcomes(places)
    assert whole[0] == "read" and len(json.loads(whole[1])) == COUNT
    wrong = []
    for (file, what, _, cut), (kind, text) in zip(cases, found, strict=True):
        if kind == "refused":
            good = file.name in text or path.name in text or "numbers" in text
        else:  # what holds no cameras may be cut
            good = kind == "read" and (not cut or text == whole[1] or file.stem == "points3D")
        if kind == "read" and cut and form == "trajectory":
            # Nothing tells that a file of rows had more of them, or that its last number had more digits.
            good = len(set(json.loads(text)) - set(json.loads(whole[1]))) <= 1
        if not good:
            wrong.append(f"{file.name}, {what}: {kind} {text[:300]}")
    assert not wrong, "\n".join(wrong)


def _made(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["cameras", "images", "points3D", "rigs", "frames"])
@pytest.mark.parametrize("damage", ["cut", "longer"])
def test_a_file_of_a_colmap_model_that_was_cut_is_named(name, damage, tmp_path):
    """Of points3D.bin COLMAP's reader would never see the end; of cameras.bin it made cameras of nothing."""
    path, _ = write_cameras("colmap", tmp_path / "whole")
    assert len(read_cameras(path).by_name) == COUNT
    file = path / f"{name}.bin"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) - 5] if damage == "cut" else data + b"12345")
    with pytest.raises(ValueError, match=rf"{name}\.bin is damaged: .*of which its first bytes speak.*Copy the model"):
        read_cameras(path)


def test_a_model_of_which_a_file_is_missing_names_it(tmp_path):
    path, _ = write_cameras("colmap-old", tmp_path / "whole")
    (path / "points3D.bin").unlink()
    with pytest.raises(ValueError, match=r"not points3D\.bin.*all three files"):
        read_cameras(path)


def test_text_that_was_cut_within_a_number_is_told_from_a_shorter_number(tmp_path):
    path, _ = write_cameras("colmap-text", tmp_path / "whole")
    for name in ("cameras.txt", "images.txt"):
        (tmp_path / name).write_text("")
        text = (path / name).read_text()
        (path / name).write_text(text.rstrip("\n")[:-1])
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            read_cameras(path)
        (path / name).write_text(text)


def test_a_list_of_images_that_was_cut_within_its_head_is_no_empty_model(tmp_path):
    path, _ = write_cameras("colmap-text", tmp_path / "whole")
    (path / "images.txt").write_text((path / "images.txt").read_text()[:64])
    with pytest.raises(ValueError, match=r"images\.txt is damaged: it holds no image"):
        read_cameras(path)


def test_an_image_of_a_camera_that_is_not_there_is_refused(tmp_path):
    path, _ = write_cameras("colmap-text", tmp_path / "whole")
    (path / "cameras.txt").write_text("7 PINHOLE 60 40 50 50 30 20\n")
    with pytest.raises(ValueError, match="image 1 was taken by camera 1"):
        read_cameras(path)


@pytest.mark.parametrize("number", ["inf", "nan", "1.5", "x"])
def test_numbers_of_images_and_cameras_are_whole(number, tmp_path):
    path, _ = write_cameras("colmap-text", tmp_path / "whole")
    for name, head in (("cameras.txt", "1 PINHOLE"), ("images.txt", "1 ")):
        text = (path / name).read_text()
        start = text.index("\n" + head) + 1
        (path / name).write_text(text[:start] + number + text[start + 1 :])
        with pytest.raises(ValueError, match=rf"{name} is damaged: line \d+ holds what is no whole number"):
            read_cameras(path)
        (path / name).write_text(text)


def test_a_last_pose_that_was_cut_is_refused(tmp_path):
    path, _ = write_cameras("trajectory", tmp_path / "whole")
    text = path.read_text()
    path.write_text(text[: text.rindex("0.") + 3])  # of 0.87758…, 0.8 is left
    with pytest.raises(ValueError, match="last line"):
        read_cameras(path)


def test_names_with_spaces_are_whole_in_text(tmp_path):
    """COLMAP writes them, and its own reader ends them at the first space."""
    path, _ = write_cameras("colmap-text", tmp_path / "whole")
    text = (path / "images.txt").read_text()
    (path / "images.txt").write_text(text.replace("000002-1.png", "my holiday 1.png"))
    assert "my_holiday_1" in read_cameras(path).by_name


def test_fisheye_cameras_tell_their_poses_alone(tmp_path, capsys):
    path, _ = write_cameras("colmap-text", tmp_path / "whole")
    text = (path / "cameras.txt").read_text()
    (path / "cameras.txt").write_text(text.replace("PINHOLE 60 40 50 50 30 20", "SIMPLE_FISHEYE 60 40 50 30 20"))
    cameras = read_cameras(path).by_name.values()
    assert all(camera.pose is not None and camera.intrinsics is None for camera in cameras)
    assert "6 images of" in capsys.readouterr().err
