"""Configurations of every model in the library.

This file is the same, byte for byte, in the source tree and in the Hub repository.
It imports transformers and the standard library alone.
"""

from __future__ import annotations

import math
import warnings

from huggingface_hub.dataclasses import strict
from transformers import (
    AutoConfig,
    Dinov2WithRegistersConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    SamConfig,
)
from transformers.models.auto import CONFIG_MAPPING


def _default_auto_map(config: PreTrainedConfig, auto_map: dict[str, str]) -> None:
    """Name the classes behind each Auto class in the saved config.

    `save_pretrained` alone records only the class that was saved; a repository saved from the generation model could
    then not be opened with `AutoModel`.
    """
    if getattr(config, "auto_map", None) is None:
        config.auto_map = dict(auto_map)


def _default_pipeline(config: PreTrainedConfig, task: str, implementation: str, auto_class: str) -> None:
    """Name the pipeline of `pipelines.py` that `transformers.pipeline(task, …)` finds for the model."""
    if getattr(config, "custom_pipelines", None) is None:
        config.custom_pipelines = {
            task: {"impl": f"pipelines.{implementation}", "pt": [auto_class], "type": "multimodal"}
        }


# --------------------------------------------------------------------------------------
# DSR
# --------------------------------------------------------------------------------------

QUESTION_SCOPES = ("question", "published")
GEOMETRY_TOKENS_PER = ("sample", "video")


def pi3_encoder_config(**overrides) -> Dinov2WithRegistersConfig:
    """Configuration of π³'s image encoder: DINOv2 ViT-L/14 with four registers and a 37×37 position table."""
    values = dict(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        mlp_ratio=4,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        image_size=518,
        patch_size=14,
        qkv_bias=True,
        layerscale_value=1.0,
        drop_path_rate=0.0,
        use_swiglu_ffn=False,
        num_register_tokens=4,
    )
    return Dinov2WithRegistersConfig(**{**values, **overrides})


@strict
class DSRConfig(Qwen2_5_VLConfig):
    r"""
    Configuration of [`DSRModel`]: Qwen2.5-VL with a Geometry Selection Module (arXiv 2512.20557).

    Everything that [`Qwen2_5_VLConfig`] accepts is accepted here, and in addition:

    Args:
        geometry_config (`dict` or `Dinov2WithRegistersConfig`, *optional*):
            The geometry encoder. Default: π³'s encoder, DINOv2 ViT-L/14 with registers.
        num_geometry_tokens (`int`, *optional*, defaults to 32):
            Learned queries of the Geometry Selection Module, hence placeholders after a video.
        geometry_tokens_per (`str`, *optional*, defaults to `"sample"`):
            `"sample"`: one set of geometry tokens after a sample's last video, selecting from all its videos.
            `"video"`: one set after each video, selecting from that video. Equal for samples with one video.
        geometry_for_images (`bool`, *optional*, defaults to `False`):
            Give geometry tokens to still images too; an image is then one step of two equal frames.
        question_scope (`str`, *optional*, defaults to `"question"`):
            Which text conditions the queries. `"question"`: all text before the last `<|im_start|>`, without supervised
            answers and special tokens, so that training and inference see the same text. `"published"`: the rules of
            the published checkpoints, which keep the words `assistant\n` of the generation prompt at inference and drop
            them in training.
        geometry_tokens_per_second (`int`, *optional*, defaults to 2):
            Temporal positions per second of the keys of Q-Former 2.
        geometry_chunk_size (`int`, *optional*, defaults to 4):
            Frames that pass through the geometry encoder at a time. Peak memory grows with it, the result does not
            depend on it. `0` means all at once.
        geometry_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the RMS norms of the Geometry Selection Module.
        unnormalize_mean, unnormalize_std (`list[float]`, *optional*):
            Constants that undo the normalisation of `pixel_values_videos`. The green mean differs from CLIP's
            0.4578275 in the published code and its weights were trained so; this default keeps their numbers.
        geometry_image_mean, geometry_image_std (`list[float]`, *optional*):
            ImageNet constants of the geometry encoder's input.
        geometry_constants_in_model_dtype (`bool`, *optional*, defaults to `True`):
            The published code rounds the four constants above to the dtype the weights were loaded in and
            renormalises in it; this reproduces it. `False` renormalises in float32 whatever the dtype.
        im_start_token_id, im_end_token_id, vision_pad_token_id (`int`, *optional*):
            Special tokens that never reach the queries. Defaults are Qwen2.5-VL's; the converter takes them from the
            tokenizer.
    """

    model_type = "dsr"
    # The spelling that transformers 5.17 to 5.23 all accept.
    sub_configs = {**Qwen2_5_VLConfig.sub_configs, "geometry_config": Dinov2WithRegistersConfig}

    geometry_config: dict | PreTrainedConfig | None = None
    num_geometry_tokens: int = 32
    geometry_tokens_per: str = "sample"
    geometry_for_images: bool = False
    question_scope: str = "question"
    geometry_tokens_per_second: int = 2
    geometry_chunk_size: int = 4
    geometry_norm_eps: float = 1e-6
    unnormalize_mean: list[float] | tuple[float, ...] = (0.48145466, 0.4576275, 0.40821073)
    unnormalize_std: list[float] | tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    geometry_image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    geometry_image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    geometry_constants_in_model_dtype: bool = True
    im_start_token_id: int = 151644
    im_end_token_id: int = 151645
    vision_pad_token_id: int = 151654

    def __post_init__(self, **kwargs):
        if self.question_scope not in QUESTION_SCOPES:
            raise ValueError(f"`question_scope` must be one of {QUESTION_SCOPES}, got {self.question_scope!r}.")
        if self.geometry_tokens_per not in GEOMETRY_TOKENS_PER:
            raise ValueError(
                f"`geometry_tokens_per` must be one of {GEOMETRY_TOKENS_PER}, got {self.geometry_tokens_per!r}."
            )
        if self.num_geometry_tokens < 1:
            raise ValueError(f"`num_geometry_tokens` must be at least 1, got {self.num_geometry_tokens}.")
        if self.geometry_chunk_size < 0:
            raise ValueError(f"`geometry_chunk_size` must be 0 (all) or positive, got {self.geometry_chunk_size}.")
        if self.geometry_config is None:
            self.geometry_config = pi3_encoder_config()
        elif isinstance(self.geometry_config, dict):
            self.geometry_config = pi3_encoder_config(**self.geometry_config)
        super().__post_init__(**kwargs)
        _default_auto_map(
            self,
            {
                "AutoConfig": "configuration_dsr.DSRConfig",
                "AutoModel": "modeling_dsr.DSRModel",
                "AutoModelForImageTextToText": "modeling_dsr.DSRForConditionalGeneration",
            },
        )


