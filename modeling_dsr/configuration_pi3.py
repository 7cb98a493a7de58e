"""Configuration of π³ and Pi3X."""

from __future__ import annotations

from typing import cast

from huggingface_hub.dataclasses import strict
from transformers import Dinov2WithRegistersConfig, PreTrainedConfig

from .configuration_shared import default_auto_map, default_pipeline


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
        camera_loss_weight, confidence_loss_weight, normal_loss_weight (`float`, *optional*, defaults to 0.1, 0.0 and
            1.0): Weights of the training losses; the point loss has weight 1. The third published stage has confidence
            0.05.
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
                "`num_decoder_layers` must be even (blocks come in pairs: frame, all frames), got "
                f"{self.num_decoder_layers}."
            )
        outside = [i for i in self.pose_injection_layers if not 0 <= i < self.num_decoder_layers]
        if self.variant == "pi3x" and self.use_conditioning and outside:
            raise ValueError(f"`pose_injection_layers` must lie in 0…{self.num_decoder_layers - 1}, got {outside}.")
        if self.encoder_config is None:
            self.encoder_config = pi3_encoder_config()
        elif isinstance(self.encoder_config, dict):
            self.encoder_config = pi3_encoder_config(**self.encoder_config)
        super().__post_init__(**kwargs)
        default_auto_map(self, {"AutoConfig": "configuration_pi3.Pi3Config", "AutoModel": "modeling_pi3.Pi3Model"})
        default_pipeline(self, "scene-reconstruction", "geometry_pipeline.SceneReconstructionPipeline", "AutoModel")

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; images are multiples of it."""
        return cast(PreTrainedConfig, self.encoder_config).patch_size

    @property
    def hidden_size(self) -> int:
        """Width of encoder and decoder."""
        return cast(PreTrainedConfig, self.encoder_config).hidden_size


Pi3Config.register_for_auto_class()
