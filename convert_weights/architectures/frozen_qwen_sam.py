"""FrozenQwenSAM: a Qwen-VL folder and SAM, with the trained parts of an F-LMM checkpoint or new ones."""

from __future__ import annotations

import math
import re
from pathlib import Path

from ..places import HUB_ID
from ..recipe import Initialiser, Plan, build_config, drop, init, linear_default, ones, rename, zeros
from ..sources import Source
from .qwen_settings import check_patch_sizes, check_rotary_sections, image_settings
from .sam import check_sam_pixels, is_transformers_layout, sam_content, sam_rules, transformers_rules

SOURCES = (("qwen", "sam"), ("qwen", "sam", "flmm"))
MODELS = {"FrozenQwenSAMModel": "modeling_dsr.modeling_frozen_qwen_sam"}


def qwen_rules(source_prefix: str = "", when_taken: str = "error") -> list:
    """Qwen's tensors, in the layout of its publishers and in the one that transformers 5 has in memory."""
    options = {"when_taken": when_taken}
    return [
        drop(source_prefix + r".*rotary_emb\.inv_freq", "computed from the configuration"),
        rename(source_prefix + r"(lm_head\..+)", r"vlm.\1", **options),
        rename(source_prefix + r"model\.(language_model|visual)\.(.+)", r"vlm.model.\1.\2", **options),
        rename(source_prefix + r"visual\.(.+)", r"vlm.model.visual.\1", **options),
        rename(source_prefix + r"model\.(.+)", r"vlm.model.language_model.\1", **options),
    ]


# The trained checkpoint is loaded over the others: its SAM decoder and prompt encoder take the place of the released
# ones. Saved whole, it also holds the language model (in the layout of transformers 4.51) and SAM's image encoder.
TRAINED_RULES = [
    *qwen_rules(r"qwen_model\.", "replace"),
    *sam_rules("sam.model.", "sam.", "replace"),
    drop(r"sam\.(?:model\.)?pixel_(?:mean|std)", "constants of the image processor"),
    rename(r"mask_head\.encoder\.(\d+)\.\d\.convs\.(\d)\.conv\.(.+)", r"mask_head.encoder.\1.convs.\2.conv.\3"),
    rename(r"mask_head\.encoder\.(\d+)\.\d\.convs\.(\d)\.gn\.(.+)", r"mask_head.encoder.\1.convs.\2.norm.\3"),
    rename(
        r"mask_head\.decoder\.(\d+)\.upsample\.interp_upsample\.1\.conv\.(.+)", r"mask_head.decoder.\1.reduce.conv.\2"
    ),
    rename(
        r"mask_head\.decoder\.(\d+)\.upsample\.interp_upsample\.1\.gn\.(.+)", r"mask_head.decoder.\1.reduce.norm.\2"
    ),
    rename(
        r"mask_head\.decoder\.(\d+)\.conv_block\.convs\.(\d)\.conv\.(.+)", r"mask_head.decoder.\1.fuse.convs.\2.conv.\3"
    ),
    rename(
        r"mask_head\.decoder\.(\d+)\.conv_block\.convs\.(\d)\.gn\.(.+)", r"mask_head.decoder.\1.fuse.convs.\2.norm.\3"
    ),
    rename(r"mask_head\.conv_seg\.(.+)", r"mask_head.classifier.\1"),
    rename(r"(text_proj\..+|text_layer_weights)", r"\1"),
]


def _kaiming_fan_out(piece, generator, shape):
    piece.normal_(0, math.sqrt(2 / (shape[0] * math.prod(shape[2:]))), generator=generator)


def new_parts(width: int) -> list:
    """Initial values of the U-Net, the projection of the text (`width` inputs) and the weights of the layers."""
    bound = width**-0.5
    return [
        init("text_layer_weights", ones),
        init(r"text_proj\.weight", linear_default()),
        init(
            r"text_proj\.bias",
            Initialiser(
                f"uniform({bound:g})",
                lambda piece, generator, shape: piece.uniform_(-bound, bound, generator=generator),
            ),
        ),
        init(r"mask_head\..+\.norm\.weight", ones),
        init(r"mask_head\..+\.bias", zeros),
        init(r"mask_head\..+\.weight", Initialiser("kaiming_normal(fan_out, relu)", _kaiming_fan_out)),
    ]


