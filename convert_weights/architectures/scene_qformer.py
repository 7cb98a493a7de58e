"""Scene Q-Former: from its published checkpoint layouts, or new on a ResNet's weights; with or without a language
model."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

from ..recipe import (
    Initialiser,
    Plan,
    build_config,
    constant,
    drop,
    init,
    linear_default,
    merge,
    normal,
    ones,
    rename,
    values,
    zeros,
)
from ..sources import Source

SOURCES = (("scene_qformer",), ("scene_qformer", "llm"), ("resnet",), ("resnet", "llm"), ("llm",))
MODELS = {
    "SceneQFormerModel": "modeling_dsr.modeling_scene_qformer",
    "SceneQFormerForConditionalGeneration": "modeling_dsr.modeling_scene_qformer",
}

# Rank 32 with alpha 64 is how the published map detector is trained; its file does not tell alpha.
PUBLISHED_LORA_SCALE = 2.0
IMAGE_TOKEN = "<image>"
# Of a ResNet's own configuration; where a block has its stride shows in no shape.
RESNET_FIELDS = (
    *("depths", "hidden_sizes", "embedding_size", "layer_type", "hidden_act", "num_channels"),
    *("downsample_in_first_stage", "downsample_in_bottleneck"),
)
ROPE_FIELDS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
IMAGE_SIZES = {"sine_camera": (336, 336), "depth_3d": (448, 800), "ray_3d": (448, 800)}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
# Fields that the published `build_qformer` reads, and those that a config.json beside a checkpoint may add.
PUBLISHED_FIELDS = (
    *(
        "num_heads",
        "dropout",
        "depth_start",
        "depth_max",
        "use_lid",
        "pc_range",
        "position_encoding",
        "missing_calibration",
    ),
    *("position_frame", "sine_normalize_2pi", "output_clamp", "image_token_index"),
    *("sine_temperature", "point_clamp", "backbone_dilation"),
)


def plan(sources: dict[str, Source], overrides: dict) -> Plan:
    """Sizes come from shapes, what shapes do not tell from a config.json beside the weights or from the overrides."""
    from modeling_dsr.configuration_scene_qformer import SceneQFormerConfig
    from modeling_dsr.modeling_scene_qformer import SceneQFormerForConditionalGeneration, SceneQFormerModel

    trained, resnet, llm = (sources.get(name) for name in ("scene_qformer", "resnet", "llm"))
    detector = trained is not None and bool(trained.match(r"qformer\..+"))
    content, notes = {}, []
    if trained is not None:
        content |= _qformer_config(trained, "qformer." if detector else "", overrides)
    elif resnet is not None:
        content["backbone_config"] = _resnet_config(resnet, "", overrides)
    else:
        notes.append("no source holds an image backbone: it starts untrained, as does the rest of the Q-Former")
    text_source = llm or (trained if detector and trained.match(r"llm\..+") else None)
    if text_source is not None:
        content["text_config"] = _text_config(text_source, llm is not None, overrides)
        content["image_token_id"] = _image_token_id(text_source)
        if isinstance(text_source.config.get("image_token_index"), int):
            content.setdefault("image_token_index", text_source.config["image_token_index"])
        content |= _map_config(text_source, overrides)
    for name in ("text_config", "map_config"):
        if isinstance(overrides.get(name), dict):
            content.setdefault(name, {})
    config = build_config(SceneQFormerConfig, content, overrides)

    prefix = "scene_qformer." if text_source is not None else ""
    stages = len(config.backbone_config.depths) if config.backbone_config.model_type == "resnet" else 0
    load = {}
    if trained is not None:
        lora_scale = _lora_scale(trained)
        load["scene_qformer"] = _trained_rules(
            prefix, detector, stages, lora_scale if text_source is trained else None, config
        )
        if any(key.endswith(".lora_A.default.weight") for key in trained.keys()):
            notes.append(f"LoRA weights are merged with alpha / rank = {lora_scale:g}")
    if resnet is not None:
        load["resnet"] = _resnet_rules("", f"{prefix}backbone.", stages)
    if llm is not None:
        load["llm"] = _llm_rules("")
    return Plan(
        config=config,
        model_class=SceneQFormerForConditionalGeneration if text_source is not None else SceneQFormerModel,
        load=load,
        fill=_fill(prefix, config),
        generation_config=None if text_source is None else (text_source.json("generation_config.json") or _ids(config)),
        notes=notes,
    )


# --------------------------------------------------------------------------------------
# Rules
# --------------------------------------------------------------------------------------


def _trained_rules(prefix: str, detector: bool, stages: int, lora_scale: float | None, config) -> list:
    """`lora_scale` is None where the language model is not taken from this source."""
    source = r"qformer\." if detector else ""
    rules = [
        *_resnet_rules(source + r"img_backbone\.", f"{prefix}backbone.", stages),
        rename(source + r"img_neck\.(.+)", rf"{prefix}neck.\1"),
        rename(source + r"camera_embed\.(.+)", rf"{prefix}camera_embed.\1"),
        rename(source + r"(?:query_embed|query_content)\.(.+)", rf"{prefix}queries.content.\1"),
        rename(source + r"spatial_query_embed\.(.+)", rf"{prefix}queries.place_embed.\1"),
        rename(source + r"camera_assignment", rf"{prefix}queries.camera_assignment"),
        rename(source + r"spatial_idx", rf"{prefix}queries.place_assignment"),
        rename(source + r"position_encoding_3d\.(.+)", rf"{prefix}position_encoding_3d.\1"),
        rename(source + r"decoder\.(layers\..+)", rf"{prefix}scene_decoder.\1"),
        rename(source + r"projector\.(.+)", rf"{prefix}projector.\1"),
    ]
    if not detector:
        return rules
    if lora_scale is not None:
        rules += _llm_rules(r"llm\.(?:base_model\.model\.)?", lora_scale)
    else:
        rules.append(drop(r"llm\.(?!.*map_queries).+", "the language model comes from source `llm`"))
        rules.append(rename(r"llm\..*(map_queries\..+)", r"\1", when_taken="keep"))
    if config.map_config is None:
        return [
            *rules,
            drop(r"(map_scene_interaction|decoder)\..+", "there are no output queries for the map head to read"),
        ]
    head = "map_decoder."
    return [
        *rules,
        rename(r"(map_scene_interaction\..+)", r"\1"),
        rename(r"decoder\.inst_reducer\.reducer\.(.+)", rf"{head}instance_reducer.\1"),
        rename(r"decoder\.point_reducer\.reducer\.(.+)", rf"{head}point_reducer.\1"),
        rename(r"decoder\.cls_head\.head\.(.+)", rf"{head}class_head.\1"),
        rename(r"decoder\.point_head\.init_points_head\.point_proj\.(.+)", rf"{head}point_proj.\1"),
        rename(r"decoder\.point_head\.init_points_head\.inst_proj\.(.+)", rf"{head}instance_proj.\1"),
        rename(r"decoder\.point_head\.init_points_head\.coord_head\.(.+)", rf"{head}first_offset.\1"),
        drop(
            r"decoder\.point_head\.(init_points_head\.anchors|coord_encoder\.freqs)", "computed from the configuration"
        ),
        rename(r"decoder\.point_head\.coord_encoder\.proj\.(.+)", rf"{head}coordinate_proj.\1"),
        rename(r"decoder\.point_head\.order_embedding\.embed\.(.+)", rf"{head}order_embedding.\1"),
        rename(r"decoder\.point_head\.refine_layers\.(\d+)\.point_self_attn\.(.+)", rf"{head}refinements.\1.\2"),
        rename(r"decoder\.point_head\.refine_layers\.(\d+)\.(.+)", rf"{head}refinements.\1.\2"),
    ]


def _resnet_rules(source: str, target: str, stages: int) -> list:
    """A ResNet in torchvision's names (timm's, too), as the children of a Sequential, or in transformers' names."""
    layer = rf"{target}encoder.stages"
    normalization = rf"{target}embedder.embedder.normalization."

    def stage(match: re.Match) -> int:
        # In a Sequential the stages are children 4 to 7, in torchvision layer1 to layer4.
        return int(match[2]) - (1 if match[1] == "layer" else 4)

    def block(match: re.Match) -> str:
        kind = "convolution" if match[4] == "conv" else "normalization"
        return f"{layer}.{stage(match)}.layers.{match[3]}.layer.{int(match[5]) - 1}.{kind}.{match[6]}"

    def shortcut(match: re.Match) -> str:
        kind = "convolution" if match[4] == "0" else "normalization"
        return f"{layer}.{stage(match)}.layers.{match[3]}.shortcut.{kind}.{match[5]}"

    beyond = [f"(?:layer{number + 1}|{number + 4})" for number in range(stages, 4)]
    rules = [
        drop(r"(?:.*\.)?(?:fc|classifier)\..+" if not source else source + r"fc\..+", "classifies ImageNet"),
        rename(source + r"(?:conv1|0)\.(.+)", rf"{target}embedder.embedder.convolution.\1"),
        rename(source + r"(?:bn1|1)\.(.+)", rf"{normalization}\1"),
        rename(source + r"(layer|)(\d)\.(\d+)\.(conv|bn)(\d)\.(.+)", block),
        rename(source + r"(layer|)(\d)\.(\d+)\.downsample\.(\d)\.(.+)", shortcut),
        rename(source + r"(?:resnet\.)?((?:embedder|encoder)\..+)", rf"{target}\1"),
    ]
    if beyond:
        rules.insert(0, drop(source + rf"(?:{'|'.join(beyond)})\..+", f"the backbone ends at stage {stages}"))
    return rules


