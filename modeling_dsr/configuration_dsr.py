"""Configuration of DSR."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import Dinov2WithRegistersConfig, PreTrainedConfig, Qwen2_5_VLConfig

from .configuration_pi3 import pi3_encoder_config
from .configuration_shared import default_auto_map

QUESTION_SCOPES = ("question", "published")
GEOMETRY_TOKENS_PER = ("sample", "video")


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
        freeze (`str`, *optional*):
            What trains, see `freeze` of the model: `"published"` (what DSR's training tuned), `"geometry"` or `"all"`.
                None: the model's default.
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
    freeze: str | None = None

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
        default_auto_map(
            self,
            {
                "AutoConfig": "configuration_dsr.DSRConfig",
                "AutoModel": "modeling_dsr.DSRModel",
                "AutoModelForImageTextToText": "modeling_dsr.DSRForConditionalGeneration",
            },
        )


DSRConfig.register_for_auto_class()
