"""π³ and Pi3X: whole models, the encoder alone, pre- and post-processing functions, training losses."""

import json
import re
import tempfile
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForImageTextToText

from tests.parity_cases import Case, Suite
from tests.parity_results import Models, Result, Value, published_overrides

# Arguments of the published model -> ours.
ARGUMENTS = {
    "imgs": "pixel_values",
    "mask_add_depth": "depth_mask",
    "mask_add_ray": "ray_mask",
    "mask_add_pose": "pose_mask",
}
# Constants that the published code fixes and the small checkpoints' `config.json` gives -> fields of our configuration.
FIELDS = {
    "dec_depth": "num_decoder_layers",
    "dec_num_heads": "num_attention_heads",
    "head_embed_dim": "head_hidden_size",
    "head_num_heads": "head_num_attention_heads",
    "head_depth": "head_num_layers",
    "point_out_dim": "point_dim",
    "camera_out_dim": "camera_dim",
    "pose_inject_layers": "pose_injection_layers",
    "metric_embed_dim": "metric_hidden_size",
    "metric_num_heads": "metric_num_attention_heads",
    "metric_out_dim": "metric_dim",
    "dim_upsample": "conv_head_dims",
    "last_conv_channels": "conv_head_hidden_size",
    "enc_num_heads": "enc_num_heads",
}
DIMENSIONS = ("enc_img_size", "enc_embed_dim", "enc_depth", "dec_embed_dim")  # shapes tell these
# Of an encoder alone: what it has in one way, and what shapes tell.
ENCODER = (
    {"interpolate_antialias": True, "interpolate_offset": 0.0},
    ("img_size", "patch_size", "embed_dim", "depth", "mlp_ratio", "num_register_tokens", "note"),
)


# --------------------------------------------------------------------------------------
# Checkpoints
# --------------------------------------------------------------------------------------


def conversions(suite: Suite) -> dict[str, dict]:
    weights = suite.folder / "model.safetensors"
    if not weights.exists():
        return {}
    config = json.loads((suite.folder / "config.json").read_text())
    if "tiny_dims" not in config:  # an encoder alone: DSR is the model that takes just it
        overrides = {"geometry_config": published_overrides(config, {"num_heads": "num_attention_heads"}, *ENCODER)}
        return {
            "model": {"arch": "dsr", "sources": {"qwen": _tiny_qwen(), "pi3": weights}, "config_overrides": overrides}
        }
    overrides = published_overrides(config["tiny_dims"], FIELDS, known=DIMENSIONS)
    overrides["encoder_config"] = {"num_attention_heads": overrides.pop("enc_num_heads")}
    return {
        "model": {"sources": {"pi3x" if "use_multimodal" in config else "pi3": weights}, "config_overrides": overrides}
    }


@cache
def _tiny_qwen() -> Path:
    from dsr_toolkit.tiny.qwen2_5_vl import write_qwen2_5_vl

    folder = tempfile.TemporaryDirectory(prefix="qwen_")
    _KEPT.append(folder)
    return write_qwen2_5_vl(Path(folder.name))


_KEPT: list[tempfile.TemporaryDirectory] = []  # folders that live as long as the process


# --------------------------------------------------------------------------------------
# Cases
# --------------------------------------------------------------------------------------


def run_case(case: Case, models: Models) -> Result | None:
    inputs = case.inputs
    if case.is_json:
        return _target_sizes(case, models)
    if "imgs" in inputs:
        return _model(case, models)
    if "pixel_values_normalised" in inputs:
        return _encoder(case, models)
    if "image_0" in inputs:
        return _preprocess(case, models)
    if "rays_d" in inputs:
        return _intrinsics(case, models)
    if "pred_local_points" in inputs:
        return _loss(case, models)
    if "points" in inputs and "mask" in inputs:
        return _edges(case, models)
    raise ValueError(f"a case with inputs {sorted(inputs)} is none that this adapter knows")


def _model(case: Case, models: Models) -> Result:
    model = models.load(AutoModel)
    inputs = {ARGUMENTS.get(name, name): tensor for name, tensor in case.inputs.items()}
    with torch.no_grad():
        output = model(**inputs)  # in chunks of frames, as users run it
    tensors = {f"output.{name}": value for name, value in output.items() if isinstance(value, torch.Tensor)}
    return Result(
        tensors | {f"intermediate.{name}": value for name, value in _intermediates(model, inputs, models).items()}
    )


