"""The code that ships beside the weights: `trust_remote_code=True` finds it flat at the root of the folder."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT_MODULES = ("configuration_dsr", "processing_dsr")
# Not shipped: the package's registrations, and the alias in whose place the real configuration file comes.
LEFT_OUT = ("__init__.py", "configuration_dsr.py")


def code_files() -> dict[str, Path]:
    """Every file of remote code by its name in the folder."""
    import importlib.util

    found = {}
    for module in ROOT_MODULES:
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.origin:
            raise ModuleNotFoundError(f"`{module}.py` is not importable: install the library with `pip install -e .`.")
        found[f"{module}.py"] = Path(spec.origin)
    package = importlib.util.find_spec("modeling_dsr")
    for path in sorted(Path(package.origin).parent.glob("*.py")):
        if path.name not in LEFT_OUT:
            if path.name in found:
                raise ValueError(f"{path} would take the place of {found[path.name]} in the Hub folder: rename it.")
            found[path.name] = path
    return found


def copy_code(folder: Path) -> list[str]:
    """Copy the remote code into `folder`; returns the names."""
    files = code_files()
    for name, path in files.items():
        shutil.copyfile(path, folder / name)
    return list(files)
