"""Values of `--model` that cannot be a model of the wanted kind, refused before anything large is imported."""

from __future__ import annotations

import json
from pathlib import Path

DTYPES = ("auto", "float32", "bfloat16", "float16")
PATH_BEGINNINGS = ("/", "./", "../", "~")


def check_model(model: str | None, *model_types: str) -> None:
    """
    Look at a `--model` of this machine; whether one of the Hub is there is asked when it is loaded.

    Args:
        model: as the user gave it; None: the tiny model. model_types: any of which will do; none: a repository of
            models of any type.

    Raises:
        ValueError: there is no such folder, it holds no model, or one of another type.
    """
    if model is None:
        return
    folder = Path(model)
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"--model {model!r} is a file; name the folder of a converted model.")
        if model.startswith(PATH_BEGINNINGS) or model.count("/") > 2:
            raise ValueError(
                f"--model {model!r}: there is no such folder; it is neither a folder nor a Hub repository's name "
                "(OWNER/NAME)."
            )
        return
    found = {kind for kind in model_types if (folder / kind / "config.json").is_file()}
    if found or (folder / "adapter_config.json").is_file():
        return
    if not (folder / "config.json").is_file():
        if not model_types and any(folder.glob("*/config.json")):
            return
        raise ValueError(f"--model {model!r} holds no model: there is no config.json in it.")
    kind = model_type_in(folder / "config.json")
    if model_types and kind not in model_types:
        raise ValueError(
            f"{model} holds a {kind!r} model where {' or '.join(map(repr, model_types))} is needed. "
            f"`dsr convert` turns published checkpoints into {model_types[0]!r} folders."
        )


def check_dtype(dtype: str) -> None:
    """
    Raises:
        ValueError: `--dtype` is none of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")


def model_type_in(config: Path) -> str | None:
    """`model_type` of a config.json; None where there is no such file, or no type in it."""
    if not config.is_file():
        return None
    try:
        return json.loads(config.read_text(encoding="utf-8-sig")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config} is no configuration of a model ({type(error).__name__}: {error}).") from error
