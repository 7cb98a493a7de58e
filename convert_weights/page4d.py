"""PAGE-4D: from its published checkpoints, or from VGGT-1B, whose layout it shares but for the mask head."""

from __future__ import annotations

from pathlib import Path

from .pi3_encoder import encoder_config, encoder_rules
from .recipe import Plan, Rule, build_config, drop, rename
from .sources import Source

# `page4d`: PAGE-4D or VGGT-1B. `track`: weights with a track head, such as VGGT-1B, to go with a PAGE-4D that has none.
SOURCES = (("page4d",), ("page4d", "track"))
MODELS = {"Page4DModel": "modeling_dsr.modeling_page4d"}

PUBLISHED_DEPTH = 24
LAYER_ROLES = ("mask_layer", "masked_layers", "dpt_layers")
PARALLEL = "module."  # what data-parallel training leaves before every key
BLOCK = r"(?:norm1|norm2|attn\.(?:qkv|proj|q_norm|k_norm)|mlp\.fc[12])\.(?:weight|bias)|ls[12]\.gamma"


def plan(sources: dict[str, Source], overrides: dict) -> Plan:
    """Sizes come from the shapes. `mask_alpha` does not show in weights: 1 for the "mask" checkpoint, else 0."""
    from configuration_dsr import Page4DConfig
    from modeling_dsr.modeling_page4d import Page4DModel

    source = sources["page4d"]
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
    config = build_config(Page4DConfig, content, overrides)
    notes = []
    if config.spatial_mask_variant is None:
        notes.append("the source has no mask head (VGGT): the mask cannot be switched on")
    elif "mask_alpha" not in overrides:
        notes.append('mask off (the published "non-mask" variant); for checkpoint_mask.pt override {"mask_alpha": 1.0}')
    if not config.enable_track:
        notes.append("the sources have no track head; a second source `track` (VGGT-1B) adds one")
    return Plan(config=config, model_class=Page4DModel, load=load, notes=notes)


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
        rename(rf"{prefix}camera_head\.poseLN_modulation\.1\.(.+)", r"camera_head.pose_modulation.\1"),
        rename(rf"{prefix}(camera_head\.(?:trunk\.\d+\.(?:{BLOCK})|.+))", r"\1"),
        *dpt_rules(f"{prefix}depth_head.", "depth_head."),
        *dpt_rules(f"{prefix}point_head.", "point_head."),
        *track_rules(prefix),
    ]


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
    block = f"{trunk}frame_blocks.0."
    mask = f"{trunk}spatial_mask_head.head0.2.weight"
    content = {
        "encoder_config": encoder,
        "patch_size": encoder["patch_size"],
        "img_size": encoder["image_size"],
        "embed_dim": width,
        "depth": _count(source, trunk + r"frame_blocks\.(\d+)\.norm1\.weight"),
        "num_heads": width // source.shape(f"{block}attn.q_norm.weight")[0],
        "mlp_ratio": source.shape(f"{block}mlp.fc1.weight")[0] / width,
        "num_register_tokens": source.shape(f"{trunk}register_token")[2],
        "spatial_mask_variant": "page4d" if mask in source else None,
    }
    if mask in source:
        content["mask_hidden_channels"] = source.shape(mask)[0]
    return content


def _layer_roles(source: Source, prefix: str, overrides: dict) -> dict:
    """Which layers the mask and the dense heads work on: known for the published depth, else to be told."""
    depth = _count(source, rf"{prefix}aggregator\.frame_blocks\.(\d+)\.norm1\.weight")
    given = {name: overrides[name] for name in LAYER_ROLES if name in overrides}
    if missing := [name for name in LAYER_ROLES if name not in given and depth != PUBLISHED_DEPTH]:
        raise ValueError(
            f"Source `{source.name}` has {depth} layers. Weights do not tell what they are for; only for {PUBLISHED_DEPTH} layers "
            f"it is known. Give {missing} as configuration overrides."
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
    from processing_dsr import GeometryProcessor

    processor = GeometryProcessor(resize_rule="page4d", patch_size=config.patch_size, image_size=config.img_size)
    processor.save_pretrained(folder)
    return []
