"""Configurations of every model in the library.

This file is the same, byte for byte, in the source tree and in the Hub repository.
It imports transformers and the standard library alone.
"""

from __future__ import annotations

import math

from huggingface_hub.dataclasses import strict
from transformers import Dinov2WithRegistersConfig, PreTrainedConfig, Qwen2_5_VLConfig


def _default_auto_map(config: PreTrainedConfig, auto_map: dict[str, str]) -> None:
    """Name the classes behind each Auto class in the saved config.

    `save_pretrained` alone records only the class that was saved; a repository saved from the generation model could
    then not be opened with `AutoModel`.
    """
    if getattr(config, "auto_map", None) is None:
        config.auto_map = dict(auto_map)


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
        geometry_chunk_size (`int`, *optional*, defaults to 8):
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
    geometry_chunk_size: int = 8
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
        chunk_size (`int`, *optional*, defaults to 8):
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
    chunk_size: int = 8
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

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; images are multiples of it."""
        return self.encoder_config.patch_size

    @property
    def hidden_size(self) -> int:
        """Width of encoder and decoder."""
        return self.encoder_config.hidden_size


for _config_class in (DSRConfig, Pi3Config):
    _config_class.register_for_auto_class()
