"""Cadrille: Qwen2-VL that writes CadQuery programs from points, rendered views or text (arXiv 2505.22914).

Data flow, for N points in the clouds and T vision tokens of the views:

    point_clouds [B, N, 3] ── Fourier features [B, N, 51] ── linear ─── point tokens [B, N, D]
    pixel_values_videos [P, 1176] ── Qwen2-VL vision tower ──────────── vision tokens [T, D]
    placeholders of the prompt ← point tokens, vision tokens ─ language model ─ program
"""

from dataclasses import dataclass, fields

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLForConditionalGeneration, Qwen2VLModel

from .cad_point_encoder import FourierPointEncoder, check_points, find_point_tokens, write_points
from .chunked_loss import logits_and_loss
from .configuration_cadrille import CadrilleConfig
from .float_modules import for_quantizers
from .freezing import FreezePresets
from .generation_settings import CACHE, OwnGenerationSettings, is_started, prompt_length
from .idle_towers import grey_patches, reach
from .multimodal_rope import count_media, multimodal_positions
from .packing import packed_samples, separate_samples

# Transformers 5.24 adds the towers' own outputs, earlier releases have none.
LANGUAGE_MODEL_FIELDS = tuple(field.name for field in fields(BaseModelOutputWithPast))
PREFILL_INPUTS = (
    "point_clouds", "point_token_mask", "is_pc", "is_img", "pixel_values", "pixel_values_videos", "image_grid_thw",
    "video_grid_thw",
)  # fmt: skip


@dataclass
class CadrilleModelOutputWithPast(BaseModelOutputWithPast):
    """
    Output of [`CadrilleModel`]; see [`BaseModelOutputWithPast`] for the fields of the language model.

    Args:
        rope_deltas (`torch.LongTensor` of shape `(batch, 1)`): next rotary position minus the length of the padded row.
    """

    rope_deltas: torch.LongTensor | None = None


