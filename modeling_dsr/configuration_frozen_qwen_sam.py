"""Configuration of FrozenQwenSAM."""

from __future__ import annotations

from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, Qwen2_5_VLConfig, SamConfig

from .configuration_shared import default_auto_map, default_pipeline

PHRASE_MERGES = ("mean", "max")
MASK_PROMPT_PADDINGS = ("phrase", "image")
VISION_LANGUAGE_MODELS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def sam_config(**overrides) -> SamConfig:
    """
    Configuration of SAM with a ViT-L image encoder, `overrides` per part (`vision_config`, `prompt_encoder_config`,
    `mask_decoder_config`).

    The norms of the released decoder have epsilon 1e-5; transformers' default for them is 1e-6.
    """
    parts: dict[str, dict[str, Any]] = {
        "vision_config": dict(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, global_attn_indexes=[5, 11, 17, 23]
        ),
        "prompt_encoder_config": {},
        "mask_decoder_config": dict(layer_norm_eps=1e-5),
    }
    rest = {name: value for name, value in overrides.items() if name not in parts}
    merged: dict[str, Any] = {name: {**defaults, **overrides.get(name, {})} for name, defaults in parts.items()}
    return SamConfig(**merged, **rest)


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
        freeze (`str`, *optional*):
            What trains, see `freeze` of the model: `"published"` or `"mask_head"`. None: the model's default.
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
    freeze: str | None = None

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
                f"`vlm_config` must be of one of the types {VISION_LANGUAGE_MODELS}, got "
                f"{self.vlm_config.model_type!r}."
            )
        if self.sam_config is None or isinstance(self.sam_config, dict):
            self.sam_config = sam_config(**(self.sam_config or {}))
        super().__post_init__(**kwargs)
        default_auto_map(
            self,
            {
                "AutoConfig": "configuration_frozen_qwen_sam.FrozenQwenSAMConfig",
                "AutoModel": "modeling_frozen_qwen_sam.FrozenQwenSAMModel",
            },
        )
        default_pipeline(
            self, "phrase-segmentation", "frozen_qwen_sam_pipeline.PhraseSegmentationPipeline", "AutoModel"
        )

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        """That of the vision-language model."""
        return cast(PreTrainedConfig, self.vlm_config).get_text_config(*args, **kwargs)


FrozenQwenSAMConfig.register_for_auto_class()
