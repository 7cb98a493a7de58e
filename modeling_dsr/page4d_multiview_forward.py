"""The forward pass of PAGE-4D over synchronised cameras: targets and masks in, outputs per time and view out."""

import torch
from transformers.utils.generic import maybe_autocast

from .page4d_dynamic_mask import pool_mask
from .page4d_inputs import check_memory, check_patches, check_targets
from .page4d_losses import multiview_losses, one_scene
from .page4d_multiview import MultiviewInputs
from .page4d_outputs import AggregatedTokens, Page4DOutput
from .pose import check_cameras
from .scene_mean import mean_over_scenes


def forward_multiview(model, pixel_values, grid, given, targets, query_points, output_hidden_states) -> Page4DOutput:
    """
    `forward` of a [`Page4DModel`] for images `[B, T, V, 3, H, W]`; heads and geometric losses see T·V frames.

    Args:
        model: whose encoder, trunk, streams and heads run. grid: (h, w) in patches.
        given: `ext_mask`, `keypoint_map`, `confidence`, `memory_state` and `mask_labels` as `forward` takes them.
        targets: `depths`, `extrinsics`, `intrinsics`, `world_points`, `point_masks`, likewise.
    """
    config = model.config
    batch, times, views = pixel_values.shape[:3]
    flat = pixel_values.flatten(1, 2)
    if query_points is not None:
        raise ValueError("`query_points` are tracked through one video; pass `pixel_values` [B, S, 3, H, W].")
    depths, extrinsics, intrinsics, *others = (
        x.flatten(1, 2) if isinstance(x, torch.Tensor) and x.shape[:3] == (batch, times, views) else x for x in targets
    )
    known = extrinsics is not None and intrinsics is not None
    if depths is None and known and all(x is None for x in others):  # cameras alone are no targets
        check_cameras(extrinsics, intrinsics)
        targets = None
    else:
        targets = check_targets(flat, depths, extrinsics, intrinsics, *others)
    cameras = (x.view(batch, times, views, *x.shape[2:]) for x in (intrinsics, extrinsics)) if known else (None, None)
    labels = given["mask_labels"]
    if labels is not None:
        labels = pool_mask(labels, (batch, times, views), grid, config.patch_size, "mask_labels")
        if model.multiview.dynamic_mask_head is None:
            raise ValueError("`mask_labels` train the dynamic mask head, but `config.enable_dynamic_mask` is False.")
    inputs = MultiviewInputs(
        given["ext_mask"],
        check_patches("keypoint_map", given["keypoint_map"], (batch, times, views), grid),
        check_patches("confidence", given["confidence"], (batch, times, views), grid),
        *cameras,
        memory=check_memory(given["memory_state"], batch, config),
    )
    patches = model.encode_frames(flat).unflatten(1, (times, views))
    train = targets is not None or labels is not None
    tokens = model.multiview(model.aggregator, patches, grid, inputs, output_hidden_states, keep_last=train)
    outputs = model.run_heads(AggregatedTokens(tokens.camera_tokens, tokens.patch_tokens), flat.shape)
    outputs.dynamic_mask, outputs.dynamic_mask_logit = tokens.dynamic_mask, tokens.dynamic_mask_logit
    outputs.memory_state, outputs.dual_stream_outputs = tokens.memory, tokens.streams
    outputs.hidden_states = tokens.streams["geo"] if output_hidden_states else None
    if train:
        with maybe_autocast(pixel_values.device.type, enabled=False):
            streams = tokens.last.unflatten(0, (-1, batch))
            losses = mean_over_scenes(
                lambda i: multiview_losses(
                    one_scene(outputs, i),
                    None if targets is None else one_scene(targets, i),
                    None if labels is None else labels[i : i + 1],
                    streams[:, i],
                    config,
                ),
                batch,
            )
        outputs.loss, outputs.losses = losses.pop("loss"), losses
    for name in (
        "pose_enc",
        "extrinsics",
        "intrinsics",
        "depth",
        "depth_conf",
        "world_points",
        "world_points_conf",
    ):
        if name in outputs:
            outputs[name] = outputs[name].unflatten(1, (times, views))
    if outputs.pose_enc_list is not None:
        outputs.pose_enc_list = tuple(x.unflatten(1, (times, views)) for x in outputs.pose_enc_list)
    return outputs
