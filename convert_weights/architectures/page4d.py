"""
PAGE-4D: from its published checkpoints, or from VGGT-1B, whose layout it shares but for the mask head.

The multi-view model comes from a checkpoint of its own (source `page4d` again: its keys tell), or in three stages:
encoder and first layers of π³, the rest of PAGE-4D, and for what is new copies of the trunk and initial values.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import torch

from ..recipe import Plan, Rule, build_config, constant, copy, drop, init, linear_default, normal, rename, transform
from ..sources import Source
from .pi3 import rope_base
from .pi3_encoder import encoder_config, encoder_fill, encoder_rules, image_normalisation

# `page4d`: PAGE-4D, VGGT-1B or the multi-view model. `track`: weights with a track head, such as VGGT-1B, to go with a
# PAGE-4D that has none. `pi3`: for the three stages. `extra`: tensors of the multi-view model that its checkpoint
# lacks.
SOURCES = (("page4d",), ("page4d", "track"), ("pi3", "page4d"), ("page4d", "extra"))
MODELS = {"Page4DModel": "modeling_dsr.modeling_page4d"}

PUBLISHED_DEPTH = 24
LAYER_ROLES = ("mask_layer", "masked_layers", "dpt_layers")
PARALLEL = "module."  # what data-parallel training leaves before every key
BLOCK = r"(?:norm1|norm2|attn\.(?:qkv|proj|q_norm|k_norm)|mlp\.fc[12])\.(?:weight|bias)|ls[12]\.gamma"


def plan(sources: dict[str, Source], overrides: dict) -> Plan:
    """Sizes come from the shapes. `mask_alpha` does not show in weights: 1 for the "mask" checkpoint, else 0."""
    from modeling_dsr.configuration_page4d import Page4DConfig
    from modeling_dsr.modeling_page4d import Page4DModel

    source = sources["page4d"]
    if "pi3" in sources:
        return _staged_plan(sources, overrides)
    if "aggregator.time_blocks.0.norm1.weight" in source:
        return _multiview_plan(sources, overrides)
    if "extra" in sources:
        raise ValueError("Source `extra` completes a multi-view checkpoint; source `page4d` holds none.")
    prefix = PARALLEL if f"{PARALLEL}aggregator.camera_token" in source else ""
    track = sources.get("track", source)
    track_prefix = PARALLEL if f"{PARALLEL}track_head.tracker.query_ref_token" in track else ""
    content = _trunk_config(source, prefix, overrides) | _layer_roles(source, prefix, overrides)
    content |= _camera_config(source, prefix) | _dense_config(source, prefix) | _track_config(track, track_prefix)
    load = {"page4d": page4d_rules(prefix)}
    if "track" in sources:
        replaced = drop(rf"{prefix}track_head\..+", "the track head comes from source `track`")
        load["page4d"] = [replaced, *load["page4d"]]
        load["track"] = [*track_rules(track_prefix), drop(r".+", "only the track head of this source is used")]
    config = build_config(Page4DConfig, {"time_pos": "none", **content, **_multiview_layers(overrides)}, overrides)
    notes = []
    if config.spatial_mask_variant is None:
        notes.append("the source has no mask head (VGGT): the mask cannot be switched on")
    elif "mask_alpha" not in overrides:
        notes.append('mask off (the published "non-mask" variant); for checkpoint_mask.pt override {"mask_alpha": 1.0}')
    if not config.enable_track:
        notes.append("the sources have no track head; a second source `track` (VGGT-1B) adds one")
    fill = multiview_fill(config)
    return Plan(config=config, model_class=Page4DModel, load=load, fill=fill, notes=notes)


def _multiview_plan(sources: dict[str, Source], overrides: dict) -> Plan:
    """The multi-view project's own checkpoint. What the configuration switches off is left out."""
    from modeling_dsr.configuration_page4d import Page4DConfig
    from modeling_dsr.modeling_page4d import Page4DModel

    source, trunk = sources["page4d"], "aggregator."
    content = _trunk_config(source, "", overrides) | _layer_roles(source, "", overrides)
    content |= _camera_config(source, "") | _dense_config(source, "") | _track_config(source, "")
    content |= {
        "mask_scale": 1.0,  # the head of this project scales itself
        "enable_dual_stream": f"{trunk}lambda_pose_logit" in source,
        "enable_dynamic_mask": f"{trunk}dynamic_mask_head.mask_head.0.weight" in source,
        "time_pos": "none",
    }
    memory = f"{trunk}memory_tokens"
    if f"{trunk}global_sparse_blocks.0.norm1.weight" in source:
        content |= {"enable_sparse_global": True, "sparse_strategy": "memory_bank" if memory in source else "landmark"}
    if memory in source:
        content["memory_tokens_num"] = source.shape(memory)[1]
    content |= _multiview_layers(overrides)
    if "dual_stream_layers" not in overrides:
        count = _count(source, trunk + r"pose_time_blocks\.(\d+)\.norm1\.weight")
        content["dual_stream_layers"] = list(range(6, 6 + count)) if count else [8, 9, 10, 11, 12]  # 6…10 as published
    config = build_config(Page4DConfig, content, overrides)
    load = {"page4d": multiview_rules(config)}
    if "extra" in sources:
        load["extra"] = [*multiview_rules(config), drop(r".+", "not of the multi-view modules")]
    return Plan(config=config, model_class=Page4DModel, load=load, fill=multiview_fill(config))