def _lora_scale(source: Source) -> float:
    """
    What the product of LoRA's matrices is multiplied by, from PEFT's adapter_config.json, else as published.

    Raises:
        ValueError: the file gives single modules ranks or scales of their own, or another rank than the matrices have.
    """
    given = source.json("adapter_config.json")
    if not given:
        return PUBLISHED_LORA_SCALE
    place = f"Source `{source.name}` ({source.location}): adapter_config.json"
    rank, alpha = given.get("r"), given.get("lora_alpha")
    if not all(type(value) in (int, float) and value > 0 for value in (rank, alpha)):
        raise ValueError(f"{place} has r = {rank!r:.80} and lora_alpha = {alpha!r:.80}, expected two positive numbers.")
    if odd := [name for name in ("rank_pattern", "alpha_pattern", "use_dora") if given.get(name)]:
        raise ValueError(f"{place} has {odd[0]} = {given[odd[0]]!r:.80}, expected one rank and scale for all modules.")
    ranks = {source.shape(match[0])[0] for match in source.match(r".*\.lora_A\.default\.weight")}
    if ranks and ranks != {rank}:
        raise ValueError(f"{place} has r = {rank}, the weights have rank {sorted(ranks)}.")
    return alpha / (math.sqrt(rank) if given.get("use_rslora") else rank)


