"""PAGE-4D (arXiv 2510.17568): cameras, depth and points of dynamic scenes from the frames of one video or scene.

Data flow, for B scenes of S frames, h·w patches each, N = 5 + h·w tokens per frame:

    pixel_values [B, S, 3, H, W] ─ encoder (DINOv2, each frame alone) ─ patch tokens [B, S, h·w, C]
      + camera and register tokens ─ 24 × (frame block [B·S, N, C], global block [B, S·N, C])
           after frame block 9: spatial mask ─ bias of the special tokens' attention in global blocks 10…19
      each layer's frame and global outputs side by side [B, S, N, 2C]:
           camera token of the last layer ─ camera head ─ pose_enc [B, S, 9]
           patches of layers 4, 11, 17, 23 ─ DPT heads ─ depth, world points, confidences [B, S, H, W, ·]

With mask strength 0 the network is VGGT. Only what the heads read is kept of the layers.

Synchronised cameras, `[B, T, V, 3, H, W]`: the global blocks attend over the views of each time, the frame blocks over the
times of each view, and everything that `page4d_multiview` adds can be switched on by the configuration.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import maybe_autocast

from .configuration_page4d import Page4DConfig
from .frame_sizes import page4d_image_size
from .geometry_encoder import GeometryEncoder
from .page4d_dpt import DPTHead, KeptLayers, activate_dense
from .page4d_dynamic_mask import DynamicMaskHead, pool_mask
from .page4d_heads import CameraHead, GlobalBlock, MultiviewSpatialMaskHead, SpatialMaskHead
from .page4d_losses import multiview_losses, page4d_losses, scene_targets
from .page4d_multiview import MultiviewInputs, Page4DMultiview
from .page4d_track_head import Tracker, TrackHead, UpdateTransformer
from .pose import check_cameras, decode_matrix_pose, decode_pose
from .vision_blocks import VisionBlock, in_chunks, init_layer_scale
from .vision_rope import axial_rope_tables, patch_positions


@dataclass
class Page4DOutput(ModelOutput):
    """
    Output of [`Page4DModel`]. World coordinates are those of the first camera, in a scale of their own; OpenCV axes.
    For images `[B, T, V, 3, H, W]` the axes `(B, S, …)` are `(B, T, V, …)`.

    Args:
        loss (`torch.FloatTensor`, *optional*): weighted sum of `losses`, when targets were given.
        losses (`dict[str, torch.FloatTensor]`, *optional*): the terms.
        pose_enc (`torch.FloatTensor` of shape `(B, S, 9)`): cameras as translation (3) and quaternion (x, y, z, w; any
            length) of the camera-from-world transform, vertical and horizontal field of view in radians.
        pose_enc_list (`tuple[torch.FloatTensor]`): the same after each refinement; the last is `pose_enc`.
        extrinsics (`torch.FloatTensor` of shape `(B, S, 3, 4)`): camera-from-world transforms of `pose_enc`.
        intrinsics (`torch.FloatTensor` of shape `(B, S, 3, 3)`): of `pose_enc`, in pixels of the input, principal point in the
            middle. A field of view of 0, which the head can give, makes the focal length infinite.
        depth (`torch.FloatTensor` of shape `(B, S, H, W, 1)`): along the viewing axis.
        depth_conf (`torch.FloatTensor` of shape `(B, S, H, W)`): above 1, larger is surer.
        world_points (`torch.FloatTensor` of shape `(B, S, H, W, 3)`): of every pixel.
        world_points_conf (`torch.FloatTensor` of shape `(B, S, H, W)`): above 1.
        mask_bias (`torch.FloatTensor` of shape `(B, S, H/14, W/14)`, *optional*): raw mask, -0.5 … 0.5 per patch; positive
            draws the camera's attention. None when the mask is off.
        dynamic_mask (`torch.FloatTensor` of shape `(B, S, H/14, W/14)`, *optional*): 0.5 - `mask_bias`; 1 = dynamic. Of
            several views `(B, T, V, P, 1)`, of the dynamic mask head.
        dynamic_mask_logit (`torch.FloatTensor` of shape `(B, T, V, P, 1)`, *optional*): of the head alone, before it is joined
            with an external mask.
        memory_state (`torch.FloatTensor` of shape `(B, M, C)`, *optional*): of the memory bank, for the next window; of two
            streams a pair (pose, geometry).
        dual_stream_outputs (`dict[str, tuple[torch.FloatTensor]]`, *optional*): with `output_hidden_states=True` and several
            views, "pose" and "geo": every layer's `(B, T, V, N, 2C)`, time and view side by side.
        tracks (`torch.FloatTensor` of shape `(B, S, Q, 2)`, *optional*): (x, y) in pixels of the query points in every frame.
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


