"""What PAGE-4D returns, and what its trunk hands to the heads."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class Page4DOutput(ModelOutput):
    """
    Output of [`Page4DModel`]. World coordinates are those of the first camera, in a scale of their own; OpenCV axes.
    For images `[B, T, V, 3, H, W]` the axes `(B, S, …)` are `(B, T, V, …)`.

    Args:
        loss (`torch.FloatTensor`, *optional*): weighted sum of `losses`, mean over scenes, when targets were given.
        losses (`dict[str, torch.FloatTensor]`, *optional*): the terms.
        pose_enc (`torch.FloatTensor` of shape `(B, S, 9)`): cameras as translation (3) and quaternion (x, y, z, w; any
            length) of the camera-from-world transform, vertical and horizontal field of view in radians.
        pose_enc_list (`tuple[torch.FloatTensor]`): the same after each refinement; the last is `pose_enc`.
        extrinsics (`torch.FloatTensor` of shape `(B, S, 3, 4)`): camera-from-world transforms of `pose_enc`.
        intrinsics (`torch.FloatTensor` of shape `(B, S, 3, 3)`): of `pose_enc`, in pixels of the input, principal point
        in the
            middle. A field of view of 0, which the head can give, makes the focal length infinite.
        depth (`torch.FloatTensor` of shape `(B, S, H, W, 1)`): along the viewing axis.
        depth_conf (`torch.FloatTensor` of shape `(B, S, H, W)`): above 1, larger is surer.
        world_points (`torch.FloatTensor` of shape `(B, S, H, W, 3)`): of every pixel.
        world_points_conf (`torch.FloatTensor` of shape `(B, S, H, W)`): above 1.
        mask_bias (`torch.FloatTensor` of shape `(B, S, H/14, W/14)`, *optional*): raw mask, -0.5 … 0.5 per patch;
        positive
            draws the camera's attention. None when the mask is off.
        dynamic_mask (`torch.FloatTensor` of shape `(B, S, H/14, W/14)`, *optional*): 0.5 - `mask_bias`; 1 = dynamic. Of
            several views `(B, T, V, P, 1)`, of the dynamic mask head.
        dynamic_mask_logit (`torch.FloatTensor` of shape `(B, T, V, P, 1)`, *optional*): of the head alone, before it is
        joined
            with an external mask.
        memory_state (`torch.FloatTensor` of shape `(B, M, C)`, *optional*): of the memory bank, for the next window; of
        two
            streams a pair (pose, geometry).
        dual_stream_outputs (`dict[str, tuple[torch.FloatTensor]]`, *optional*): with `output_hidden_states=True` and
            several views, "pose" and "geo": every layer's `(B, T, V, N, 2C)`, time and view side by side.
        tracks (`torch.FloatTensor` of shape `(B, S, Q, 2)`, *optional*): (x, y) in pixels of the query points in every
        frame.
        tracks_list (`tuple[torch.FloatTensor]`, *optional*): the same after each iteration.
        track_visibility, track_confidence (`torch.FloatTensor` of shape `(B, S, Q)`, *optional*): in 0 … 1.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*): with `output_hidden_states=True` every layer's frame and
            global outputs side by side, `(B, S, 5 + H/14·W/14, 2·embed_dim)`.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    pose_enc: torch.FloatTensor | None = None
    pose_enc_list: tuple[torch.FloatTensor, ...] | None = None
    extrinsics: torch.FloatTensor | None = None
    intrinsics: torch.FloatTensor | None = None
    depth: torch.FloatTensor | None = None
    depth_conf: torch.FloatTensor | None = None
    world_points: torch.FloatTensor | None = None
    world_points_conf: torch.FloatTensor | None = None
    mask_bias: torch.FloatTensor | None = None
    dynamic_mask: torch.FloatTensor | None = None
    tracks: torch.FloatTensor | None = None
    tracks_list: tuple[torch.FloatTensor, ...] | None = None
    track_visibility: torch.FloatTensor | None = None
    track_confidence: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    dynamic_mask_logit: torch.FloatTensor | None = None
    memory_state: torch.FloatTensor | tuple[torch.FloatTensor, torch.FloatTensor] | None = None
    dual_stream_outputs: dict[str, tuple[torch.FloatTensor, ...]] | None = None


@dataclass
class AggregatedTokens:
    """What leaves the trunk.

    Args:
        camera_tokens: `[B, S, 2C]` of the last layer.
        patch_tokens: `[B·S, K, h·w, 2C]` of the K layers that the dense heads read.
        mask_bias: `[B, S, h, w]`, None when the mask is off.
        hidden_states: every layer's `[B, S, N, 2C]`, on request.
    """

    camera_tokens: torch.Tensor
    patch_tokens: torch.Tensor
    mask_bias: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
