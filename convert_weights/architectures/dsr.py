"""DSR: from its trained checkpoint, or new from Qwen2.5-VL and π³'s encoder."""

from __future__ import annotations

from pathlib import Path

from ..recipe import Plan, build_config, drop, init, normal, ones, rename, zeros
from ..sources import Source
from .pi3_encoder import encoder_config, encoder_fill, encoder_rules, image_normalisation
from .qwen_settings import check_patch_sizes, check_rotary_sections, normalisation, patch_sizes

SOURCES = (("dsr",), ("qwen", "pi3"))
MODELS = {"DSRForConditionalGeneration": "modeling_dsr.modeling_dsr"}

ENCODER, SELECTION = "model.geometry_encoder.", "model.geometry_selection."
MODULES = r"(?:spatial_merger|q_former_1|q_former_2|q_former_norm|q_former_queries)"

# Qwen's own tensors, in the layout of its publishers and in the one that transformers 5 has in memory.
QWEN_RULES = [
    rename(r"(lm_head\..+)", r"\1"),
    drop(r".*rotary_emb\.inv_freq", "computed from the configuration"),
    rename(r"model\.language_model\.(.+)", r"model.language_model.\1"),
    rename(r"(?:model\.)?visual\.(.+)", r"model.visual.\1"),
    rename(r"model\.(.+)", r"model.language_model.\1"),
]

# Names of the tokens whose ids the configuration holds.
TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "vision_pad_token_id": "<|vision_pad|>",
    "im_start_token_id": "<|im_start|>",
    "im_end_token_id": "<|im_end|>",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")


def plan(sources: dict[str, Source], overrides: dict) -> Plan:
    """The trained checkpoint answers by the published question rules; a new module gets one rule for all phases."""
    from modeling_dsr.configuration_dsr import DSRConfig
    from modeling_dsr.modeling_dsr import DSRForConditionalGeneration

    trained = sources.get("dsr")
    main = trained or sources["qwen"]
    content = _trained_config(trained, overrides) if trained else _new_config(main, sources["pi3"], overrides)
    content.setdefault("question_scope", "published" if trained else "question")
    content = {**_undone_normalisation(main), **content, **_token_ids(main, content, overrides)}
    config = build_config(DSRConfig, content, overrides)
    check_patch_sizes(main, config.vision_config)
    check_rotary_sections(main, config.text_config)
    return Plan(
        config=config,
        model_class=DSRForConditionalGeneration,
        load={"dsr": _trained_rules(trained)} if trained else {"qwen": QWEN_RULES, "pi3": pi3_rules(sources["pi3"])},
        fill=encoder_fill(ENCODER) if trained else [*encoder_fill(ENCODER), *_new_module(config)],
        generation_config=main.json("generation_config.json") or _generation_ids(config),
    )


# --------------------------------------------------------------------------------------
# The trained checkpoint
# --------------------------------------------------------------------------------------


def _encoder_prefix(source: Source) -> str | None:
    """Where the checkpoint keeps π³'s encoder, or None where the library wrote it under its own names."""
    for prefix in ("visual.spatial_encoder.", "model.visual.spatial_encoder."):
        if f"{prefix}cls_token" in source:
            return prefix
    return None


def _trained_rules(source: Source) -> list:
    prefix = _encoder_prefix(source)
    if prefix is None:
        return [rename(r"(model\.geometry_(?:encoder|selection)\..+)", r"\1"), *QWEN_RULES]
    return [
        *encoder_rules(prefix, ENCODER),
        rename(rf"(?:model\.)?visual\.({MODULES}.*)", rf"{SELECTION}\1"),
        *QWEN_RULES,
    ]


def _trained_config(source: Source, overrides: dict) -> dict:
    content = _qwen_config(source)
    prefix = _encoder_prefix(source)
    if prefix is not None:
        content["geometry_config"] = encoder_config(source, prefix, overrides.get("geometry_config", {}))
        content["num_geometry_tokens"] = source.shape(prefix.replace("spatial_encoder.", "q_former_queries"))[0]
    return content


