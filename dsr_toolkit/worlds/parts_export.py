"""The parts world as files of the published training sets: CAD-Recode's programs with meshes, Text2CAD's
descriptions."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .parts import PartSample, PartsWorld
from .world import new_folder

STL_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def write_cad_recode(world: PartsWorld, folder: str | Path, counts: dict[str, int]) -> Path:
    """
    `SPLIT/NAME.py`, `SPLIT/NAME.stl` in the programs' coordinates, and `SPLIT.pkl`, a list of
    `{"py_path", "mesh_path"}`.

    Args:
        folder: a folder that does not exist yet, or is empty.
        counts: split → number of samples; "train" and "val" as published. Splits follow one another in the world.
    """
    folder = new_folder(folder)
    for split, samples in _splits(world, counts):
        (folder / split).mkdir()
        rows = []
        for sample in samples:
            row = {"py_path": f"{split}/{sample.name}.py", "mesh_path": f"{split}/{sample.name}.stl"}
            (folder / row["py_path"]).write_text(sample.program, encoding="utf-8")
            write_stl(folder / row["mesh_path"], *sample.mesh())
            rows.append(row)
        (folder / f"{split}.pkl").write_bytes(pickle.dumps(rows))
    return folder


def write_text2cad(world: PartsWorld, folder: str | Path, counts: dict[str, int]) -> Path:
    """`cadquery/UID.py` and `SPLIT.pkl`, a list of `{"uid", "description"}`; arguments as in `write_cad_recode`."""
    folder = new_folder(folder)
    (folder / "cadquery").mkdir()
    for split, samples in _splits(world, counts):
        rows = []
        for sample in samples:
            (folder / "cadquery" / f"{sample.name}.py").write_text(sample.program, encoding="utf-8")
            rows.append({"uid": sample.name, "description": sample.text})
        (folder / f"{split}.pkl").write_bytes(pickle.dumps(rows))
    return folder


def write_stl(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """A binary STL file of a mesh."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    facets = np.zeros(len(faces), STL_FACET)
    facets["normal"] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    facets["corners"] = corners
    path.write_bytes(bytes(80) + np.uint32(len(faces)).tobytes() + facets.tobytes())


def _splits(world: PartsWorld, counts: dict[str, int]) -> Iterable[tuple[str, Iterable[PartSample]]]:
    start = 0
    for split, count in counts.items():
        yield split, (world[index] for index in range(start, start + count))
        start += count
