"""π³ and Pi3X from their published checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

from ..recipe import Plan, build_config, rename
from ..sources import Source
from .pi3_encoder import encoder_config, encoder_fill, encoder_rules

SOURCES = (("pi3",), ("pi3x",))
MODELS = {"Pi3Model": "modeling_dsr.modeling_pi3"}
HEAD_DIM = 64  # of the published models, where shapes do not show it
PUBLISHED_POSITIONS = "rope100"  # Pi3X writes no config.json that says so

# Everything but the two DINOv2 encoders has its published name.
KEPT = (
    r"register_token|image_mean|image_std|(?:decoder|(?:point|conf|camera)_(?:decoder|head)|depth_emb|metric_token|"
    r"metric_decoder|metric_head|ray_embed|pose_inject_blk)(?:\..+)?"
)


def plan(sources: dict[str, Source], overrides: dict) -> Plan:
    """The configuration follows from shapes; overrides give what a small model's shapes leave open."""
    from modeling_dsr.configuration_pi3 import Pi3Config
    from modeling_dsr.modeling_pi3 import Pi3Model

    ((variant, source),) = sources.items()
    if ("metric_token" in source) != (variant == "pi3x"):
        found, other = ("Pi3X", "pi3x") if variant == "pi3" else ("no Pi3X", "pi3")
        raise ValueError(f"Source `{variant}` ({source.location}) is {found} checkpoint: name it `--source {other}=…`.")
    content = _config(source, overrides)
    fill = encoder_fill("encoder.")
    conditioned = source.config.get("use_multimodal")
    if conditioned not in (None, "depth_emb" in source):
        raise ValueError(
            f"Source `{variant}` ({source.location}): its config.json says use_multimodal = {conditioned!r}, its "
            f"weights {'have' if 'depth_emb' in source else 'lack'} the conditioning."
        )
    if variant == "pi3x":
        content |= _pi3x_config(source, overrides)
        fill += encoder_fill("depth_encoder.") if content["use_conditioning"] else []
    return Plan(
        config=build_config(Pi3Config, {"variant": variant, **content}, overrides),
        model_class=Pi3Model,
        load={
            variant: [
                *encoder_rules("encoder.", "encoder."),
                *encoder_rules("depth_encoder.", "depth_encoder."),
                rename(f"({KEPT})", r"\1"),
            ]
        },
        fill=fill,
    )


def _config(source: Source, overrides: dict) -> dict:
    width = source.shape("register_token")[-1]
    head_width = source.shape("point_decoder.projects.weight")[0]
    return {
        "encoder_config": encoder_config(source, "encoder.", overrides.get("encoder_config", {})),
        "num_decoder_layers": _count(source, r"decoder\.(\d+)\.norm1\.weight"),
        "num_attention_heads": width // source.shape("decoder.0.attn.q_norm.weight")[0],
        "num_register_tokens": source.shape("register_token")[2],
        "rope_base": rope_base(source),
        "mlp_ratio": source.shape("decoder.0.mlp.fc1.weight")[0] / width,
        "head_hidden_size": head_width,
        "head_num_attention_heads": _heads(source, "head_num_attention_heads", head_width, overrides),
        "head_num_layers": _count(source, r"point_decoder\.blocks\.(\d+)\.norm1\.weight"),
        "point_dim": source.shape("point_decoder.linear_out.weight")[0],
        "camera_dim": source.shape("camera_decoder.linear_out.weight")[0],
    }


def rope_base(source: Source) -> float:
    """The base of the decoder's rotary positions: the published class writes `"pos_type": "rope100"` to config.json."""
    kind = source.config.get("pos_type", PUBLISHED_POSITIONS)
    found = re.fullmatch(r"rope(\d+(?:\.\d+)?)", kind) if isinstance(kind, str) else None
    if found is None or float(found[1]) <= 0:
        raise ValueError(
            f"Source `{source.name}` ({source.location}): its config.json says pos_type = {kind!r}, expected rotary "
            'positions with their base, such as "rope100".'
        )
    return float(found[1])


def _pi3x_config(source: Source, overrides: dict) -> dict:
    from modeling_dsr.configuration_pi3 import Pi3Config

    stages = _count(source, r"point_head\.upsample_blocks\.(\d+)\.0\.0\.weight")
    metric_width = source.shape("metric_decoder.projects_x.weight")[0]
    content = {
        "use_conditioning": "depth_emb" in source,
        "metric_hidden_size": metric_width,
        "metric_num_attention_heads": _heads(source, "metric_num_attention_heads", metric_width, overrides),
        "metric_dim": source.shape("metric_decoder.linear_out.weight")[0],
        "conv_head_dims": [source.shape(f"point_head.upsample_blocks.{i}.0.0.weight")[1] for i in range(stages)],
        "conv_head_hidden_size": source.shape("point_head.output_block.0.0.weight")[0],
        "conv_head_num_res_blocks": _count(source, r"point_head\.upsample_blocks\.0\.(\d+)\.layers\.0\.weight"),
    }
    if content["use_conditioning"]:
        injections = _count(source, r"pose_inject_blk\.(\d+)\.norm1\.weight")
        layers = list(overrides.get("pose_injection_layers", Pi3Config.pose_injection_layers))
        if len(layers) != injections:
            raise ValueError(
                f"Source `{source.name}` has {injections} pose injections, and its shapes do not tell behind which "
                'decoder blocks. Give them as configuration override, such as {"pose_injection_layers": [1, 3]}.'
            )
        content["pose_injection_layers"] = layers
    return content


def _count(source: Source, pattern: str) -> int:
    """How many numbers the group of `pattern` takes."""
    return len({int(match[1]) for match in source.match(pattern)})


def _heads(source: Source, name: str, width: int, overrides: dict) -> int:
    if name not in overrides and width % HEAD_DIM:
        raise ValueError(
            f"Source `{source.name}` is {width} wide where `{name}` counts, which does not tell the number of heads. "
            f'Give it as configuration override, such as {{"{name}": 2}}.'
        )
    return overrides.get(name, width // HEAD_DIM)


def write_processor(sources: dict[str, Source], config, folder: Path) -> list[str]:
    """A processor with π³'s rules."""
    from modeling_dsr.processing_geometry import GeometryProcessor

    GeometryProcessor(resize_rule="pi3", patch_size=config.patch_size).save_pretrained(folder)
    return []
