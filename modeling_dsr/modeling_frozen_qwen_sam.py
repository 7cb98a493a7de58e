"""FrozenQwenSAM: masks for phrases from the attention of a frozen Qwen-VL (F-LMM, arXiv 2406.05821, on Qwen2.5-VL).

Data flow, for L layers of H heads, an image of h×w merged tokens and phrases i of T_i tokens:

    prefix (image, instruction) ── Qwen, sdpa or flash ── KV cache, read once per image
    captions ── Qwen on the cache ─┬─ attention rows of the phrases × image columns, merged ── [n, L·H, h, w]
                                   └─ hidden states of those rows, L layers weighted ── text_proj ── [T_i, 256]
    [n, L·H, h, w] ── U-Net ── coarse logits [n, h', w'] ── mask and box prompts ─┐
    image ── SAM image encoder ── [256, 64, 64] ─────────────────────────────────┴─ SAM decoder ── [n, H, W]

Captions of one image do not see each other; phrases of one caption do. No `[S, S]` attention is ever made.
"""

import os
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from .attention_capture import capture_attention, capture_hidden_states
from .configuration_frozen_qwen_sam import FrozenQwenSAMConfig
from .float_modules import for_quantizers
from .freezing import FreezePresets
from .frozen_qwen_sam_answers import FrozenQwenSAMAnswers
from .frozen_qwen_sam_layout import PhraseLayout, build_phrase_layout
from .frozen_qwen_sam_losses import mask_losses
from .frozen_qwen_sam_mask_head import MaskHead
from .frozen_qwen_sam_outputs import FrozenQwenSAMFeatures, FrozenQwenSAMOutput
from .frozen_qwen_sam_refiner import (
    PhraseSamModel,
    RefinedMasks,
    binary_masks,
    mask_boxes,
    mask_prompts,
    masks_at_original_size,
    overlap,
)
from .frozen_qwen_sam_vlm import FROZEN_VLMS, load_with_sources, save_trained_parts
from .scene_mean import mean_over_scenes


@dataclass
class PhraseStates:
    """What the language model says of phrases: attention `[n, L·H, N]` to the image and hidden states `[L, B·K, D]`."""

    attentions: torch.Tensor
    hidden_states: torch.Tensor


