"""Qwen's vision-language models under names of our own, for use inside another model.

transformers saves and loads its own Qwen classes in the layout of older checkpoints, wherever they sit in a model. A
class of another name keeps the names of the parameters in memory on disk too, under every version.
"""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLForConditionalGeneration, Qwen2VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLModel


class FrozenQwen2VLModel(Qwen2VLModel):
    """[`Qwen2VLModel`]."""


class FrozenQwen2_5_VLModel(Qwen2_5_VLModel):
    """[`Qwen2_5_VLModel`]."""


class FrozenQwen3VLModel(Qwen3VLModel):
    """[`Qwen3VLModel`]."""


class FrozenQwen2VL(Qwen2VLForConditionalGeneration):
    """[`Qwen2VLForConditionalGeneration`]."""

    def __init__(self, config: PreTrainedConfig):
        super(Qwen2VLForConditionalGeneration, self).__init__(config)
        _build(self, FrozenQwen2VLModel)


class FrozenQwen2_5_VL(Qwen2_5_VLForConditionalGeneration):
    """[`Qwen2_5_VLForConditionalGeneration`]."""

    def __init__(self, config: PreTrainedConfig):
        super(Qwen2_5_VLForConditionalGeneration, self).__init__(config)
        _build(self, FrozenQwen2_5_VLModel)


class FrozenQwen3VL(Qwen3VLForConditionalGeneration):
    """[`Qwen3VLForConditionalGeneration`]."""

    def __init__(self, config: PreTrainedConfig):
        super(Qwen3VLForConditionalGeneration, self).__init__(config)
        _build(self, FrozenQwen3VLModel)


FROZEN_VLMS = {"qwen2_vl": FrozenQwen2VL, "qwen2_5_vl": FrozenQwen2_5_VL, "qwen3_vl": FrozenQwen3VL}


def _build(model: PreTrainedModel, base_class: type[PreTrainedModel]) -> None:
    text = model.config.get_text_config()
    model.model = base_class(model.config)
    model.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
    model.post_init()
