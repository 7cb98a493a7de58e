"""Configuration of PAGE-4D, for videos and for synchronised views."""

from __future__ import annotations

import warnings

from huggingface_hub.dataclasses import strict
from transformers import Dinov2WithRegistersConfig, PreTrainedConfig

from .configuration_pi3 import pi3_encoder_config
from .configuration_shared import default_auto_map, default_pipeline

DENSE_ACTIVATIONS = ("exp", "inv_log", "norm_exp", "norm", "xy_inv_log", "relu", "sigmoid", "linear")
CONFIDENCE_ACTIVATIONS = ("expp1", "expp0", "sigmoid")
SPATIAL_MASK_VARIANTS = (None, "page4d", "mv")
PAGE4D_FREEZE_POLICIES = (None, "page4d", "multiview")
AXIS_SYNONYMS = {"global": "view", "frame": "time"}
SPARSE_STRATEGIES = ("landmark", "dilated", "memory_bank")


@strict
class Page4DConfig(PreTrainedConfig):
    r"""
    Configuration of [`Page4DModel`]: cameras, depth and points of dynamic scenes (arXiv 2510.17568), on the layout of
    VGGT-1B.

    Args:
        encoder_config (`dict` or `Dinov2WithRegistersConfig`, *optional*):
            Image encoder. Default: DINOv2 ViT-L/14 with four registers and a 37×37 position table.
        patch_size (`int`, *optional*, defaults to 14):
            Side of a patch in pixels; the encoder's.
        img_size (`int`, *optional*, defaults to 518):
            Width that images are resized to, and side of the grid of the encoder's position table in pixels.
        embed_dim (`int`, *optional*, defaults to 1024):
            Width of the tokens; the heads read twice as much.
        depth (`int`, *optional*, defaults to 24):
            Layers, each a block inside the frames and a block over all frames.
        num_heads, mlp_ratio:
            Of those blocks.
        num_register_tokens (`int`, *optional*, defaults to 4):
            Register tokens per frame, beside one camera token. The encoder has registers of its own.
        rope_freq (`float`, *optional*, defaults to 100.0):
            Base of the rotary positions.
        layer_norm_eps, modulated_norm_eps:
            Epsilon of the layer norms, and of the modulated norm of the camera head.
        layer_scale_init (`float`, *optional*, defaults to 0.01):
            Initial LayerScale of the blocks.
        spatial_mask_variant (`str` or `None`, *optional*, defaults to `"page4d"`):
            Layout of the spatial mask head in the weights: `"page4d"` has six tensors, `"mv"` (the multi-view
            project's) eight. `None`: there is none (VGGT-1B).
        mask_alpha (`float`, *optional*, defaults to 0.0):
            Strength of the mask, 0…1. The two published variants: 0 for the "non-mask" checkpoint, whose mask was faded
            out in training, and 1 for the "mask" checkpoint.
        mask_layer (`int`, *optional*, defaults to 9):
            The mask is computed from the output of this frame block.
        masked_layers (`list[int]`, *optional*, defaults to 10…19):
            Global blocks whose special tokens see patches through the mask.
        mask_scale (`float`, *optional*, defaults to 64.0):
            Logits that a mask value of 1 adds at full strength.
        mask_hidden_channels (`int`, *optional*, defaults to 256):
            Width inside the mask head.
        enable_camera, enable_depth, enable_point, enable_track (`bool`):
            Which heads exist. Weights of PAGE-4D's training have no track head, VGGT-1B has one.
        camera_depth, camera_num_heads, camera_mlp_ratio, camera_iterations:
            Transformer of the camera head and the number of refinements.
        pose_encoding_type (`str`, *optional*, defaults to `"absT_quaR_FoV"`):
            What the camera head says: translation, quaternion and field of view (9 numbers), or with `"R9D_t"` a raw
            3×3 matrix and a translation (12 numbers, no field of view).
        camera_trunk_scope (`str`, *optional*, defaults to `"sequence"`):
            Whether its transformer sees all cameras of a sample, or with `"frame"` one at a time.
        aa_order (`list[str]`, *optional*, defaults to `["view", "time"]`):
            Order of the two attentions of a layer for images `[B, T, V, …]`; "global" and "frame" are other names of
            them. A video `[B, S, …]` always takes frame first, then global.
        special_token_pos (`int`, *optional*, defaults to 0):
            Rotary position of camera and register tokens of images `[B, T, V, …]`, 0 or 1.
        time_pos (`str`, *optional*, defaults to `"rope"`):
            Relative time between images `[B, T, V, …]`: "none", "rope" or "alibi". Converted weights have "none".
        time_rope_base (`float`, *optional*, defaults to 10000.0):
            Base of the rotary times.
        enable_dual_stream (`bool`, *optional*, defaults to `False`):
            From the first of `dual_stream_layers` on a pose stream, which the camera head reads, and a geometry stream,
            which the dense heads read. In those layers each has blocks of its own and is biased by the dynamic mask.
        dual_stream_layers (`list[int]`, *optional*, defaults to 8…12):
            Those layers.
        enable_dynamic_mask (`bool`, *optional*):
            Whether there is a dynamic mask head. Default: with two streams or sparse attention.
        dynamic_mask_layer (`int`, *optional*):
            Its input is the input of this layer. Default: the first of `dual_stream_layers`.
        use_gating (`bool`, *optional*, defaults to `False`):
            Weights of own and external mask from each image, instead of two learned numbers.
        mask_standardize (`bool`, *optional*, defaults to `False`):
            Standardise both masks over each image first.
        detach_mask_input (`bool`, *optional*, defaults to `True`):
            No gradient from the dynamic or spatial mask into the trunk.
        alpha, beta (`float`, *optional*, default to 1.0):
            Initial weights of own and external mask.
        lambda_pose, lambda_geo, lambda_pose_t, lambda_geo_t (`float`, *optional*, default to 0.0):
            Initial strengths of the mask in the attention over views, and over times (`_t`): the pose stream is kept
            from what moves, the geometry stream drawn to it.
        lambda_clamp_value (`float`, *optional*, defaults to 4.0):
            Bound of those strengths.
        enable_sparse_global (`bool`, *optional*, defaults to `False`):
            Attention over all images at the end of `sparse_global_layers`.
        sparse_global_layers (`list[int]`, *optional*):
            Counted from 0; a list that names layer `depth` is taken as counted from 1. Default: the last two.
        sparse_strategy (`str`, *optional*, defaults to `"landmark"`):
            Who sees whom: "landmark" (the best tokens of each image), "dilated" (images some steps away;
            "block_dilated" is the same) or "memory_bank" (learned tokens, which carry over to the next window).
        landmark_k (`int`, *optional*, defaults to 64):
            Landmarks per image. landmark_mutual (`bool`, *optional*, defaults to `True`): they see everything
            themselves.
        dilated_levels (`list[int]`, *optional*, defaults to `[1, 2, 4]`):
            Steps in time and view.
        memory_tokens_num (`int`, *optional*, defaults to 32):
            Tokens of the memory.
        lambda_kpt (`float`, *optional*, defaults to 0.0):
            Initial attraction of keypoints in sparse layers of the geometry stream.
        lambda_kpt_pose (`float`, *optional*, defaults to 0.0):
            Fixed suppression of keypoints there in the pose stream.
        enable_epipolar (`bool`, *optional*, defaults to `False`):
            Where cameras are given, patches of two views of one time further than `epipolar_band` (pixels, default 10)
            from each other's epipolar line lose `epipolar_penalty` (default 3) logits.
        dpt_layers (`list[int]`, *optional*, defaults to `[4, 11, 17, 23]`):
            Layers that the dense heads read.
        dpt_features, dpt_out_channels, dpt_hidden_channels:
            Widths of the dense heads.
        depth_activation, point_activation (`str`):
            One of "exp", "inv_log", "norm_exp", "norm", "xy_inv_log", "relu", "sigmoid", "linear".
        confidence_activation (`str`, *optional*, defaults to `"expp1"`):
            "expp1" (1 + exp), "expp0" (exp) or "sigmoid".
        track_features, track_out_channels, track_stride, track_hidden_size, track_depth, track_num_heads,
        track_mlp_ratio, track_num_virtual, track_correlation_levels, track_correlation_radius, track_max_scale,
        track_iterations:
            The track head.
        image_mean, image_std (`list[float]`):
            Normalisation of the images, which happens inside the model.
        encoder_chunk_size, head_chunk_size (`int`, *optional*, default to 8 and 4):
            Frames that pass the encoder, and the dense heads, at a time. Peak memory grows with them, results do not
            depend on them.
        trunk_chunk_size (`int`, *optional*, defaults to 8):
            Frames whose tokens pass a frame block or an MLP at a time, without gradients. 0 means all.
        freeze (`str` or `None`, *optional*):
            What does not train. `"page4d"`: the paper's policy, where frame and global blocks of `masked_layers` and
            the mask head train and all else is fixed. `"multiview"`: the geometry stream's blocks and everything new
            train (dynamic mask head, strengths, sparse blocks, memory); encoder, trunk, copied pose blocks and heads
            stay. `None`: everything trains.
        camera_loss_weight, depth_loss_weight, point_loss_weight, camera_loss_type, camera_stage_decay,
        camera_fov_weight, depth_loss_gamma, depth_loss_alpha, point_loss_gamma, point_loss_alpha, depth_gradient_loss,
        point_gradient_loss, loss_valid_range:
            The training loss, see `page4d_losses`.
        mask_loss_weight, consistency_loss_weight, separation_loss_weight (`float`, default to 0.5, 1.0 and 0.1):
            Of the mask, and of the other multi-view terms, see `video_losses` and `multiview_losses`.
    """

    model_type = "page4d"
    sub_configs = {"encoder_config": Dinov2WithRegistersConfig}
    attribute_map = {"hidden_size": "embed_dim", "num_hidden_layers": "depth", "num_attention_heads": "num_heads"}

    encoder_config: dict | PreTrainedConfig | None = None
    patch_size: int = 14
    img_size: int = 518
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float | int = 4.0
    num_register_tokens: int = 4
    rope_freq: float | int = 100.0
    layer_norm_eps: float = 1e-5
    modulated_norm_eps: float = 1e-6
    layer_scale_init: float = 0.01
    spatial_mask_variant: str | None = "page4d"
    mask_alpha: float | int = 0.0
    mask_layer: int = 9
    masked_layers: list[int] | tuple[int, ...] = (10, 11, 12, 13, 14, 15, 16, 17, 18, 19)
    mask_scale: float | int = 64.0
    mask_hidden_channels: int = 256
    enable_camera: bool = True
    enable_depth: bool = True
    enable_point: bool = True
    enable_track: bool = False
    camera_depth: int = 4
    camera_num_heads: int = 16
    camera_mlp_ratio: float | int = 4.0
    camera_iterations: int = 4
    pose_encoding_type: str = "absT_quaR_FoV"
    camera_trunk_scope: str = "sequence"
    aa_order: list[str] | tuple[str, ...] = ("view", "time")
    special_token_pos: int = 0
    time_pos: str = "rope"
    time_rope_base: float | int = 10000.0
    enable_dual_stream: bool = False
    dual_stream_layers: list[int] | tuple[int, ...] = (8, 9, 10, 11, 12)
    enable_dynamic_mask: bool | None = None
    dynamic_mask_layer: int | None = None
    use_gating: bool = False
    mask_standardize: bool = False
    detach_mask_input: bool = True
    alpha: float | int = 1.0
    beta: float | int = 1.0
    lambda_pose: float | int = 0.0
    lambda_geo: float | int = 0.0
    lambda_pose_t: float | int = 0.0
    lambda_geo_t: float | int = 0.0
    lambda_clamp_value: float | int = 4.0
    enable_sparse_global: bool = False
    sparse_global_layers: list[int] | tuple[int, ...] | None = None
    sparse_strategy: str = "landmark"
    landmark_k: int = 64
    landmark_mutual: bool = True
    dilated_levels: list[int] | tuple[int, ...] = (1, 2, 4)
    memory_tokens_num: int = 32
    lambda_kpt: float | int = 0.0
    lambda_kpt_pose: float | int = 0.0
    enable_epipolar: bool = False
    epipolar_band: float | int = 10.0
    epipolar_penalty: float | int = 3.0
    dpt_layers: list[int] | tuple[int, ...] = (4, 11, 17, 23)
    dpt_features: int = 256
    dpt_out_channels: list[int] | tuple[int, ...] = (256, 512, 1024, 1024)
    dpt_hidden_channels: int = 32
    depth_activation: str = "exp"
    point_activation: str = "inv_log"
    confidence_activation: str = "expp1"
    track_features: int = 128
    track_out_channels: list[int] | tuple[int, ...] = (256, 512, 1024, 1024)
    track_stride: int = 2
    track_hidden_size: int = 384
    track_depth: int = 6
    track_num_heads: int = 8
    track_mlp_ratio: float | int = 4.0
    track_num_virtual: int = 64
    track_correlation_levels: int = 7
    track_correlation_radius: int = 4
    track_max_scale: float | int = 518
    track_iterations: int = 4
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    encoder_chunk_size: int = 8
    trunk_chunk_size: int = 8
    head_chunk_size: int = 4
    freeze: str | None = None
    camera_loss_weight: float | int = 5.0
    depth_loss_weight: float | int = 1.0
    point_loss_weight: float | int = 1.0
    camera_loss_type: str = "l1"
    camera_stage_decay: float = 0.6
    camera_fov_weight: float = 0.5
    depth_loss_gamma: float | int = 0.3
    depth_loss_alpha: float | int = 0.06
    point_loss_gamma: float | int = 1.0
    point_loss_alpha: float | int = 0.2
    depth_gradient_loss: str | None = "grad"
    point_gradient_loss: str | None = "normal"
    loss_valid_range: float | int = 0.98
    mask_loss_weight: float | int = 0.5
    consistency_loss_weight: float | int = 1.0
    separation_loss_weight: float | int = 0.1

    @property
    def is_multiview(self) -> bool:
        """Whether the model was made for synchronised cameras: it has parts that a video alone never uses."""
        return bool(
            self.enable_dual_stream or self.enable_dynamic_mask or self.enable_sparse_global or self.enable_epipolar
        )

    def __post_init__(self, **kwargs):
        encoder = self.encoder_config if isinstance(self.encoder_config, dict) else {}
        if self.encoder_config is None or isinstance(self.encoder_config, dict):
            # The same encoder as π³'s.
            sizes = dict(hidden_size=self.embed_dim, image_size=self.img_size, patch_size=self.patch_size)
            self.encoder_config = pi3_encoder_config(**{**sizes, **encoder})
        self._resolve_multiview()
        for name, found, allowed in (
            ("spatial_mask_variant", self.spatial_mask_variant, SPATIAL_MASK_VARIANTS),
            ("freeze", self.freeze, PAGE4D_FREEZE_POLICIES),
            ("pose_encoding_type", self.pose_encoding_type, ("absT_quaR_FoV", "R9D_t")),
            ("camera_trunk_scope", self.camera_trunk_scope, ("sequence", "frame")),
            ("time_pos", self.time_pos, ("none", "rope", "alibi")),
            ("special_token_pos", self.special_token_pos, (0, 1)),
            ("sparse_strategy", self.sparse_strategy, SPARSE_STRATEGIES),
            ("depth_activation", self.depth_activation, DENSE_ACTIVATIONS),
            ("point_activation", self.point_activation, DENSE_ACTIVATIONS),
            ("confidence_activation", self.confidence_activation, CONFIDENCE_ACTIVATIONS),
            ("camera_loss_type", self.camera_loss_type, ("l1", "l2")),
            ("depth_gradient_loss", self.depth_gradient_loss, (None, "grad", "grad_conf", "normal", "normal_conf")),
            ("point_gradient_loss", self.point_gradient_loss, (None, "grad", "grad_conf", "normal", "normal_conf")),
        ):
            if found not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, got {found!r}.")
        if not 0 <= self.mask_alpha <= 1:
            raise ValueError(f"`mask_alpha` must lie in 0…1, got {self.mask_alpha}.")
        if self.mask_alpha > 0 and self.spatial_mask_variant is None:
            raise ValueError("`mask_alpha` > 0 needs a mask head, but `spatial_mask_variant` is None.")
        for name, layers, used in (
            ("dpt_layers", self.dpt_layers, True),
            ("masked_layers", self.masked_layers, self.spatial_mask_variant is not None),
            ("mask_layer", [self.mask_layer], self.spatial_mask_variant is not None),
            ("dual_stream_layers", self.dual_stream_layers, self.enable_dual_stream),
            ("dynamic_mask_layer", [self.dynamic_mask_layer], self.enable_dynamic_mask),
            ("sparse_global_layers", self.sparse_global_layers, self.enable_sparse_global),
        ):
            wrong = [layer for layer in layers if used and not 0 <= layer < self.depth]
            if wrong:
                raise ValueError(
                    f"`{name}` names layer {wrong[0]}, but `depth` is {self.depth}: layers are 0…{self.depth - 1}."
                )
        if len(self.dpt_layers) != 4 or list(self.dpt_layers) != sorted(self.dpt_layers):
            raise ValueError(f"`dpt_layers` must be four layers in increasing order, got {list(self.dpt_layers)}.")
        if self.spatial_mask_variant is not None and any(layer < self.mask_layer for layer in self.masked_layers):
            raise ValueError(
                f"`masked_layers` {list(self.masked_layers)} begin before `mask_layer` {self.mask_layer}, where the "
                "mask is made."
            )
        for name in ("encoder_chunk_size", "head_chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.trunk_chunk_size < 0:
            raise ValueError(f"`trunk_chunk_size` must be 0 (all) or positive, got {self.trunk_chunk_size}.")
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(
                f"`embed_dim` {self.embed_dim} must be a multiple of 4·`num_heads` = {4 * self.num_heads} (rotary "
                "positions)."
            )
        if self.encoder_config.hidden_size != self.embed_dim or self.encoder_config.patch_size != self.patch_size:
            raise ValueError(
                f"`encoder_config` has hidden_size {self.encoder_config.hidden_size} and patch_size "
                f"{self.encoder_config.patch_size}; `embed_dim` {self.embed_dim} and `patch_size` {self.patch_size} "
                "must equal them."
            )
        super().__post_init__(**kwargs)
        default_auto_map(
            self,
            {"AutoConfig": "configuration_page4d.Page4DConfig", "AutoModel": "modeling_page4d.Page4DModel"},
        )
        default_pipeline(self, "scene-reconstruction", "geometry_pipeline.SceneReconstructionPipeline", "AutoModel")

    def _resolve_multiview(self) -> None:
        """Synonyms, defaults that follow from other fields, and the errors that only these fields can have."""
        self.sparse_strategy = "dilated" if self.sparse_strategy == "block_dilated" else self.sparse_strategy
        self.aa_order = [AXIS_SYNONYMS.get(axis, axis) for axis in self.aa_order]
        if sorted(self.aa_order) != ["time", "view"]:
            raise ValueError(f"`aa_order` must name view and time once each, in any order, got {self.aa_order}.")
        if self.sparse_global_layers is None:
            self.sparse_global_layers = list(range(max(self.depth - 2, 0), self.depth))
        elif self.depth in self.sparse_global_layers:
            counted = [layer - 1 for layer in self.sparse_global_layers]
            warnings.warn(
                f"`sparse_global_layers` {list(self.sparse_global_layers)} names layer {self.depth} of {self.depth}: "
                f"taken as counted from 1, that is {counted} counted from 0.",
                stacklevel=2,
            )
            self.sparse_global_layers = counted
        for name in ("dual_stream_layers", "sparse_global_layers", "dilated_levels"):
            values = list(getattr(self, name))
            if not values or values != sorted(set(values)):
                raise ValueError(f"`{name}` must be increasing numbers, at least one, got {values}.")
            setattr(self, name, values)
        if self.enable_dynamic_mask is None:
            self.enable_dynamic_mask = self.enable_dual_stream or self.enable_sparse_global
        if self.dynamic_mask_layer is None:
            self.dynamic_mask_layer = min(self.dual_stream_layers[0], self.depth - 1)
        if (
            self.enable_dual_stream
            and self.enable_dynamic_mask
            and self.dynamic_mask_layer > self.dual_stream_layers[0]
        ):
            raise ValueError(
                f"`dynamic_mask_layer` {self.dynamic_mask_layer} comes after the first of `dual_stream_layers` "
                f"{self.dual_stream_layers}, which needs the mask."
            )
        for name in ("landmark_k", "memory_tokens_num", "lambda_clamp_value", "epipolar_band"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if self.dilated_levels[0] < 1:
            raise ValueError(f"`dilated_levels` must be steps of at least 1, got {self.dilated_levels}.")
        if self.freeze == "multiview" and not self.enable_dual_stream:
            raise ValueError('`freeze="multiview"` trains the geometry stream, which needs `enable_dual_stream`.')


Page4DConfig.register_for_auto_class()