# --------------------------------------------------------------------------------------
# Rules that models and processors share
# --------------------------------------------------------------------------------------


def pi3_image_size(width: int, height: int, pixel_limit: int = 255000, patch_size: int = 14) -> tuple[int, int]:
    """
    (width, height) at which π³ sees an image: multiples of `patch_size` nearest to its aspect ratio below `pixel_limit`.

    Small images are enlarged. A side is at least one patch, for which a very long image may exceed the limit.
    """
    scale = (pixel_limit / (width * height)) ** 0.5
    columns, rows = round(width * scale / patch_size), round(height * scale / patch_size)  # half to even, as published
    while columns * rows * patch_size**2 > pixel_limit:
        if columns / rows > width / height:
            columns -= 1
        else:
            rows -= 1
    return patch_size * max(1, columns), patch_size * max(1, rows)


def intrinsics_problem(matrices: list) -> str:
    """What is wrong with intrinsics, `n` nested lists of 3×3 numbers in pixels, in words, or ""."""
    for index, matrix in enumerate(matrices):
        if not all(math.isfinite(value) for row in matrix for value in row):
            return f"hold numbers that are not finite in matrix {index}: {matrix}. Leave out or mask frames without intrinsics."
        if not (matrix[0][0] > 0 and matrix[1][1] > 0):
            return f"hold a focal length that is not positive in matrix {index}: {matrix}. Expected pixels, [[fx, 0, cx], …]."
    return ""


def pose_problem(matrices: list, tolerance: float = 1e-2) -> str:
    """What makes camera-to-world matrices, `n` nested lists of 4×4 numbers, not rigid, in words, or ""."""
    cure = "Expected camera-to-world [R | t; 0 0 0 1] with a rotation R: divide scales out, mask frames without a pose."
    for index, matrix in enumerate(matrices):
        if not all(math.isfinite(value) for row in matrix for value in row):
            return f"hold numbers that are not finite in matrix {index}: {matrix}. {cure}"
        x, y, z = (row[:3] for row in matrix[:3])
        products = [sum(p * q for p, q in zip(a, b)) - (a is b) for a in (x, y, z) for b in (x, y, z)]
        error = max(abs(value) for value in products)
        determinant = (
            x[0] * (y[1] * z[2] - y[2] * z[1]) - x[1] * (y[0] * z[2] - y[2] * z[0]) + x[2] * (y[0] * z[1] - y[1] * z[0])
        )
        bottom = max(abs(value - wanted) for value, wanted in zip(matrix[3], (0, 0, 0, 1)))
        if error > tolerance or determinant < 0 or bottom > tolerance:
            return (
                f"hold a matrix that is not rigid: number {index} has |RRᵀ - I| up to {error:.2g}, det R {determinant:.3g} "
                f"and last row {matrix[3]}. {cure}"
            )
    return ""


# --------------------------------------------------------------------------------------
# π³
# --------------------------------------------------------------------------------------

PI3_VARIANTS = ("pi3", "pi3x")
PI3_TRAINABLE = ("all", "without_encoder", "confidence")


