"""PAGE-4D (arXiv 2510.17568): cameras, depth and points of dynamic scenes from the frames of one video or scene.

Data flow, for B scenes of S frames, h·w patches each, N = 5 + h·w tokens per frame:

    pixel_values [B, S, 3, H, W] ─ encoder (DINOv2, each frame alone) ─ patch tokens [B, S, h·w, C]
      + camera and register tokens ─ 24 × (frame block [B·S, N, C], global block [B, S·N, C])
           after frame block 9: spatial mask ─ bias of the special tokens' attention in global blocks 10…19
      each layer's frame and global outputs side by side [B, S, N, 2C]:
           camera token of the last layer ─ camera head ─ pose_enc [B, S, 9]
           patches of layers 4, 11, 17, 23 ─ DPT heads ─ depth, world points, confidences [B, S, H, W, ·]

With mask strength 0 the network is VGGT. Only what the heads read is kept of the layers.

Synchronised cameras, `[B, T, V, 3, H, W]`: the global blocks attend over the views of each time, the frame blocks over
the times of each view, and everything that `page4d_multiview` adds can be switched on by the configuration.
"""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from .configuration_page4d import Page4DConfig
from .float_modules import for_quantizers
from .freezing import FreezePresets
from .geometry_encoder import GeometryEncoder
from .page4d_dpt import DPTHead, KeptLayers, activate_dense
from .page4d_dynamic_mask import DynamicMaskHead
from .page4d_heads import CameraHead, GlobalBlock, MultiviewSpatialMaskHead, SpatialMaskHead
from .page4d_inputs import check_alpha, check_mask_labels, check_pixels, check_queries, check_targets
from .page4d_losses import one_scene, video_losses
from .page4d_multiview import Page4DMultiview
from .page4d_multiview_forward import forward_multiview
from .page4d_outputs import AggregatedTokens, Page4DOutput
from .page4d_track_head import Tracker, TrackHead, UpdateTransformer
from .pose import decode_matrix_pose, decode_pose
from .scene_mean import mean_over_scenes
from .vision_blocks import VisionBlock, in_chunks, init_layer_scale
from .vision_rope import axial_rope_tables, patch_positions


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
            self.spatial_mask_head = SpatialMaskHead(dim, config.mask_hidden_channels, config.detach_mask_input)
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


