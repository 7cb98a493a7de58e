"""CAD-Recode: from its trained checkpoint, of either published version, or with a new point encoder on Qwen2."""

from __future__ import annotations

from pathlib import Path

from ..recipe import Plan, build_config, drop, rename
from ..sources import Source
from .cadrille import (
    OWN_FIELDS,
    POINT_RULES,
    check_width,
    feature_count,
    features,
    new_point_encoder,
    projection_width,
    token_id,
    tokenizer_of,
)

SOURCES = (("cad_recode",), ("qwen2",))
MODELS = {"CADRecodeForCausalLM": "modeling_dsr.modeling_cad_recode"}

QWEN2_RULES = [
    drop(r".*rotary_emb\.inv_freq", "computed from the configuration"),
    rename(r"(lm_head\..+)", r"\1"),
    rename(r"model\.(.+)", r"model.\1"),
]
FIRST_VERSION_CHANNELS = 6  # points with normals
QWEN_END_OF_TEXT, QWEN_IM_END = 151643, 151645  # in Qwen2's own vocabulary


def plan(sources: dict[str, Source], overrides: dict) -> Plan:
    from modeling_dsr.configuration_cad_recode import CADRecodeConfig
    from modeling_dsr.modeling_cad_recode import CADRecodeForCausalLM

    name, source = next(iter(sources.items()))
    content = dict(source.config)
    listed = not content and not source.has_weights  # a list of keys: the published sizes, which are the defaults
    if not listed and content.get("model_type") not in ("qwen2", "cad_recode"):
        raise ValueError(
            f"Source `{source.name}` ({source.location}) must be a Qwen2 model with its config.json, found "
            f"{'model_type ' + repr(content['model_type']) if 'model_type' in content else 'no config.json'}."
        )
    for key in OWN_FIELDS:
        content.pop(key, None)
    content |= _point_token(source, content, overrides)
    if "point_channels" not in {**content, **overrides}:
        # Points with normals are three channels more: the width says so, as coordinates are read in every version.
        width, bare = projection_width(source) or 0, not overrides.get("include_input", True)
        content["point_channels"] = FIRST_VERSION_CHANNELS if width and width % 2 == bare else 3
    channels = overrides.get("point_channels", content["point_channels"])
    content = {**features(source, channels), **content}
    config = build_config(CADRecodeConfig, content, overrides)
    check_width(source, config, config.point_channels)
    generation = source.json("generation_config.json") or {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.point_token_id,
    }
    return Plan(
        config=config,
        model_class=CADRecodeForCausalLM,
        load={name: [*POINT_RULES, *QWEN2_RULES]},
        fill=[] if name == "cad_recode" else new_point_encoder(feature_count(config, config.point_channels)),
        generation_config=generation,
    )


def _point_token(source: Source, content: dict, overrides: dict) -> dict:
    """
    `<|im_end|>` of the tokenizer stands for points; without one it is known for Qwen2's own vocabulary alone.

    Raises:
        ValueError: there is no tokenizer, and the vocabulary is another one.
    """
    if "point_token_id" in {**content, **overrides}:
        return {}
    im_end = token_id(source, "<|im_end|>")
    if im_end is not None:
        return {"point_token_id": im_end}
    if content.get("bos_token_id") in (None, QWEN_END_OF_TEXT):
        return {"point_token_id": QWEN_IM_END}
    raise ValueError(
        f"Source `{source.name}` ({source.location}) has no tokenizer and a vocabulary of its own (bos_token_id "
        f"{content['bos_token_id']}), so the token that stands for points is unknown. Give it as configuration "
        f"override, "
        'such as {"point_token_id": 265}, or put the tokenizer files beside the weights.'
    )


def write_processor(sources: dict[str, Source], config, folder: Path) -> list[str]:
    """Processor files, from the tokenizer beside the weights."""
    source = next(iter(sources.values()))
    tokenizer = tokenizer_of(source)
    if tokenizer is None:
        return [f"source `{source.name}` has no tokenizer, so no processor was written: put Qwen2's beside its weights"]
    from modeling_dsr.processing_cad_recode import CADRecodeProcessor

    first_version = config.point_channels == FIRST_VERSION_CHANNELS
    processor = CADRecodeProcessor(
        tokenizer,
        num_points=config.num_points,
        point_channels=config.point_channels,
        point_sampling="random_sorted" if first_version else "farthest",
        program_range=50.0 if first_version else 100.0,
    )
    processor.save_pretrained(folder)
    return []
