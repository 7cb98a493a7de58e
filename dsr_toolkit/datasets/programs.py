"""Parts and their CadQuery programs in the published files: CAD-Recode, Text2CAD, or lines of JSON."""

from pathlib import Path

import numpy as np

from .lines import read_lines
from .segmentation import load_plain_pickle

MESHES = (".stl", ".ply", ".obj", ".step", ".stp")


class Programs:
    """
    Rows "program" with "mesh", "cloud" or "text" for Cadrille and CAD-Recode. Programs and clouds are read when asked
    for; meshes stay paths, which the processor reads.

    Args:
        path: CAD-Recode's folder: `SPLIT.pkl`, a list of `{"py_path", "mesh_path"}`, or programs `NAME.py` with a mesh
            (or a cloud `NAME.npy`) of the same name beside them; Text2CAD's: `SPLIT.pkl` of `{"uid", "description"}`
            and `cadquery/UID.py`; or a `.jsonl` file of rows as the collator takes them ("program_file" may name a
            file).
        split: which `SPLIT.pkl`; default "train".
    """

    def __init__(self, path: str | Path, split: str = "train"):
        self.root = Path(path)
        if self.root.is_file():
            self.entries = read_lines(self.root)
            self.root = self.root.parent
        elif (self.root / f"{split}.pkl").is_file():
            self.entries = [self._published(entry) for entry in load_plain_pickle(self.root / f"{split}.pkl")]
        elif self.root.is_dir():
            self.entries = [self._beside(file) for file in sorted(self.root.rglob("*.py"))]
        else:
            raise ValueError(f"There is no file or folder {str(path)!r}.")
        if not self.entries:
            raise ValueError(f"{path} holds no programs: expected {split}.pkl, NAME.py files or lines of JSON.")

    def _published(self, entry: dict) -> dict:
        if "uid" in entry:
            return {"program_file": f"cadquery/{entry['uid']}.py", "text": entry.get("description")}
        return {"program_file": entry.get("py_path"), "mesh": entry.get("mesh_path")}

    def _beside(self, file: Path) -> dict:
        row = {"program_file": str(file.relative_to(self.root))}
        for suffix in MESHES:
            if file.with_suffix(suffix).is_file():
                return row | {"mesh": str(file.with_suffix(suffix).relative_to(self.root))}
        if file.with_suffix(".npy").is_file():
            row["cloud"] = str(file.with_suffix(".npy").relative_to(self.root))
        return row

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        row = dict(self.entries[index])
        file = row.pop("program_file", None)
        if file is not None:
            path = self.root / file
            row["program"] = path.read_text(encoding="utf-8-sig") if path.is_file() else None
        if isinstance(row.get("mesh"), str):
            row["mesh"] = str(self.root / row["mesh"])
        if isinstance(row.get("cloud"), str):
            path = self.root / row["cloud"]
            row["cloud"] = np.load(path, allow_pickle=False) if path.is_file() else None
        elif isinstance(row.get("cloud"), list):
            row["cloud"] = np.asarray(row["cloud"], np.float32)
        return row