def _llm_rules(source: str, lora_scale: float = PUBLISHED_LORA_SCALE) -> list:
    """A causal language model, with LoRA weights beside or in it, and output queries."""

    def add_lora(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return (weight.float() + lora_scale * (up.float() @ down.float())).to(weight.dtype)

    name = r"language_model.\1"
    return [
        merge(
            source + r"model\.(.+)\.base_layer\.weight",
            [
                lambda match: match[0].replace(".base_layer.", ".lora_A.default."),
                lambda match: match[0].replace(".base_layer.", ".lora_B.default."),
            ],
            rf"{name}.weight",
            add_lora,
        ),
        drop(r".*rotary_emb\.inv_freq", "computed from the configuration"),
        drop(
            source + r"model\.(?:mm_projector|vision_tower)\..+", "LLaVA's own eye; the scene Q-Former takes its place"
        ),
        rename(source + r"model\.(.+)", name),
        rename(source + r"(lm_head\..+)", r"\1"),
        rename(source + r"(map_queries\..+)", r"\1"),
    ]


# --------------------------------------------------------------------------------------
# Configuration
# --------------------------------------------------------------------------------------


def _qformer_config(source: Source, prefix: str, overrides: dict) -> dict:
    def shape(key: str) -> tuple[int, ...]:
        return source.shape(prefix + key)

    if f"{prefix}summary_queries" in source:
        raise ValueError(
            f"Source `{source.name}` ({source.location}) is the dual-stream variant (QFormerV2), which this library "
            "does not have. Expected a scene Q-Former with `query_embed` or `query_content`."
        )
    depth = f"{prefix}query_content.weight" in source
    content = {key: value for key, value in source.config.items() if key in PUBLISHED_FIELDS}
    content.setdefault("position_encoding", "depth_3d" if depth else "sine_camera")
    width = shape("img_neck.0.weight")[0]
    if width != 256 and "num_heads" not in content and "num_heads" not in overrides:
        raise ValueError(
            f"The decoder of source `{source.name}` is {width} wide, which does not tell its number of heads. Give it "
            "as "
            'configuration override, such as {"num_heads": 8}.'
        )
    layers = source.match(re.escape(prefix) + r"decoder\.layers\.(\d+)\.norm1\.weight")
    content |= {
        "embed_dims": width,
        "num_queries": shape("query_content.weight" if depth else "query_embed.weight")[0],
        "num_decoder_layers": 1 + max(int(match[1]) for match in layers),
        "ffn_dims": shape("decoder.layers.0.linear1.weight")[0],
        "llm_hidden_size": shape("projector.2.weight")[0],
        "num_cams": shape("camera_embed.weight")[0],
        "backbone_config": _resnet_config(source, f"{prefix}img_backbone.", overrides),
    }
    if depth:
        content |= {
            "num_constrained_queries": shape("camera_assignment")[0],
            "depth_num": shape("position_encoding_3d.depth_bins")[0],
            "num_point_features": shape("position_encoding_3d.per_depth_mlp.0.weight")[1] // 3,
            "per_depth_dims": shape("position_encoding_3d.per_depth_mlp.0.weight")[0],
            "aggregation_dims": [shape(f"position_encoding_3d.aggregation_mlp.{index}.weight")[0] for index in (0, 3)],
        }
    return content


def _resnet_config(source: Source, prefix: str, overrides: dict) -> dict:
    """Sizes of a ResNet; `overrides` may end it early (`backbone_stage`)."""
    if source.config.get("model_type") == "resnet":
        content = {key: value for key, value in source.config.items() if key in RESNET_FIELDS}
        return {"model_type": "resnet", "layer_type": "bottleneck", **content}
    stem = "0.weight" if f"{prefix}0.weight" in source else "conv1.weight"
    names = [str(number) for number in range(4, 8)] if stem[0] == "0" else [f"layer{number}" for number in range(1, 5)]
    names = names[: overrides.get("backbone_stage") or len(names)]
    depths, widths, bottleneck = [], [], True
    for name in names:
        blocks = source.match(re.escape(f"{prefix}{name}.") + r"(\d+)\.conv1\.weight")
        if not blocks:
            break
        depths.append(1 + max(int(match[1]) for match in blocks))
        bottleneck = f"{prefix}{name}.0.conv3.weight" in source
        widths.append(source.shape(f"{prefix}{name}.0.conv{3 if bottleneck else 2}.weight")[0])
    return {
        "model_type": "resnet",
        "embedding_size": source.shape(prefix + stem)[0],
        "depths": depths,
        "hidden_sizes": widths,
        "layer_type": "bottleneck" if bottleneck else "basic",
    }


def _text_config(source: Source, alone: bool, overrides: dict) -> dict:
    """Configuration of the language model; that of a detector file, which brings none, from its shapes (LLaMA)."""
    from transformers.models.auto import CONFIG_MAPPING

    content = {key: value for key, value in source.config.items() if alone} | overrides.get("text_config", {})
    kind = content.get("model_type", "llama")
    if kind not in CONFIG_MAPPING and "llama" in kind:
        kind = "llama"  # LLaVA's subclass of it
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"Source `{source.name}` ({source.location}) is of the unknown model type {kind!r}.")
    known = CONFIG_MAPPING[kind]().to_dict()
    # The class itself reads what earlier releases wrote apart, such as rope_theta and rope_scaling.
    read = CONFIG_MAPPING[kind].from_dict({**content, "model_type": kind}).to_dict()
    given = {key for key in content if key in known and key != "architectures"}
    given |= {"rope_parameters"} if any(key in content for key in ROPE_FIELDS) else set()
    content = {key: read[key] for key in given}
    if not alone:
        prefix = "llm.base_model.model." if source.match(r"llm\.base_model\..+") else "llm."
        layers = source.match(re.escape(prefix) + r"model\.layers\.(\d+)\.input_layernorm\.weight")
        vocabulary, hidden = source.shape(f"{prefix}model.embed_tokens.weight")
        content = {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "num_hidden_layers": 1 + max(int(match[1]) for match in layers),
            "intermediate_size": source.shape(f"{prefix}model.layers.0.mlp.gate_proj.weight")[0],
            "num_attention_heads": max(hidden // 128, 1),
            "rms_norm_eps": 1e-5,  # Vicuna 1.5's
            **content,
        }
    return {**content, "model_type": kind}


def _map_config(source: Source, overrides: dict) -> dict:
    """Output queries and head, if the source has them."""
    found = source.match(r"(?:.*\.)?map_queries\.point_content")
    if not found:
        return {}
    instances, points, _ = source.shape(found[0][0])
    content = {"num_instances": instances, "num_points": points}
    if "decoder.cls_head.head.1.weight" in source:
        classes, dims = source.shape("decoder.cls_head.head.1.weight")
        widths = [
            [source.shape(m[0])[0] for m in source.match(rf"decoder\.{name}\.reducer\.\d+\.linear\.weight")][:-1]
            for name in ("inst_reducer", "point_reducer")
        ]
        layers = source.match(r"map_scene_interaction\.layers\.(\d+)\.ffn\.0\.weight")
        refinements = source.match(r"decoder\.point_head\.refine_layers\.(\d+)\.offset_scale")
        content |= {
            "num_classes": classes,
            "embed_dims": dims,
            "instance_dims": widths[0],
            "point_dims": widths[1],
            "num_layers": len(layers),
            "ffn_dims": source.shape(layers[0][0])[0],
            "num_refinements": len(refinements),
            "coordinate_dims": source.shape("decoder.point_head.coord_encoder.proj.weight")[0],
            "num_frequencies": source.shape("decoder.point_head.coord_encoder.proj.weight")[1] // 4,
        }
    return {"map_config": content}


def _tokenizer(source: Source):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source.folder)


