"""SAM in the layouts of its publishers (segment_anything and transformers), as `PhraseSamModel`'s parameters."""

from __future__ import annotations

import re

import torch

from ..recipe import Rule, rename
from ..sources import Source

NECK = {"0": "conv1", "1": "layer_norm1", "2": "conv2", "3": "layer_norm2"}
MASK_EMBED = {"0": "conv1", "1": "layer_norm1", "3": "conv2", "4": "layer_norm2", "6": "conv3"}
UPSCALING = {"0": "upscale_conv1", "1": "upscale_layer_norm", "3": "upscale_conv2"}
POSITIONS = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")


def sam_rules(source_prefix: str, target_prefix: str, when_taken: str = "error") -> list[Rule]:
    """Rules for every tensor of SAM as segment_anything names them. Prefixes are plain text, empty or ending in a
    dot."""
    source, target = re.escape(source_prefix), target_prefix

    def rule(pattern: str, name) -> Rule:
        names = [name] if isinstance(name, str) or callable(name) else name
        places = [(lambda m, n=n: target + n(m)) if callable(n) else target + n for n in names]
        return rename(source + pattern, places, when_taken=when_taken)

    encoder, decoder = r"image_encoder\.", r"mask_decoder\."
    mlps = r"(output_hypernetworks_mlps\.\d+|iou_prediction_head)"
    return [
        rule(encoder + r"patch_embed\.proj\.(.+)", r"vision_encoder.patch_embed.projection.\1"),
        rule(encoder + r"blocks\.(\d+)\.norm([12])\.(.+)", r"vision_encoder.layers.\1.layer_norm\2.\3"),
        rule(encoder + r"blocks\.(.+)", r"vision_encoder.layers.\1"),
        rule(encoder + r"neck\.(\d)\.(.+)", lambda m: f"vision_encoder.neck.{NECK[m[1]]}.{m[2]}"),
        rule(encoder + r"pos_embed", "vision_encoder.pos_embed"),
        rule(r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", POSITIONS),
        rule(r"prompt_encoder\.point_embeddings\.(.+)", r"prompt_encoder.point_embed.\1"),
        rule(
            r"prompt_encoder\.mask_downscaling\.(\d)\.(.+)",
            lambda m: f"prompt_encoder.mask_embed.{MASK_EMBED[m[1]]}.{m[2]}",
        ),
        rule(r"(prompt_encoder\.(?:not_a_point_embed|no_mask_embed)\..+)", r"\1"),
        rule(
            decoder + r"transformer\.layers\.(\d+)\.norm(\d)\.(.+)",
            r"mask_decoder.transformer.layers.\1.layer_norm\2.\3",
        ),
        rule(decoder + r"transformer\.norm_final_attn\.(.+)", r"mask_decoder.transformer.layer_norm_final_attn.\1"),
        rule(decoder + r"output_upscaling\.(\d)\.(.+)", lambda m: f"mask_decoder.{UPSCALING[m[1]]}.{m[2]}"),
        # Of the layers 0 … n-1 of these, transformers names the first and the last apart. n is 3 in every release.
        rule(decoder + mlps + r"\.layers\.0\.(.+)", r"mask_decoder.\1.proj_in.\2"),
        rule(decoder + mlps + r"\.layers\.1\.(.+)", r"mask_decoder.\1.layers.0.\2"),
        rule(decoder + mlps + r"\.layers\.2\.(.+)", r"mask_decoder.\1.proj_out.\2"),
        rule(r"(mask_decoder\.(?:iou_token|mask_tokens|transformer)\..+)", r"\1"),
    ]


# Of RGB in 0 … 255: what every release of SAM was trained with, and what the processor here does.
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def check_sam_pixels(source: Source) -> None:
    """
    The processor has SAM's published normalisation: a source that says another one is refused.

    Raises:
        ValueError: `pixel_mean` or `pixel_std` of the weights, or the preprocessor_config.json beside a transformers
            folder, is not the published one.
    """
    found = {}
    if is_transformers_layout(source):
        given = source.json("preprocessor_config.json")
        scale = 1 / given.get("rescale_factor", 1 / 255)
        found = {name: torch.tensor(given[name], dtype=torch.float32) * scale
                 for name in ("image_mean", "image_std") if name in given}  # fmt: skip
    elif source.has_weights:
        keys = [match[0] for match in source.match(r"(?:.*\.)?pixel_(?:mean|std)")]
        found = {key: source.read(key).float().reshape(-1) for key in keys}
    for name, values in found.items():
        published = torch.tensor(PIXEL_STD if name.endswith("std") else PIXEL_MEAN)
        if values.shape != published.shape or not torch.allclose(values, published, rtol=1e-3):
            raise ValueError(
                f"Source `{source.name}` ({source.location}): `{name}` is {values.tolist()} of 255, SAM's processor "
                f"here normalises by {published.tolist()} alone."
            )


def is_transformers_layout(source: Source) -> bool:
    return "shared_image_embedding.positional_embedding" in source


def transformers_rules(target_prefix: str) -> list[Rule]:
    """Rules for a `SamModel` folder."""
    parts = r"((?:vision_encoder|prompt_encoder|mask_decoder|shared_image_embedding)\..+)"
    return [rename(parts, rf"{target_prefix}\1")]


def sam_content(source: Source) -> dict:
    """
    Fields of `SamConfig`, by part, that the shapes tell.

    The decoder's eight heads are in no shape; they are the same in every release.
    """
    if is_transformers_layout(source):
        parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
        content = {part: dict(source.config.get(part, {})) for part in parts}
        # Published configurations leave this out, and transformers' default is not what the weights were trained with.
        content["mask_decoder_config"].setdefault("layer_norm_eps", 1e-5)
        return content
    patch = source.shape("image_encoder.patch_embed.proj.weight")[-1]
    _, grid, _, width = source.shape("image_encoder.pos_embed")
    blocks = {int(m[1]): source.shape(m[0]) for m in source.match(r"image_encoder\.blocks\.(\d+)\.attn\.rel_pos_h")}
    local = sorted({rows for rows, _ in blocks.values() if rows != 2 * grid - 1})
    prompt_width = source.shape("prompt_encoder.no_mask_embed.weight")[1]
    decoder = "mask_decoder.transformer.layers."
    layers = {int(m[1]) for m in source.match(re.escape(decoder) + r"(\d+)\.norm1\.weight")}
    iou_layers = {int(m[1]) for m in source.match(r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.weight")}
    if iou_layers != {0, 1, 2}:
        raise ValueError(
            f"`mask_decoder.iou_prediction_head` of source `{source.name}` has layers {sorted(iou_layers)}, expected 0 "
            "to 2."
        )
    return {
        "vision_config": {
            "hidden_size": width,
            "num_hidden_layers": len(blocks),
            "num_attention_heads": width // blocks[0][1],
            "global_attn_indexes": [i for i, (rows, _) in sorted(blocks.items()) if rows == 2 * grid - 1],
            "window_size": (local[0] + 1) // 2 if local else 14,
            "image_size": grid * patch,
            "patch_size": patch,
            "mlp_dim": source.shape("image_encoder.blocks.0.mlp.lin1.weight")[0],
            "output_channels": source.shape("image_encoder.neck.0.weight")[0],
            "num_pos_feats": source.shape("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix")[1],
        },
        "prompt_encoder_config": {
            "hidden_size": prompt_width,
            "image_size": grid * patch,
            "patch_size": patch,
            "mask_input_channels": source.shape("prompt_encoder.mask_downscaling.3.weight")[0],
        },
        "mask_decoder_config": {
            "hidden_size": prompt_width,
            "num_hidden_layers": len(layers),
            "mlp_dim": source.shape(f"{decoder}0.mlp.lin1.weight")[0],
            "attention_downsample_rate": prompt_width
            // source.shape(f"{decoder}0.cross_attn_token_to_image.q_proj.weight")[0],
            "num_multimask_outputs": source.shape("mask_decoder.mask_tokens.weight")[0] - 1,
            "iou_head_hidden_dim": source.shape("mask_decoder.iou_prediction_head.layers.0.weight")[0],
        },
    }