@strict
class Pi3Config(PreTrainedConfig):
    r"""
    Configuration of [`Pi3Model`] (arXiv 2507.13347). Defaults are the published model's.

    Args:
        variant (`str`, *optional*, defaults to `"pi3"`):
            `"pi3"`, or `"pi3x"`: convolutional heads, metric scale and conditioning by poses, rays and depth.
        encoder_config (`dict` or `Dinov2WithRegistersConfig`, *optional*):
            The image encoder; its width is the decoder's. Default: DINOv2 ViT-L/14 with registers.
        use_conditioning (`bool`, *optional*, defaults to `True`):
            Whether a Pi3X holds the modules that read poses, rays and depth. Without them it reads images alone.
        num_decoder_layers, num_attention_heads (`int`, *optional*, defaults to 36 and 16):
            Decoder blocks, by turns inside each frame and over all frames.
        num_register_tokens (`int`, *optional*, defaults to 5):
            Learned tokens before the patches of each frame in the decoder.
        mlp_ratio (`float`, *optional*, defaults to 4.0): hidden width of every MLP over its width.
        layer_scale_init (`float`, *optional*, defaults to 0.01): initial LayerScale of the decoder.
        layer_norm_eps, qk_norm_eps (`float`, *optional*, defaults to 1e-6 and 1e-5):
            Epsilon of the blocks' norms, and of the norm over the heads of queries and keys.
        rope_base (`float`, *optional*, defaults to 100.0): base of the rotary positions.
        head_hidden_size, head_num_attention_heads, head_num_layers (`int`, *optional*, defaults to 1024, 16 and 5):
            The transformers between the decoder and the heads.
        point_dim, camera_dim (`int`, *optional*, defaults to 1024 and 512):
            Channels that the point and confidence heads and the camera head read.
        pose_injection_layers (`list[int]`, *optional*, defaults to `[1, 9, 17, 25, 33]`):
            Pi3X: decoder blocks after which poses are read.
        metric_hidden_size, metric_num_attention_heads, metric_dim (`int`, *optional*, defaults to 512, 8 and 512):
            Pi3X: the transformer of the metric scale (`head_num_layers` blocks) and the channels its head reads.
        conv_head_dims (`list[int]`, *optional*, defaults to `[256, 128, 64]`):
            Pi3X: channels of the upsampling stages of the convolutional heads.
        conv_head_hidden_size, conv_head_num_res_blocks (`int`, *optional*, defaults to 32 and 2):
            Pi3X: channels before a head's outputs, and residual blocks per stage.
        max_log_depth (`float`, *optional*, defaults to 15.0): Pi3X: upper bound of the logarithm of depth.
        image_mean, image_std (`list[float]`, *optional*): the model normalises its images by these.
        chunk_size (`int`, *optional*, defaults to 4):
            Frames that pass through encoder, frame blocks, MLPs and heads at a time when no gradient is needed. Peak
            memory grows with it, the result does not depend on it. `0` means all at once.
        trainable (`str`, *optional*, defaults to `"all"`):
            What [`~Pi3Model.freeze`] leaves trainable: `"without_encoder"` is the published policy of the first two
            stages of training, `"confidence"` that of the third (confidence decoder and head).
        camera_loss_weight, confidence_loss_weight, normal_loss_weight (`float`, *optional*, defaults to 0.1, 0.0 and 1.0):
            Weights of the training losses; the point loss has weight 1. The third published stage has confidence 0.05.
    """

    model_type = "pi3"
    sub_configs = {"encoder_config": Dinov2WithRegistersConfig}

    variant: str = "pi3"
    encoder_config: dict | PreTrainedConfig | None = None
    use_conditioning: bool = True
    num_decoder_layers: int = 36
    num_attention_heads: int = 16
    num_register_tokens: int = 5
    mlp_ratio: float | int = 4.0
    layer_scale_init: float = 0.01
    layer_norm_eps: float = 1e-6
    qk_norm_eps: float = 1e-5
    rope_base: float | int = 100.0
    head_hidden_size: int = 1024
    head_num_attention_heads: int = 16
    head_num_layers: int = 5
    point_dim: int = 1024
    camera_dim: int = 512
    pose_injection_layers: list[int] | tuple[int, ...] = (1, 9, 17, 25, 33)
    metric_hidden_size: int = 512
    metric_num_attention_heads: int = 8
    metric_dim: int = 512
    conv_head_dims: list[int] | tuple[int, ...] = (256, 128, 64)
    conv_head_hidden_size: int = 32
    conv_head_num_res_blocks: int = 2
    max_log_depth: float | int = 15.0
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    chunk_size: int = 4
    trainable: str = "all"
    camera_loss_weight: float = 0.1
    confidence_loss_weight: float = 0.0
    normal_loss_weight: float = 1.0

    def __post_init__(self, **kwargs):
        if self.variant not in PI3_VARIANTS:
            raise ValueError(f"`variant` must be one of {PI3_VARIANTS}, got {self.variant!r}.")
        if self.trainable not in PI3_TRAINABLE:
            raise ValueError(f"`trainable` must be one of {PI3_TRAINABLE}, got {self.trainable!r}.")
        if self.chunk_size < 0:
            raise ValueError(f"`chunk_size` must be 0 (all) or positive, got {self.chunk_size}.")
        if self.num_decoder_layers < 2 or self.num_decoder_layers % 2:
            raise ValueError(
                f"`num_decoder_layers` must be even (blocks come in pairs: frame, all frames), got {self.num_decoder_layers}."
            )
        outside = [i for i in self.pose_injection_layers if not 0 <= i < self.num_decoder_layers]
        if self.variant == "pi3x" and self.use_conditioning and outside:
            raise ValueError(f"`pose_injection_layers` must lie in 0…{self.num_decoder_layers - 1}, got {outside}.")
        if self.encoder_config is None:
            self.encoder_config = pi3_encoder_config()
        elif isinstance(self.encoder_config, dict):
            self.encoder_config = pi3_encoder_config(**self.encoder_config)
        super().__post_init__(**kwargs)
        _default_auto_map(self, {"AutoConfig": "configuration_dsr.Pi3Config", "AutoModel": "modeling_pi3.Pi3Model"})
        _default_pipeline(self, "scene-reconstruction", "SceneReconstructionPipeline", "AutoModel")

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; images are multiples of it."""
        return self.encoder_config.patch_size

    @property
    def hidden_size(self) -> int:
        """Width of encoder and decoder."""
        return self.encoder_config.hidden_size


# --------------------------------------------------------------------------------------
# PAGE-4D
# --------------------------------------------------------------------------------------

DENSE_ACTIVATIONS = ("exp", "inv_log", "norm_exp", "norm", "xy_inv_log", "relu", "sigmoid", "linear")
CONFIDENCE_ACTIVATIONS = ("expp1", "expp0", "sigmoid")
SPATIAL_MASK_VARIANTS = (None, "page4d", "mv")
PAGE4D_FREEZE_POLICIES = (None, "page4d", "multiview")
AXIS_SYNONYMS = {"global": "view", "frame": "time"}
SPARSE_STRATEGIES = ("landmark", "dilated", "memory_bank")


def page4d_image_size(
    width: int, height: int, img_size: int = 518, patch_size: int = 14, mode: str = "crop"
) -> tuple[int, int]:
    """
    (width, height) that PAGE-4D resizes an image to, before it crops or pads.

    Args:
        mode: `"crop"`: width `img_size`, height by the aspect ratio (what exceeds `img_size` is cut off later).
            `"pad"`: longer side `img_size` (the shorter one is padded later).
    """

    def multiple(side: float) -> int:
        return max(1, round(side / patch_size)) * patch_size  # half to even, as published

    if mode == "pad" and height > width:
        return multiple(width * (img_size / height)), img_size
    return img_size, multiple(height * (img_size / width))


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
            Layout of the spatial mask head in the weights: `"page4d"` has six tensors, `"mv"` (the multi-view project's)
            eight. `None`: there is none (VGGT-1B).
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
            What the camera head says: translation, quaternion and field of view (9 numbers), or with `"R9D_t"` a raw 3×3
            matrix and a translation (12 numbers, no field of view).
        camera_trunk_scope (`str`, *optional*, defaults to `"sequence"`):
            Whether its transformer sees all cameras of a sample, or with `"frame"` one at a time.
        aa_order (`list[str]`, *optional*, defaults to `["view", "time"]`):
            Order of the two attentions of a layer for images `[B, T, V, …]`; "global" and "frame" are other names of them.
            A video `[B, S, …]` always takes frame first, then global.
        special_token_pos (`int`, *optional*, defaults to 0):
            Rotary position of camera and register tokens of images `[B, T, V, …]`, 0 or 1.
        time_pos (`str`, *optional*, defaults to `"rope"`):
            Relative time between images `[B, T, V, …]`: "none", "rope" or "alibi". Converted weights have "none".
        time_rope_base (`float`, *optional*, defaults to 10000.0):
            Base of the rotary times.
        enable_dual_stream (`bool`, *optional*, defaults to `False`):
            From the first of `dual_stream_layers` on a pose stream, which the camera head reads, and a geometry stream, which
            the dense heads read. In those layers each has blocks of its own and is biased by the dynamic mask.
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
            No gradient from the mask into the trunk.
        alpha, beta (`float`, *optional*, default to 1.0):
            Initial weights of own and external mask.
        lambda_pose, lambda_geo, lambda_pose_t, lambda_geo_t (`float`, *optional*, default to 0.0):
            Initial strengths of the mask in the attention over views, and over times (`_t`): the pose stream is kept from what
            moves, the geometry stream drawn to it.
        lambda_clamp_value (`float`, *optional*, defaults to 4.0):
            Bound of those strengths.
        enable_sparse_global (`bool`, *optional*, defaults to `False`):
            Attention over all images at the end of `sparse_global_layers`.
        sparse_global_layers (`list[int]`, *optional*):
            Counted from 0; a list that names layer `depth` is taken as counted from 1. Default: the last two.
        sparse_strategy (`str`, *optional*, defaults to `"landmark"`):
            Who sees whom: "landmark" (the best tokens of each image), "dilated" (images some steps away; "block_dilated" is
            the same) or "memory_bank" (learned tokens, which carry over to the next window).
        landmark_k (`int`, *optional*, defaults to 64):
            Landmarks per image. landmark_mutual (`bool`, *optional*, defaults to `True`): they see everything themselves.
        dilated_levels (`list[int]`, *optional*, defaults to `[1, 2, 4]`):
            Steps in time and view.
        memory_tokens_num (`int`, *optional*, defaults to 32):
            Tokens of the memory.
        lambda_kpt (`float`, *optional*, defaults to 0.0):
            Initial attraction of keypoints in sparse layers of the geometry stream.
        lambda_kpt_pose (`float`, *optional*, defaults to 0.0):
            Fixed suppression of keypoints there in the pose stream.
        enable_epipolar (`bool`, *optional*, defaults to `False`):
            Where cameras are given, patches of two views of one time further than `epipolar_band` (pixels, default 10) from each
            other's epipolar line lose `epipolar_penalty` (default 3) logits.
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
            What does not train. `"page4d"`: the paper's policy, where frame and global blocks of `masked_layers` and the
            mask head train and all else is fixed. `"multiview"`: the geometry stream's blocks and everything new train (dynamic
            mask head, strengths, sparse blocks, memory); encoder, trunk, copied pose blocks and heads stay. `None`: everything
            trains.
        camera_loss_weight, depth_loss_weight, point_loss_weight, camera_loss_type, camera_stage_decay, camera_fov_weight,
        depth_loss_gamma, depth_loss_alpha, point_loss_gamma, point_loss_alpha, depth_gradient_loss, point_gradient_loss,
        loss_valid_range:
            The training loss, see `page4d_losses`.
        mask_loss_weight, consistency_loss_weight, separation_loss_weight (`float`, default to 0.5, 1.0 and 0.1):
            Of the multi-view terms, see `multiview_losses`.
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
                f"`masked_layers` {list(self.masked_layers)} begin before `mask_layer` {self.mask_layer}, where the mask is made."
            )
        for name in ("encoder_chunk_size", "head_chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.trunk_chunk_size < 0:
            raise ValueError(f"`trunk_chunk_size` must be 0 (all) or positive, got {self.trunk_chunk_size}.")
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(
                f"`embed_dim` {self.embed_dim} must be a multiple of 4·`num_heads` = {4 * self.num_heads} (rotary positions)."
            )
        if self.encoder_config.hidden_size != self.embed_dim or self.encoder_config.patch_size != self.patch_size:
            raise ValueError(
                f"`encoder_config` has hidden_size {self.encoder_config.hidden_size} and patch_size "
                f"{self.encoder_config.patch_size}; `embed_dim` {self.embed_dim} and `patch_size` {self.patch_size} must equal them."
            )
        super().__post_init__(**kwargs)
        _default_auto_map(
            self,
            {"AutoConfig": "configuration_dsr.Page4DConfig", "AutoModel": "modeling_page4d.Page4DModel"},
        )
        _default_pipeline(self, "scene-reconstruction", "SceneReconstructionPipeline", "AutoModel")

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
                f"`sparse_global_layers` {list(self.sparse_global_layers)} names layer {self.depth} of {self.depth}: taken as "
                f"counted from 1, that is {counted} counted from 0.",
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


# --------------------------------------------------------------------------------------
# Scene Q-Former
# --------------------------------------------------------------------------------------

# nuScenes' order; the position in it is the index into the camera embedding.
SCENE_CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
SCENE_POSITION_ENCODINGS = ("sine_camera", "depth_3d", "ray_3d")
SCENE_ATTENTIONS = ("full", "deformable")
SCENE_POSITION_FRAMES = ("vehicle", "lidar")
MISSING_CALIBRATION = ("error", "sine")


@strict
class SceneMapConfig(PreTrainedConfig):
    r"""
    Configuration of the output queries of [`SceneQFormerForConditionalGeneration`] and of their map detection head.

    Args:
        num_instances, num_points (`int`, *optional*, defaults to 50 and 20):
            Map elements that can be detected, and points along each. One instance query and one query per point are
            appended to the prompt.
        num_classes (`int`, *optional*, defaults to 3):
            Classes; published order: divider, pedestrian crossing, boundary.
        closed_classes (`list[int]`, *optional*, defaults to `(1,)`):
            Classes whose points run around a polygon, so that any point may come first. Points of the others run along
            a line, in either direction.
        point_range (`list[float]`, *optional*, defaults to `(-15, -30, 15, 30)`):
            Metres (x min, y min, x max, y max) that the coordinates -1 … 1 stand for; LiDAR frame, x right, y forward.
        embed_dims, num_heads, num_layers, ffn_dims, residual_scale:
            The interaction block, in which output queries read the scene tokens again.
        instance_dims, point_dims (`list[int]`, *optional*):
            Widths between the language model and `embed_dims` of the two reducers.
        num_refinements, point_heads, coordinate_dims, num_frequencies, offset_scale, max_offset, anchor_extent, prior:
            The point head: steps; heads of the attention among an instance's points; width and sine frequencies of the
            coordinate code; initial scale of the steps; reach of the first guess around the anchors, which lie on
            x = 0, y = -anchor_extent … anchor_extent; initial class probability.
        dropout (`float`, *optional*, defaults to 0.1).
        class_weight, points_weight, direction_weight, auxiliary_weight, focal_alpha, focal_gamma:
            The loss: its three terms, the share of the intermediate refinements, the focal loss.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new output queries.
    """

    model_type = "scene_map"

    num_instances: int = 50
    num_points: int = 20
    num_classes: int = 3
    closed_classes: list[int] | tuple[int, ...] = (1,)
    point_range: list[float] | tuple[float, ...] = (-15.0, -30.0, 15.0, 30.0)
    embed_dims: int = 256
    num_heads: int = 8
    num_layers: int = 6
    ffn_dims: int = 1024
    residual_scale: float = 0.1
    instance_dims: list[int] | tuple[int, ...] = (2048, 1024, 512)
    point_dims: list[int] | tuple[int, ...] = (1024,)
    num_refinements: int = 6
    point_heads: int = 4
    coordinate_dims: int = 64
    num_frequencies: int = 10
    offset_scale: float = 0.1
    max_offset: float = 0.5
    anchor_extent: float = 0.8
    prior: float = 0.01
    dropout: float = 0.1
    class_weight: float = 2.0
    points_weight: float = 5.0
    direction_weight: float = 0.25
    auxiliary_weight: float = 0.2
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        for name in ("num_instances", "num_classes", "num_refinements"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_points < 2:
            raise ValueError(f"`num_points` must be at least 2, for a line has two ends, got {self.num_points}.")
        for heads in ("num_heads", "point_heads"):
            if self.embed_dims % getattr(self, heads):
                raise ValueError(
                    f"`embed_dims` ({self.embed_dims}) must be a multiple of `{heads}` ({getattr(self, heads)})."
                )
        if any(not 0 <= label < self.num_classes for label in self.closed_classes):
            raise ValueError(
                f"`closed_classes` must lie in 0 … {self.num_classes - 1}, got {list(self.closed_classes)}."
            )
        low, high = self.point_range[:2], self.point_range[2:]
        if len(self.point_range) != 4 or any(a >= b for a, b in zip(low, high)):
            raise ValueError(f"`point_range` must be (x min, y min, x max, y max), got {list(self.point_range)}.")
        super().__post_init__(**kwargs)


@strict
class SceneQFormerConfig(PreTrainedConfig):
    r"""
    Configuration of [`SceneQFormerModel`], which turns surround-camera images into scene tokens, and of
    [`SceneQFormerForConditionalGeneration`], in which a language model reads them.

    Args:
        embed_dims (`int`, *optional*, defaults to 256): width of queries, memory and decoder.
        num_queries (`int`, *optional*, defaults to 512): learned queries, hence scene tokens.
        num_decoder_layers (`int`, *optional*, defaults to 6).
        num_heads (`int`, *optional*, defaults to 8).
        ffn_dims (`int`, *optional*, defaults to 2048).
        dropout (`float`, *optional*, defaults to 0.1).
        llm_hidden_size (`int`, *optional*, defaults to 4096): width of the scene tokens.
        num_cams (`int`, *optional*, defaults to 6): cameras; the order of their images is part of the input.
        position_encoding (`str`, *optional*, defaults to `"sine_camera"`):
            What is added to the image features besides the camera's embedding. `"sine_camera"`: a 2-D sine table.
            `"depth_3d"`: a code of the points that a pixel may show at `depth_num` depths, from the calibration.
            `"ray_3d"`: a code of the direction in which a pixel looks, from the calibration.
        attention (`str`, *optional*, defaults to `"full"`):
            `"full"`: every query reads every cell of every camera. `"deformable"`: every query reads
            `num_deformable_points` cells per head and camera, around a learned reference point.
        num_deformable_points (`int`, *optional*, defaults to 4).
        num_constrained_queries (`int`, *optional*):
            Queries that belong to a camera (content + camera + place), the first ones. Default: 576, or all if there are
            fewer, with `"depth_3d"`; none otherwise.
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Any backbone that transformers' `AutoBackbone` builds, timm's included. Default: ResNet-50.
        backbone_stage (`int`, *optional*):
            Stage whose features are used; default the last. A ResNet is built up to it only.
        backbone_dilation (`bool`, *optional*):
            ResNets: replace the stride of stage 4 by dilation, so that features have stride 16. Default: True with
            `"sine_camera"` (336×336 gives 21×21 cells per camera), False otherwise, as published.
        sine_temperature (`float`, *optional*, defaults to 10000).
        sine_normalize_2pi (`bool`, *optional*, defaults to `False`):
            Spread the coordinates of the 2-D table over 0 … 2π. Published tables use 0 … 1, which leaves most channels
            nearly constant; weights trained with one do not fit the other.
        depth_num, depth_start, depth_max, use_lid:
            Depth hypotheses in metres along the optical axis: `start + (max - start)·(k / (n - 1))²`, or linear without
            `use_lid`.
        pc_range (`list[float]`, *optional*):
            Box (x, y, z min; x, y, z max) in metres that is mapped to -1 … 1; what lies beyond `point_clamp` is clamped.
        position_frame (`str`, *optional*, defaults to `"vehicle"`):
            Axes in which `pc_range` is meant. `"vehicle"`: x forward, y left, as published; the default box then clamps
            everything more than 30 m ahead. `"lidar"`: x right, y forward, for which the default box was made.
        point_clamp (`float`, *optional*, defaults to 2.0): bound of the coordinates after that mapping.
        num_point_features, per_depth_dims, aggregation_dims:
            Sine features per axis and widths of the MLPs of `"depth_3d"`.
        missing_calibration (`str`, *optional*, defaults to `"error"`):
            Calibrated encodings without intrinsics or extrinsics: `"error"`, or `"sine"`, the published behaviour, which
            silently takes the 2-D table that the weights were not trained with.
        output_clamp (`float`, *optional*, defaults to 10000):
            Bound of the scene tokens, kept from the published model; None for no bound.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            The language model, of any causal architecture that transformers has; `{}` is LLaMA-7B, hence Vicuna-7B.
            Needed by [`SceneQFormerForConditionalGeneration`]. Its width takes the place of `llm_hidden_size`.
        map_config (`dict` or [`SceneMapConfig`], *optional*): output queries and detection head; None for none.
        image_token_index (`int`, *optional*, defaults to -200):
            LLaVA's placeholder. One of them stands for all scene tokens of a scene.
        image_token_id (`int`, *optional*):
            Placeholder that the processor writes, once per scene token. Default: the `image_token_index`.
        max_sequence_length (`int`, *optional*):
            Prompts with [`image_token_index`] placeholders are cut to this many tokens after the scene tokens are in.
        init_scale_camera, init_std_content, init_std_place:
            Initial values of the `"depth_3d"` queries: orthogonal camera embeddings times a scale, normal content and
            places. With the other encodings, queries and camera embeddings start standard normal.
    """

    model_type = "scene_qformer"
    # The backbone is left out: a choice of attention for the model would reach it, and convolutions refuse all of them.
    sub_configs = {"text_config": AutoConfig, "map_config": SceneMapConfig}

    embed_dims: int = 256
    num_queries: int = 512
    num_decoder_layers: int = 6
    num_heads: int = 8
    ffn_dims: int = 2048
    dropout: float = 0.1
    llm_hidden_size: int = 4096
    num_cams: int = len(SCENE_CAMERAS)
    position_encoding: str = "sine_camera"
    attention: str = "full"
    num_deformable_points: int = 4
    num_constrained_queries: int | None = None
    backbone_config: dict | PreTrainedConfig | None = None
    backbone_stage: int | None = None
    backbone_dilation: bool | None = None
    sine_temperature: float = 10000.0
    sine_normalize_2pi: bool = False
    depth_num: int = 32
    depth_start: float = 1.0
    depth_max: float = 60.0
    use_lid: bool = True
    pc_range: list[float] | tuple[float, ...] = (-15.0, -30.0, -2.0, 15.0, 30.0, 2.0)
    position_frame: str = "vehicle"
    point_clamp: float = 2.0
    num_point_features: int = 64
    per_depth_dims: int = 64
    aggregation_dims: list[int] | tuple[int, ...] = (1024, 512)
    missing_calibration: str = "error"
    output_clamp: float | None = 1e4
    text_config: dict | PreTrainedConfig | None = None
    map_config: dict | PreTrainedConfig | None = None
    image_token_index: int = -200
    image_token_id: int | None = None
    max_sequence_length: int | None = None
    init_scale_camera: float = 0.5
    init_std_content: float = 0.1
    init_std_place: float = 0.048
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self._check()
        self._complete_backbone()
        if self.num_constrained_queries is None:
            self.num_constrained_queries = min(576, self.num_queries) if self.position_encoding == "depth_3d" else 0
        if not 0 <= self.num_constrained_queries <= self.num_queries:
            raise ValueError(
                f"`num_constrained_queries` must lie in 0 … `num_queries` = {self.num_queries}, got "
                f"{self.num_constrained_queries}."
            )
        if isinstance(self.text_config, dict):
            self.text_config = CONFIG_MAPPING[self.text_config.get("model_type", "llama")](**self.text_config)
        if self.text_config is not None:
            self.llm_hidden_size = self.text_config.hidden_size
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        if isinstance(self.map_config, dict):
            self.map_config = SceneMapConfig(**self.map_config)
        if self.image_token_id is None:
            self.image_token_id = self.image_token_index
        super().__post_init__(**kwargs)
        _default_auto_map(
            self,
            {
                "AutoConfig": "configuration_dsr.SceneQFormerConfig",
                "AutoModel": "modeling_scene_qformer.SceneQFormerModel",
                "AutoModelForImageTextToText": "modeling_scene_qformer.SceneQFormerForConditionalGeneration",
            },
        )

    def _check(self) -> None:
        for name, allowed in (
            ("position_encoding", SCENE_POSITION_ENCODINGS),
            ("attention", SCENE_ATTENTIONS),
            ("position_frame", SCENE_POSITION_FRAMES),
            ("missing_calibration", MISSING_CALIBRATION),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}.")
        for name in (
            "num_queries",
            "num_decoder_layers",
            "num_heads",
            "num_cams",
            "depth_num",
            "num_deformable_points",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_point_features % 2:
            raise ValueError(f"`num_point_features` must be even (sines and cosines), got {self.num_point_features}.")
        if self.embed_dims % 4 or self.embed_dims % self.num_heads:
            raise ValueError(
                f"`embed_dims` must be a multiple of 4 (sine table) and of `num_heads` = {self.num_heads}, got "
                f"{self.embed_dims}."
            )
        low, high = self.pc_range[:3], self.pc_range[3:]
        if len(self.pc_range) != 6 or any(a >= b for a, b in zip(low, high)):
            raise ValueError(f"`pc_range` must be (x, y, z min; x, y, z max), got {list(self.pc_range)}.")

    def _complete_backbone(self) -> None:
        if isinstance(self.backbone_config, PreTrainedConfig):
            values = self.backbone_config.to_dict()
        else:
            values = dict(self.backbone_config or {})
        kind = values.setdefault("model_type", "resnet")
        if kind not in CONFIG_MAPPING:
            raise ValueError(f"`backbone_config` names the unknown model type {kind!r}.")
        if kind == "resnet":
            depths = list(values.get("depths") or (3, 4, 6, 3))
            widths = list(values.get("hidden_sizes") or (256, 512, 1024, 2048))
            stage = self.backbone_stage or len(depths)
            if not 1 <= stage <= len(depths):
                raise ValueError(f"`backbone_stage` must lie in 1 … {len(depths)} for this ResNet, got {stage}.")
            for stale in ("stage_names", "out_indices"):
                values.pop(stale, None)
            values.update(depths=depths[:stage], hidden_sizes=widths[:stage], out_features=[f"stage{stage}"])
            if self.backbone_dilation is None:
                self.backbone_dilation = self.position_encoding == "sine_camera" and stage == 4
            if self.backbone_dilation and stage != 4:
                raise ValueError(
                    f"`backbone_dilation` replaces the stride of stage 4, but the ResNet ends at stage {stage}."
                )
        else:
            if self.backbone_dilation:
                raise ValueError(
                    f"`backbone_dilation` is for ResNets of transformers, got a backbone of type {kind!r}. timm's backbones "
                    "take `output_stride` in `backbone_config`."
                )
            self.backbone_dilation = False
            if self.backbone_stage is not None:
                values.pop("out_features", None)
                values["out_indices"] = [self.backbone_stage]
        self.backbone_config = CONFIG_MAPPING[kind](**values)


# --------------------------------------------------------------------------------------
# Cadrille and CAD-Recode
# --------------------------------------------------------------------------------------

# Qwen2-VL-2B-Instruct, the base of the published Cadrille.
CADRILLE_TEXT_DEFAULTS = dict(
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    vocab_size=151936,
    rms_norm_eps=1e-6,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
)
CADRILLE_VISION_DEFAULTS = dict(hidden_size=1536)


def _check_point_fields(config: PreTrainedConfig) -> None:
    """Values of the point encoder's fields that no model can be built with."""
    for name in ("num_freqs", "num_points"):
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(config, name)}.")
    if config.loss_chunk_size < 0:
        raise ValueError(f"`loss_chunk_size` must be 0 (off) or positive, got {config.loss_chunk_size}.")