class FrozenQwenSAMModel(FreezePresets, FrozenQwenSAMAnswers, PreTrainedModel):
    """
    Masks for phrases of a text about an image.

    The vision-language model and SAM's image encoder are frozen. Trained are the U-Net, the weights of the layers, the
    projection of the text and SAM's prompt encoder and decoder.
    """

    config: FrozenQwenSAMConfig
    config_class = FrozenQwenSAMConfig
    default_freeze = "published"
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = [
        "Qwen2VLDecoderLayer",
        "Qwen2VLVisionBlock",
        "Qwen2_5_VLDecoderLayer",
        "Qwen2_5_VLVisionBlock",
        "Qwen3VLTextDecoderLayer",
        "Qwen3VLVisionBlock",
        "SamVisionLayer",
    ]
    # The language model may be bfloat16; the U-Net's norms and SAM's interpolations are not stable in it.
    _keep_in_fp32_modules_strict = ["mask_head", "sam", "text_proj", "text_layer_weights"]
    _keep_in_fp32_modules = for_quantizers(_keep_in_fp32_modules_strict)

    def __init__(self, config: FrozenQwenSAMConfig):
        super().__init__(config)
        text = config.get_text_config()
        prompt_width = config.sam_config.prompt_encoder_config.hidden_size
        self.vlm = FROZEN_VLMS[config.vlm_config.model_type]._from_config(config.vlm_config)
        self.mask_head = MaskHead(
            text.num_attention_heads * text.num_hidden_layers,
            config.mask_head_channels,
            config.mask_head_stages,
            config.mask_head_size,
        )
        self.sam = PhraseSamModel._from_config(config.sam_config)
        self.text_proj = nn.Linear(text.hidden_size, prompt_width)
        self.text_layer_weights = nn.Parameter(torch.ones(text.num_hidden_layers))
        self.post_init()
        self.freeze()

    def _init_weights(self, module):
        # Qwen and SAM initialise themselves: what arrives here is the U-Net, the projection and this model.
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif module is self:
            init.ones_(self.text_layer_weights)
        elif module is self.text_proj:
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)

    # ---- what is trained -----------------------------------------------------------------

    @property
    def freeze_presets(self) -> dict[str, str]:
        """
        "published" trains U-Net, text projection, weights of the layers, SAM's decoder and what of its prompt encoder
        the flags of the config use; "mask_head" the U-Net alone.
        """
        prompts = [r"mask_embed" if self.config.use_mask else r"no_mask_embed"]
        if self.config.use_box:
            prompts += [rf"point_embed\.{i}" for i in range(2, len(self.sam.prompt_encoder.point_embed))]
        trained = [r"mask_head\.", r"sam\.mask_decoder\.", rf"sam\.prompt_encoder\.({'|'.join(prompts)})\."]
        if self.config.use_text:
            trained += [r"text_proj\.", r"text_layer_weights$"]
        return {"published": "|".join(trained), "mask_head": r"mask_head\."}

    def idle_parameters(self) -> list[str]:
        """See [`FreezePresets`]. Nobody reads what SAM thinks of its masks."""
        return [*super().idle_parameters(), r"sam\.mask_decoder\.iou_prediction_head\..*"]

    def train(self, mode: bool = True) -> "FrozenQwenSAMModel":
        """Training mode for the trained parts; the frozen ones stay in evaluation mode."""
        super().train(mode)
        self.vlm.eval()
        self.sam.vision_encoder.eval()
        return self

    def save_pretrained(self, save_directory: str | os.PathLike, save_trained_only: bool = False, **kwargs):
        """
        As [`PreTrainedModel.save_pretrained`].

        Args:
            save_trained_only: leave out the language model and SAM's image encoder. They are named in the config by
                repository and revision (`config.vlm_source`, `config.sam_source`), and loaded from there again.
        """
        if save_trained_only:
            return save_trained_parts(self, save_directory, super().save_pretrained, **kwargs)
        return super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As [`PreTrainedModel.from_pretrained`]; a folder of trained parts also loads what it refers to."""
        return load_with_sources(cls, super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    def get_input_embeddings(self):
        return self.vlm.get_input_embeddings()

    # ---- images --------------------------------------------------------------------------

    @torch.no_grad()
    def get_image_embeddings(self, sam_pixel_values: torch.Tensor) -> torch.Tensor:
        """SAM's image embeddings `[B, 256, 64, 64]` of `[B, 3, 1024, 1024]` normalised, padded images."""
        size = self.config.sam_config.vision_config.image_size
        if sam_pixel_values.ndim != 4 or tuple(sam_pixel_values.shape[1:]) != (3, size, size):
            raise ValueError(
                f"`sam_pixel_values` must be [B, 3, {size}, {size}] as the processor returns them, got "
                f"{tuple(sam_pixel_values.shape)}."
            )
        return self.sam.vision_encoder(sam_pixel_values.to(self.sam.vision_encoder.dtype)).last_hidden_state

    @torch.no_grad()
    def _read_prefix(self, layout: PhraseLayout, input_ids, pixel_values, image_grid_thw) -> FrozenQwenSAMFeatures:
        """Run the prefixes through the language model, without a mask: padding comes last, so nothing real sees it."""
        base, device = self.vlm.model, input_ids.device
        prefix_ids = input_ids.gather(1, layout.prefix_index.to(device))
        expected = int(image_grid_thw.prod(1).sum())
        if pixel_values is None or pixel_values.ndim != 2 or len(pixel_values) != expected:
            raise ValueError(
                f"`pixel_values` must be [{expected}, channels] to match `image_grid_thw` {image_grid_thw.tolist()}, "
                f"got {None if pixel_values is None else tuple(pixel_values.shape)}. Pass both as the processor "
                "returned them."
            )
        features = base.get_image_features(pixel_values, image_grid_thw, return_dict=True)
        vision_tokens = tuple(features.pooler_output)
        embeds = base.get_input_embeddings()(prefix_ids)
        is_image = prefix_ids == self.config.vlm_config.image_token_id
        is_image &= torch.arange(is_image.shape[1], device=device) < layout.prefix_lengths[:, None].to(device)
        embeds = embeds.masked_scatter(is_image[..., None], torch.cat(vision_tokens).to(embeds))
        extra = {}
        if getattr(features, "deepstack_features", None) is not None:
            # Per layer one tensor, in newer versions split by image.
            deepstack = [torch.cat(f) if isinstance(f, (tuple, list)) else f for f in features.deepstack_features]
            extra = {"visual_pos_masks": is_image, "deepstack_visual_embeds": deepstack}
        cache = DynamicCache()
        base.language_model(
            inputs_embeds=embeds,
            position_ids=layout.prefix_positions.to(device),
            past_key_values=cache,
            use_cache=True,
            **extra,
        )
        return FrozenQwenSAMFeatures(prefix_ids, layout.prefix_lengths, cache, vision_tokens)

    # ---- phrases -------------------------------------------------------------------------

    def layout(self, input_ids, mask_ids, image_grid_thw, attention_mask=None, caption_ids=None, num_phrases=None):
        """The [`PhraseLayout`] of a batch. See `forward`."""
        if image_grid_thw is None:
            raise ValueError(
                "`image_grid_thw` is missing. Pass what the processor returned, or infer it with "
                "`processor.infer_image_grid(meta_data, num_image_tokens)`."
            )
        vlm = self.config.vlm_config
        return build_phrase_layout(
            input_ids,
            mask_ids,
            image_grid_thw,
            vlm.image_token_id,
            vlm.vision_config.spatial_merge_size,
            attention_mask,
            caption_ids,
            num_phrases,
        )

    @torch.no_grad()
    def read_captions(
        self, layout: PhraseLayout, input_ids: torch.Tensor, features: FrozenQwenSAMFeatures, merge: str
    ) -> PhraseStates:
        """Run the captions on the cached prefixes and keep, of their phrase tokens, attention to the image and
        states."""
        decoder, device = self.vlm.model.language_model, input_ids.device
        rows, row_phrase = layout.rows.to(device), layout.row_phrase.to(device)
        number, cells = len(layout.phrase_image), layout.image_columns.shape[1]

        def merge_rows(weights: torch.Tensor) -> torch.Tensor:  # [B, H, K, N] -> [n, H, N]
            flat = weights.float().transpose(1, 2).flatten(0, 1)  # [B·K, H, N]
            index = row_phrase.flatten()  # padding goes into an extra row
            merged = flat.new_zeros(number + 1, *flat.shape[1:])
            if merge == "max":
                return merged.scatter_reduce(0, index[:, None, None].expand_as(flat), flat, "amax")[:number]
            counts = torch.bincount(index, minlength=number + 1)[:number]
            return merged.index_add(0, index, flat)[:number] / counts[:, None, None]

        cache, cached = features.past_key_values, features.past_key_values.get_seq_length()
        states = capture_hidden_states(decoder.layers[:-1], rows)
        attend = capture_attention(decoder, rows, layout.image_columns.to(device), merge_rows, implementation="sdpa")
        try:
            with attend as captured, states as hidden:
                last = decoder(
                    inputs_embeds=self.vlm.get_input_embeddings()(input_ids.gather(1, layout.caption_index.to(device))),
                    position_ids=layout.caption_positions.to(device),
                    attention_mask=layout.caption_mask.to(device),
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state
        finally:
            if (added := cache.get_seq_length() - cached) > 0:
                cache.crop(-added)
        # The last entry is behind the final norm, the others are outputs of their layers.
        last = last.gather(1, rows[..., None].expand(-1, -1, last.shape[-1]))
        hidden = torch.stack([state.flatten(0, 1) for state in [*hidden, last]])  # [L, B·K, D]
        attentions = torch.cat(captured.attentions, dim=1)  # channel = layer · heads + head
        return PhraseStates(attentions.reshape(number, -1, cells), hidden)

    def weigh_layers(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states `[L, tokens, D]` of all layers to one `[tokens, D]`, with the learned weights."""
        return torch.einsum("ltd,l->td", hidden_states.to(self.text_layer_weights), self.text_layer_weights.softmax(0))

    def _coarse_masks(self, attentions: torch.Tensor, layout: PhraseLayout):
        """Maps `(n, L·H, h, w)` and coarse logits `(n, h', w')` per image; images of one grid share the U-Net's
        batch."""
        counts, grids = layout.phrases_per_image.tolist(), [tuple(grid) for grid in layout.grids.tolist()]
        maps = [piece[..., : h * w].unflatten(-1, (h, w)) for piece, (h, w) in zip(attentions.split(counts), grids)]
        coarse: list[torch.Tensor | None] = [None] * len(maps)
        for grid in dict.fromkeys(grids):
            members = [i for i, other in enumerate(grids) if other == grid]
            logits = self.mask_head(torch.cat([maps[i] for i in members]))
            for i, piece in zip(members, logits.split([counts[i] for i in members])):
                coarse[i] = piece
        return tuple(maps), tuple(coarse)

    def refine(
        self,
        coarse: tuple[torch.Tensor, ...],
        text_embeds: torch.Tensor | None,
        text_mask: torch.Tensor | None,
        image_embeddings: torch.Tensor,
        original_sizes,
        reshaped_input_sizes,
        multimask_output: bool | None = None,
    ) -> RefinedMasks:
        """
        Refine coarse masks with SAM.

        Args:
            coarse: per image logits `[n, h', w']`.
            text_embeds: `[n_all, T, 256]` text prompts of all phrases. text_mask: `[n_all, T]`, False for padding.
            image_embeddings: `[B, 256, 64, 64]`.
            original_sizes, reshaped_input_sizes: `[B, 2]` height and width of the images and of their place in the
            square.
        """
        config = self.config
        multimask_output = config.multimask_output if multimask_output is None else multimask_output
        sam = config.sam_config.prompt_encoder_config
        device, counts = image_embeddings.device, [len(masks) for masks in coarse]
        original = torch.as_tensor(original_sizes).tolist()
        reshaped = torch.as_tensor(reshaped_input_sizes).tolist()
        phrase_image = torch.repeat_interleave(torch.arange(len(coarse)), torch.tensor(counts)).to(device)

        # Coarse masks of all images in one tensor.
        height, width = (max(masks.shape[axis] for masks in coarse) for axis in (1, 2))
        together = torch.cat([F.pad(m, (0, width - m.shape[2], 0, height - m.shape[1])) for m in coarse])
        coarse_sizes = torch.tensor([masks.shape[1:] for masks in coarse], device=device)[phrase_image]
        input_sizes = torch.tensor(reshaped, device=device)[phrase_image]
        lowest = [masks.detach().flatten(1).amin(1) for masks in coarse]
        if config.mask_prompt_padding == "image":
            lowest = [low.amin().expand(len(low)) if len(low) else low for low in lowest]
        padding = torch.cat(lowest).clamp_max(-1.0)
        prompts = mask_prompts(
            together, coarse_sizes, input_sizes, padding, sam.image_size, 4 * sam.image_embedding_size
        )
        prompts = prompts.to(together.dtype)

        # Images differ in size, hence one by one: only the boxes and, at the end, the masks themselves.
        binary, boxes = None, None
        if config.use_box or multimask_output:
            binary = [binary_masks(masks, size) for masks, size in zip(coarse, original)]
        if config.use_box:
            scale = torch.tensor(
                [[w / W, h / H] * 2 for (h, w), (H, W) in zip(reshaped, original)], dtype=torch.float64
            )
            boxes = torch.cat([mask_boxes(masks) for masks in binary])
            boxes = (boxes * scale.to(device)[phrase_image]).float()

        low_res, scores = self.sam.decode_phrases(
            image_embeddings,
            phrase_image,
            boxes,
            prompts if config.use_mask else None,
            text_embeds if config.use_text else None,
            text_mask if config.use_text else None,
            multimask_output,
            config.decoder_chunk_size,
        )

        final, ious = [], []
        for i, masks in enumerate(low_res.split(counts)):
            masks = masks_at_original_size(masks.flatten(0, 1), reshaped[i], original[i], sam.image_size)
            masks = masks.unflatten(0, (counts[i], -1))
            best = 0
            if multimask_output:
                ious.append(overlap(masks > 0, binary[i][:, None]))
                best = ious[-1].argmax(1)
            final.append(masks[torch.arange(counts[i], device=device), best])
        return RefinedMasks(tuple(final), prompts, boxes, low_res, scores, torch.cat(ious) if ious else None)

    # ---- forward -------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.LongTensor,
        mask_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        caption_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        sam_pixel_values: torch.FloatTensor | None = None,
        original_sizes: torch.LongTensor | None = None,
        reshaped_input_sizes: torch.LongTensor | None = None,
        labels: list[torch.Tensor] | None = None,
        features: FrozenQwenSAMFeatures | None = None,
        meta_data: list[dict] | None = None,
        multimask_output: bool | None = None,
        use_sam: bool = True,
        return_features: bool = False,
        mm_token_type_ids: torch.IntTensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> FrozenQwenSAMOutput:
        r"""
        Args:
            input_ids: `[B, S]`, each row a prefix with one image, then captions.
            mask_ids: `[B, S]`, phrase of each token (0, 1, …), -1 outside.
            attention_mask: `[B, S]`, 0 for padding, on either side.
            caption_ids: `[B, S]`, 0 for the prefix, 1, 2, … for captions that do not see each other; None: one caption,
                which begins with the first phrase.
            pixel_values, image_grid_thw: `[P, 1176]` patches of all images and `[B, 3]` their grids.
            sam_pixel_values: `[B, 3, 1024, 1024]`. original_sizes, reshaped_input_sizes: `[B, 2]` height, width.
            labels: per row binary target masks `[n, h, w]` of its phrases, at any resolution.
            features: of these images, from an earlier output; no pixels are needed then.
            meta_data: per row as the processor returns it; the coarse masks are cropped to the image if it was padded.
            multimask_output: overrides the config.
            use_sam: False stops at the coarse masks.
            return_features: also return `features`.
            mm_token_type_ids: accepted as the processor returns it; image tokens are found by their id.
        """
        num_phrases = None if labels is None else [len(masks) for masks in labels]
        layout = self.layout(input_ids, mask_ids, image_grid_thw, attention_mask, caption_ids, num_phrases)
        if features is None:
            features = self._read_prefix(layout, input_ids, pixel_values, image_grid_thw)
        else:
            self._check_features(features, layout, input_ids)
        if use_sam:
            if original_sizes is None or reshaped_input_sizes is None:
                raise ValueError(
                    "Refined masks need `original_sizes` and `reshaped_input_sizes` as the processor returns them; "
                    "`use_sam=False` stops at the coarse masks."
                )
            if features.image_embeddings is None:
                if sam_pixel_values is None:
                    raise ValueError(
                        "`sam_pixel_values` is missing; the processor returns it. Or pass `use_sam=False`."
                    )
                features.image_embeddings = self.get_image_embeddings(sam_pixel_values)

        states = self.read_captions(layout, input_ids, features, self.config.merge)
        # What is trained is float32 (see `_keep_in_fp32_modules_strict`), under autocast, too.
        with maybe_autocast(input_ids.device.type, enabled=False):
            output = self._masks_of_phrases(
                states, layout, features, original_sizes, reshaped_input_sizes, meta_data, multimask_output, use_sam
            )
            if labels is not None:
                self._add_losses(output, labels, use_sam)
        output.features = features if return_features else None
        return output

    def _masks_of_phrases(
        self, states, layout, features, original_sizes, reshaped_input_sizes, meta_data, multimask_output, use_sam
    ) -> FrozenQwenSAMOutput:
        device = states.attentions.device
        counts = layout.phrases_per_image.tolist()
        tokens, token_mask = layout.tokens.to(device), layout.token_mask.to(device)
        hidden = self.weigh_layers(states.hidden_states)
        text = self.text_proj(hidden.to(self.text_proj.weight.dtype))[tokens]  # [n, T, 256]
        lengths = layout.token_mask.sum(1).tolist()
        per_phrase = [embeds[:length] for embeds, length in zip(text, lengths)]
        maps, coarse = self._coarse_masks(states.attentions, layout)
        if meta_data is not None:
            coarse = tuple(crop_padding(masks, meta) for masks, meta in zip(coarse, meta_data))
        output = FrozenQwenSAMOutput(
            mask_attentions=maps,
            text_embeds=tuple(tuple(per_phrase[sum(counts[:i]) :][:count]) for i, count in enumerate(counts)),
            pred_masks=coarse,
        )
        if not use_sam:
            return output
        ragged = token_mask if min(lengths) < max(lengths) else None
        image_embeddings = features.image_embeddings.to(text.dtype)
        refined = self.refine(
            coarse, text, ragged, image_embeddings, original_sizes, reshaped_input_sizes, multimask_output
        )
        output.sam_pred_masks = refined.masks
        for name in ("prompt_masks", "boxes", "low_res_masks", "iou_scores", "candidate_ious"):
            value = getattr(refined, name)
            setattr(output, name, None if value is None else value.split(counts))
        return output

    @staticmethod
    def _add_losses(output: FrozenQwenSAMOutput, labels, use_sam: bool) -> None:
        """Losses and metrics: those of each image's masks, and of them the mean over the images that have some."""
        output.loss = 0
        stages = {"": output.pred_masks, "sam_": output.sam_pred_masks} if use_sam else {"": output.pred_masks}
        shown = [image for image, masks in enumerate(output.pred_masks) if len(masks)]
        for prefix, masks in stages.items():
            losses = mean_over_scenes(lambda i: mask_losses([masks[shown[i]]], [labels[shown[i]]]), len(shown))
            for name, value in losses.items():
                setattr(output, prefix + name, value)
                if "loss" in name:
                    output.loss = output.loss + value

    @staticmethod
    def _check_features(features: FrozenQwenSAMFeatures, layout: PhraseLayout, input_ids) -> None:
        prefix_ids = input_ids.gather(1, layout.prefix_index.to(input_ids.device))
        same = features.prefix_ids.shape == prefix_ids.shape and torch.equal(
            features.prefix_lengths, layout.prefix_lengths
        )
        inside = torch.arange(prefix_ids.shape[1]) < layout.prefix_lengths[:, None]
        if not same or ((features.prefix_ids != prefix_ids).cpu() & inside).any():
            raise ValueError(
                f"`features` belong to prefixes of {features.prefix_lengths.tolist()} tokens, but `input_ids` begin "
                f"with other ones, of {layout.prefix_lengths.tolist()} tokens. Pass the rows whose images were "
                "encoded, with `caption_ids` that begin at the same place."
            )

    def as_pipeline(self, processor, **options):
        """This model and its processor as a [`PhraseSegmentationPipeline`]. (`save_pretrained` copies what a model's
        file imports: its pipeline.)"""
        from .frozen_qwen_sam_pipeline import PhraseSegmentationPipeline

        return PhraseSegmentationPipeline(model=self, processor=processor, **options)


def crop_padding(masks: torch.Tensor, meta: dict) -> torch.Tensor:
    """Coarse masks `[n, h', w']` of a padded image without its padding. Qwen does not pad: nothing changes then."""
    padded, image, padding = meta["padded_shape"], meta["image_shape"], meta["padding"]
    slices = []
    for axis, side, before in ((1, "height", "before_height"), (2, "width", "before_width")):
        ratio = masks.shape[axis] / padded[side]
        start = int(padding[before] * ratio)
        slices.append(slice(start, start + int(image[side] * ratio + 0.5)))
    return masks[:, slices[0], slices[1]]


FrozenQwenSAMModel.register_for_auto_class("AutoModel")
