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
