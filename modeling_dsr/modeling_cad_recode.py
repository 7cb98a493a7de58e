"""CAD-Recode: Qwen2 that writes the CadQuery program of a point cloud (arXiv 2412.14042).

Data flow, for N points:

    point_cloud [B, N, 3] ── Fourier features [B, N, 51] ── linear ── point tokens [B, N, D]
    placeholders of the prompt ← point tokens ─ language model ─ program
"""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM, Qwen2Model

from .cad_point_encoder import FourierPointEncoder, check_points, find_point_tokens, plain_attention_mask, write_points
from .chunked_loss import logits_and_loss
from .configuration_cad_recode import CADRecodeConfig
from .float_modules import for_quantizers
from .freezing import FreezePresets
from .generation_settings import CACHE, OwnGenerationSettings, is_started, prompt_length
from .idle_towers import reach


class CADRecodeParts(FreezePresets):
    """
    Presets of `freeze`: "all"; "point_encoder", that alone.
    """

    freeze_presets = {
        "all": "",
        "point_encoder": r"(model\.)?point_encoder\.",
    }


class CADRecodeModel(CADRecodeParts, Qwen2Model):
    """Qwen2 and the point encoder, without a language-model head."""

    config: CADRecodeConfig
    # sin(128·x) has no meaning in bfloat16; the published checkpoints keep the encoder in float32 too.
    _keep_in_fp32_modules_strict = ["point_encoder"]
    _keep_in_fp32_modules = for_quantizers(_keep_in_fp32_modules_strict)

    def __init__(self, config: CADRecodeConfig):
        super().__init__(config)
        self.point_encoder = FourierPointEncoder(config, config.hidden_size, config.point_channels)
        self.post_init()
        self.freeze()

    def get_point_features(self, point_cloud: torch.FloatTensor) -> torch.FloatTensor:
        """Point tokens `[B, N, D]` of clouds `[B, N, point_channels]` in model units."""
        point_embeds = self.point_encoder(point_cloud)
        return point_embeds.to(torch.bfloat16) if self.config.round_point_embeds else point_embeds

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        point_cloud: torch.FloatTensor | None = None,
        point_token_mask: torch.BoolTensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        r"""
        Args:
            input_ids: `[B, S]`, with one placeholder per point (the processor writes them).
            attention_mask: `[B, S]`, 0 on padding, on either side; -1 may mark the placeholders, as the published code
                does. It is not changed.
            position_ids: `[B, S]`; by default the index in the row, padding counted, as published.
            point_cloud: `[B, N, point_channels]` in model units, zeros in rows without points. Read at prefill alone.
            point_token_mask: `[B, S]` bool, the placeholders of the points; when absent the -1 of the mask, or the
                first run of `config.point_token_id`.
        """
        cache = past_key_values if cache is None else cache
        if input_ids is None and inputs_embeds is None:
            raise ValueError("Pass `input_ids` or `inputs_embeds`; both are None.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        prompt_mask = attention_mask if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 else None
        if point_cloud is not None and not is_started(cache):
            if point_token_mask is None:
                if input_ids is None:
                    raise ValueError("`point_cloud` with `inputs_embeds` alone needs `point_token_mask`, got None.")
                point_token_mask = find_point_tokens(input_ids, prompt_mask, self.config.point_token_id)
            has_points = point_token_mask.any(1)
            check_points(point_cloud, point_token_mask, has_points, "point_cloud", self.config.point_channels)
            point_embeds = self.get_point_features(point_cloud.to(inputs_embeds.device))
            inputs_embeds = write_points(inputs_embeds, point_embeds, point_token_mask, has_points)
        elif self.training:
            point = inputs_embeds.new_zeros(1, 1, self.config.point_channels)
            inputs_embeds = reach(inputs_embeds, [self.point_encoder], lambda: self.get_point_features(point))
        if prompt_mask is not None:
            attention_mask = plain_attention_mask(prompt_mask)
        kwargs.pop("return_dict", None)
        return super().forward(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{CACHE: cache, **kwargs},
        )


class CADRecodeForCausalLM(CADRecodeParts, OwnGenerationSettings, Qwen2ForCausalLM):
    """[`CADRecodeModel`] with a language-model head: CadQuery programs from point clouds."""

    config: CADRecodeConfig
    _keep_in_fp32_modules_strict = ["point_encoder"]
    _keep_in_fp32_modules = for_quantizers(_keep_in_fp32_modules_strict)

    def __init__(self, config: CADRecodeConfig):
        super(Qwen2ForCausalLM, self).__init__(config)
        self.model = CADRecodeModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        self.freeze()

    def get_point_features(self, point_cloud: torch.FloatTensor) -> torch.FloatTensor:
        """See [`CADRecodeModel.get_point_features`]."""
        return self.model.get_point_features(point_cloud)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        point_cloud: torch.FloatTensor | None = None,
        point_token_mask: torch.BoolTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        r"""
        Args:
            labels: `[B, S]`, -100 where no loss is taken. The loss is the mean next-token cross-entropy in float32, 0
                if nothing is supervised. In training mode `logits` is then None; see `config.loss_chunk_size`.
            num_items_in_batch: divide the summed loss by this instead of the number of supervised tokens.

        The other arguments are those of [`CADRecodeModel.forward`].
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            point_cloud=point_cloud,
            point_token_mask=point_token_mask,
            **kwargs,
        )
        logits, loss = logits_and_loss(self, outputs.last_hidden_state, labels, logits_to_keep, num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )

    # ---- generation ----------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args, **kwargs):
        """
        `GenerationMixin.generate`, with the inputs of [`CADRecodeModel.forward`].

        A -1 in the mask is turned into 1 here: positions are made of the mask before the model sees it, and a -1 left
        in it would lead them astray. The placeholders travel beside it.
        """
        input_ids = kwargs.get("input_ids", inputs)
        mask = kwargs.get("attention_mask")
        if kwargs.get("point_cloud") is not None and kwargs.get("point_token_mask") is None and input_ids is not None:
            kwargs["point_token_mask"] = find_point_tokens(input_ids, mask, self.config.point_token_id)
        if mask is not None:
            kwargs["attention_mask"] = plain_attention_mask(mask)
        elif input_ids is not None and kwargs.get("inputs_embeds") is None:
            # The padding token is the points' placeholder: nothing may be inferred from it.
            kwargs["attention_mask"] = torch.ones_like(input_ids)
        return super().generate(inputs, *args, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, *args, inputs_embeds=None, is_first_iteration=False, **kwargs):
        """Points enter at prefill (at every step when nothing is cached), then are dropped."""
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            model_inputs.pop("point_cloud", None)
            model_inputs.pop("point_token_mask", None)
        elif model_inputs.get("point_token_mask") is not None:  # without a cache the prompt has grown
            grown = prompt_length(model_inputs) - model_inputs["point_token_mask"].shape[1]
            model_inputs["point_token_mask"] = nn.functional.pad(model_inputs["point_token_mask"], (0, grown))
        return model_inputs

    def as_pipeline(self, processor, **options):
        """This model and its processor as a [`CadGenerationPipeline`]. (`save_pretrained` copies what a model's file
        imports: its pipeline.)"""
        from .cad_pipeline import CadGenerationPipeline

        return CadGenerationPipeline(model=self, processor=processor, **options)


for _model_class, _auto_class in ((CADRecodeModel, "AutoModel"), (CADRecodeForCausalLM, "AutoModelForCausalLM")):
    _model_class.register_for_auto_class(_auto_class)