def _intermediates(model, inputs: dict, models: Models) -> dict[str, torch.Tensor]:
    """What the model computes on its way, all frames at once."""
    pixel_values = inputs["pixel_values"]
    batch, frames, _, height, width = pixel_values.shape
    grid = (height // model.config.patch_size, width // model.config.patch_size)
    seen: dict[str, torch.Tensor] = {}
    watched = {
        "encoder": model.encoder,
        "point_decoder": model.point_decoder,
        "conf_decoder": model.conf_decoder,
        "camera_decoder": model.camera_decoder,
        "camera_fc_rot": model.camera_head.fc_rot,
        "point_head": model.point_head,
    }
    hooks = [
        module.register_forward_hook(lambda module, arguments, output, name=name: seen.__setitem__(name, output))
        for name, module in watched.items()
    ]
    chunk_size, model.config.chunk_size = model.config.chunk_size, 0
    try:
        with torch.no_grad():
            recorded = model(**inputs, output_hidden_states=True).hidden_states
            conditions = None
            if model.config.variant == "pi3x":
                given = {name: value for name, value in inputs.items() if name != "pixel_values"}
                prepare = models.module("pi3_conditioning", "prepare_conditions")
                conditions = prepare((batch, frames, height, width), pixel_values.device, **given)
            encoded = model.encode(pixel_values, conditions)
            streams = model.decode(encoded, frames, grid, conditions)
    finally:
        model.config.chunk_size = chunk_size
        for hook in hooks:
            hook.remove()
    registers = model.encoder.config.num_register_tokens
    tokens = seen["encoder"].last_hidden_state
    positions = models.module("vision_rope", "patch_positions")(*grid, model.config.num_register_tokens)
    found = {
        "encoder_x_norm_clstoken": tokens[:, 0],
        "encoder_x_norm_regtokens": tokens[:, 1 : 1 + registers],
        "encoder_x_norm_patchtokens": tokens[:, 1 + registers :],
        "encode_hidden": encoded,
        "rope_positions": positions.expand(batch * frames, -1, -1),
        "decoder_block0": recorded[1].flatten(0, 1),
        "decoder_block1": recorded[2].flatten(1, 2),
        "decoder_concat": torch.cat(streams, -1),
        **{name: seen[name] for name in ("point_decoder", "conf_decoder", "camera_decoder", "camera_fc_rot")},
    }
    if conditions is not None:
        found |= {
            "poses_normalised": conditions.poses,
            "norm_factor": conditions.norm_factor,
            "use_depth_mask": conditions.depth_mask,
            "use_pose_mask": conditions.pose_mask,
            "point_head_xy": seen["point_head"][0],
            "point_head_z": seen["point_head"][1],
        }
    return found


def _encoder(case: Case, models: Models) -> Result:
    encoder = models.load(AutoModelForImageTextToText).model.geometry_encoder
    pixels = case.inputs["pixel_values_normalised"]
    registers = encoder.config.num_register_tokens
    with torch.no_grad():
        tokens = encoder(pixels).last_hidden_state
        patches = encoder.embeddings.patch_embeddings(pixels)
        unplaced = torch.cat([encoder.embeddings.cls_token.expand(len(pixels), -1, -1), patches], 1)
        positions = encoder.embeddings.interpolate_pos_encoding(unplaced, *pixels.shape[-2:])
    return Result(
        {
            "output.x_norm_clstoken": tokens[:, 0],
            "output.x_norm_regtokens": tokens[:, 1 : 1 + registers],
            "output.x_norm_patchtokens": tokens[:, 1 + registers :],
            "intermediate.pos_embed_interpolated": positions,
        }
    )


def _target_sizes(case: Case, models: Models) -> Result:
    image_size = models.module("frame_sizes", "pi3_image_size")
    values = [
        Value(
            f"{entry['width']}x{entry['height']} below {entry['pixel_limit']}",
            entry["target_width_height"],
            list(image_size(entry["width"], entry["height"], entry["pixel_limit"])),
        )
        for entry in case.meta["content"]
    ]
    return Result(values=values)


def _preprocess(case: Case, models: Models) -> Result:
    settings = dict(case.meta.get("kwargs") or {})
    processor = models.module("processing_geometry", "GeometryProcessor")(pixel_limit=settings.pop("pixel_limit"))
    names = sorted((name for name in case.inputs if name.startswith("image_")), key=lambda name: int(name[6:]))
    given = {name: value for name, value in case.inputs.items() if name not in names}
    found = processor([case.inputs[name].numpy() for name in names], **given, **settings)
    images = found.pop("pixel_values")
    found["imgs"] = images if case.expected["output.imgs"].ndim == 5 else images[0]
    return Result({f"output.{name}": tensor for name, tensor in found.items()})


def _intrinsics(case: Case, models: Models) -> Result:
    recover, rays = models.module("point_maps", "recover_intrinsics"), case.inputs["rays_d"]
    return Result(
        {
            "output.K_free": recover(rays, method="regression"),
            "output.K_centered": recover(rays, center_principal_point=True, method="regression"),
            "output.K_ndc": recover(rays, ndc=True, method="regression"),
        }
    )


def _edges(case: Case, models: Models) -> Result:
    depth_edge, points_to_normals, normal_edge, depth_normal_edge = (
        models.module("point_maps", name)
        for name in ("depth_edge", "points_to_normals", "normal_edge", "depth_normal_edge")
    )
    points, mask = case.inputs["points"], case.inputs["mask"]
    rtol, degrees = (told(case, pattern, default) for pattern, default in EDGE_SETTINGS)
    if (kernel := told(case, r"kernel (\d+)", 3)) != 3:
        raise ValueError(f"the case looks for edges in {kernel} × {kernel} pixels, this library in 3 × 3")
    if degrees != 5 and any("depth_normal_edge" in name for name in case.expected):
        raise ValueError(f"the case joins both edges at normals that differ by {degrees}°, this library by 5°")
    normals, known = points_to_normals(points, mask)
    return Result(
        {
            "output.depth_edge_masked": depth_edge(points[..., 2], rtol, mask=mask),
            "output.depth_edge_unmasked": depth_edge(points[..., 2].nan_to_num(1.0), rtol),
            "output.normals": normals,
            "output.normal_mask": known,
            "output.normal_edge": normal_edge(normals, degrees, mask=known),
            "output.depth_normal_edge": depth_normal_edge(points, rtol, mask=mask),
            "output.depth_normal_edge_nomask": depth_normal_edge(points, rtol),
        }
    )


EDGE_SETTINGS = ((r"rtol ([\d.]+)", 0.03), (r"normal tolerance ([\d.]+)", 5.0))


def told(case: Case, pattern: str, default: float) -> float:
    """A number that the case's description gives in words."""
    found = re.search(pattern, case.meta.get("description", ""))
    return float(found[1].rstrip(".")) if found else default


def scenes_with_normals(case: Case, batch: int) -> torch.Tensor:
    """`[B]`: scenes whose depth is good enough for normals; the description says it of each."""
    description = case.meta.get("description", "")
    belongs = re.findall(r"item (\d+) (belongs|does not)", description)
    if len(belongs) != batch:
        raise ValueError(f"the description does not say of {batch} scenes whether they have normals: {description!r}")
    good = torch.zeros(batch, dtype=torch.bool)
    for item, word in belongs:
        good[int(item)] = word == "belongs"
    return good


def _loss(case: Case, models: Models) -> Result:
    targets_class, align, loss = (models.module("pi3_losses", name) for name in ("Pi3Targets", "align", "pi3_loss"))
    given = {
        name: case.inputs[f"pred_{name}"].clone().requires_grad_() for name in ("local_points", "camera_poses", "conf")
    }
    batch = len(given["conf"])
    targets = targets_class(
        case.inputs["gt_pts3d"],
        case.inputs["gt_camera_pose"],
        case.inputs["gt_valid_mask"],
        normals=scenes_with_normals(case, batch),
        sky=case.inputs.get("sky_mask"),
    )
    with_confidence = "output.local_conf_loss" in case.expected
    weight = case.meta.get("kwargs", {}).get("confidence_loss_weight", 0.05)  # published
    config = models.module("configuration_pi3", "Pi3Config")(confidence_loss_weight=weight if with_confidence else 0.0)
    total, losses = loss(*given.values(), targets, config)
    total.backward()
    aligned = align(given["local_points"].detach(), given["camera_poses"].detach(), targets)
    residual = (aligned.scale.view(-1, 1, 1, 1, 1) * aligned.local - aligned.target_local).abs()
    tensors = {
        "total": total.view(1),
        "scale": aligned.scale,
        "local_pts_loss": losses["points"].view(1),
        "normal_loss": losses["normals"].view(1),
        "trans_loss": losses["translation"].view(1),
        "rot_loss": losses["rotation"].view(1),
        "gt_local_points": aligned.target_local,
        "gt_camera_poses": aligned.target_poses,
        "grad_local_points": given["local_points"].grad,
        "grad_camera_poses": given["camera_poses"].grad,
    }
    if with_confidence:
        tensors |= {"local_conf_loss": losses["confidence"].view(1), "grad_conf": given["conf"].grad}
    # Where prediction and target agree to rounding, the sign of the gradient is rounding too.
    where = {"output.grad_local_points": residual >= 1e-6}
    return Result({f"output.{name}": tensor for name, tensor in tensors.items()}, where=where)