def _staged_plan(sources: dict[str, Source], overrides: dict) -> Plan:
    """Three stages: π³, what it leaves open from PAGE-4D, and copies and initial values for what is new."""
    from modeling_dsr.configuration_page4d import Page4DConfig
    from modeling_dsr.modeling_page4d import Page4DModel

    pi3, source = sources["pi3"], sources["page4d"]
    prefix = PARALLEL if f"{PARALLEL}aggregator.camera_token" in source else ""
    content = _trunk_config(source, prefix, overrides) | _layer_roles(source, prefix, overrides)
    content |= _camera_config(source, prefix) | _dense_config(source, prefix) | _track_config(source, prefix)
    content |= {"enable_dual_stream": True, "time_pos": "none"} | _multiview_layers(overrides)
    content |= image_normalisation(pi3)  # the encoder is π³'s
    width, registers = content["embed_dim"], content["num_register_tokens"]
    if pi3.shape("register_token")[-1] != width:
        raise ValueError(
            f"Source `pi3` is {pi3.shape('register_token')[-1]} wide, source `page4d` {width}: they must agree."
        )
    notes, first = [], []
    found = content["spatial_mask_variant"]
    wanted = overrides.get("spatial_mask_variant", found)
    if wanted != found:
        first = [
            drop(rf"{prefix}aggregator\.spatial_mask_head\..+", f"its layout is {found!r}, the model's {wanted!r}")
        ]
        notes.append(
            f"spatial_mask_head: the checkpoint's layout {found!r} is not the model's {wanted!r}; it starts anew"
        )
    config = build_config(Page4DConfig, content, overrides)
    if rope_base(pi3) != config.rope_freq:
        raise ValueError(
            f"The blocks of source `pi3` ({pi3.location}) have rotary positions of base {rope_base(pi3):g}, the model "
            f"would have `rope_freq` {config.rope_freq:g}."
        )

    def first_registers(tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, :, :registers].expand(1, 2, -1, -1)

    load = {
        "pi3": [
            *encoder_rules("encoder.", "encoder."),
            transform("register_token", "aggregator.register_token", first_registers),
            rename(rf"decoder\.(\d+)\.({BLOCK})", _pi3_block),
            drop(r".+", "π³'s own heads and normalisation"),
        ],
        "page4d": [*first, *(replace(rule, when_taken="keep") for rule in page4d_rules(prefix))],
    }
    fill = [*multiview_fill(config), *encoder_fill("encoder.")]
    return Plan(config=config, model_class=Page4DModel, load=load, fill=fill, notes=notes)


def _multiview_layers(overrides: dict) -> dict:
    """Lists of layers must fit the depth from the start."""
    return {name: overrides[name] for name in ("dual_stream_layers", "sparse_global_layers") if name in overrides}


def _pi3_block(match: re.Match) -> str:
    """π³'s decoder alternates between blocks inside a frame (even) and over all frames (odd)."""
    number = int(match[1])
    return f"aggregator.{'global' if number % 2 else 'frame'}_blocks.{number // 2}.{match[2]}"


# --------------------------------------------------------------------------------------
# Rules
# --------------------------------------------------------------------------------------


