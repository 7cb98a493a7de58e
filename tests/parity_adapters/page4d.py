"""PAGE-4D and its components against the published single-stream code. See `tests/parity.py`.

A case is known by what it stores: model cases by `input.images` and the strength of the mask, the training step by its
targets, tracks by their query points, components by their inputs, image loading by its list of runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from types import SimpleNamespace

import torch
from transformers import AutoModel, AutoProcessor

from tests.parity_cases import Case, Tolerance
from tests.parity_results import Models, Result, Value, published_overrides

POST_CLIP = 3.0  # where the stored `*_postclip` metrics cut predictions, unless the case has a `post_clip`

LOSSES = {
    "loss_camera": "camera",
    "loss_T": "camera_translation",
    "loss_R": "camera_rotation",
    "loss_FL": "camera_fov",
    **{f"loss_{short}_{name}": f"{name}_{term}"
       for name in ("depth", "point")
       for short, term in (("conf", "confidence"), ("reg", "regression"), ("grad", "gradient"))},
}  # fmt: skip
DEPTH_METRICS = {
    "Abs Rel": "abs_rel",
    "Sq Rel": "sq_rel",
    "RMSE": "rmse",
    "Log RMSE": "log_rmse",
    "δ < 1.": "delta_1",
    "δ < 1.25": "delta_2",
    "δ < 1.25^2": "delta_3",
    "δ < 1.25^3": "delta_4",
    "valid_pixels": "valid_pixels",
}


def conversions(suite) -> dict[str, dict]:
    """The suite's checkpoint, and the same with the track head that lies beside it."""
    checkpoints = sorted(suite.folder.glob("checkpoint*.pt"))
    if not checkpoints:
        return {}
    published = json.loads((suite.folder / "config.json").read_text())
    overrides = config_overrides(published)
    found = {"model": {"sources": {"page4d": checkpoints[0]}, "config_overrides": overrides}}
    tracks = sorted(suite.folder.glob("track_head*.safetensors"))
    if tracks:
        track = track_overrides(published.get("track_head", {}), overrides["dpt_layers"])
        sources = {"page4d": checkpoints[0], "track": tracks[0]}
        found["track"] = {"sources": sources, "config_overrides": {**overrides, **track}}
    return found


def config_overrides(published: dict) -> dict:
    """What weights do not tell, from the constructor arguments of the published code."""
    sections = {name: published.get(name, {}) for name in ("vggt", "aggregator", "patch_embed", "spatial_mask_head",
                                                           "camera_head", "depth_head", "point_head")}  # fmt: skip
    given = {name: published_overrides(content, *SETTINGS[name]) for name, content in sections.items()}
    mask_layers = given["aggregator"].pop("mask_layer", [9])
    if len(mask_layers) != 1:
        raise ValueError(f"the reference makes masks in layers {mask_layers}, this library in one")
    layers = [given[name].pop("dpt_layers", [4, 11, 17, 23]) for name in ("depth_head", "point_head") if sections[name]]
    confidences = [given[name].pop("confidence_activation") for name in ("depth_head", "point_head")
                   if "confidence_activation" in given[name]]  # fmt: skip
    for name, values in (("intermediate_layer_idx", layers), ("conf_activation", confidences)):
        if any(value != values[0] for value in values):
            raise ValueError(
                f"the dense heads of the reference differ in {name}: {values}; those of this library do not"
            )
    heads = given["patch_embed"].pop("encoder_heads", None)
    overrides = {name: value for content in given.values() for name, value in content.items()}
    overrides |= {"mask_layer": mask_layers[0], "dpt_layers": layers[0] if layers else [4, 11, 17, 23]}
    overrides.setdefault("masked_layers", list(range(10, 20)))
    overrides |= {"confidence_activation": confidences[0]} if confidences else {}
    return overrides | ({"encoder_config": {"num_attention_heads": heads}} if heads is not None else {})