# --------------------------------------------------------------------------------------
# A new module on Qwen2.5-VL and π³
# --------------------------------------------------------------------------------------

NOT_OF_ENCODER = ("architectures", "dtype", "transformers_version", "_name_or_path")
OWN_ENCODER = "encoder.embeddings.cls_token"  # where this library wrote π³ under its own names


def pi3_rules(source: Source) -> list:
    """Of a published π³, or of one that this library wrote."""
    own = [rename(r"encoder\.((?:embeddings|encoder|layernorm)\..+)", rf"{ENCODER}\1")]
    return [
        *(own if OWN_ENCODER in source else encoder_rules("encoder.", ENCODER)),
        drop(r".+", "π³'s decoder, heads and conditioning are no part of DSR"),
    ]


def _new_module(config) -> list:
    """Initial values of a Geometry Selection Module; projections as Qwen's configuration says (published: 0.02)."""
    return [
        init(rf"{SELECTION}q_former_queries", normal(1.0)),
        init(rf"{SELECTION}.*(?:norm\d?|ln_q)\.weight", ones),
        init(rf"{SELECTION}.+\.weight", normal(config.text_config.initializer_range)),
        init(rf"{SELECTION}.+\.bias", zeros),
    ]


def _new_config(qwen: Source, pi3: Source, overrides: dict) -> dict:
    content = _qwen_config(qwen)
    if OWN_ENCODER in pi3:
        content["geometry_config"] = {k: v for k, v in pi3.config["encoder_config"].items() if k not in NOT_OF_ENCODER}
        constants = {name: pi3.config[name] for name in ("image_mean", "image_std") if name in pi3.config}
    else:
        content["geometry_config"] = encoder_config(pi3, "encoder.", overrides.get("geometry_config", {}))
        constants = image_normalisation(pi3)
    return content | {f"geometry_{name}": value for name, value in constants.items()}


# --------------------------------------------------------------------------------------
# Configuration
# --------------------------------------------------------------------------------------


def _qwen_config(source: Source) -> dict:
    """`config.json` of the source in the nested form, without what belongs to its own class."""
    from transformers import Qwen2_5_VLConfig

    content = dict(source.config)
    if content.get("model_type") not in ("qwen2_5_vl", "dsr"):
        raise ValueError(
            f"Source `{source.name}` ({source.location}) must be a Qwen2.5-VL model with its config.json, found "
            f"{'model_type ' + repr(content['model_type']) if 'model_type' in content else 'no config.json'}."
        )
    for key in ("architectures", "auto_map", "model_type", "transformers_version", "_name_or_path"):
        content.pop(key, None)
    # The published module leaves a reference to the whole configuration here; it says nothing.
    content["vision_config"] = {k: v for k, v in content.get("vision_config", {}).items() if k != "config_all"}
    if "text_config" not in content:
        content = Qwen2_5_VLConfig(**content).to_dict()
    return {key: value for key, value in content.items() if key not in ("model_type", "transformers_version")}


def _undone_normalisation(source: Source) -> dict:
    """The video processor's normalisation, which the geometry branch undoes: as its files say, else as published."""
    given = normalisation(source, "video")
    names = {"image_mean": "unnormalize_mean", "image_std": "unnormalize_std"}
    return {ours: given[theirs] for theirs, ours in names.items() if theirs in given}


