"""π³'s image encoder (DINOv2 with registers), in the layouts of its publishers, as `GeometryEncoder`'s parameters.

DSR, π³ and PAGE-4D all hold it, under prefixes of their own.
"""

from __future__ import annotations

import re

from ..recipe import Rule, init, rename, split, zeros
from ..sources import Source


def encoder_rules(source_prefix: str, target_prefix: str) -> list[Rule]:
    """Rules for every tensor of the encoder. Both prefixes are plain text ending in a dot, such as `"encoder."`."""
    source, target = re.escape(source_prefix), target_prefix
    layer = rf"{target}encoder.layer.\1"
    return [
        rename(source + r"(cls_token|register_tokens|mask_token)", rf"{target}embeddings.\1"),
        rename(source + r"pos_embed", f"{target}embeddings.position_embeddings"),
        rename(source + r"patch_embed\.proj\.(.+)", rf"{target}embeddings.patch_embeddings.projection.\1"),
        split(
            source + r"blocks\.(\d+)\.attn\.qkv\.(.+)",
            [rf"{layer}.attention.{projection}_proj.\2" for projection in "qkv"],
        ),
        rename(source + r"blocks\.(\d+)\.attn\.proj\.(.+)", rf"{layer}.attention.o_proj.\2"),
        rename(source + r"blocks\.(\d+)\.ls([12])\.gamma", rf"{layer}.layer_scale\2.lambda1"),
        rename(source + r"blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.(.+)", rf"{layer}.\2.\3"),
        rename(source + r"norm\.(.+)", rf"{target}layernorm.\1"),
    ]


def encoder_fill(target_prefix: str) -> list[Rule]:
    """π³ publishes no mask token, and no model here masks patches: zeros stand for it."""
    return [init(re.escape(target_prefix) + r"embeddings\.mask_token", zeros)]


def image_normalisation(source: Source) -> dict:
    """
    `image_mean` and `image_std` that π³'s file carries, {} if it has none; weights are read for nothing else here.
    """
    if not source.has_weights:
        return {}
    names = [name for name in ("image_mean", "image_std") if name in source]
    # The shortest decimal numbers that these float32 values are.
    return {name: [round(value, 6) for value in source.read(name).float().flatten().tolist()] for name in names}


def encoder_config(source: Source, source_prefix: str, overrides: dict) -> dict:
    """
    Fields of `Dinov2WithRegistersConfig` that the shapes tell.

    Args:
        overrides: the user's values of the same configuration. Only the number of heads is looked at: shapes do not
            show it, and a width that is no multiple of DINOv2's 64 channels per head leaves it open.

    Raises:
        ValueError: the encoder is not there, or the number of heads is unknown.
    """
    width = source.shape(f"{source_prefix}cls_token")[-1]
    positions = source.shape(f"{source_prefix}pos_embed")[1] - 1
    grid = round(positions**0.5)
    if grid**2 != positions:
        raise ValueError(
            f"`{source_prefix}pos_embed` of source `{source.name}` has {positions} positions: no square grid."
        )
    patch = source.shape(f"{source_prefix}patch_embed.proj.weight")[-1]
    layers = [int(m[1]) for m in source.match(re.escape(source_prefix) + r"blocks\.(\d+)\.norm1\.weight")]
    heads = overrides.get("num_attention_heads", width // 64)
    if "num_attention_heads" not in overrides and width % 64:
        raise ValueError(
            f"The encoder of source `{source.name}` is {width} wide, which does not tell its number of heads. Give it "
            'as configuration override, such as {"num_attention_heads": 2} below the encoder.'
        )
    return {
        "hidden_size": width,
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": heads,
        "mlp_ratio": source.shape(f"{source_prefix}blocks.0.mlp.fc1.weight")[0] // width,
        "image_size": grid * patch,
        "patch_size": patch,
        "num_register_tokens": source.shape(f"{source_prefix}register_tokens")[1],
    }
