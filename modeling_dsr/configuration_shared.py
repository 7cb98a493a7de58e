"""What every configuration records for the Auto classes and pipelines."""

from __future__ import annotations

from transformers import PreTrainedConfig


def default_auto_map(config: PreTrainedConfig, auto_map: dict[str, str]) -> None:
    """Name the classes behind each Auto class in the saved config.

    `save_pretrained` alone records only the class that was saved; a repository saved from the generation model could
    then not be opened with `AutoModel`.
    """
    if getattr(config, "auto_map", None) is None:
        config.auto_map = dict(auto_map)


def default_pipeline(config: PreTrainedConfig, task: str, implementation: str, auto_class: str) -> None:
    """
    Name the pipeline ("file.class") that `transformers.pipeline(task, …)` finds for the model.

    What an earlier version of this library recorded under another file's name is replaced: the code that is saved
    beside the configuration is this version's.
    """
    entry = {"impl": implementation, "pt": [auto_class], "type": "multimodal"}
    config.custom_pipelines = {**(getattr(config, "custom_pipelines", None) or {}), task: entry}


def check_point_fields(config: PreTrainedConfig) -> None:
    """Values of the point encoder's fields that no model can be built with."""
    for name in ("num_freqs", "num_points"):
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(config, name)}.")
    if config.loss_chunk_size < 0:
        raise ValueError(f"`loss_chunk_size` must be 0 (off) or positive, got {config.loss_chunk_size}.")