@strict
class CadrilleConfig(Qwen2VLConfig):
    r"""
    Configuration of [`CadrilleModel`]: Qwen2-VL that also reads point clouds and writes CadQuery programs.

    Everything that [`Qwen2VLConfig`] accepts is accepted here; text and vision towers default to Qwen2-VL-2B's. In
    addition:

    Args:
        num_freqs (`int`, *optional*, defaults to 8): Frequencies of the Fourier features of a coordinate.
        logspace (`bool`, *optional*, defaults to `True`): Frequencies 2⁰ … 2ⁿ⁻¹; `False` spaces them evenly between.
        include_input (`bool`, *optional*, defaults to `True`): The coordinates themselves are features too.
        include_pi (`bool`, *optional*, defaults to `False`): Multiply the frequencies by π.
        num_points (`int`, *optional*, defaults to 256): Points of a cloud, hence placeholders, the processor writes.
        point_token_id (`int`, *optional*, defaults to 151643): Placeholder of a point, `<|endoftext|>`. It is also
            the padding token: the attention mask tells them apart.
        round_point_embeds (`bool`, *optional*, defaults to `False`): Round point embeddings to bfloat16 whatever the
            dtype of the model, as the published code does.
        loss_chunk_size (`int`, *optional*, defaults to 256): In training the loss is computed for so many supervised
            positions at a time and no logits are returned. 0: all logits, as in evaluation.
    """

    model_type = "cadrille"

    num_freqs: int = 8
    logspace: bool = True
    include_input: bool = True
    include_pi: bool = False
    num_points: int = 256
    point_token_id: int = 151643
    round_point_embeds: bool = False
    loss_chunk_size: int = 256
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        _check_point_fields(self)
        # A flat configuration, as published, carries the text tower's fields at the top.
        if self.text_config is None and "hidden_size" not in kwargs:
            self.text_config = dict(CADRILLE_TEXT_DEFAULTS)
        if self.vision_config is None:
            self.vision_config = dict(CADRILLE_VISION_DEFAULTS)
        super().__post_init__(**kwargs)
        _default_auto_map(
            self,
            {
                "AutoConfig": "configuration_dsr.CadrilleConfig",
                "AutoModel": "modeling_cadrille.CadrilleModel",
                "AutoModelForImageTextToText": "modeling_cadrille.CadrilleForConditionalGeneration",
            },
        )
        _default_pipeline(self, "cad-generation", "CadGenerationPipeline", "AutoModelForImageTextToText")