DENSE = {"pos_embed": True, "down_ratio": 1}
DENSE_SHAPES = ("dim_in", "patch_size", "output_dim", "features", "out_channels")
SETTINGS = {  # per section: fields, settings with one value, settings that shapes or cases tell
    "vggt": ({}, {}, ("img_size", "patch_size", "embed_dim", "enable_camera", "enable_point", "enable_depth",
                      "enable_track", "mask_hold_start", "mask_hold_end")),
    "aggregator": (
        {"rope_freq": "rope_freq", "init_values": "layer_scale_init", "temporal_list1_mask": "mask_layer",
         "temporal_list2": "masked_layers"},
        {"qkv_bias": True, "proj_bias": True, "ffn_bias": True, "qk_norm": True, "aa_order": ["frame", "global"],
         "aa_block_size": 1},
        ("depth", "num_heads", "mlp_ratio", "num_register_tokens", "temporal_list1", "temporal_list3"),
    ),
    "patch_embed": (
        {"num_heads": "encoder_heads"},
        {"interpolate_antialias": True, "interpolate_offset": 0.0, "kind": "DINOv2 ViT with registers"},
        ("embed_dim", "depth", "mlp_ratio", "num_register_tokens", "img_size", "patch_size", "init_values",
         "block_chunks"),
    ),
    "spatial_mask_head": ({"scale": "mask_scale"}, {}, ("dim", "hidden")),
    "camera_head": (
        {"num_heads": "camera_num_heads", "num_iterations": "camera_iterations"},
        {"trans_act": "linear", "quat_act": "linear", "fl_act": "relu"},
        ("dim_in", "trunk_depth", "mlp_ratio", "init_values", "pose_encoding_type"),
    ),
    "depth_head": (
        {"activation": "depth_activation", "conf_activation": "confidence_activation",
         "intermediate_layer_idx": "dpt_layers"},
        DENSE, DENSE_SHAPES,
    ),
    "point_head": (
        {"activation": "point_activation", "conf_activation": "confidence_activation",
         "intermediate_layer_idx": "dpt_layers"},
        DENSE, DENSE_SHAPES,
    ),
}  # fmt: skip


def track_overrides(published: dict, dpt_layers: list[int]) -> dict:
    fields = {"stride": "track_stride", "max_scale": "track_max_scale", "iters": "track_iterations",
              "num_heads": "track_num_heads", "corr_levels": "track_correlation_levels",
              "corr_radius": "track_correlation_radius"}  # fmt: skip
    only = {"predict_conf": True, "pos_embed": False, "intermediate_layer_idx": dpt_layers,
            "down_ratio": published.get("stride", 2)}  # fmt: skip
    shown = ("dim_in", "patch_size", "num_virtual_tracks", "features", "out_channels", "hidden_size", "depth")
    return published_overrides(published, fields, only, known=shown)


def run_case(case: Case, models: Models) -> Result | None:
    if case.is_json or "gt_depth" in case.inputs or not len(models):
        return None
    if "runs" in case.meta:
        return preprocess(case, models)
    if "query_points" in case.inputs:
        return track(case, models)
    if "extrinsics" in case.inputs:
        return train(case, models)
    if "images" in case.inputs:
        return forward(case, models)
    return components(case, models)


# --------------------------------------------------------------------------------------
# Model
# --------------------------------------------------------------------------------------


class Recorder:
    """Outputs (or inputs) of modules during a forward, in order of their calls."""

    def __init__(self):
        self.found: dict[str, list[torch.Tensor]] = {}
        self.handles = []

    def output(self, name: str, module, pick=lambda output: output) -> None:
        def hook(_, inputs, output):
            self.found.setdefault(name, []).append(pick(output))

        self.handles.append(module.register_forward_hook(hook))

    def input(self, name: str, module) -> None:
        def hook(_, inputs):
            self.found.setdefault(name, []).append(inputs[0])

        self.handles.append(module.register_forward_pre_hook(hook))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def mask_strength(call: dict, models: Models) -> float:
    step = call.get("mask_head_step_used", call.get("mask_head_step", 0.0))
    return models.module("page4d_heads", "mask_schedule")(step, call["mask_hold_start"], call["mask_hold_end"])