def page4d_rules(prefix: str = "") -> list[Rule]:
    """Every tensor of PAGE-4D and VGGT-1B; `prefix` is plain text before each source key."""
    trunk = rf"{prefix}aggregator\."
    return [
        *encoder_rules(f"{prefix}aggregator.patch_embed.", "encoder."),
        rename(trunk + r"(camera_token|register_token)", r"aggregator.\1"),
        rename(trunk + rf"((?:frame|global)_blocks\.\d+\.(?:{BLOCK}))", r"aggregator.\1"),
        rename(trunk + r"spatial_mask_head\.head0\.([024]\..+)", r"aggregator.spatial_mask_head.layers.\1"),
        rename(trunk + r"spatial_mask_head\.(alpha_logit|tau_logit)", r"aggregator.spatial_mask_head.\1"),
        rename(rf"{prefix}camera_head\.poseLN_modulation\.1\.(.+)", r"camera_head.pose_modulation.\1"),
        rename(rf"{prefix}(camera_head\.(?:trunk\.\d+\.(?:{BLOCK})|.+))", r"\1"),
        *dpt_rules(f"{prefix}depth_head.", "depth_head."),
        *dpt_rules(f"{prefix}point_head.", "point_head."),
        *track_rules(prefix),
    ]


ALIASES = {"time": "frame", "view": "global"}


def multiview_rules(config) -> list[Rule]:
    """Every tensor of the multi-view project, in which each block has two names. What `config` has no place for is
    dropped."""
    trunk, off = r"aggregator\.", "switched off in the configuration"

    def place(pattern: str, target: str, used: bool) -> Rule:
        return rename(trunk + pattern, target) if used else drop(trunk + pattern, off)

    dual, mask = config.enable_dual_stream, config.enable_dynamic_mask
    sparse, head = config.enable_sparse_global, r"dynamic_mask_head\."
    bank = sparse and config.sparse_strategy == "memory_bank"
    return [
        *(
            rename(trunk + rf"{axis}_blocks\.(\d+\.(?:{BLOCK}))", rf"aggregator.{ours}_blocks.\1")
            for axis, ours in ALIASES.items()
        ),
        drop(trunk + r"(?:frame|global)_blocks\..+", "another name of time_blocks or view_blocks"),
        drop(trunk + r"(?:pose|geo)_(?:frame|global)_blocks\..+", "another name of a stream's time or view blocks"),
        place(rf"((?:pose|geo)_(?:time|view)_blocks\.\d+\.(?:{BLOCK}))", r"multiview.\1", dual),
        place(r"(lambda_(?:pose|geo)(?:_t)?_logit)", r"multiview.\1", dual),
        place(rf"({head}mask_head\..+)", r"multiview.\1", mask),
        place(rf"({head}(?:alpha|beta))", r"multiview.\1", mask and not config.use_gating),
        place(rf"({head}gate_(?:alpha|beta)\..+)", r"multiview.\1", mask and config.use_gating),
        place(rf"(global_sparse_blocks\.\d+\.(?:{BLOCK}))", r"multiview.\1", sparse),
        place(r"(lambda_kpt)", r"multiview.\1", sparse),
        place(r"(memory_tokens)", r"multiview.\1", bank),
        drop(
            r"(?:camera|point|depth)_head\.dim_adapter\..+",
            "random adapter of lists that are as wide as the heads here",
        ),
        *page4d_rules(),
    ]


def multiview_fill(config) -> list[Rule]:
    """For what no source holds: copies of the trunk's blocks of the same layer, and initial values."""
    new, rules = r"multiview\.", []
    if config.enable_dual_stream:
        for axis, ours in ALIASES.items():
            rules.append(
                copy(
                    rf"{new}(?:pose|geo)_{axis}_blocks\.(\d+)\.(.+)",
                    lambda match, ours=ours: (
                        f"aggregator.{ours}_blocks.{config.dual_stream_layers[int(match[1])]}.{match[2]}"
                    ),
                )
            )
        for stream in ("pose", "geo"):
            for suffix in ("", "_t"):
                value = getattr(config, f"lambda_{stream}{suffix}")
                rules.append(init(rf"{new}lambda_{stream}{suffix}_logit", constant(value)))
    if config.enable_dynamic_mask:
        rules += [
            init(rf"{new}dynamic_mask_head\.{name}", constant(getattr(config, name))) for name in ("alpha", "beta")
        ]
        rules.append(init(rf"{new}dynamic_mask_head\..+\.bias", constant(0.0)))
        rules.append(init(rf"{new}dynamic_mask_head\..+", linear_default()))
    if config.enable_sparse_global:
        rules.append(
            copy(
                rf"{new}global_sparse_blocks\.(\d+)\.(.+)",
                lambda match: f"aggregator.global_blocks.{config.sparse_global_layers[int(match[1])]}.{match[2]}",
            )
        )
        rules.append(init(rf"{new}lambda_kpt", constant(config.lambda_kpt)))
        rules.append(init(rf"{new}memory_tokens", normal(0.02)))
    if config.spatial_mask_variant == "mv":
        rules.append(init(r"aggregator\.spatial_mask_head\.alpha_logit", constant(0.0)))
        rules.append(init(r"aggregator\.spatial_mask_head\.tau_logit", constant(math.log(2))))
    if config.spatial_mask_variant is not None:
        rules.append(init(r"aggregator\.spatial_mask_head\..+\.bias", constant(0.0)))
        rules.append(init(r"aggregator\.spatial_mask_head\..+", linear_default()))
    return rules


