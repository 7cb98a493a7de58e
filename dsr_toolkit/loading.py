"""From `--model` to a model and its processor."""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig

from modeling_dsr import (
    ARCHITECTURES,  # registers this library's classes: the code of a model's repository is never run
    register,
)

from .model_check import check_dtype, model_type_in

REPOSITORY = "repository"  # in place of a model type: models of every type together


@dataclass(frozen=True)
class StandIn:
    """
    The tiny model that is taken where none was named.

    Args:
        remark: what it is and knows, for pictures and reports.
        random: whether its weights are random, because no trained model of this kind is carried.
    """

    remark: str
    random: bool

    @property
    def notice(self) -> str:
        return f"No --model, so this is {self.remark}. Use --model REPO_OR_DIR for another."


RANDOM = StandIn("a tiny model with RANDOM WEIGHTS: neither its answers nor its pictures mean anything", True)


def resolve(model: str | None, model_type: str) -> tuple[str, StandIn | None]:
    """
    Where to load from, and what stands in where no model was named.

    Nothing given: the tiny model of `model_type` that is carried along, or all of them for `REPOSITORY`. What was asked
    for and is not there is an error, never replaced. In a repository of several models, the one in the subfolder
    `model_type` is meant where the root holds another kind; OWNER/NAME/SUBFOLDER names one.
    """
    if model is None:
        return _stand_in(model_type)
    if Path(model).is_dir():
        inside = Path(model) / model_type
        elsewhere = (inside / "config.json").is_file() and model_type_in(Path(model) / "config.json") != model_type
        return str(inside) if elsewhere else model, None
    repo, subfolder = ("/".join(model.split("/")[:2]), model.split("/")[2]) if model.count("/") == 2 else (model, None)
    try:
        config = hf_hub_download(repo, "config.json", subfolder=subfolder)
        if subfolder is None and model_type_in(Path(config)) != model_type:
            subfolder = _on_the_hub(repo, model_type)
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"--model {model!r}: there is no such folder, the Hub cannot be reached, and the cache holds no "
            "repository of that name. Check the spelling, or download it where there is a network."
        ) from error
    except HFValidationError as error:
        raise ValueError(f"--model {model!r} is neither a folder nor a Hub repository's name (OWNER/NAME).") from error
    if subfolder is None:
        return model, None
    return str(Path(snapshot_download(repo, allow_patterns=[f"{subfolder}/*"])) / subfolder), None


def _on_the_hub(repo: str, subfolder: str) -> str | None:
    """`subfolder`, if the repository has a model there."""
    try:
        hf_hub_download(repo, "config.json", subfolder=subfolder)
        return subfolder
    except EntryNotFoundError:  # offline: not in the cache
        return None


def load(
    source: str,
    model_type: str,
    dtype: str = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
    auto_class: str | None = None,
):
    """
    The model, in evaluation mode, and its processor.

    Args:
        auto_class: of transformers, where not the one that the model type is known by.
    """
    check_dtype(dtype)
    if model_type in ARCHITECTURES:
        register(model_type)
    told = PreTrainedConfig.get_config_dict(source)[0].get("model_type")  # of a type that need not be registered
    if told != model_type:
        raise ValueError(
            f"{source} holds a {told!r} model where {model_type!r} is needed. "
            f"`dsr convert` turns published checkpoints into {model_type!r} folders."
        )
    config = AutoConfig.from_pretrained(source)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if auto_class == "AutoModelForImageTextToText" and getattr(config, "text_config", None) is None:
        raise ValueError(f"{source} has no language model to ask.")
    auto = getattr(transformers, auto_class or ARCHITECTURES[model_type].auto_class)
    model = auto.from_pretrained(source, dtype=dtype, device_map=device, attn_implementation=attn_implementation)
    return model.eval(), AutoProcessor.from_pretrained(source)


def _stand_in(model_type: str) -> tuple[str, StandIn]:
    from .tiny import hub_folder, linked_folder, repository_folder, shipped

    carried = shipped.shipped()
    if model_type in carried:
        return str(shipped.FOLDER / model_type), StandIn(shipped.about(model_type), False)
    if model_type != REPOSITORY:
        return str(hub_folder(model_type)), RANDOM
    if not carried:
        return str(repository_folder()), RANDOM
    missing = [name for name in ARCHITECTURES if name not in carried]
    told = f"the tiny models of this library's worlds ({', '.join(carried)})"
    if not missing:
        return str(shipped.FOLDER), StandIn(told, False)
    folders = {name: shipped.FOLDER / name for name in carried} | {name: hub_folder(name) for name in missing}
    return str(linked_folder(folders)), StandIn(f"{told} and, with RANDOM WEIGHTS, {', '.join(missing)}", False)
