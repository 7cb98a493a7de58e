"""Cadrille: from its trained checkpoint, or with a new point encoder on Qwen2-VL."""

from __future__ import annotations

from pathlib import Path

from ..recipe import Initialiser, Plan, build_config, drop, init, rename
from ..sources import Source
from .dsr import QWEN_RULES
from .qwen_settings import check_patch_sizes, check_rotary_sections, normalisation, patch_sizes

SOURCES = (("cadrille",), ("qwen2_vl",))
MODELS = {"CadrilleForConditionalGeneration": "modeling_dsr.modeling_cadrille"}

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
OWN_FIELDS = ("architectures", "auto_map", "model_type", "transformers_version", "_name_or_path")

POINT_RULES = [
    rename(r"(?:model\.)?point_encoder\.projection\.(weight|bias)", r"model.point_encoder.projection.\1"),
    drop(r"(?:model\.)?point_encoder\..*frequencies", "computed from the configuration"),
]


def new_point_encoder(width: int) -> list:
    """PyTorch's default of a linear layer of `width` inputs, as the published training started from."""
    bound = width**-0.5
    uniform = Initialiser(
        f"uniform(1/sqrt({width}))", lambda piece, generator, shape: piece.uniform_(-bound, bound, generator=generator)
    )
    return [init(r"model\.point_encoder\.projection\.(weight|bias)", uniform)]


def plan(sources: dict[str, Source], overrides: dict) -> Plan:
    from modeling_dsr.configuration_cadrille import CadrilleConfig
    from modeling_dsr.modeling_cadrille import CadrilleForConditionalGeneration

    name, source = next(iter(sources.items()))
    content = _config(source)
    endoftext = token_id(source, "<|endoftext|>")
    if endoftext is None:  # the token that pads; Qwen2-VL's own configuration calls it bos
        candidates = (part.get(name) for name in ("pad_token_id", "bos_token_id")
                      for part in (content, _text(content), source.json("generation_config.json")))  # fmt: skip
        endoftext = next((found for found in candidates if found is not None), None)
    if endoftext is not None:
        content.setdefault("point_token_id", endoftext)
    content = {**features(source, channels=3), **content}
    config = build_config(CadrilleConfig, content, overrides)
    check_width(source, config, channels=3)
    check_patch_sizes(source, config.vision_config)
    check_rotary_sections(source, config.text_config)
    text = config.text_config
    generation = source.json("generation_config.json") or {
        "bos_token_id": text.bos_token_id,
        "eos_token_id": sorted({*_ids(text.eos_token_id), config.point_token_id}),
        "pad_token_id": config.point_token_id,
    }
    return Plan(
        config=config,
        model_class=CadrilleForConditionalGeneration,
        load={name: [*POINT_RULES, *QWEN_RULES]},
        fill=[] if name == "cadrille" else new_point_encoder(feature_count(config, 3)),
        generation_config=generation,
    )


def _config(source: Source) -> dict:
    """`config.json` of the source in the nested form, without what belongs to its own class."""
    from transformers import Qwen2VLConfig

    content = dict(source.config)
    if not content and not source.has_weights:
        return {}  # a list of keys: the published sizes, which are the defaults
    if content.get("model_type") not in ("qwen2_vl", "cadrille"):
        raise ValueError(
            f"Source `{source.name}` ({source.location}) must be a Qwen2-VL model with its config.json, found "
            f"{'model_type ' + repr(content['model_type']) if 'model_type' in content else 'no config.json'}."
        )
    for key in OWN_FIELDS:
        content.pop(key, None)
    if "text_config" in content:
        return content
    bos = content.get("bos_token_id")
    nested = Qwen2VLConfig(**content).to_dict()
    nested = {key: value for key, value in nested.items() if key not in ("model_type", "transformers_version")}
    return nested if bos is None else {**nested, "bos_token_id": bos}


def _text(content: dict) -> dict:
    return content.get("text_config") or {}


def _ids(value) -> list[int]:
    return [value] if isinstance(value, int) else list(value or [])


def projection_width(source: Source) -> int | None:
    """Features that a trained point encoder reads, or None if the source has none."""
    for key in ("point_encoder.projection.weight", "model.point_encoder.projection.weight"):
        if key in source:
            return source.shape(key)[1]
    return None


def feature_count(config, channels: int) -> int:
    """Features per point of a configuration."""
    return 3 * (2 * config.num_freqs + int(config.include_input)) + channels - 3


def features(source: Source, channels: int) -> dict:
    """Frequencies of the point encoder and whether it reads the coordinates beside them, from its width."""
    width = projection_width(source)
    if width is None or width < channels or (width - (channels - 3)) % 3:
        return {}  # `check_width` says what is wrong
    per_coordinate = (width - (channels - 3)) // 3
    return {"num_freqs": per_coordinate // 2, "include_input": bool(per_coordinate % 2)}


def check_width(source: Source, config, channels: int) -> None:
    """Refuse a point encoder that the configuration does not describe."""
    width, expected = projection_width(source), feature_count(config, channels)
    if width not in (None, expected):
        raise ValueError(
            f"Source `{source.name}`: point_encoder.projection reads {width} features, the configuration makes "
            f"{expected}. Give `num_freqs` and `include_input` as configuration overrides."
        )


def tokenizer_of(source: Source):
    """The tokenizer beside the weights, or None."""
    if not any(source.path(name) for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source.folder)


def token_id(source: Source, token: str) -> int | None:
    """Id of a special token, or None without a tokenizer."""
    tokenizer = tokenizer_of(source)
    if tokenizer is None:
        return None
    if token not in tokenizer.get_vocab():
        raise ValueError(f"The tokenizer of source `{source.name}` ({source.location}) lacks {token}.")
    return tokenizer.convert_tokens_to_ids(token)


def write_processor(sources: dict[str, Source], config, folder: Path) -> list[str]:
    """Processor files, from the tokenizer beside the weights."""
    source = next(iter(sources.values()))
    tokenizer = tokenizer_of(source)
    if tokenizer is None:
        return [
            f"source `{source.name}` has no tokenizer, so no processor was written: put Qwen2-VL's beside its weights"
        ]
    from transformers import Qwen2VLImageProcessor

    from modeling_dsr.processing_cadrille import CadrilleProcessor

    image_processor = Qwen2VLImageProcessor(**patch_sizes(config.vision_config), **normalisation(source))
    chat_template = source.json("chat_template.json").get("chat_template") or tokenizer.chat_template
    processor = CadrilleProcessor(image_processor, tokenizer, chat_template=chat_template, num_points=config.num_points)
    processor.save_pretrained(folder)
    return []
