"""The tiny models in one repository folder."""

import shutil
from pathlib import Path

from convert_weights.remote_code import copy_code
from dsr_toolkit.tiny import SOURCES, build


def assemble(folder: Path) -> Path:
    repository = folder / "repository"
    repository.mkdir()
    for kind in SOURCES:
        target = repository if kind == "dsr" else repository / kind
        target.mkdir(exist_ok=True)
        for file in build(kind, folder / kind).iterdir():
            if file.suffix != ".py":
                shutil.copyfile(file, target / file.name)
    copy_code(repository)
    for file in (Path(__file__).parents[2] / "hub").glob("*.py"):
        shutil.copyfile(file, repository / file.name)
    return repository