def plan(sources: dict[str, Source], overrides: dict) -> Plan:
    from modeling_dsr.configuration_frozen_qwen_sam import FrozenQwenSAMConfig
    from modeling_dsr.modeling_frozen_qwen_sam import FrozenQwenSAMModel

    qwen, sam, trained = sources["qwen"], sources["sam"], sources.get("flmm")
    content = {
        "vlm_config": _vlm_content(qwen),
        "sam_config": sam_content(sam),
        "vlm_source": _hub_source(qwen),
        "sam_source": _hub_source(sam) if is_transformers_layout(sam) else None,
    }
    if trained:
        content |= _trained_content(trained)
    config = build_config(FrozenQwenSAMConfig, content, overrides)
    check_patch_sizes(qwen, config.vlm_config.vision_config)
    check_rotary_sections(qwen, config.vlm_config.text_config)
    for source in filter(None, (sam, trained)):
        check_sam_pixels(source)
    load = {
        "qwen": qwen_rules(),
        "sam": transformers_rules("sam.") if is_transformers_layout(sam) else sam_rules("", "sam."),
    }
    if trained:
        replaced = [re.escape(key) for key in sam.keys() if f"sam.model.{key}" in trained]
        if replaced:
            load["sam"].insert(0, drop("|".join(replaced), "the trained checkpoint brings its own"))
        load["flmm"] = TRAINED_RULES
    return Plan(
        config=config,
        model_class=FrozenQwenSAMModel,
        load=load,
        fill=[] if trained else new_parts(config.get_text_config().hidden_size),
        generation_config=None,
    )


def _vlm_content(source: Source) -> dict:
    """`config.json` of the source in the nested form, with the ids that end its answers."""
    from transformers import AutoConfig

    from modeling_dsr.configuration_frozen_qwen_sam import VISION_LANGUAGE_MODELS

    content = dict(source.config)
    kind = content.get("model_type")
    if kind not in VISION_LANGUAGE_MODELS:
        raise ValueError(
            f"Source `{source.name}` ({source.location}) must be a model of one of the types {VISION_LANGUAGE_MODELS} "
            f"with its config.json, found {'model_type ' + repr(kind) if kind else 'no config.json'}."
        )
    for key in ("architectures", "auto_map", "transformers_version", "_name_or_path"):
        content.pop(key, None)
    nested = AutoConfig.for_model(**content).to_dict()
    generation = source.json("generation_config.json")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if generation.get(key) is not None:
            nested["text_config"][key] = generation[key]
    nested.pop("transformers_version", None)
    return nested


def _trained_content(source: Source) -> dict:
    """What the trained checkpoint's shapes, and the published configuration beside it if there is one, tell."""
    stages = {int(m[1]) for m in source.match(r"mask_head\.encoder\.(\d+)\..+")}
    content = {
        "mask_head_channels": source.shape("mask_head.conv_seg.weight")[1],
        "mask_head_stages": len(stages),
    }
    published = source.config if "mask_head" in source.config else {}
    _check_mask_head(source, published.get("mask_head", {}), len(stages))
    if "merge" in published:
        content["merge"] = published["merge"]
    if "upsample_input" in published.get("mask_head", {}):
        content["mask_head_size"] = published["mask_head"]["upsample_input"]
    flags = ("use_text", "use_mask", "use_box", "multimask_output")
    return content | {name: value for name, value in published.get("sam", {}).items() if name in flags}


def _check_mask_head(source: Source, published: dict, stages: int) -> None:
    """The U-Net's widths show in its weights; of how it is built otherwise the model knows the published way alone."""
    ones, twos, yes = [1] * stages, [2] * stages, [True] * (stages - 1)
    only = {
        "type": "UNetHead",
        "normalize_input": True,
        "strides": ones,
        "enc_num_convs": twos,
        "dec_num_convs": twos[1:],
        "downsamples": yes,
        "enc_dilations": ones,
        "dec_dilations": ones[1:],
        "norm_cfg": {"type": "GroupNorm", "num_groups": 1},
        "upsample_cfg": {"type": "InterpConv"},
    }
    for name, value in only.items():
        found = published.get(name, value)
        found = list(found) if isinstance(found, tuple) else found
        if isinstance(value, dict) and isinstance(found, dict):
            found = {key: found.get(key) for key in value}  # others say nothing of the layers
        if found != value:
            raise ValueError(
                f"Source `{source.name}` ({source.location}): its config.json says mask_head.{name} = {found!r}, the "
                f"model has {value!r} alone."
            )


def _hub_source(source: Source) -> dict | None:
    """`{"repo", "revision"}` of a source that came from the Hub."""
    found = HUB_ID.fullmatch(source.location) if not Path(source.location).exists() else None
    return {"repo": found["repo"], "revision": found["revision"] or "main"} if found else None


def write_processor(sources: dict[str, Source], config, folder: Path) -> list[str]:
    """Processor files, from the tokenizer and the preprocessing configuration beside Qwen's weights."""
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from modeling_dsr.processing_frozen_qwen_sam import FrozenQwenSAMProcessor

    source = sources["qwen"]
    if not any(source.path(name) for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return [f"source `{source.name}` has no tokenizer, so no processor was written: put Qwen's beside its weights"]
    image_processor = Qwen2VLImageProcessorPil.from_dict(image_settings(source, config.vlm_config.vision_config))
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    chat_template = source.json("chat_template.json").get("chat_template") or tokenizer.chat_template
    FrozenQwenSAMProcessor(
        image_processor,
        tokenizer,
        chat_template=chat_template,
        sam_image_size=config.sam_config.vision_config.image_size,
    ).save_pretrained(folder)
    return [] if chat_template else [f"the tokenizer of source `{source.name}` has no chat template"]