@dataclass
class CadrilleCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output of [`CadrilleForConditionalGeneration`]; `rope_deltas` as in [`CadrilleModelOutputWithPast`]."""

    rope_deltas: torch.LongTensor | None = None


class CadrilleParts(FreezePresets):
    """
    Presets of `freeze`: "all"; "point_encoder", that alone; "language", all but the vision tower, for parts that are
    shown as points.
    """

    freeze_presets = {
        "all": "",
        "point_encoder": r"(model\.)?point_encoder\.",
        "language": r"(?!(model\.)?visual\.)",
    }


class CadrilleModel(CadrilleParts, Qwen2VLModel):
    """Qwen2-VL's towers and the point encoder, without a language-model head."""

    config: CadrilleConfig
    # sin(128·x) has no meaning in bfloat16; the published checkpoints keep the encoder in float32 too.
    _keep_in_fp32_modules_strict = ["point_encoder"]
    _keep_in_fp32_modules = for_quantizers(_keep_in_fp32_modules_strict)

    def __init__(self, config: CadrilleConfig):
        super().__init__(config)
        self.point_encoder = FourierPointEncoder(config, config.text_config.hidden_size)
        self.post_init()
        self.freeze()

    def get_point_features(self, point_clouds: torch.FloatTensor) -> torch.FloatTensor:
        """Point tokens `[B, N, D]` of clouds `[B, N, 3 or more]` in model units; x, y, z alone are read."""
        point_embeds = self.point_encoder(point_clouds)
        return point_embeds.to(torch.bfloat16) if self.config.round_point_embeds else point_embeds

    def get_rope_index(
        self,
        input_ids: torch.LongTensor,
        mm_token_type_ids: torch.IntTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        Rotary positions `[3, B, S]` and deltas `[B, 1]`; see `multimodal_positions`. Points are text here.
        `mm_token_type_ids` is accepted for compatibility; placeholders are found by their ids.
        """
        media = [(self.config.image_token_id, image_grid_thw), (self.config.video_token_id, video_grid_thw)]
        return multimodal_positions(input_ids, attention_mask, media, self.config.vision_config.spatial_merge_size)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        point_clouds: torch.FloatTensor | None = None,
        is_pc: torch.BoolTensor | None = None,
        is_img: torch.BoolTensor | None = None,
        point_token_mask: torch.BoolTensor | None = None,
        cu_seq_lens_q: torch.LongTensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> CadrilleModelOutputWithPast:
        r"""
        Args:
            input_ids: `[B, S]`, with one placeholder per point and per vision token (the processor writes them).
            attention_mask: `[B, S]`, 0 on padding, on either side.
            position_ids: `[3, B, S]`; computed when absent. Text positions `[B, S]` that begin again within a row, or
                `cu_seq_lens_q`, say where packed samples of text begin.
            pixel_values, image_grid_thw: images as Qwen2-VL takes them.
            pixel_values_videos, video_grid_thw: views of the parts, `[B, L, 1176]` and `[B, 3]` with zeros in rows that
                show none, or `[P, 1176]` and `[n, 3]` for the rows that do.
            point_clouds: `[B, N, 3]` in model units, zeros in rows without points. Read at prefill alone.
            is_pc: `[B]` bool, rows with points; by their placeholders when absent.
            is_img: `[B]` bool, rows with views; by `video_grid_thw` when absent.
            point_token_mask: `[B, S]` bool, the placeholders of the points; found in `input_ids` when absent.
        """
        cache = past_key_values if cache is None else cache
        if input_ids is None and inputs_embeds is None:
            raise ValueError("Pass `input_ids` or `inputs_embeds`; both are None.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        prompt_mask = attention_mask if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 else None
        if point_clouds is not None and not is_started(cache):
            inputs_embeds = self._place_points(
                inputs_embeds, input_ids, prompt_mask, point_clouds, is_pc, point_token_mask
            )
        pixel_values_videos, video_grid_thw = compact_videos(pixel_values_videos, video_grid_thw, is_img)
        if (pixel_values is not None or pixel_values_videos is not None) and input_ids is None:
            raise ValueError("`input_ids` are needed with images or views: placeholders are found by their ids.")
        if self.training:
            shown = pixel_values is not None or pixel_values_videos is not None
            inputs_embeds = self._reach_idle(inputs_embeds, point_clouds is not None, shown)
        packed = packed_samples(position_ids, prompt_mask, cu_seq_lens_q)
        if packed is not None and not is_started(cache):
            if point_clouds is not None or pixel_values is not None or pixel_values_videos is not None:
                raise ValueError(
                    "Rows with points or views cannot be packed: each shows one part. Pack rows of text alone."
                )
            position_ids, attention_mask, use_cache = packed_positions(packed), None, False
        if position_ids is None:
            position_ids = self._positions(input_ids, inputs_embeds, prompt_mask, cache, image_grid_thw, video_grid_thw)
        kwargs.pop("return_dict", None)
        outputs = super().forward(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            **{CACHE: cache, **kwargs},
        )
        kept = {name: outputs.get(name) for name in LANGUAGE_MODEL_FIELDS}
        return CadrilleModelOutputWithPast(**kept, rope_deltas=self.rope_deltas)

    def _place_points(self, inputs_embeds, input_ids, attention_mask, point_clouds, is_pc, point_token_mask):
        if point_token_mask is None:
            if input_ids is None:
                raise ValueError("`point_clouds` with `inputs_embeds` alone need `point_token_mask`, got None.")
            if attention_mask is not None:
                attention_mask = attention_mask[:, -input_ids.shape[1] :]
            point_token_mask = find_point_tokens(input_ids, attention_mask, self.config.point_token_id)
        has_points = point_token_mask.any(1) if is_pc is None else is_pc.to(inputs_embeds.device)
        check_points(point_clouds, point_token_mask, has_points, "point_clouds", 3)
        point_embeds = self.get_point_features(point_clouds.to(inputs_embeds.device))
        return write_points(inputs_embeds, point_embeds, point_token_mask, has_points)

    def _reach_idle(self, inputs_embeds, has_points: bool, has_views: bool) -> torch.Tensor:
        if not has_points:
            point = inputs_embeds.new_zeros(1, 1, 3)
            inputs_embeds = reach(inputs_embeds, [self.point_encoder], lambda: self.get_point_features(point))
        if not has_views:
            inputs_embeds = reach(inputs_embeds, [self.visual], lambda: self._small_view(inputs_embeds.device))
        return inputs_embeds

    def _small_view(self, device) -> torch.Tensor:
        """The vision token of the smallest grey view there is."""
        patches, grid = grey_patches(self.config.vision_config, device)
        return torch.cat(self.get_video_features(patches, grid, return_dict=True).pooler_output)

    def _positions(self, input_ids, inputs_embeds, attention_mask, cache, image_grid_thw, video_grid_thw):
        """Positions of a prefill; after it the index in the cache, moved by what the prefill found."""
        batch, length, _ = inputs_embeds.shape
        if is_started(cache) and self.rope_deltas is not None:
            past = cache.get_seq_length()
            index = torch.arange(length, device=inputs_embeds.device) + past
            deltas = self.rope_deltas.to(inputs_embeds.device).repeat_interleave(batch // len(self.rope_deltas), dim=0)
            return (index + deltas).expand(3, -1, -1)
        if input_ids is None:
            input_ids = torch.full((batch, length), -1, device=inputs_embeds.device)  # no placeholder among them
        if attention_mask is not None:
            attention_mask = attention_mask[:, -length:]
        positions, self.rope_deltas = self.get_rope_index(
            input_ids,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            attention_mask=attention_mask,
        )
        return positions


class CadrilleForConditionalGeneration(CadrilleParts, OwnGenerationSettings, Qwen2VLForConditionalGeneration):
    """[`CadrilleModel`] with a language-model head: CadQuery programs from points, views or text."""

    config: CadrilleConfig
    _keep_in_fp32_modules_strict = ["point_encoder"]
    _keep_in_fp32_modules = for_quantizers(_keep_in_fp32_modules_strict)

    def __init__(self, config: CadrilleConfig):
        super(Qwen2VLForConditionalGeneration, self).__init__(config)
        self.model = CadrilleModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()
        self.freeze()

    def get_point_features(self, point_clouds: torch.FloatTensor) -> torch.FloatTensor:
        """See [`CadrilleModel.get_point_features`]."""
        return self.model.get_point_features(point_clouds)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        point_clouds: torch.FloatTensor | None = None,
        is_pc: torch.BoolTensor | None = None,
        is_img: torch.BoolTensor | None = None,
        point_token_mask: torch.BoolTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> CadrilleCausalLMOutputWithPast:
        r"""
        Args:
            labels: `[B, S]`, -100 where no loss is taken. The loss is the mean next-token cross-entropy in float32, 0
                if nothing is supervised. In training mode `logits` is then None; see `config.loss_chunk_size`.
            num_items_in_batch: divide the summed loss by this instead of the number of supervised tokens.

        The other arguments are those of [`CadrilleModel.forward`].
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            point_clouds=point_clouds,
            is_pc=is_pc,
            is_img=is_img,
            point_token_mask=point_token_mask,
            **kwargs,
        )
        packed = packed_samples(position_ids, attention_mask, kwargs.get("cu_seq_lens_q"))
        if labels is not None and packed is not None:
            labels = separate_samples(labels, packed)
        logits, loss = logits_and_loss(self, outputs.last_hidden_state, labels, logits_to_keep, num_items_in_batch)
        return CadrilleCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            rope_deltas=outputs.rope_deltas,
            **{CACHE: outputs.get(CACHE)},
        )

    # ---- generation ----------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args, **kwargs):
        """
        `GenerationMixin.generate`, with the inputs of [`CadrilleModel.forward`].

        The placeholders are found here, while the mask of the prompt is at hand: generation replaces a mask of ones by
        None and hands static caches a mask of another shape.
        """
        input_ids = kwargs.get("input_ids", inputs)
        if input_ids is not None and kwargs.get("attention_mask") is None and kwargs.get("inputs_embeds") is None:
            # The padding token is the points' placeholder: nothing may be inferred from it.
            kwargs["attention_mask"] = torch.ones_like(input_ids)
        if kwargs.get("point_clouds") is not None and kwargs.get("point_token_mask") is None and input_ids is not None:
            kwargs["point_token_mask"] = find_point_tokens(
                input_ids, kwargs.get("attention_mask"), self.config.point_token_id
            )
        return super().generate(inputs, *args, **kwargs)

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """Positions `[4, B, S]`: the text index, of which masks are made, and the three rotary axes."""
        text_positions = super(Qwen2VLForConditionalGeneration, self)._prepare_position_ids_for_generation(
            inputs_tensor, model_kwargs
        )
        input_ids = model_kwargs.get("input_ids")
        input_ids = inputs_tensor if input_ids is None or not input_ids.shape[1] else input_ids
        cache = model_kwargs.get(CACHE)
        if is_started(cache) and self.model.rope_deltas is not None:
            # The deltas count from the index in the cache, padding included.
            past = cache.get_seq_length()
            length = model_kwargs["attention_mask"].shape[1] if model_kwargs.get("attention_mask") is not None else None
            index = torch.arange(length or past + input_ids.shape[1], device=text_positions.device)
            rotary = (index + self.model.rope_deltas.to(index.device)).expand(3, -1, -1)
            return torch.cat([text_positions.expand(rotary.shape[1:])[None], rotary])
        if input_ids.ndim != 2 or input_ids.is_floating_point():
            input_ids = torch.full(inputs_tensor.shape[:2], -1, device=inputs_tensor.device)
        _, video_grid_thw = compact_videos(
            model_kwargs.get("pixel_values_videos"), model_kwargs.get("video_grid_thw"), model_kwargs.get("is_img")
        )
        positions, self.model.rope_deltas = self.model.get_rope_index(
            input_ids,
            image_grid_thw=model_kwargs.get("image_grid_thw"),
            video_grid_thw=video_grid_thw,
            attention_mask=model_kwargs.get("attention_mask"),
        )
        return torch.cat([text_positions.expand(positions.shape[1:])[None], positions])

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Repeat every row for beams and sequences; media without a batch axis are repeated row by row."""
        if expand_size == 1:
            return input_ids, model_kwargs
        media = {}
        for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            pixels, grid = model_kwargs.get(name), model_kwargs.get(f"{kind}_grid_thw")
            if pixels is None or pixels.ndim == 3:
                continue
            counts = count_media(input_ids, getattr(self.config, f"{kind}_token_id")).tolist()
            per_medium = pixels.split(grid.prod(1).tolist())
            order, start = [], 0
            for count in counts:
                order += list(range(start, start + count)) * expand_size
                start += count
            media[name] = torch.cat([per_medium[i] for i in order])
            media[f"{kind}_grid_thw"] = grid[order]
            model_kwargs[name] = model_kwargs[f"{kind}_grid_thw"] = None
        positions = model_kwargs.pop("position_ids", None)
        input_ids, model_kwargs = super(Qwen2VLForConditionalGeneration, self)._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if positions is not None:
            model_kwargs["position_ids"] = positions.repeat_interleave(expand_size, dim=positions.ndim - 2)
        return input_ids, {**model_kwargs, **media}

    def prepare_inputs_for_generation(self, input_ids, *args, inputs_embeds=None, is_first_iteration=False, **kwargs):
        """Points and views enter at prefill (at every step when nothing is cached), then are dropped."""
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in PREFILL_INPUTS:
                model_inputs.pop(name, None)
        elif model_inputs.get("point_token_mask") is not None:  # without a cache the prompt has grown
            grown = prompt_length(model_inputs) - model_inputs["point_token_mask"].shape[1]
            model_inputs["point_token_mask"] = nn.functional.pad(model_inputs["point_token_mask"], (0, grown))
        return model_inputs

    def as_pipeline(self, processor, **options):
        """This model and its processor as a [`CadGenerationPipeline`]. (`save_pretrained` copies what a model's file
        imports: its pipeline.)"""
        from .cad_pipeline import CadGenerationPipeline

        return CadGenerationPipeline(model=self, processor=processor, **options)


def compact_videos(
    pixel_values_videos: torch.Tensor | None, video_grid_thw: torch.Tensor | None, is_img: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """
    The views of the rows that have some: patches `[P, 1176]` and grids `[n, 3]`, both None if no row has.

    Takes the batched layout, `[B, L, 1176]` and `[B, 3]` with zeros in the other rows, or the compact one as it is.
    """
    if video_grid_thw is None:
        if pixel_values_videos is not None:
            raise ValueError("`pixel_values_videos` needs `video_grid_thw`; the processor returns both.")
        return None, None
    if (
        pixel_values_videos is not None
        and pixel_values_videos.ndim == 3
        and len(pixel_values_videos) != len(video_grid_thw)
    ):
        raise ValueError(
            f"`video_grid_thw` must have one row per row of `pixel_values_videos` ({len(pixel_values_videos)}), got "
            f"{len(video_grid_thw)}."
        )
    rows = (video_grid_thw > 0).all(1)
    if is_img is not None and len(is_img) == len(video_grid_thw):
        rows = rows & is_img.to(rows.device)
    if not rows.any():
        return None, None
    if pixel_values_videos is not None and pixel_values_videos.ndim == 3:
        pixel_values_videos = pixel_values_videos[rows.to(pixel_values_videos.device)].flatten(0, 1)
    return pixel_values_videos, video_grid_thw[rows]


def packed_positions(numbers: torch.Tensor) -> torch.Tensor:
    """Positions `[4, B, S]`, the text index and the three rotary axes, of rows of text whose samples have `numbers`
    `[B, S]`."""
    first = torch.ones_like(numbers, dtype=torch.bool)
    first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    index = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    start = torch.where(first, index, 0).cummax(1).values
    return (index - start).expand(4, -1, -1)


for _model_class, _auto_class in (
    (CadrilleModel, "AutoModel"),
    (CadrilleForConditionalGeneration, "AutoModelForImageTextToText"),
):
    _model_class.register_for_auto_class(_auto_class)