def dpt_rules(source: str, target: str) -> list[Rule]:
    """A dense head. Levels are numbered from 1 in the source's `scratch`, from 0 here."""
    source = source.replace(".", r"\.")
    scratch = source + r"scratch\."

    def level(template: str):
        return lambda match: template.format(int(match[1]) - 1, *match.groups()[1:])

    return [
        rename(source + r"norm\.(.+)", rf"{target}norm.\1"),
        rename(source + r"projects\.(.+)", rf"{target}projections.\1"),
        rename(source + r"resize_layers\.(.+)", rf"{target}resizes.\1"),
        rename(scratch + r"layer(\d)_rn\.(.+)", level(target + "level_convs.{}.{}")),
        rename(scratch + r"refinenet(\d)\.out_conv\.(.+)", level(target + "fusions.{}.projection.{}")),
        rename(scratch + r"refinenet(\d)\.resConfUnit1\.(.+)", level(target + "fusions.{}.skip_unit.{}")),
        rename(scratch + r"refinenet(\d)\.resConfUnit2\.(.+)", level(target + "fusions.{}.unit.{}")),
        rename(scratch + r"(output_conv[12]\..+)", rf"{target}\1"),
    ]


def track_rules(prefix: str = "") -> list[Rule]:
    """The track head of VGGT. Two names say more here than there; one is spelled right."""
    source, target = rf"{prefix}track_head\.tracker\.", "track_head.tracker."
    former, transformer = source + r"updateformer\.", f"{target}update_transformer."
    return [
        *dpt_rules(f"{prefix}track_head.feature_extractor.", "track_head.feature_extractor."),
        rename(source + r"query_ref_token", f"{target}query_ref_token"),
        rename(source + r"corr_mlp\.(.+)", rf"{target}correlation_mlp.\1"),
        rename(source + r"fmap_norm\.(.+)", rf"{target}feature_map_norm.\1"),
        rename(source + r"ffeat_norm\.(.+)", rf"{target}feature_norm.\1"),
        rename(source + r"ffeat_updater\.0\.(.+)", rf"{target}feature_update.\1"),
        rename(source + r"vis_predictor\.0\.(.+)", rf"{target}visibility.\1"),
        rename(source + r"conf_predictor\.0\.(.+)", rf"{target}confidence.\1"),
        rename(former + r"virual_tracks", f"{transformer}virtual_tracks"),
        rename(former + r"flow_head\.(.+)", rf"{transformer}output.\1"),
        rename(former + r"((?:input|output)_norm\..+|input_transform\..+|time_blocks\..+)", rf"{transformer}\1"),
        rename(former + r"space_virtual_blocks\.(.+)", rf"{transformer}virtual_blocks.\1"),
        rename(
            former + r"space_virtual2point_blocks\.(\d+)\.cross_attn\.(.+)",
            rf"{transformer}virtual_from_points_blocks.\1.attn.\2",
        ),
        rename(former + r"space_virtual2point_blocks\.(.+)", rf"{transformer}virtual_from_points_blocks.\1"),
        rename(
            former + r"space_point2virtual_blocks\.(\d+)\.cross_attn\.(.+)",
            rf"{transformer}points_from_virtual_blocks.\1.attn.\2",
        ),
        rename(former + r"space_point2virtual_blocks\.(.+)", rf"{transformer}points_from_virtual_blocks.\1"),
    ]


# --------------------------------------------------------------------------------------
# Configuration
# --------------------------------------------------------------------------------------


def _count(source: Source, pattern: str) -> int:
    """Number of layers whose index `pattern` captures."""
    return 1 + max((int(match[1]) for match in source.match(pattern)), default=-1)


