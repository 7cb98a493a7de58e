"""Configuration of CAD-Recode."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config

from .configuration_shared import check_point_fields, default_auto_map, default_pipeline


@strict
class CADRecodeConfig(Qwen2Config):
    r"""
    Configuration of [`CADRecodeModel`]: Qwen2 that reads a point cloud and writes a CadQuery program.

    Everything that [`Qwen2Config`] accepts is accepted here, with the sizes of Qwen2-1.5B as defaults. The fields of
    the points are those of [`CadrilleConfig`], and:

    Args:
        point_channels (`int`, *optional*, defaults to 3): Numbers per point. Those after x, y, z are features as they
            are; 6 (normals) is the first published version.
        point_token_id (`int`, *optional*, defaults to 151645): Placeholder of a point, `<|im_end|>`.
        freeze (`str`, *optional*):
            What trains, see `freeze` of the model: `"point_encoder"` or `"all"`. None: the model's default.
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
    freeze: str | None = None

    def __post_init__(self, **kwargs):
        check_point_fields(self)
        if self.point_channels < 3:
            raise ValueError(f"`point_channels` must be at least 3 (x, y, z), got {self.point_channels}.")
        if self.rope_parameters is None and "rope_theta" not in kwargs and "rope_scaling" not in kwargs:
            self.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
        super().__post_init__(**kwargs)
        default_auto_map(
            self,
            {
                "AutoConfig": "configuration_cad_recode.CADRecodeConfig",
                "AutoModel": "modeling_cad_recode.CADRecodeModel",
                "AutoModelForCausalLM": "modeling_cad_recode.CADRecodeForCausalLM",
            },
        )
        default_pipeline(self, "cad-generation", "cad_pipeline.CadGenerationPipeline", "AutoModelForCausalLM")


CADRecodeConfig.register_for_auto_class()