def _token_ids(source: Source, content: dict, overrides: dict) -> dict:
    """Special ids: the tokenizer's where there is one, else the configuration's.

    Raises:
        ValueError: neither tells the ids of `<|im_start|>` and `<|im_end|>`, and the vocabulary is not Qwen2.5-VL's.
    """
    if _has_tokenizer(source):
        vocabulary = _tokenizer(source).get_vocab()
        missing = [token for token in TOKENS.values() if token not in vocabulary]
        if missing:
            raise ValueError(f"The tokenizer of source `{source.name}` ({source.location}) lacks {missing}.")
        largest = max(vocabulary[token] for token in TOKENS.values())
        if largest >= content["text_config"]["vocab_size"]:
            raise ValueError(
                f"The tokenizer of source `{source.name}` ({source.location}) has special ids up to {largest}, but the "
                f"vocabulary has {content['text_config']['vocab_size']}: it belongs to another model."
            )
        return {name: vocabulary[token] for name, token in TOKENS.items()}
    from modeling_dsr.configuration_dsr import DSRConfig

    ids = {name: content[name] for name in TOKENS if name in content}
    if "vision_token_id" in content:  # Qwen's name for it
        ids.setdefault("vision_pad_token_id", content["vision_token_id"])
    standard = {name: getattr(DSRConfig(), name) for name in TOKENS}
    known = {**ids, **{name: value for name, value in overrides.items() if name in TOKENS}}
    if missing := [name for name in TOKENS if name not in known]:
        if any(known[name] != standard[name] for name in known):
            raise ValueError(
                f"Source `{source.name}` has no tokenizer and a vocabulary of its own, so {missing} are unknown. Give "
                "them as configuration overrides, or put the tokenizer files beside the weights."
            )
        known |= {name: standard[name] for name in missing}
    return known


def _generation_ids(config) -> dict:
    text_config = config.text_config
    return {name: getattr(text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


# --------------------------------------------------------------------------------------
# Processor
# --------------------------------------------------------------------------------------


def _has_tokenizer(source: Source) -> bool:
    return any(source.path(name) for name in TOKENIZER_FILES)


def _tokenizer(source: Source):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source.folder)


def write_processor(sources: dict[str, Source], config, folder: Path) -> list[str]:
    """Processor files, from the tokenizer and the preprocessing configuration beside Qwen's weights."""
    source = sources.get("dsr") or sources["qwen"]
    if not _has_tokenizer(source):
        return [
            f"source `{source.name}` has no tokenizer, so no processor was written: put Qwen2.5-VL's beside its weights"
        ]
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    from modeling_dsr.processing_dsr import DSRProcessor

    sizes = patch_sizes(config.vision_config)
    image_processor = (
        Qwen2VLImageProcessor.from_pretrained(source.folder)
        if source.json("preprocessor_config.json")
        else Qwen2VLImageProcessor(**sizes)
    )
    if source.json("video_preprocessor_config.json"):
        video_processor = Qwen2VLVideoProcessor.from_pretrained(source.folder)
    else:
        # The defaults of the class, 128 to 768 tokens a frame, are what DSR was evaluated with. Qwen publishes bounds
        # for images, with a maximum 21 times as large; a source whose maximum is below DSR's means it.
        sizes |= normalisation(source, "video")
        video_processor = Qwen2VLVideoProcessor(**sizes)
        if image_processor.size["longest_edge"] < video_processor.size["longest_edge"]:
            video_processor = Qwen2VLVideoProcessor(**sizes, size=dict(image_processor.size))
    tokenizer = _tokenizer(source)
    chat_template = source.json("chat_template.json").get("chat_template") or tokenizer.chat_template
    processor = DSRProcessor(
        image_processor,
        tokenizer,
        video_processor,
        chat_template=chat_template,
        num_geometry_tokens=config.num_geometry_tokens,
        geometry_tokens_per=config.geometry_tokens_per,
        geometry_for_images=config.geometry_for_images,
        # The published evaluation tells the model 1.0 whatever the frames' real distance; a new module is told the
        # truth.
        fixed_second_per_grid_ts=1.0 if config.question_scope == "published" else None,
    )
    processor.save_pretrained(folder)
    return [] if chat_template else [f"the tokenizer of source `{source.name}` has no chat template"]