def _trunk_config(source: Source, prefix: str, overrides: dict) -> dict:
    trunk = f"{prefix}aggregator."
    encoder = encoder_config(source, f"{trunk}patch_embed.", overrides.get("encoder_config", {}))
    width = source.shape(f"{trunk}camera_token")[-1]
    name = "frame_blocks" if f"{trunk}frame_blocks.0.norm1.weight" in source else "time_blocks"
    block = f"{trunk}{name}.0."
    mask = f"{trunk}spatial_mask_head.head0.2.weight"
    variant = None
    if mask in source:
        variant = "mv" if f"{trunk}spatial_mask_head.alpha_logit" in source else "page4d"
    content = {
        "encoder_config": encoder,
        "patch_size": encoder["patch_size"],
        "img_size": encoder["image_size"],
        "embed_dim": width,
        "depth": _count(source, trunk + name + r"\.(\d+)\.norm1\.weight"),
        "num_heads": width // source.shape(f"{block}attn.q_norm.weight")[0],
        "mlp_ratio": source.shape(f"{block}mlp.fc1.weight")[0] / width,
        "num_register_tokens": source.shape(f"{trunk}register_token")[2],
        "spatial_mask_variant": variant,
    }
    if variant == "page4d":
        content["mask_hidden_channels"] = source.shape(mask)[0]
    return content


def _layer_roles(source: Source, prefix: str, overrides: dict) -> dict:
    """Which layers the mask and the dense heads work on: known for the published depth, else to be told."""
    depth = _count(source, rf"{prefix}aggregator\.(?:frame|time)_blocks\.(\d+)\.norm1\.weight")
    given = {name: overrides[name] for name in LAYER_ROLES if name in overrides}
    if missing := [name for name in LAYER_ROLES if name not in given and depth != PUBLISHED_DEPTH]:
        raise ValueError(
            f"Source `{source.name}` has {depth} layers. Weights do not tell what they are for; only for "
            f"{PUBLISHED_DEPTH} layers it is known. Give {missing} as configuration overrides."
        )
    return given


def _camera_config(source: Source, prefix: str) -> dict:
    head = f"{prefix}camera_head."
    if f"{head}token_norm.weight" not in source:
        return {"enable_camera": False}
    hidden, width = source.shape(f"{head}trunk.0.mlp.fc1.weight")
    return {
        "camera_depth": _count(source, head + r"trunk\.(\d+)\.norm1\.weight"),
        "camera_mlp_ratio": hidden / width,
        "pose_encoding_type": "R9D_t" if source.shape(f"{head}empty_pose_tokens")[-1] == 12 else "absT_quaR_FoV",
    }


def _dense_config(source: Source, prefix: str) -> dict:
    heads = {name: f"{prefix}{name}_head." for name in ("depth", "point")}
    present = {name: f"{head}norm.weight" in source for name, head in heads.items()}
    content = {f"enable_{name}": there for name, there in present.items()}
    for name, there in present.items():
        if there:
            content |= {f"dpt_{field}": value for field, value in _dpt_widths(source, heads[name]).items()}
            content["dpt_hidden_channels"] = source.shape(f"{heads[name]}scratch.output_conv2.0.weight")[0]
    return content


def _dpt_widths(source: Source, head: str) -> dict:
    return {
        "out_channels": [source.shape(f"{head}projects.{level}.weight")[0] for level in range(4)],
        "features": source.shape(f"{head}scratch.layer1_rn.weight")[0],
    }


def _track_config(source: Source, prefix: str) -> dict:
    head = f"{prefix}track_head."
    former = f"{head}tracker.updateformer."
    if f"{head}tracker.query_ref_token" not in source:
        return {"enable_track": False}
    content = {f"track_{field}": value for field, value in _dpt_widths(source, f"{head}feature_extractor.").items()}
    hidden = source.shape(f"{former}input_transform.weight")[0]
    return content | {
        "enable_track": True,
        "track_hidden_size": hidden,
        "track_depth": _count(source, former + r"time_blocks\.(\d+)\.norm1\.weight"),
        "track_num_virtual": source.shape(f"{former}virual_tracks")[1],
        "track_mlp_ratio": source.shape(f"{former}time_blocks.0.mlp.fc1.weight")[0] / hidden,
    }


# --------------------------------------------------------------------------------------
# Processor
# --------------------------------------------------------------------------------------


def write_processor(sources: dict[str, Source], config, folder: Path) -> list[str]:
    """A processor with PAGE-4D's rules."""
    from modeling_dsr.processing_geometry import GeometryProcessor

    processor = GeometryProcessor(resize_rule="page4d", patch_size=config.patch_size, image_size=config.img_size)
    processor.save_pretrained(folder)
    return []
