"""Configuration of Cadrille."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import Qwen2VLConfig

from .configuration_shared import check_point_fields, default_auto_map, default_pipeline

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
        freeze (`str`, *optional*):
            What trains, see `freeze` of the model: `"language"` (all but the vision tower), `"point_encoder"` or
                `"all"`. None: the model's default.
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
    freeze: str | None = None

    def __post_init__(self, **kwargs):
        check_point_fields(self)
        # A flat configuration, as published, carries the text tower's fields at the top.
        if self.text_config is None and "hidden_size" not in kwargs:
            self.text_config = dict(CADRILLE_TEXT_DEFAULTS)
        if self.vision_config is None:
            self.vision_config = dict(CADRILLE_VISION_DEFAULTS)
        super().__post_init__(**kwargs)
        default_auto_map(
            self,
            {
                "AutoConfig": "configuration_cadrille.CadrilleConfig",
                "AutoModel": "modeling_cadrille.CadrilleModel",
                "AutoModelForImageTextToText": "modeling_cadrille.CadrilleForConditionalGeneration",
            },
        )
        default_pipeline(self, "cad-generation", "cad_pipeline.CadGenerationPipeline", "AutoModelForImageTextToText")


CadrilleConfig.register_for_auto_class()