class Page4DModel(FreezePresets, PreTrainedModel):
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
    _keep_in_fp32_modules = for_quantizers(_keep_in_fp32_modules_strict)

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
        self.freeze()

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

    @property
    def freeze_presets(self) -> dict[str, str]:
        """
        "page4d" trains what the paper tunes: the frame and global blocks of the masked layers and the mask head.
        Everything else keeps VGGT's weights: encoder, special tokens, outer blocks, all heads. "multiview" trains all
        of the multi-view model that is not a copy, and the geometry stream's copies. "all" trains everything.
        """
        layers = "|".join(map(str, self.config.masked_layers)) or "(?!)"
        return {
            "all": "",
            "page4d": rf"aggregator\.((frame|global)_blocks\.({layers})\.|spatial_mask_head\.)",
            "multiview": r"multiview\.(?!pose_(time|view)_blocks\.)",
        }

    def get_input_embeddings(self):
        """The patch projection: PEFT and quantisers ask every model for its first layer."""
        return self.encoder.embeddings.patch_embeddings.projection

    def idle_parameters(self) -> list[str]:
        """See [`FreezePresets`]. Tracks have no loss."""
        return [*super().idle_parameters(), r"track_head\..*"]

    def encode_frames(self, pixel_values: torch.FloatTensor) -> torch.Tensor:
        """Patch tokens `[B, S, h·w, C]` of frames `[B, S, 3, H, W]` in [0, 1], `config.encoder_chunk_size` at a
        time."""
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

        With strengths of 0 the streams then equal the trunk. For a trunk without them that was loaded into a
        configuration with them.
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
            pixel_values: `[B, S, 3, H, W]`, or `[S, 3, H, W]` for one scene: RGB, normally in [0, 1]; H and W are
                multiples of the patch size. The first frame is the reference of all coordinates. Or
                `[B, T, V, 3, H, W]`: T times of V synchronised cameras; the shapes below then have `T, V` for `S`.
            query_points: `[B, Q, 2]` or `[Q, 2]`, (x, y) in pixels of the first frame, to be tracked.
            mask_alpha: strength of the dynamics-aware mask, 0…1, instead of `config.mask_alpha`.
            depths: `[B, S, H, W]` true depths, for the loss; needs `extrinsics` and `intrinsics`.
            extrinsics: `[B, S, 3, 4]` or `[B, S, 4, 4]` true camera-from-world transforms.
            intrinsics: `[B, S, 3, 3]` true intrinsics in pixels.
            world_points: `[B, S, H, W, 3]` true points in the frame of `extrinsics`; default: from depth and cameras.
            point_masks: `[B, S, H, W]` where depth and points are known; default: positive finite depths. Samples whose
                first frame has at most 100 valid pixels do not train the cameras.
            ext_mask: several views: what moves according to somebody else, 1 = dynamic; pixels `[B, T, V, H, W]` or
                `[B, T, V, 1, H, W]`, or patches `[B, T, V, P, 1]` or `[B, T, V, P]`.
            keypoint_map: several views: `[B, T, V, P]` or `[B, T, V, P, 1]`, draws the attention of sparse layers.
            confidence: several views: `[B, T, V, P]`, chooses the landmarks instead of the norm of the tokens.
            memory_state: several views: of the window before.
            mask_labels: true dynamic masks in the forms of `ext_mask`, for the loss; of a video without the axis of
                views.
            output_hidden_states: also return every layer's tokens; default `config.output_hidden_states`.
        """
        config = self.config
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = getattr(config, "return_dict", True) if return_dict is None else return_dict
        mask_alpha = config.mask_alpha if mask_alpha is None else mask_alpha
        pixel_values, grid = check_pixels(pixel_values, config)
        given = {
            "ext_mask": ext_mask,
            "keypoint_map": keypoint_map,
            "confidence": confidence,
            "memory_state": memory_state,
            "mask_labels": mask_labels,
        }
        if pixel_values.ndim == 6:
            targets = (depths, extrinsics, intrinsics, world_points, point_masks)
            outputs = forward_multiview(
                self, pixel_values, grid, given, targets, query_points, bool(output_hidden_states)
            )
            return outputs if return_dict else outputs.to_tuple()
        labels = given.pop("mask_labels")
        if unfit := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"`{unfit[0]}` goes with images [B, T, V, 3, H, W]; `pixel_values` are one video.")
        query_points = check_queries(query_points, len(pixel_values), config)
        check_alpha(mask_alpha, config)
        targets = check_targets(pixel_values, depths, extrinsics, intrinsics, world_points, point_masks)
        labels = check_mask_labels(labels, pixel_values, grid, mask_alpha, config)

        tokens = self.aggregator(self.encode_frames(pixel_values), grid, mask_alpha, bool(output_hidden_states))
        outputs = self.run_heads(tokens, pixel_values.shape, query_points)
        if targets is not None or labels is not None:
            with maybe_autocast(pixel_values.device.type, enabled=False):
                losses = mean_over_scenes(
                    lambda i: video_losses(
                        one_scene(outputs, i),
                        None if targets is None else one_scene(targets, i),
                        None if labels is None else labels[i : i + 1],
                        config,
                    ),
                    len(pixel_values),
                )
            outputs.loss, outputs.losses = losses.pop("loss"), losses
        return outputs if return_dict else outputs.to_tuple()

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

    def as_pipeline(self, processor, **options):
        """This model and its processor as a [`SceneReconstructionPipeline`]. (`save_pretrained` copies what a model's
        file imports: its pipeline.)"""
        from .geometry_pipeline import SceneReconstructionPipeline

        return SceneReconstructionPipeline(model=self, processor=processor, **options)


Page4DModel.register_for_auto_class("AutoModel")
