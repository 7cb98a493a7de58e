"""Posed images with depth as rows of a training."""

import numpy as np
import pytest
from PIL import Image

from dsr_toolkit.datasets.rows import GeometryRows


@pytest.fixture
def tum(tmp_path):
    """Three images with depths and poses, and, as published, without intrinsics."""
    lines, depth = [], np.full((6, 8), 5000, "<u2")
    for number in range(3):
        for name, image in (
            ("rgb", Image.new("RGB", (8, 6))),
            ("depth", Image.fromarray(depth)),
        ):
            (tmp_path / name).mkdir(exist_ok=True)
            image.save(tmp_path / name / f"{number}.5.png")
        lines.append(f"{number}.5 {number} 0 0 0 0 0 1\n")
    (tmp_path / "groundtruth.txt").write_text("".join(lines))
    return tmp_path


def test_tum_trains_with_intrinsics_of_the_folder(tum):
    (row,) = GeometryRows(tum, frames=3, intrinsics=[7.0, 6.0, 4.0, 3.0])
    assert row["intrinsics"].tolist() == [[[7, 0, 4], [0, 6, 3], [0, 0, 1]]] * 3
    assert (row["depths"] == 1).all() and row["poses"][:, 0, 3].tolist() == [0, 1, 2]


def test_what_a_folder_lacks_is_said(tum):
    with pytest.raises(ValueError, match="no intrinsics; .* option `intrinsics`"):
        GeometryRows(tum)
    with pytest.raises(ValueError, match="four numbers"):
        GeometryRows(tum, intrinsics=[7.0])


def test_windows_without_a_depth_or_a_pose_are_left_out_before_training(tmp_path, capsys):
    """As published, TUM's depth images skip a moment here and there, and so do its poses."""
    lines = []
    for number in range(8):
        for name, image in (
            ("rgb", Image.new("RGB", (8, 6))),
            ("depth", Image.fromarray(np.full((6, 8), 5000, "<u2"))),
        ):
            (tmp_path / name).mkdir(exist_ok=True)
            if (name, number) != ("depth", 3):
                image.save(tmp_path / name / f"{number}.5.png")
        if number != 6:
            lines.append(f"{number}.5 {number} 0 0 0 0 0 1\n")
    (tmp_path / "groundtruth.txt").write_text("".join(lines))
    rows = GeometryRows(tmp_path, frames=2, intrinsics=[7.0, 6.0, 4.0, 3.0])
    assert [rows[i]["poses"][:, 0, 3].tolist() for i in range(len(rows))] == [[0, 1], [4, 5]]
    assert "2 of 4 windows are left out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="1 windows have an image without depth or pose"):
        GeometryRows(tmp_path, frames=7, intrinsics=[7.0, 6.0, 4.0, 3.0])
