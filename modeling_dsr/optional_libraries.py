"""Libraries that not everybody needs: which extra of this package installs them, and what is said where one is
missing."""

import importlib.util

# What `needs` looks for, by extra of setup.py.
EXTRAS = {
    "geometry": ("evo", "pycolmap", "scipy"),
    "view": ("rerun",),
    "cad": ("cadquery", "manifold3d", "scipy"),
    "segment": ("pycocotools",),
    "scene": ("scipy", "timm"),
    "serve": ("fastapi", "prometheus_client", "uvicorn"),
    "train": ("matplotlib",),
    "scale": ("ray",),
}


def needs(extra: str | None, what: str, *libraries: str) -> None:
    """
    Make sure, before any work, that what an extra installs is there.

    Args:
        extra: key of `EXTRAS`; None for what comes with the package, and may be missing where only its code is.
        what: cannot do without; begins the message.
        libraries: only these, by the name under which they are imported; default: those of the extra.

    Raises:
        ImportError: names what is missing and the extra that installs it.
    """
    wanted = libraries or (EXTRAS[extra] if extra else ())
    missing = [name for name in wanted if not _installed(name)]
    if missing:
        source = f'"dsr-models[{extra}]"' if extra else " ".join(missing)
        raise ImportError(f"{what} needs {', '.join(missing)}: pip install {source}")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a name that something keeps from being imported
        return False