@strict
class CADRecodeConfig(Qwen2Config):
    r"""
    Configuration of [`CADRecodeModel`]: Qwen2 that reads a point cloud and writes a CadQuery program.

    Everything that [`Qwen2Config`] accepts is accepted here, with the sizes of Qwen2-1.5B as defaults. The fields of the
    points are those of [`CadrilleConfig`], and:

    Args:
        point_channels (`int`, *optional*, defaults to 3): Numbers per point. Those after x, y, z are features as they
            are; 6 (normals) is the first published version.
        point_token_id (`int`, *optional*, defaults to 151645): Placeholder of a point, `<|im_end|>`.
    """

    model_type = "cad_recode"

    vocab_size: int = 151936
    hidden_size: int = 1536
    intermediate_size: int = 8960
    num_hidden_layers: int = 28
    num_attention_heads: int = 12
    num_key_value_heads: int | None = 2
    tie_word_embeddings: bool = True
    num_freqs: int = 8
    logspace: bool = True
    include_input: bool = True
    include_pi: bool = False
    num_points: int = 256
    point_channels: int = 3
    point_token_id: int = 151645
    round_point_embeds: bool = False
    loss_chunk_size: int = 256

    def __post_init__(self, **kwargs):
        _check_point_fields(self)
        if self.point_channels < 3:
            raise ValueError(f"`point_channels` must be at least 3 (x, y, z), got {self.point_channels}.")
        if self.rope_parameters is None and "rope_theta" not in kwargs and "rope_scaling" not in kwargs:
            self.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
        super().__post_init__(**kwargs)
        _default_auto_map(
            self,
            {
                "AutoConfig": "configuration_dsr.CADRecodeConfig",
                "AutoModel": "modeling_cad_recode.CADRecodeModel",
                "AutoModelForCausalLM": "modeling_cad_recode.CADRecodeForCausalLM",
            },
        )
        _default_pipeline(self, "cad-generation", "CadGenerationPipeline", "AutoModelForCausalLM")