def forward(case: Case, models: Models) -> Result:
    model = models.load(AutoModel)
    images, alpha = case.inputs["images"], mask_strength(case.meta["call"], models)
    skip = 1 + model.config.encoder_config.num_register_tokens
    recorder = Recorder()
    recorder.output("encoder", model.encoder, lambda output: output.last_hidden_state[:, skip:])
    recorder.output("token_norm", model.camera_head.token_norm)
    recorder.output("delta", model.camera_head.pose_branch)
    recorder.output("depth", model.depth_head)
    recorder.output("point", model.point_head)
    with torch.no_grad():
        outputs = model(pixel_values=images, mask_alpha=alpha, output_hidden_states=True)
    recorder.remove()
    found = recorder.found
    height, width = images.shape[-2:]
    extrinsics, intrinsics = models.module("pose", "decode_pose")(outputs.pose_enc, (height, width))
    tensors = {
        "output.pose_enc_list": torch.stack(outputs.pose_enc_list),
        "output.depth": outputs.depth,
        "output.depth_conf": outputs.depth_conf,
        "output.world_points": outputs.world_points,
        "output.world_points_conf": outputs.world_points_conf,
        "output.extrinsic": extrinsics,
        "output.intrinsic": intrinsics,
        "output.unprojected_points": models.module("pose", "unproject_depth")(
            outputs.depth[..., 0], intrinsics, extrinsics
        ),
        "intermediate.dino_patch_tokens": torch.cat(found["encoder"]),
        "intermediate.camera_tokens_normed": found["token_norm"][0],
        "intermediate.camera_delta_list": torch.stack(found["delta"]),
        "intermediate.depth_head_raw": torch.cat(found["depth"]),
        "intermediate.point_head_raw": torch.cat(found["point"]),
        **{f"intermediate.aggregated_tokens.{i:02d}": entry for i, entry in enumerate(outputs.hidden_states)},
    }
    frame_output = outputs.hidden_states[model.config.mask_layer][..., : model.config.embed_dim]
    grid = (height // model.config.patch_size, width // model.config.patch_size)
    mask = mask_tensors(model, frame_output, grid, alpha)
    tensors |= {f"intermediate.{name}": value for name, value in mask.items()}
    if outputs.mask_bias is not None:  # the mask that the forward itself used
        special = model.aggregator.num_special
        used = torch.nn.functional.pad(outputs.mask_bias.flatten(2), (special, 0)).flatten(1).unsqueeze(1)
        tensors["intermediate.mask_key_value"] = used
    return Result(tensors=tensors)


def mask_tensors(model, tokens: torch.Tensor, grid: tuple[int, int], alpha: float) -> dict[str, torch.Tensor]:
    """The mask head on tokens `[B, S, N, C]`, also where the forward leaves it out because its strength is 0."""
    special, head, recorder = model.aggregator.num_special, model.aggregator.spatial_mask_head, Recorder()
    recorder.input("standardised", head.layers)
    recorder.output("logit", head.layers)
    with torch.no_grad():
        mask = head(tokens[:, :, special:].flatten(0, 1), grid).unflatten(0, tokens.shape[:2])
    recorder.remove()
    row = torch.zeros(tokens.shape[2])
    row[:special] = model.config.mask_scale * alpha
    return {
        "mask_h0_norm_mean": recorder.found["standardised"][0].mean(1, keepdim=True),
        "mask_conv_logit": recorder.found["logit"][0],
        "mask_key_value": torch.nn.functional.pad(mask.flatten(2), (special, 0)).flatten(1).unsqueeze(1),
        "mask_query_row": row.expand(*tokens.shape[:2], -1).flatten(1),
    }


def track(case: Case, models: Models) -> Result:
    """
    The first two iterations as they run; the later ones, visibility and confidence from the stored coordinates.

    Rounding grows about a hundredfold per iteration, so that free runs of two machines part after the second.
    """
    model = models.load(AutoModel, "track")
    images, queries = case.inputs["images"], case.inputs["query_points"]
    recorder = Recorder()
    recorder.output("maps", model.track_head.feature_extractor)
    with torch.no_grad():
        outputs = model(pixel_values=images, query_points=queries)
        recorder.remove()
        maps = torch.cat(recorder.found["maps"]).unflatten(0, images.shape[:2])
        tracker, stored = model.track_head.tracker, case.expected["output.track_list"]
        coordinates, features, scene = tracker.start(queries, maps)
        tracks = []
        for index in range(len(stored)):
            moved, features = tracker.refine(coordinates, features, scene)
            tracks.append(outputs.tracks_list[index] if index < 2 else moved * tracker.stride)
            coordinates = stored[index] / tracker.stride
        visibility, confidence = tracker.judge(features)
    return Result(
        tensors={
            "output.track_list": torch.stack(tracks),
            "output.track": tracks[-1],
            "output.vis": visibility.sigmoid(),
            "output.conf": confidence.sigmoid(),
            "intermediate.feature_maps": maps,
        }
    )


# --------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------


def train(case: Case, models: Models) -> Result:
    model, call, inputs = models.load(AutoModel), case.meta["call"], case.inputs
    settings = call["losses"]
    config = model.config
    config.camera_loss_weight, config.camera_loss_type = settings["camera"]["weight"], settings["camera"]["loss_type"]
    for name in ("depth", "point"):
        for ours, theirs in (("loss_weight", "weight"), ("loss_gamma", "gamma"), ("loss_alpha", "alpha"),
                             ("gradient_loss", "gradient_loss_fn")):  # fmt: skip
            setattr(config, f"{name}_{ours}", settings[name][theirs])
    config.loss_valid_range, other = (settings[name]["valid_range"] for name in ("depth", "point"))
    if other != config.loss_valid_range:
        raise ValueError(f"the case cuts points at {other} and depth at {config.loss_valid_range}, this library alike")
    names = ("depths", "extrinsics", "intrinsics", "world_points", "point_masks")
    targets = {name: inputs[name] for name in names if name in inputs}
    model.train()
    model.zero_grad(set_to_none=True)
    outputs = model(pixel_values=inputs["images"], mask_alpha=mask_strength(call, models), **targets)
    # The published mean over all valid pixels of the batch; the model's own is a mean over scenes.
    losses = models.module("page4d_losses", "page4d_losses")
    scene_targets = models.module("page4d_losses", "scene_targets")
    losses = losses(outputs, scene_targets(**targets), config)
    losses["loss"].backward()
    tensors = {f"output.loss.{theirs}": losses[ours].detach().view(1) for theirs, ours in LOSSES.items()}
    tensors["output.loss.objective"] = losses["loss"].detach().view(1)
    for name in ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf"):
        tensors[f"intermediate.pred.{name}"] = outputs[name].detach()
    stages = [stage.detach() for stage in outputs.pose_enc_list]
    tensors["intermediate.pred.pose_enc_list"] = torch.stack(stages)
    tensors |= source_gradients(model, models.folder())
    model.zero_grad(set_to_none=True)
    model.eval()

    scene = models.module("page4d_losses", "scene_targets")(**targets, cam_points=inputs.get("cam_points"))
    scene = models.module("page4d_losses", "normalize_scene")(scene)
    for name in ("extrinsics", "cam_points", "world_points", "depths"):
        tensors[f"output.normalized.{name}"] = getattr(scene, name)
    camera_loss, dense_loss = (models.module("page4d_losses", name) for name in ("camera_loss", "dense_loss"))
    for kind in ("l1", "l2"):
        losses = camera_loss(stages, scene, kind)
        tensors |= {f"output.camera_{kind}.{t}": losses[o].view(1) for t, o in LOSSES.items() if o in losses}
    points, confidence = outputs.world_points.detach(), outputs.world_points_conf.detach()
    for kind in ("grad", "grad_conf", "normal", "normal_conf", "none"):
        gradient = None if kind == "none" else kind
        weights = settings["point"]["gamma"], settings["point"]["alpha"]
        losses = dense_loss(points, confidence, scene.world_points, scene.point_masks, *weights, gradient, -1.0)
        for theirs, ours in LOSSES.items():
            if theirs.endswith("_point"):
                tensors[f"output.point_{kind}_novr.{theirs}"] = losses[ours.removeprefix("point_")].view(1)
    return Result(tensors=tensors)


def source_gradients(model, folder) -> dict[str, torch.Tensor | None]:
    """Gradients and their norms under the names of the published parameters, of which the report tells what became."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    parts: dict[str, list[tuple[int, torch.Tensor | None]]] = {}
    for target, entry in json.loads((folder / "conversion_report.json").read_text())["tensors"].items():
        match = re.fullmatch(r"page4d:([^\[]+)(?:\[(\d+):\d+\])?", entry["from"])
        parts.setdefault(match[1], []).append((int(match[2] or 0), gradients[target]))
    tensors = {}
    for key, pieces in parts.items():
        pieces = [piece for _, piece in sorted(pieces, key=lambda item: item[0])]
        joined = None if pieces[0] is None else torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        tensors[f"output.grad.{key}"] = joined
        tensors[f"gradient_norms.{key}"] = None if joined is None else joined.double().norm()
    return tensors


# --------------------------------------------------------------------------------------
# Components
# --------------------------------------------------------------------------------------


def components(case: Case, models: Models | SourceTree) -> Result:
    model, inputs, tensors = models.load(AutoModel), case.inputs, {}
    with torch.no_grad():
        for part in (rope, patch_encoder, masked_block, mask_head, camera_head, pose, dense):
            tensors |= part(case, inputs, model, models)
    return Result(tensors={f"output.{name}": tensor for name, tensor in tensors.items()})


def numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def stored(case: Case, prefix: str) -> list[str]:
    """Names of stored results that start with `prefix`, without "output."."""
    return [name[7:] for name in case.expected if name.startswith(f"output.{prefix}")]


def rope(case, inputs, model, models) -> dict:
    tensors = {}
    tables, apply, positions = (
        models.module("vision_rope", name) for name in ("axial_rope_tables", "apply_axial_rope", "patch_positions")
    )
    if "rope.tokens" in inputs:
        tokens = inputs["rope.tokens"]
        found = tables(inputs["rope.positions_yx"][0], tokens.shape[-1], model.config.rope_freq)
        tensors["rope.rotated"] = apply(tokens, found)
    for name in stored(case, "position_ids."):
        rows, columns = numbers(name.split(".")[1])
        tensors[name] = positions(rows, columns, model.aggregator.num_special)
    return tensors


def patch_encoder(case, inputs, model, models) -> dict:
    tensors = {}
    for name in stored(case, "dino_pos_embed."):
        height, width = numbers(name.split(".")[1])
        patch = model.config.patch_size
        tokens = torch.zeros(1, 1 + (height // patch) * (width // patch), model.config.embed_dim)
        tensors[name] = model.encoder.embeddings.interpolate_pos_encoding(tokens, height, width)[0]
    if "dino.normalized_pixels" in inputs:
        states = model.encoder(inputs["dino.normalized_pixels"]).last_hidden_state
        skip = 1 + model.config.encoder_config.num_register_tokens
        tensors["dino.x_norm_clstoken"] = states[:, 0]
        tensors["dino.x_norm_regtokens"] = states[:, 1:skip]
        tensors["dino.x_norm_patchtokens"] = states[:, skip:]
    return tensors


def masked_block(case, inputs, model, models) -> dict:
    if "masked_block.x" not in inputs:
        return {}
    x, positions = inputs["masked_block.x"], inputs["masked_block.positions_yx"]
    row, key = inputs["masked_block.query_row"], inputs["masked_block.key_value"]
    frames = int((row[0] > 0).sum()) // model.aggregator.num_special
    length = x.shape[1] // frames
    head_dim = model.config.embed_dim // model.config.num_heads
    tables = models.module("vision_rope", "axial_rope_tables")(positions[0, :length], head_dim, model.config.rope_freq)
    block = model.aggregator.global_blocks[block_index(case, model.config.masked_layers[0])]
    bias = (row.max() * key).unflatten(1, (frames, length))
    return {
        "masked_block.masked": block(x, rope=tables, attention_mask=bias),
        "masked_block.unmasked": block(x, rope=tables),
    }


def block_index(case, default: int) -> int:
    """The global block that a case runs: its `block_index`, or what it says in words ("global block 2")."""
    for settings in (case.meta, case.meta.get("call", {}), case.meta.get("kwargs", {})):
        if "block_index" in settings:
            return settings["block_index"]
    words = re.search(r"global block (\d+)|global_blocks\.(\d+)", json.dumps(case.meta))
    return int(words[1] or words[2]) if words else default


def mask_grid(case, patches: int) -> tuple[int, int]:
    """The grid of the mask head's tokens: as the case says, else the one nearest to a square, lying."""
    for settings in (case.meta, case.meta.get("call", {}), case.meta.get("kwargs", {})):
        if {"h", "w"} <= settings.keys():
            return settings["h"], settings["w"]
        if "patch_grid" in settings:
            return tuple(settings["patch_grid"])
    rows = max(n for n in range(1, math.isqrt(patches) + 1) if patches % n == 0)
    return rows, patches // rows


def mask_head(case, inputs, model, models) -> dict:
    tensors = {}
    if "mask_head.tokens" in inputs:
        tokens = inputs["mask_head.tokens"]
        patches = tokens.shape[2] - model.aggregator.num_special
        found = mask_tensors(model, tokens, mask_grid(case, patches), 1.0)
        tensors["mask_head.query_row"] = found["mask_query_row"]
        tensors["mask_head.key_value"] = found["mask_key_value"].squeeze(1)
    for name in stored(case, "mask_alpha."):
        schedule, table = models.module("page4d_heads", "mask_schedule"), case.expected[f"output.{name}"].clone()
        table[:, 3] = torch.tensor([schedule(*line) for line in table[:, :3].tolist()], dtype=table.dtype)
        tensors[name] = table
    return tensors


def camera_head(case, inputs, model, models) -> dict:
    if "camera_head.last_tokens" not in inputs:
        return {}
    head, tensors, recorder = model.camera_head, {}, Recorder()
    last = head.pose_branch.fc2
    saved = {name: value.clone() for name, value in last.state_dict().items()}
    overrides = {name: inputs.get(f"camera_head.fc2_{name}_override") for name in saved}
    last.load_state_dict({name: saved[name] if value is None else value for name, value in overrides.items()})
    tokens = inputs["camera_head.last_tokens"][:, :, 0]
    recorder.output("delta", head.pose_branch)
    tensors["camera_head.pose_enc_list"] = torch.stack(head(tokens))
    recorder.remove()
    tensors["camera_head.delta_list"] = torch.stack(recorder.found["delta"])
    for name in stored(case, "camera_head.pose_enc_list_"):
        tensors[name] = torch.stack(head(tokens, num_iterations=numbers(name)[0]))
    last.load_state_dict(saved)
    return tensors


def pose(case, inputs, model, models) -> dict:
    if "pose.encoding" not in inputs:
        return {}
    decode, encode, invert, homogeneous = (
        models.module("pose", name) for name in ("decode_pose", "encode_pose", "invert_rigid", "to_homogeneous")
    )
    # The image size is stored nowhere but in the principal point.
    centre = case.expected["output.pose.intrinsic"].flatten(0, -3)[0, :2, 2]
    size = (int(2 * centre[1]), int(2 * centre[0]))
    extrinsics, intrinsics = decode(inputs["pose.encoding"], size)
    return {
        "pose.extrinsic": extrinsics,
        "pose.intrinsic": intrinsics,
        "pose.reencoded": encode(extrinsics, intrinsics, size),
        "pose.inverse_se3": invert(homogeneous(extrinsics[0])),
    }


def dense(case, inputs, model, models) -> dict:
    tensors = {}
    if "head_act.raw" in inputs:
        raw = inputs["head_act.raw"]
        activate = models.module("page4d_dpt", "activate_dense")
        values, confidences = (
            models.module("page4d_dpt", name) for name in ("VALUE_ACTIVATIONS", "CONFIDENCE_ACTIVATIONS")
        )
        # "sigmoid" names an activation of both; the stored one is of the values.
        tensors |= {f"head_act.{name}": activate(raw, "linear", name)[1] for name in confidences}
        tensors |= {f"head_act.{name}": activate(raw, name, "expp1")[0] for name in values}
    for name in stored(case, "uv_grid."):
        rows, columns, width, height = numbers(name)
        spans, axis, embed = (
            models.module("page4d_dpt", n) for n in ("image_spans", "axis_positions", "position_rows")
        )
        span_x, span_y = spans(width / height)
        x, y = axis(columns, span_x), axis(rows, span_y)
        tensors[name] = torch.stack([x.expand(rows, -1), y.unsqueeze(1).expand(-1, columns)], -1)
        for other in stored(case, "uv_embed."):
            half = numbers(other)[0] // 2
            across = embed(x, half).T.expand(rows, -1, -1)
            down = embed(y, half).T.unsqueeze(1).expand(-1, columns, -1)
            tensors[other] = torch.cat([across, down], -1)
    if "residual_conv_unit.x" in inputs:
        tensors["residual_conv_unit"] = model.depth_head.fusions[0].skip_unit(inputs["residual_conv_unit.x"])
    for name in stored(case, "fusion."):
        x, skip = inputs["fusion.x0"], inputs["fusion.x1"]
        given = numbers(name)
        size = [side * given[0] for side in x.shape[-2:]] if "scale" in name else given
        tensors[name] = model.depth_head.fusions[0](x, skip, size)
    return tensors


class SourceTree:
    """Stands for `Models` where there is no checkpoint: functions of the library itself, and the published sizes."""

    def module(self, filename: str, attribute: str):
        import importlib

        return getattr(importlib.import_module(f"modeling_dsr.{filename}"), attribute)

    def load(self, auto_class):
        from configuration_dsr import Page4DConfig
        from processing_dsr import GeometryProcessor

        if auto_class is AutoProcessor:
            return GeometryProcessor(resize_rule="page4d")
        config = Page4DConfig()
        return SimpleNamespace(config=config, aggregator=SimpleNamespace(num_special=1 + config.num_register_tokens))


# --------------------------------------------------------------------------------------
# Evaluation metrics
# --------------------------------------------------------------------------------------


def run_function_case(case: Case) -> Result | None:
    """Metrics, which do not ship with the weights, and the functions of a suite without a checkpoint."""
    if "gt_depth" in case.inputs:
        return Result()  # its numbers are in the file of results
    if not case.is_json:
        return preprocess(case, SourceTree()) if "runs" in case.meta else components(case, SourceTree())
    from dsr_toolkit.evaluation.geometry_metrics import THRESHOLDS, depth_metrics, trajectory_metrics

    source = next(c for c in case.suite.cases if c.meta.get("expected") == case.path.name)
    told = re.search(r"max_depth (\d+(?:\.\d+)?)", source.meta.get("exercises", ""))
    max_depth = source.meta.get("max_depth", float(told[1]) if told else 70.0)
    truth, prediction = source.inputs["gt_depth"], source.inputs["pred_depth"]
    tolerance = Tolerance(rtol=source.meta["suggested_tolerance"]["rtol"])
    values = []
    for name, expected in case.meta["content"].items():
        if name == "pose":
            found = trajectory_metrics(source.inputs["est_cam2world"].numpy(), source.inputs["gt_cam2world"].numpy())
            names = {"ATE": "ate", "RPE_trans": "rpe_trans", "RPE_rot_deg": "rpe_rot"}
        elif isinstance(expected, dict):
            match = re.fullmatch(r"(?:video|mono_frame(\d+))_(\w+?)(_postclip)?", name)
            part = slice(None) if match[1] is None else int(match[1])
            limits = {"max_depth": max_depth}
            if match[3]:
                limits["clip_max"] = source.meta.get("post_clip", POST_CLIP)
            found = depth_metrics(prediction[part], truth[part], match[2], **limits, thresholds=(1.0, *THRESHOLDS))
            names = DEPTH_METRICS
        else:
            continue
        values.append(Value(name, expected, {key: found[names[key]] for key in expected}, tolerance))
    return Result(values=values)


# --------------------------------------------------------------------------------------
# Image loading
# --------------------------------------------------------------------------------------


def preprocess(case: Case, models: Models) -> Result:
    """Every run through the processor that the converter wrote; whole results by their hash, stored ones by a grid."""
    from PIL import Image

    from dsr_toolkit.evaluation.geometry_metrics import evaluation_frames

    processor, tensors, values = models.load(AutoProcessor), {}, []
    for name, run in case.meta["runs"].items():
        images = [Image.fromarray(case.inputs[file].numpy()) for file in run["files"]]
        side = run["shape"][-1]
        rule = {"crop": "page4d", "pad": "page4d_pad"}.get(run.get("mode"), "page4d_square")
        squashed = "interpolate" in run.get("note", "")
        crop = run.get("crop_size", 518)  # of the published loader
        processor.resize_rule, processor.image_size = ("page4d", crop) if squashed else (rule, side)
        found = processor(images)
        pixels = found["pixel_values"][0]
        stored = case.expected[f"output.{name}.sub"]
        if squashed:
            pixels = evaluation_frames(pixels, side)
        y, x = stored_grid(case, name, pixels, stored.shape)
        sub = pixels[..., y, x]
        whole = (pixels * 255).round().to(torch.uint8)
        tensors[f"output.{name}.sub"] = sub if stored.is_floating_point() else (sub * 255).round().to(torch.uint8)
        values.append(Value(f"{name}.shape", run["shape"], list(pixels.shape)))
        if "sha256_uint8_nchw" in run:
            digest = hashlib.sha256(whole.contiguous().numpy().tobytes()).hexdigest()
            values.append(Value(f"{name}.sha256", run["sha256_uint8_nchw"], digest))
        if f"output.{name}.coords" in case.expected:
            sizes = found["original_sizes"][0].flip(-1).float()
            tensors[f"output.{name}.coords"] = torch.cat([found["image_boxes"][0], sizes], -1)
    return Result(tensors=tensors, values=values)


def stored_grid(case: Case, run: str, pixels: torch.Tensor, shape) -> tuple[slice, slice]:
    """Rows and columns that a run stores, as the case writes them: "[.., 3::16, 5::16] (square112: [1::8, 2::8])"."""
    written = re.findall(r"(?:(\w+): )?\[(?:\.\., )?(\d+)::(\d+), (\d+)::(\d+)\]", case.meta.get("exercises", ""))
    written.sort(key=lambda one: one[0] != run)  # what is said of this run before what is said of all
    for _, *numbers in written:
        top, down, left, across = map(int, numbers)
        if pixels[..., top::down, left::across].shape == shape:
            return slice(top, None, down), slice(left, None, across)
    raise ValueError(f"the case does not say which pixels of {run} it stores: {written}")