class Page4DAggregator(nn.Module):
    """The trunk: alternating attention inside each frame and over all frames, with the dynamics-aware mask."""

    def __init__(self, config: Page4DConfig):
        super().__init__()
        self.config = config
        self.num_special = 1 + config.num_register_tokens
        # One token for the first frame, one for every other.
        self.camera_token = nn.Parameter(torch.empty(1, 2, 1, config.embed_dim))
        self.register_token = nn.Parameter(torch.empty(1, 2, config.num_register_tokens, config.embed_dim))
        settings = dict(
            norm_eps=config.layer_norm_eps,
            qk_norm_eps=config.layer_norm_eps,
            layer_scale=config.layer_scale_init,
            mlp_ratio=config.mlp_ratio,
        )
        dim, heads = config.embed_dim, config.num_heads
        self.frame_blocks = nn.ModuleList(VisionBlock(config, dim, heads, **settings) for _ in range(config.depth))
        self.global_blocks = nn.ModuleList(
            GlobalBlock(config, dim, heads, self.num_special, **settings) for _ in range(config.depth)
        )
        self.spatial_mask_head = None
        if config.spatial_mask_variant == "page4d":
            self.spatial_mask_head = SpatialMaskHead(dim, config.mask_hidden_channels)
        elif config.spatial_mask_variant == "mv":
            self.spatial_mask_head = MultiviewSpatialMaskHead(dim)

    def forward(
        self, patches: torch.Tensor, grid: tuple[int, int], mask_alpha: float, output_hidden_states: bool = False
    ) -> AggregatedTokens:
        """
        Args:
            patches: `[B, S, h·w, C]`. grid: (h, w). mask_alpha: strength of the mask, 0: off.
        """
        config, special = self.config, self.num_special
        batch, frames, _, width = patches.shape
        tokens = torch.cat([self.special_tokens(batch, frames).to(patches.dtype), patches], 2)  # [B, S, N, C]
        positions = patch_positions(*grid, special, patches.device)
        rope = axial_rope_tables(positions, width // config.num_heads, config.rope_freq)
        chunk = config.trunk_chunk_size
        kept = KeptLayers(config.dpt_layers)
        mask_bias = key_bias = None
        hidden_states = [] if output_hidden_states else None

        for layer, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks)):
            in_frame = in_chunks(
                partial(frame_block, rope=rope), tokens.flatten(0, 1), chunk_size=chunk, overwrite=True
            )
            if mask_alpha > 0 and layer == config.mask_layer:
                mask_bias, key_bias = self._mask(in_frame, grid, (batch, frames), mask_alpha)
            bias = key_bias if layer in config.masked_layers else None
            tokens = global_block(
                in_frame.view(batch, -1, width), rope=rope, attention_mask=bias, chunk_size=chunk * in_frame.shape[1]
            ).view(batch, frames, -1, width)
            in_frame = in_frame.view_as(tokens)
            kept.add(layer, in_frame[:, :, special:], tokens[:, :, special:])
            if output_hidden_states:
                hidden_states.append(torch.cat([in_frame, tokens], -1))

        return AggregatedTokens(
            camera_tokens=torch.cat([in_frame[:, :, 0], tokens[:, :, 0]], -1),
            patch_tokens=kept.stacked(),
            mask_bias=mask_bias,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )

    def special_tokens(self, batch: int, frames: int) -> torch.Tensor:
        """Camera and register tokens `[B, S, 1 + R, C]`: the first frame has its own, all others share theirs."""
        special = torch.cat([self.camera_token, self.register_token], 2)  # [1, 2, 5, C]
        first, others = special[:, :1], special[:, 1:].expand(-1, frames - 1, -1, -1)
        return torch.cat([first, others], 1).expand(batch, -1, -1, -1)

    def _mask(self, tokens, grid, shape, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask `[B, S, h, w]` and the bias per key `[B, S, N]` of tokens `[B·S, N, C]`."""
        head = self.spatial_mask_head
        with maybe_autocast(tokens.device.type, enabled=False):
            mask = head(tokens[:, self.num_special :].to(head.layers[0].weight.dtype), grid).unflatten(0, shape)
        return mask, F.pad(self.config.mask_scale * alpha * mask.flatten(2), (self.num_special, 0))


class Page4DModel(PreTrainedModel):
    """
    Cameras, depth, world points and (with `enable_track`) point tracks of the frames of a scene.

    Heads run in float32 whatever the precision of the trunk.
    """

    config: Page4DConfig
    config_class = Page4DConfig
    base_model_prefix = "page4d"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["VisionBlock", "GlobalBlock", "Dinov2WithRegistersLayer", "DPTHead", "TrackBlock"]
    _keep_in_fp32_modules_strict = ["camera_head", "depth_head", "point_head", "track_head", "spatial_mask_head"]

    def __init__(self, config: Page4DConfig):
        super().__init__(config)
        self.encoder = GeometryEncoder._from_config(config.encoder_config)
        self.aggregator = Page4DAggregator(config)
        self.multiview = Page4DMultiview(config)
        width = 2 * config.embed_dim

        def dense_head(output_dim: int) -> DPTHead:
            return DPTHead(
                width,
                output_dim,
                config.dpt_features,
                config.dpt_out_channels,
                config.patch_size,
                hidden_channels=config.dpt_hidden_channels,
                norm_eps=config.layer_norm_eps,
            )

        self.camera_head = CameraHead(config, width) if config.enable_camera else None
        self.depth_head = dense_head(2) if config.enable_depth else None
        self.point_head = dense_head(4) if config.enable_point else None
        self.track_head = TrackHead(config, width) if config.enable_track else None
        self.register_buffer("image_mean", self._pixel_constant(config.image_mean), persistent=False)
        self.register_buffer("image_std", self._pixel_constant(config.image_std), persistent=False)
        self.post_init()
        self.apply_freeze_policy()

    @staticmethod
    def _pixel_constant(values) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.float32).view(3, 1, 1)

    def _init_weights(self, module):
        """PyTorch's defaults, as the published model starts from; special tokens near zero."""
        init_layer_scale(module)
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            if module.weight is not None:
                init.ones_(module.weight)
                init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, Page4DAggregator):
            init.normal_(module.camera_token, std=1e-6)
            init.normal_(module.register_token, std=1e-6)
        elif isinstance(module, MultiviewSpatialMaskHead):
            init.constant_(module.alpha_logit, 0.0)
            init.constant_(module.tau_logit, math.log(2))
        elif isinstance(module, DynamicMaskHead) and not module.use_gating:
            init.constant_(module.alpha, self.config.alpha)
            init.constant_(module.beta, self.config.beta)
        elif isinstance(module, Page4DMultiview):
            for name, value in module.initial_scalars().items():
                init.constant_(getattr(module, name), value)
            if hasattr(module, "memory_tokens"):
                init.normal_(module.memory_tokens, std=0.02)
        elif isinstance(module, CameraHead):
            init.zeros_(module.empty_pose_tokens)
        elif isinstance(module, Tracker):
            init.normal_(module.query_ref_token)
        elif isinstance(module, UpdateTransformer):
            init.normal_(module.virtual_tracks)
        elif isinstance(module, Page4DModel):
            init.copy_(module.image_mean, self._pixel_constant(self.config.image_mean))
            init.copy_(module.image_std, self._pixel_constant(self.config.image_std))

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in [`PreTrainedModel`], which makes every loaded parameter trainable; `config.freeze` is applied again."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.apply_freeze_policy()
        return loaded

    def apply_freeze_policy(self) -> None:
        """
        Set which parameters train, by `config.freeze`: None all, "page4d" those that the paper tunes, "multiview" what is
        new in the multi-view model.

        The paper tunes the frame and global blocks of the masked layers and the mask head. Everything else keeps VGGT's
        weights: encoder, special tokens, outer blocks, all heads. Of the multi-view model all that is not a copy trains, and
        the geometry stream's copies.
        """
        if self.config.freeze is None:
            return
        self.requires_grad_(False)
        if self.config.freeze == "multiview":
            for name, parameter in self.multiview.named_parameters():
                parameter.requires_grad_(not name.startswith(("pose_time_blocks.", "pose_view_blocks.")))
            return
        trunk = self.aggregator
        tuned = [
            blocks[layer] for blocks in (trunk.frame_blocks, trunk.global_blocks) for layer in self.config.masked_layers
        ]
        for module in (*tuned, trunk.spatial_mask_head):
            if module is not None:
                module.requires_grad_(True)

    def encode_frames(self, pixel_values: torch.FloatTensor) -> torch.Tensor:
        """Patch tokens `[B, S, h·w, C]` of frames `[B, S, 3, H, W]` in [0, 1], `config.encoder_chunk_size` at a time."""
        skip = 1 + self.config.encoder_config.num_register_tokens
        frozen = not any(parameter.requires_grad for parameter in self.encoder.parameters())

        def encode(frames):
            frames = frames.to(torch.promote_types(frames.dtype, torch.float32))
            frames = (frames - self.image_mean.to(frames.dtype)) / self.image_std.to(frames.dtype)
            return self.encoder(frames).last_hidden_state[:, skip:]

        with torch.set_grad_enabled(torch.is_grad_enabled() and (not frozen or pixel_values.requires_grad)):
            tokens = in_chunks(encode, pixel_values.flatten(0, 1), chunk_size=self.config.encoder_chunk_size)
        return tokens.unflatten(0, pixel_values.shape[:2])

    def copy_trunk_to_streams(self) -> None:
        """
        Let the blocks of both streams and of the sparse layers start as copies of the trunk's, as conversion does.

        With strengths of 0 the streams then equal the trunk. For a trunk without them that was loaded into a configuration with
        them.
        """
        trunk, new = self.aggregator, self.multiview
        pairs = []
        if self.config.enable_dual_stream:
            for place, layer in enumerate(self.config.dual_stream_layers):
                for stream in ("pose", "geo"):
                    pairs.append((getattr(new, f"{stream}_time_blocks")[place], trunk.frame_blocks[layer]))
                    pairs.append((getattr(new, f"{stream}_view_blocks")[place], trunk.global_blocks[layer]))
        if self.config.enable_sparse_global:
            pairs += zip(new.global_sparse_blocks, (trunk.global_blocks[i] for i in self.config.sparse_global_layers))
        for block, original in pairs:
            block.load_state_dict(original.state_dict())

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        query_points: torch.FloatTensor | None = None,
        mask_alpha: float | None = None,
        depths: torch.FloatTensor | None = None,
        extrinsics: torch.FloatTensor | None = None,
        intrinsics: torch.FloatTensor | None = None,
        world_points: torch.FloatTensor | None = None,
        point_masks: torch.BoolTensor | None = None,
        ext_mask: torch.FloatTensor | None = None,
        keypoint_map: torch.FloatTensor | None = None,
        confidence: torch.FloatTensor | None = None,
        memory_state: torch.FloatTensor | tuple[torch.FloatTensor, torch.FloatTensor] | None = None,
        mask_labels: torch.FloatTensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> Page4DOutput:
        r"""
        Args:
            pixel_values: `[B, S, 3, H, W]`, or `[S, 3, H, W]` for one scene: RGB, normally in [0, 1]; H and W are multiples
                of the patch size. The first frame is the reference of all coordinates. Or `[B, T, V, 3, H, W]`: T times of V
                synchronised cameras; the shapes below then have `T, V` for `S`.
            query_points: `[B, Q, 2]` or `[Q, 2]`, (x, y) in pixels of the first frame, to be tracked.
            mask_alpha: strength of the dynamics-aware mask, 0…1, instead of `config.mask_alpha`.
            depths: `[B, S, H, W]` true depths, for the loss; needs `extrinsics` and `intrinsics`.
            extrinsics: `[B, S, 3, 4]` or `[B, S, 4, 4]` true camera-from-world transforms.
            intrinsics: `[B, S, 3, 3]` true intrinsics in pixels.
            world_points: `[B, S, H, W, 3]` true points in the frame of `extrinsics`; default: from depth and cameras.
            point_masks: `[B, S, H, W]` where depth and points are known; default: positive finite depths. Samples whose first
                frame has at most 100 valid pixels do not train the cameras.
            ext_mask: several views: what moves according to somebody else, 1 = dynamic; pixels `[B, T, V, H, W]` or
                `[B, T, V, 1, H, W]`, or patches `[B, T, V, P, 1]` or `[B, T, V, P]`.
            keypoint_map: several views: `[B, T, V, P]` or `[B, T, V, P, 1]`, draws the attention of sparse layers.
            confidence: several views: `[B, T, V, P]`, chooses the landmarks instead of the norm of the tokens.
            memory_state: several views: of the window before.
            mask_labels: several views: true dynamic masks in the forms of `ext_mask`, for the loss.
            output_hidden_states: also return every layer's tokens; default `config.output_hidden_states`.
        """
        config = self.config
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = getattr(config, "return_dict", True) if return_dict is None else return_dict
        mask_alpha = config.mask_alpha if mask_alpha is None else mask_alpha
        pixel_values, grid = self._check_pixels(pixel_values)
        given = {
            "ext_mask": ext_mask,
            "keypoint_map": keypoint_map,
            "confidence": confidence,
            "memory_state": memory_state,
            "mask_labels": mask_labels,
        }
        if pixel_values.ndim == 6:
            targets = (depths, extrinsics, intrinsics, world_points, point_masks)
            outputs = self._forward_multiview(
                pixel_values, grid, given, targets, query_points, bool(output_hidden_states)
            )
            return outputs if return_dict else outputs.to_tuple()
        if unfit := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"`{unfit[0]}` goes with images [B, T, V, 3, H, W]; `pixel_values` are one video.")
        query_points = self._check_queries(query_points, len(pixel_values))
        self._check_alpha(mask_alpha)
        targets = self._check_targets(pixel_values, depths, extrinsics, intrinsics, world_points, point_masks)

        tokens = self.aggregator(self.encode_frames(pixel_values), grid, mask_alpha, bool(output_hidden_states))
        outputs = self.run_heads(tokens, pixel_values.shape, query_points)
        if targets is not None:
            with maybe_autocast(pixel_values.device.type, enabled=False):
                losses = page4d_losses(outputs, targets, config)
            outputs.loss, outputs.losses = losses.pop("loss"), losses
        return outputs if return_dict else outputs.to_tuple()

    def _forward_multiview(
        self, pixel_values, grid, given, targets, query_points, output_hidden_states
    ) -> Page4DOutput:
        """[`forward`] of images `[B, T, V, 3, H, W]`; heads and geometric losses see T·V frames."""
        batch, times, views = pixel_values.shape[:3]
        flat = pixel_values.flatten(1, 2)
        if query_points is not None:
            raise ValueError("`query_points` are tracked through one video; pass `pixel_values` [B, S, 3, H, W].")
        depths, extrinsics, intrinsics, *others = (
            x.flatten(1, 2) if isinstance(x, torch.Tensor) and x.shape[:3] == (batch, times, views) else x
            for x in targets
        )
        known = extrinsics is not None and intrinsics is not None
        if depths is None and known and all(x is None for x in others):  # cameras alone are no targets
            check_cameras(extrinsics, intrinsics)
            targets = None
        else:
            targets = self._check_targets(flat, depths, extrinsics, intrinsics, *others)
        cameras = (
            (x.view(batch, times, views, *x.shape[2:]) for x in (intrinsics, extrinsics)) if known else (None, None)
        )
        labels = given["mask_labels"]
        if labels is not None:
            labels = pool_mask(labels, (batch, times, views), grid, self.config.patch_size, "mask_labels")
            if self.multiview.dynamic_mask_head is None:
                raise ValueError(
                    "`mask_labels` train the dynamic mask head, but `config.enable_dynamic_mask` is False."
                )
        inputs = MultiviewInputs(
            given["ext_mask"],
            self._check_patches("keypoint_map", given["keypoint_map"], (batch, times, views), grid),
            self._check_patches("confidence", given["confidence"], (batch, times, views), grid),
            *cameras,
            memory=self._check_memory(given["memory_state"], batch),
        )
        patches = self.encode_frames(flat).unflatten(1, (times, views))
        train = targets is not None or labels is not None
        tokens = self.multiview(self.aggregator, patches, grid, inputs, output_hidden_states, keep_last=train)
        outputs = self.run_heads(AggregatedTokens(tokens.camera_tokens, tokens.patch_tokens), flat.shape)
        outputs.dynamic_mask, outputs.dynamic_mask_logit = tokens.dynamic_mask, tokens.dynamic_mask_logit
        outputs.memory_state, outputs.dual_stream_outputs = tokens.memory, tokens.streams
        outputs.hidden_states = tokens.streams["geo"] if output_hidden_states else None
        if train:
            with maybe_autocast(pixel_values.device.type, enabled=False):
                losses = multiview_losses(outputs, targets, labels, tokens.last, self.config)
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

    def run_heads(self, tokens: AggregatedTokens, shape, query_points: torch.Tensor | None = None) -> Page4DOutput:
        """
        Everything that is read off the trunk, in float32.

        Args:
            tokens: of the aggregator. shape: of the images, `[B, S, 3, H, W]`.
        """
        batch, frames, _, height, width = shape
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        outputs = Page4DOutput(mask_bias=tokens.mask_bias, hidden_states=tokens.hidden_states)
        if tokens.mask_bias is not None:
            is_one_sided = self.config.spatial_mask_variant == "mv"
            outputs.dynamic_mask = -2 * tokens.mask_bias if is_one_sided else 0.5 - tokens.mask_bias
        with maybe_autocast(tokens.camera_tokens.device.type, enabled=False):
            if self.camera_head is not None:
                estimates = self.camera_head(tokens.camera_tokens.to(self.camera_head.token_norm.weight.dtype))
                outputs.pose_enc, outputs.pose_enc_list = estimates[-1], tuple(estimates)
                if self.config.pose_encoding_type == "R9D_t":
                    outputs.extrinsics = decode_matrix_pose(outputs.pose_enc)
                else:
                    outputs.extrinsics, outputs.intrinsics = decode_pose(outputs.pose_enc, (height, width))
            if self.depth_head is not None:
                outputs.depth, outputs.depth_conf = self._dense(
                    self.depth_head, tokens, grid, self.config.depth_activation, (batch, frames)
                )
            if self.point_head is not None:
                outputs.world_points, outputs.world_points_conf = self._dense(
                    self.point_head, tokens, grid, self.config.point_activation, (batch, frames)
                )
            if query_points is not None:
                self._track(outputs, tokens, grid, query_points, (batch, frames))
        return outputs

    def _dense(
        self, head: DPTHead, tokens: AggregatedTokens, grid, activation: str, shape
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Values `[B, S, H, W, C]` and confidences `[B, S, H, W]` of a dense head, a few frames at a time."""

        def run(layers):
            return activate_dense(head(layers.unbind(1), grid), activation, self.config.confidence_activation)

        values, confidence = in_chunks(run, tokens.patch_tokens, chunk_size=self.config.head_chunk_size)
        return values.unflatten(0, shape), confidence.unflatten(0, shape)

    def _track(self, outputs: Page4DOutput, tokens: AggregatedTokens, grid, query_points: torch.Tensor, shape) -> None:
        extractor = self.track_head.feature_extractor
        maps = in_chunks(
            lambda layers: extractor(layers.unbind(1), grid),
            tokens.patch_tokens,
            chunk_size=self.config.head_chunk_size,
        )
        tracks, visibility, confidence = self.track_head.tracker(query_points, maps.unflatten(0, shape))
        outputs.tracks, outputs.tracks_list = tracks[-1], tuple(tracks)
        outputs.track_visibility, outputs.track_confidence = visibility.sigmoid(), confidence.sigmoid()

    # ---- input checks --------------------------------------------------------------------

    def _check_pixels(self, pixel_values) -> tuple[torch.Tensor, tuple[int, int]]:
        if not isinstance(pixel_values, torch.Tensor):
            raise ValueError(
                f"`pixel_values` must be one tensor [B, S, 3, H, W], got {type(pixel_values).__name__}. Frames of different "
                "sizes do not stack; GeometryProcessor brings them to one size."
            )
        if pixel_values.ndim == 4:
            pixel_values = pixel_values.unsqueeze(0)
        if pixel_values.ndim not in (5, 6) or pixel_values.shape[-3] != 3 or 0 in pixel_values.shape:
            raise ValueError(
                "`pixel_values` must be [B, S, 3, H, W], [S, 3, H, W] or, of synchronised cameras, [B, T, V, 3, H, W], with at "
                f"least one frame, got {tuple(pixel_values.shape)}."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"`pixel_values` must be floating point in [0, 1], got {pixel_values.dtype}. Divide 8-bit images by 255."
            )
        patch = self.config.patch_size
        height, width = pixel_values.shape[-2:]
        if height % patch or width % patch:
            chosen = page4d_image_size(width, height, self.config.img_size, patch)
            raise ValueError(
                f"`pixel_values` are {height}×{width} (height × width), but both sides must be multiples of {patch}. "
                f"GeometryProcessor would choose {min(chosen[1], self.config.img_size)}×{chosen[0]} for them."
            )
        return pixel_values, (height // patch, width // patch)

    @staticmethod
    def _check_patches(name: str, value, images: tuple[int, int, int], grid) -> torch.Tensor | None:
        """`[B, T, V, P]` of a value per patch."""
        if value is None:
            return None
        shape = (*images, grid[0] * grid[1])
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise ValueError(
                f"`{name}` must be a tensor of floating-point numbers {list(shape)}, got {type(value).__name__}."
            )
        if tuple(value.shape) not in (shape, (*shape, 1)):
            raise ValueError(f"`{name}` must hold one value per patch, {list(shape)}, got {list(value.shape)}.")
        return value.reshape(shape)

    def _check_memory(self, memory, batch: int):
        config = self.config
        if memory is None:
            return None
        if not config.enable_sparse_global or config.sparse_strategy != "memory_bank":
            raise ValueError('`memory_state` belongs to `sparse_strategy="memory_bank"` with `enable_sparse_global`.')
        pair = isinstance(memory, (tuple, list))
        shape = (batch, config.memory_tokens_num, config.embed_dim)
        found = [tuple(x.shape) for x in (memory if pair else [memory])]
        if pair != config.enable_dual_stream or found != [shape] * (2 if pair else 1):
            wanted = f"a pair (pose, geometry) of {list(shape)}" if config.enable_dual_stream else str(list(shape))
            raise ValueError(f"`memory_state` must be {wanted}, got {found}: pass what the window before returned.")
        return memory

    def _check_queries(self, query_points, batch: int):
        if query_points is None:
            return None
        if self.track_head is None:
            raise ValueError(
                "`query_points` need a track head, but `config.enable_track` is False. Load weights that have one."
            )
        if query_points.ndim == 2:
            query_points = query_points.unsqueeze(0).expand(batch, -1, -1)
        if (
            query_points.ndim != 3
            or query_points.shape[-1] != 2
            or len(query_points) != batch
            or not query_points.shape[1]
        ):
            raise ValueError(
                f"`query_points` must be [{batch}, Q, 2] or [Q, 2] (x, y), got {tuple(query_points.shape)}."
            )
        return query_points

    def _check_alpha(self, mask_alpha) -> None:
        if isinstance(mask_alpha, torch.Tensor) or not 0 <= mask_alpha <= 1:
            raise ValueError(f"`mask_alpha` must be a number in 0…1, got {mask_alpha!r}.")
        if mask_alpha > 0 and self.aggregator.spatial_mask_head is None:
            raise ValueError(
                "`mask_alpha` > 0 needs a mask head, but `config.spatial_mask_variant` is None (VGGT weights)."
            )

    def _check_targets(self, pixel_values, depths, extrinsics, intrinsics, world_points, point_masks):
        given = {
            "depths": depths,
            "extrinsics": extrinsics,
            "intrinsics": intrinsics,
            "world_points": world_points,
            "point_masks": point_masks,
        }
        if all(value is None for value in given.values()):
            return None
        batch, frames, _, height, width = pixel_values.shape
        missing = [name for name in ("depths", "extrinsics", "intrinsics") if given[name] is None]
        if missing:
            raise ValueError(
                f"The loss needs `depths`, `extrinsics` and `intrinsics` together; `{missing[0]}` is missing."
            )
        shapes = {
            "depths": [(height, width)],
            "extrinsics": [(3, 4), (4, 4)],
            "intrinsics": [(3, 3)],
            "world_points": [(height, width, 3)],
            "point_masks": [(height, width)],
        }
        for name, value in given.items():
            if value is None:
                continue
            if value.ndim == 2 + len(shapes[name][0]) - 1:  # one scene without the axis of scenes
                given[name] = value = value.unsqueeze(0)
            allowed = [(batch, frames, *shape) for shape in shapes[name]]
            if tuple(value.shape) not in allowed:
                raise ValueError(
                    f"`{name}` must be {list(allowed[0])} to match `pixel_values`, got {list(value.shape)}."
                )
        check_cameras(given["extrinsics"], given["intrinsics"])
        return scene_targets(**given)


Page4DModel.register_for_auto_class("AutoModel")