# --------------------------------------------------------------------------------------
# FrozenQwenSAM
# --------------------------------------------------------------------------------------

PHRASE_MERGES = ("mean", "max")
MASK_PROMPT_PADDINGS = ("phrase", "image")
VISION_LANGUAGE_MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def sam_config(**overrides) -> SamConfig:
    """
    Configuration of SAM with a ViT-L image encoder, `overrides` per part (`vision_config`, `prompt_encoder_config`,
    `mask_decoder_config`).

    The norms of the released decoder have epsilon 1e-5; transformers' default for them is 1e-6.
    """
    parts = {
        "vision_config": dict(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, global_attn_indexes=[5, 11, 17, 23]
        ),
        "prompt_encoder_config": {},
        "mask_decoder_config": dict(layer_norm_eps=1e-5),
    }
    rest = {name: value for name, value in overrides.items() if name not in parts}
    return SamConfig(**{name: {**defaults, **overrides.get(name, {})} for name, defaults in parts.items()}, **rest)


@strict
class FrozenQwenSAMConfig(PreTrainedConfig):
    r"""
    Configuration of [`FrozenQwenSAMModel`]: masks for phrases from the attention of a frozen vision-language model.

    Args:
        vlm_config (`dict` or `PreTrainedConfig`, *optional*):
            The frozen Qwen2-VL, Qwen2.5-VL or Qwen3-VL. Default: `Qwen2_5_VLConfig()`.
        sam_config (`dict` or `SamConfig`, *optional*):
            The SAM that refines the masks. Default: ViT-L.
        merge (`str`, *optional*, defaults to `"mean"`):
            How the attention of a phrase's tokens becomes one map: `"mean"` or `"max"`.
        use_text, use_mask, use_box (`bool`, *optional*, defaults to `True`):
            Which prompts SAM gets: the phrase's projected hidden states, the coarse mask, the box around it.
        multimask_output (`bool`, *optional*, defaults to `False`):
            Let SAM draw three candidates and keep the one that overlaps the coarse mask most.
        mask_head_channels (`int`, *optional*, defaults to 64):
            Width of the first stage of the U-Net; each further stage doubles it.
        mask_head_stages (`int`, *optional*, defaults to 4): Stages of the U-Net.
        mask_head_size (`int`, *optional*, defaults to 64):
            Attention maps whose longer side is shorter than this are enlarged to it before the U-Net.
        mask_prompt_padding (`str`, *optional*, defaults to `"phrase"`):
            SAM's mask prompt is padded to a square with the smallest logit (at most -1): of the phrase itself, so that
            phrases do not influence each other, or, as in the published code, over all phrases of the image
            (`"image"`).
        decoder_chunk_size (`int`, *optional*):
            Phrases that pass through SAM's decoder at a time, from all images of a batch. `0` means all at once; None
            means 32 on a GPU and 2 elsewhere. The result does not depend on it.
        vlm_source, sam_source (`dict`, *optional*):
            `{"repo", "revision"}` of the frozen weights, so that a checkpoint of the trained parts alone can be loaded.
        trained_only (`bool`, *optional*, defaults to `False`):
            The folder holds the trained parts alone; written by `save_pretrained(..., save_trained_only=True)`.
    """

    model_type = "frozen_qwen_sam"
    sub_configs = {"vlm_config": AutoConfig, "sam_config": SamConfig}

    vlm_config: dict | PreTrainedConfig | None = None
    sam_config: dict | PreTrainedConfig | None = None
    merge: str = "mean"
    use_text: bool = True
    use_mask: bool = True
    use_box: bool = True
    multimask_output: bool = False
    mask_head_channels: int = 64
    mask_head_stages: int = 4
    mask_head_size: int = 64
    mask_prompt_padding: str = "phrase"
    decoder_chunk_size: int | None = None
    vlm_source: dict | None = None
    sam_source: dict | None = None
    trained_only: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.merge not in PHRASE_MERGES:
            raise ValueError(f"`merge` must be one of {PHRASE_MERGES}, got {self.merge!r}.")
        if self.mask_prompt_padding not in MASK_PROMPT_PADDINGS:
            raise ValueError(
                f"`mask_prompt_padding` must be one of {MASK_PROMPT_PADDINGS}, got {self.mask_prompt_padding!r}."
            )
        if self.mask_head_stages < 1 or self.mask_head_channels < 1 or self.mask_head_size < 1:
            raise ValueError(
                "`mask_head_stages`, `mask_head_channels` and `mask_head_size` must be at least 1, got "
                f"{self.mask_head_stages}, {self.mask_head_channels}, {self.mask_head_size}."
            )
        if self.decoder_chunk_size is not None and self.decoder_chunk_size < 0:
            raise ValueError(f"`decoder_chunk_size` must be 0 (all) or positive, got {self.decoder_chunk_size}.")
        if self.vlm_config is None:
            self.vlm_config = Qwen2_5_VLConfig()
        elif isinstance(self.vlm_config, dict):
            self.vlm_config = AutoConfig.for_model(**{"model_type": "qwen2_5_vl", **self.vlm_config})
        if self.vlm_config.model_type not in VISION_LANGUAGE_MODELS:
            raise ValueError(
                f"`vlm_config` must be of one of the types {VISION_LANGUAGE_MODELS}, got {self.vlm_config.model_type!r}."
            )
        if self.sam_config is None or isinstance(self.sam_config, dict):
            self.sam_config = sam_config(**(self.sam_config or {}))
        super().__post_init__(**kwargs)
        _default_auto_map(
            self,
            {
                "AutoConfig": "configuration_dsr.FrozenQwenSAMConfig",
                "AutoModel": "modeling_frozen_qwen_sam.FrozenQwenSAMModel",
            },
        )
        _default_pipeline(self, "phrase-segmentation", "PhraseSegmentationPipeline", "AutoModel")

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        """That of the vision-language model."""
        return self.vlm_config.get_text_config(*args, **kwargs)


for _config_class in (
    DSRConfig,
    Pi3Config,
    Page4DConfig,
    SceneMapConfig,
    SceneQFormerConfig,
    CadrilleConfig,
    CADRecodeConfig,
    FrozenQwenSAMConfig,
):
    _config_class.register_for_auto_class()