def _has_tokenizer(source: Source) -> bool:
    return source.folder is not None and any(source.path(name) for name in TOKENIZER_FILES)


def _image_token_id(source: Source) -> int | None:
    """Id of the placeholder that the processor writes: the tokenizer's own, or the next free one, which it will get."""
    if source.name != "llm" or not _has_tokenizer(source):
        return None
    tokenizer = _tokenizer(source)
    return tokenizer.get_vocab().get(IMAGE_TOKEN, len(tokenizer))


def _ids(config) -> dict:
    return {name: getattr(config.text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


# --------------------------------------------------------------------------------------
# New parts
# --------------------------------------------------------------------------------------


def uniform(bound: float) -> Initialiser:
    return Initialiser(
        f"uniform(±{bound:.3g})", lambda piece, generator, shape: piece.uniform_(-bound, bound, generator=generator)
    )


def _fill(prefix: str, config) -> list:
    """Initial values of whatever the sources lack, as `_init_weights` of the model gives them."""
    from modeling_dsr.scene_position import depth_bins

    dims, depth = config.embed_dims, config.position_encoding == "depth_3d"
    camera = torch.empty(config.num_cams, dims)
    if depth:
        torch.nn.init.orthogonal_(camera, gain=config.init_scale_camera, generator=torch.Generator().manual_seed(0))
    q = re.escape(prefix)

    def bias(pattern: str, fan_in: int):
        return init(q + pattern + r"\.bias", uniform(fan_in**-0.5))

    rules = [
        init(r".*num_batches_tracked", zeros),
        init(q + r".*running_mean", zeros),
        init(q + r".*running_var", ones),
        init(q + r"queries\.content\.weight", normal(config.init_std_content if depth else 1.0)),
        init(q + r"queries\.place_embed\.weight", normal(config.init_std_place)),
        init(q + r"camera_embed\.weight", values("orthogonal rows", camera) if depth else normal(1.0)),
        init(q + r"position_encoding_3d\.pc_range", values("pc_range", torch.tensor(list(config.pc_range)))),
        init(q + r"position_encoding_3d\.depth_bins", values("depth bins", depth_bins(config))),
        init(q + r"scene_decoder\..*in_proj_weight", uniform(math.sqrt(6 / (4 * dims)))),
        init(q + r"scene_decoder\..*(?:in_proj_bias|out_proj\.bias)", zeros),
        bias(r"scene_decoder\.layers\.\d+\.linear1", dims),
        bias(r"scene_decoder\.layers\.\d+\.linear2", config.ffn_dims),
        bias(r"projector\.0", dims),
        bias(r"projector\.2", 2 * dims),
        bias(r"position_encoding_3d\.per_depth_mlp\.0", 3 * config.num_point_features),
        bias(r"position_encoding_3d\.aggregation_mlp\.0", config.per_depth_dims * config.depth_num),
        bias(r"position_encoding_3d\.aggregation_mlp\.3", config.aggregation_dims[0]),
        bias(r"position_encoding_3d\.aggregation_mlp\.6", config.aggregation_dims[1]),
        bias(r"position_encoding_3d\.mlp\.0", 3),
        bias(r"position_encoding_3d\.mlp\.2", 2 * dims),
        *_assignments(q, config),
        *_deformable(q, config),
    ]
    if config.backbone_config.model_type == "resnet":
        rules.append(bias(r"neck\.0", config.backbone_config.hidden_sizes[-1]))
        rules.append(init(q + r"(?:neck\.1|.*normalization|.*norm\d)\.weight", ones))
        rules.append(init(q + r".*(?:normalization|norm\d|neck\.1)\.bias", zeros))
    # Layer norms inside of Sequentials, then every matrix.
    rules.append(init(q + r"position_encoding_3d\.(?:per_depth_mlp\.1|aggregation_mlp\.[147]|mlp\.3)\.weight", ones))
    rules.append(init(q + r"position_encoding_3d\..+\.bias", zeros))
    rules.append(
        init(q + r"(?:backbone|neck|scene_decoder|projector|position_encoding_3d)\..+\.weight", linear_default())
    )
    return [
        *rules,
        *(_map_fill(config.map_config, config.text_config.hidden_size) if config.map_config is not None else ()),
    ]


def _assignments(q: str, config) -> list:
    total, cameras = config.num_constrained_queries, config.num_cams
    sizes = [total // cameras + (camera < total % cameras) for camera in range(cameras)]
    camera = torch.tensor([number for number, size in enumerate(sizes) for _ in range(size)])
    place = torch.tensor([number for size in sizes for number in range(size)])
    return [
        init(q + r"queries\.camera_assignment", values("camera of each query", camera)),
        init(q + r"queries\.place_assignment", values("place in the camera's block", place)),
    ]


def _deformable(q: str, config) -> list:
    if config.attention != "deformable":
        return []
    heads, cameras, points = config.num_heads, config.num_cams, config.num_deformable_points
    angles = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, points + 1, dtype=torch.float32)[:, None]
    offsets = (directions[:, None, None] * steps).expand(-1, cameras, -1, -1).reshape(-1)
    xavier = uniform(math.sqrt(6 / (2 * config.embed_dims)))
    where = q + r"scene_decoder\..*multihead_attn\."
    return [
        init(where + "reference_points", uniform(2.0)),
        init(where + r"sampling_offsets\.bias", values("directions of the heads", offsets)),
        init(where + r"(?:sampling_offsets|attention_weights)\.weight", zeros),
        init(where + r"(?:value_proj|output_proj)\.weight", xavier),
        init(where + r".+\.bias", zeros),
    ]


def _map_fill(config, hidden_size: int) -> list:
    """New output queries and a new head: Xavier in the interaction block, torch's defaults in the decoder."""
    from modeling_dsr.scene_map_head import SceneMapDecoder, order_table

    def xavier(piece, generator, shape):
        bound = math.sqrt(6 / sum(shape))
        piece.uniform_(-bound, bound, generator=generator)

    with torch.device("meta"):
        decoder = SceneMapDecoder(config, hidden_size)
    fan_in = {
        name: module.in_features for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)
    }
    order = order_table(config.num_points, config.coordinate_dims)
    return [
        init(r"map_queries\..+", normal(config.initializer_range)),
        init(r"map_scene_interaction\.residual_scale", constant(config.residual_scale)),
        init(r".*refinements\.\d+\.offset_scale", constant(config.offset_scale)),
        init(r"map_decoder\.first_offset\.4\..+", zeros),
        init(r"map_decoder\.order_embedding\.weight", values("sines of the order", order)),
        init(r"map_decoder\.class_head\.1\.bias", constant(-math.log((1 - config.prior) / config.prior))),
        init(r"map_.*(?:norm|_proj\.0|head\.0|first_offset\.0|offset_mlp\.0)\.weight", ones),
        init(r"map_scene_interaction\..+weight", Initialiser("xavier_uniform", xavier)),
        init(r"map_decoder\.(?:class_head\.1\.weight|.+in_proj_weight)", Initialiser("xavier_uniform", xavier)),
        init(r"map_.+(?:in_proj_bias|out_proj\.bias)", zeros),
        *(init(rf"map_decoder\.{re.escape(name)}\.bias", uniform(wide**-0.5)) for name, wide in fan_in.items()),
        init(r"map_.+bias", zeros),
        init(r"map_decoder\..+weight", linear_default()),
    ]


# --------------------------------------------------------------------------------------
# Processor
# --------------------------------------------------------------------------------------


def _normalisation(sources: dict[str, Source]) -> dict:
    """Mean and deviation that the backbone was trained with: of transformers' preprocessor_config.json, or of timm."""
    source = sources.get("scene_qformer") or sources.get("resnet")
    if source is None:
        return {}
    timm = source.config.get("pretrained_cfg", {})
    names = {"image_mean": "mean", "image_std": "std"}
    given = {
        name: source.json("preprocessor_config.json").get(name, timm.get(of_timm)) for name, of_timm in names.items()
    }
    return {name: tuple(value) for name, value in given.items() if value is not None}


def write_processor(sources: dict[str, Source], config, folder: Path) -> list[str]:
    """Processor files; with a tokenizer where the language model brought one, its placeholder added. Images are
    normalised as the configuration beside the backbone says, as ImageNet is where there is none."""
    from modeling_dsr.processing_scene_qformer import SceneQFormerProcessor

    tokenizer, notes = None, []
    llm = sources.get("llm")
    if llm is not None and _has_tokenizer(llm):
        tokenizer = _tokenizer(llm)
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    elif config.text_config is not None:
        notes.append("no source has a tokenizer, so the processor prepares images alone")
    SceneQFormerProcessor(
        tokenizer,
        image_size=IMAGE_SIZES[config.position_encoding],
        num_scene_tokens=config.num_queries,
        needs_calibration=config.position_encoding != "sine_camera",
        **_normalisation(sources),
        **({"chat_template": tokenizer.chat_template} if tokenizer is not None else {}),
    ).save_pretrained(folder)
    return notes
