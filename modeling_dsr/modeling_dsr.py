"""DSR: Qwen2.5-VL that also reads question-selected geometry tokens of its videos (arXiv 2512.20557).

Data flow, for P patches of all videos, D the width of the language model:

    pixel_values_videos [P, 1176] ─┬─ Qwen2.5-VL vision tower ──────────────────────── vision tokens [P/4, D]
                                   └─ frames ─ π³ encoder ─ regroup 2×2×2 ─ merger ─── spatial states [P/4, D]
    question embeddings ─ Q-Former 1 ─ queries ─ Q-Former 2 (reads spatial states) ─── geometry tokens [G, 32, D]
    placeholders of the prompt ← vision tokens, then geometry tokens ─ language model
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

from .chunked_loss import next_token_loss
from .configuration_dsr import DSRConfig
from .dsr_geometry_selection import GeometrySelectionModule, regroup_patch_tokens, renormalize, unflatten_patches
from .dsr_outputs import DSRCausalLMOutputWithPast, DSRModelOutputWithPast, DSRVisionFeatures
from .dsr_token_layout import (
    TokenLayout,
    build_token_layout,
    check_grid,
    number_samples,
    sample_ids_from_mask,
    select_question_tokens,
    spatial_position_ids,
)
from .dsr_vision_layout import VisionLayout, use_segments, vision_layout
from .float_modules import for_quantizers
from .freezing import FreezePresets
from .generation_settings import CACHE, is_started, prompt_length
from .geometry_encoder import GeometryEncoder
from .idle_towers import grey_patches, reach
from .multimodal_rope import count_media
from .packing import packed_samples, separate_samples


class DSRParts(FreezePresets):
    """
    What model and head share: presets of `freeze`, and initial values of a new Geometry Selection Module (standard
    normal queries, the parent's rule for the rest).

    "published" trains the merger of the vision tower, the Geometry Selection Module, the language model and its head;
    "geometry" the Geometry Selection Module alone; "all" everything, π³'s encoder included.
    """

    freeze_presets = {
        "all": "",
        "published": r"(model\.)?(visual\.merger\.|geometry_selection\.|language_model\.)|lm_head\.",
        "geometry": r"(model\.)?geometry_selection\.",
    }
    # Small, new and trained: quantised, it could not learn. (A float16 load keeps it in float32, too.)
    _keep_in_fp32_modules = for_quantizers(["geometry_selection"])

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, GeometrySelectionModule):
            init.normal_(module.q_former_queries, mean=0.0, std=1.0)


class DSRModel(DSRParts, Qwen2_5_VLModel):
    """Qwen2.5-VL's towers, π³'s encoder and the Geometry Selection Module, without a language-model head."""

    config: DSRConfig
    _no_split_modules = ["Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock", "Dinov2WithRegistersLayer", "QFormerLayer"]

    def __init__(self, config: DSRConfig):
        super().__init__(config)
        use_segments(self.visual)
        self.geometry_encoder = GeometryEncoder._from_config(config.geometry_config)
        self.geometry_selection = GeometrySelectionModule(config)
        self.post_init()
        self.freeze()

    # ---- before the question -------------------------------------------------------------

    def get_video_features(
        self,
        pixel_values_videos: torch.FloatTensor,
        video_grid_thw: torch.LongTensor | None = None,
        **kwargs,
    ) -> DSRVisionFeatures:
        """
        Vision tokens and spatial states of videos, to be computed once for any number of questions.

        Args:
            pixel_values_videos: `[P, 1176]` flattened patches as the processor writes them (CLIP-normalised).
            video_grid_thw: `[n, 3]` patches (time, rows, columns) of each video.
        """
        layout = self._layout(pixel_values_videos, video_grid_thw, "pixel_values_videos", "video_grid_thw")
        features = self._see(pixel_values_videos, video_grid_thw, layout, **kwargs)
        states = self._encode_geometry(pixel_values_videos, layout.grids)
        return DSRVisionFeatures(**features, geometry_features=states, grid_thw=video_grid_thw)

    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        image_grid_thw: torch.LongTensor | None = None,
        **kwargs,
    ) -> DSRVisionFeatures:
        """Vision tokens of images, and their spatial states when `config.geometry_for_images`. See
        `get_video_features`."""
        layout = self._layout(pixel_values, image_grid_thw, "pixel_values", "image_grid_thw")
        features = self._see(pixel_values, image_grid_thw, layout, **kwargs)
        states = self._encode_geometry(pixel_values, layout.grids) if self.config.geometry_for_images else None
        return DSRVisionFeatures(**features, geometry_features=states, grid_thw=image_grid_thw)

    @torch.compiler.disable
    def _layout(self, patches, grid_thw, name: str, grid_name: str) -> VisionLayout:
        """What depends on the values of grids, as numbers: a compiled graph is left here, and nowhere behind it."""
        self._check_patches(patches, grid_thw, name, grid_name)
        return vision_layout(grid_thw, self.config.vision_config, patches.device)

    def _see(self, patches, grid_thw, layout: VisionLayout, **kwargs):
        """Outputs of the vision tower, whose tokens are split by medium."""
        kwargs = {**kwargs, **layout.given, "return_dict": True}
        outputs = self.visual(patches.to(self.visual.dtype), grid_thw=grid_thw, **kwargs)
        outputs.pooler_output = torch.split(outputs.pooler_output, layout.tokens)
        return outputs

    def encode_geometry(self, patches: torch.FloatTensor, grid_thw: torch.LongTensor) -> tuple[torch.FloatTensor, ...]:
        """
        Spatial states of each medium.

        Frames of one resolution share batches of `config.geometry_chunk_size`, whichever video they come from. A frozen
        encoder runs without gradients.

        Args:
            patches: `[P, 1176]`. grid_thw: `[n, 3]`.

        Returns:
            `n` tensors `[t·h·w/4, D]`.
        """
        return self._encode_geometry(patches, [tuple(grid) for grid in grid_thw.tolist()])

    def _encode_geometry(self, patches, grids) -> tuple[torch.FloatTensor, ...]:
        vision = self.config.vision_config
        merge, patch = vision.spatial_merge_size, vision.patch_size
        patches = patches.to(self.visual.dtype)
        pieces = patches.split([t * h * w for t, h, w in grids])
        by_resolution: dict[tuple[int, int], list[int]] = {}
        for index, (_, h, w) in enumerate(grids):
            by_resolution.setdefault((h, w), []).append(index)

        spatial_states: list[torch.Tensor | None] = [None] * len(grids)
        for (h, w), members in by_resolution.items():
            steps = [grids[i][0] for i in members]
            together = pieces[members[0]] if len(members) == 1 else torch.cat([pieces[i] for i in members])
            grid = (sum(steps), h, w)  # rows are ordered by time first, so videos of one resolution are one long video
            merged = self._spatial_states(together, grid, merge, patch)
            for i, states in zip(members, merged.split([t * h * w // merge**2 for t in steps])):
                spatial_states[i] = states
        return tuple(spatial_states)

    def _spatial_states(self, patches, grid, merge, patch) -> torch.Tensor:
        """Frames, encoder, regrouping and merger, some frames at a time: `[t·h·w/4, D]`."""
        t, h, w = grid
        frozen = not any(parameter.requires_grad for parameter in self.geometry_encoder.parameters())
        encode_with_grad = torch.is_grad_enabled() and not (frozen and not patches.requires_grad)
        steps = max(1, self.config.geometry_chunk_size // 2) if self.config.geometry_chunk_size else t
        skip = 1 + self.config.geometry_config.num_register_tokens
        outputs = []
        for chunk in patches.view(t, -1).split(steps):
            with torch.set_grad_enabled(encode_with_grad):
                grid = (len(chunk), h, w)
                frames = unflatten_patches(chunk.reshape(-1, patches.shape[-1]), grid, merge, patch)
                tokens = self.geometry_encoder(renormalize(frames, self.config)).last_hidden_state[:, skip:]
            outputs.append(self.merge_geometry(tokens, grid))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def merge_geometry(self, tokens: torch.Tensor, grid) -> torch.Tensor:
        """Spatial states `[t·h·w/4, D]` of the encoder's patch tokens `[frames, h·w, C]` of a grid (t, h, w)."""
        tokens = tokens.to(self.geometry_selection.q_former_queries.dtype)
        merge = self.config.vision_config.spatial_merge_size
        return self.geometry_selection.spatial_merger(regroup_patch_tokens(tokens, grid, merge))

    def _check_patches(self, patches, grid_thw, name, grid_name) -> None:
        if grid_thw is None:
            raise ValueError(f"`{name}` needs `{grid_name}`; the processor returns both.")
        merge = self.config.vision_config.spatial_merge_size
        expected = int(check_grid(grid_thw, grid_name, merge).prod(1).sum())
        if patches.ndim != 2 or len(patches) != expected:
            raise ValueError(
                f"`{name}` must be [{expected}, channels] to match `{grid_name}` {grid_thw.tolist()}, got "
                f"{tuple(patches.shape)}. Pass both as one call of the processor returned them."
            )

    # ---- with the question ---------------------------------------------------------------

    def select_geometry(
        self,
        layout: TokenLayout,
        question_mask: torch.Tensor,
        sample_ids: torch.Tensor,
        inputs_embeds: torch.Tensor,
        features: dict[str, DSRVisionFeatures],
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """
        Geometry tokens `[G, Q, D]` of every group of a prompt, and where they looked.

        Args:
            layout: of the prompt. question_mask, sample_ids: `[B, S]` on the CPU.
            inputs_embeds: `[B, S, D]` text embeddings. features: spatial states under "image" and "video".
        """
        device = inputs_embeds.device
        # Questions of the samples that have geometry, one after another. Samples are numbered along the rows, and
        # question tokens are read along the rows, so the text needs no sorting.
        asked, group_question = torch.unique(layout.group_sample, return_inverse=True)
        token_sample = number_samples(sample_ids)
        chosen = question_mask & torch.isin(token_sample, asked)
        text_lengths = torch.bincount(token_sample[chosen], minlength=layout.num_samples)[asked]
        if self.config.question_scope == "question" and (text_lengths == 0).any():
            raise ValueError(
                f"Sample {int(asked[text_lengths == 0][0])} of the batch shows a video but asks nothing. Write a "
                "question next to the video, and end the prompt with the answer's header "
                "(`add_generation_prompt=True`)."
            )
        text_index = chosen.flatten().nonzero().squeeze(1).to(device)
        text_states = inputs_embeds.flatten(0, 1)[text_index]

        # Spatial states in order of appearance; the media of a group stand together.
        taken = {"image": iter(features["image"].geometry_features or ())} if "image" in features else {}
        if "video" in features:
            taken["video"] = iter(features["video"].geometry_features)
        has_geometry = (layout.medium_group >= 0).tolist()
        media = [
            next(taken["video" if is_video else "image"])
            for is_video, wanted in zip(layout.medium_is_video.tolist(), has_geometry)
            if wanted
        ]
        lengths = torch.tensor([len(states) for states in media])
        medium_group = layout.medium_group[layout.medium_group >= 0]
        num_groups = len(layout.group_sample)
        spatial_lengths = torch.zeros(num_groups, dtype=torch.long).index_add(0, medium_group, lengths)
        tokens, weights = self.geometry_selection(
            text_states=text_states,
            text_lengths=text_lengths,
            spatial_states=torch.cat(media).to(device, inputs_embeds.dtype),
            spatial_lengths=spatial_lengths,
            spatial_position_ids=spatial_position_ids(layout, self.config).to(device),
            group_question=group_question,
            output_attentions=output_attentions,
        )
        if weights is not None:
            weights = self._weights_per_medium(weights, layout, medium_group, lengths)
        return tokens, weights

    def _weights_per_medium(self, weights, layout, medium_group, lengths) -> tuple[torch.Tensor, ...]:
        ends = lengths.cumsum(0)
        first_of_group = torch.full((len(weights),), len(lengths)).scatter_reduce(
            0, medium_group, torch.arange(len(lengths)), "amin"
        )
        starts = ends - lengths - (ends - lengths)[first_of_group[medium_group]]
        merge = self.config.vision_config.spatial_merge_size
        grids = layout.medium_grid[layout.medium_group >= 0].tolist()
        return tuple(
            weights[group, :, :, start : start + length].unflatten(-1, (t, h // merge, w // merge))
            for group, start, length, (t, h, w) in zip(medium_group.tolist(), starts.tolist(), lengths.tolist(), grids)
        )

    def get_rope_index(
        self,
        input_ids: torch.LongTensor,
        mm_token_type_ids: torch.IntTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Rotary positions `[3, B, S]` and deltas `[B, 1]` as the published model computes them (see
        `build_token_layout`). `mm_token_type_ids` is accepted for compatibility; placeholders are found by their ids.
        """
        sample_ids = sample_ids_from_mask(attention_mask, input_ids)
        layout = build_token_layout(
            input_ids, sample_ids, image_grid_thw, video_grid_thw, second_per_grid_ts, self.config
        )
        return layout.position_ids.to(input_ids.device), layout.rope_deltas.to(input_ids.device)

    def question_mask(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
    ) -> torch.BoolTensor:
        """Which tokens of a prompt `[B, S]` condition the learned queries, by `config.question_scope`."""
        mask = select_question_tokens(input_ids, sample_ids_from_mask(attention_mask, input_ids), labels, self.config)
        return mask.to(input_ids.device)

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
        second_per_grid_ts: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, DSRVisionFeatures] | None = None,
        question_mask: torch.BoolTensor | None = None,
        output_geometry_attentions: bool = False,
        video_copies: torch.LongTensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> DSRModelOutputWithPast:
        r"""
        Args:
            input_ids: `[B, S]`, with one placeholder per vision and geometry token (the processor writes them).
            attention_mask: `[B, S]`, 0 on padding, 1 on tokens, or 1, 2, … for samples packed in a row; or the 1-D
                cumulative lengths `[0, L1, L1+L2, …]` of one packed row. Packed samples do not see each other.
            position_ids: `[3, B, S]`; computed when absent. Text positions `[B, S]` that begin again within a row, or
                `cu_seq_lens_q`, say where packed samples begin, as trainers announce them.
            pixel_values, pixel_values_videos: `[P, 1176]` patches of images and videos, from the processor.
            image_grid_thw, video_grid_thw: `[n, 3]` patches (time, rows, columns).
            second_per_grid_ts: `[n]` seconds between temporal grid steps of each video; None means 1.
            mm_encoder_outputs: features from `get_video_features` / `get_image_features` under "video" / "image",
                instead of pixels.
            question_mask: `[B, S]` bool, the text that conditions the learned queries; chosen by
                `config.question_scope` when absent.
            output_geometry_attentions: also return where the geometry tokens looked.
            video_copies: `[n]`, how many times in a row the prompts show each video; it is encoded once. None: once.
        """
        cache = past_key_values if cache is None else cache
        features = dict(mm_encoder_outputs or {})
        if features and (pixel_values is not None or pixel_values_videos is not None):
            raise ValueError(
                "Pass pixels or `mm_encoder_outputs`, not both: the features already stand for the pixels."
            )
        if pixel_values is not None:
            features["image"] = self.get_image_features(pixel_values, image_grid_thw)
        if pixel_values_videos is not None:
            features["video"] = self.get_video_features(pixel_values_videos, video_grid_thw)
        features = {kind: value for kind, value in features.items() if value is not None}
        self._check_gradients(mm_encoder_outputs)
        if video_copies is not None and "video" in features:
            order = torch.arange(len(video_copies)).repeat_interleave(video_copies.cpu())
            features["video"] = features["video"].select(order)
            second_per_grid_ts = None if second_per_grid_ts is None else torch.as_tensor(second_per_grid_ts)[order]
        packed = packed_samples(position_ids, attention_mask, kwargs.get("cu_seq_lens_q"))
        if packed is not None and not is_started(cache):
            attention_mask, position_ids = packed, None

        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        kwargs.pop("return_dict", None)
        tokens = weights = None
        past_length = cache.get_seq_length() if cache is not None and position_ids is None else 0
        if features or (position_ids is None and past_length == 0 and input_ids is not None):
            if input_ids is None:
                raise ValueError("`input_ids` are needed with images or videos: placeholders are found by their ids.")
            known_mask = (
                attention_mask if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim <= 2 else None
            )
            if known_mask is not None and known_mask.ndim == 2:
                known_mask = known_mask[:, -input_ids.shape[1] :]
            sample_ids = sample_ids_from_mask(known_mask, input_ids)
            layout = build_token_layout(
                input_ids,
                sample_ids,
                features["image"].grid_thw if "image" in features else image_grid_thw,
                features["video"].grid_thw if "video" in features else video_grid_thw,
                second_per_grid_ts,
                self.config,
            )
            for kind, index in (("image", layout.image_index), ("video", layout.video_index)):
                if kind in features:
                    inputs_embeds = _place(inputs_embeds, index, torch.cat(tuple(features[kind].pooler_output)))
                elif len(index):
                    raise ValueError(f"`input_ids` hold placeholders of a(n) {kind}, but no {kind} was given.")
            if len(layout.geometry_index):
                if question_mask is None:
                    question_mask = select_question_tokens(input_ids, sample_ids, None, self.config)
                tokens, weights = self.select_geometry(
                    layout,
                    question_mask.cpu().bool(),
                    sample_ids,
                    inputs_embeds,
                    features,
                    output_geometry_attentions,
                )
                inputs_embeds = _place(inputs_embeds, layout.geometry_index, tokens.flatten(0, 1))
            position_ids, attention_mask, use_cache = self._positions(
                layout, sample_ids, position_ids, attention_mask, use_cache, inputs_embeds.device
            )
        elif position_ids is None:
            position_ids = self._decoding_positions(attention_mask, past_length, inputs_embeds)
        if self.training and tokens is None:
            inputs_embeds = self._reach_idle(inputs_embeds, seen=bool(features))

        outputs = self.language_model(
            input_ids=None,
            position_ids=position_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{CACHE: cache, **kwargs},
        )
        return DSRModelOutputWithPast(
            **outputs, rope_deltas=self.rope_deltas, geometry_tokens=tokens, geometry_attentions=weights
        )

    def _reach_idle(self, inputs_embeds, seen: bool) -> torch.Tensor:
        """Rows without geometry, or without anything to see, reach what they have no use for; see [`reach`]."""
        device, one = inputs_embeds.device, torch.ones(1, dtype=torch.long)
        patches, grid = grey_patches(self.config.vision_config, device)

        def geometry():
            return self.geometry_selection(
                text_states=inputs_embeds[0, :1],
                text_lengths=one,
                spatial_states=self.encode_geometry(patches, grid)[0].to(inputs_embeds.dtype),
                spatial_lengths=one,
                spatial_position_ids=torch.zeros(3, 1, dtype=torch.long, device=device),
                group_question=torch.zeros_like(one),
            )[0]

        if not seen:
            inputs_embeds = reach(
                inputs_embeds,
                [self.visual],
                lambda: torch.cat(
                    super(DSRModel, self).get_video_features(patches, grid, return_dict=True).pooler_output
                ),
            )
        return reach(inputs_embeds, [self.geometry_encoder, self.geometry_selection], geometry)

    def _check_gradients(self, mm_encoder_outputs) -> None:
        """Refuse to train mergers on features that were computed behind them, without gradients."""
        if not (self.training and torch.is_grad_enabled() and mm_encoder_outputs):
            return
        merger = self.geometry_selection.spatial_merger
        if not any(parameter.requires_grad for parameter in merger.parameters()):
            return
        for kind, given in mm_encoder_outputs.items():
            states = getattr(given, "geometry_features", None)
            if states and not any(state.requires_grad for state in states):
                raise ValueError(
                    f"`mm_encoder_outputs[{kind!r}]` hold finished spatial states without gradients, so the spatial "
                    "merger would not train. Cache what lies before it: `feature_cache` of a recipe's stage, or "
                    "`dsr_toolkit.training.FeatureCache(folder).attach(model)`. Or freeze the merger."
                )

    def _positions(self, layout, sample_ids, position_ids, attention_mask, use_cache, device):
        """Positions and mask of a prefill; packed rows carry the restart of each sample in a fourth row of
        positions."""
        if position_ids is None:
            position_ids = layout.position_ids.to(device)
            self.rope_deltas = layout.rope_deltas.to(device)
        if layout.num_samples > len(sample_ids) or (
            isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 1
        ):
            text_positions = layout.text_position_ids
            # Padding of a packed row counts on as a sample of its own.
            padding = sample_ids == 0
            text_positions = torch.where(padding, padding.long().cumsum(1) - 1, text_positions)
            position_ids = torch.cat([text_positions.to(device)[None], position_ids[-3:]])
            attention_mask, use_cache = None, False
        return position_ids, attention_mask, use_cache

    def _decoding_positions(self, attention_mask, past_length, inputs_embeds):
        """Positions `[3, B, S]` of tokens that follow a cached prefix, when the caller passes none."""
        batch, length, _ = inputs_embeds.shape
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]
        else:
            positions = torch.arange(past_length, past_length + length, device=inputs_embeds.device).expand(batch, -1)
        if self.rope_deltas is not None and past_length:
            repeats = batch // len(self.rope_deltas)
            positions = positions + self.rope_deltas.repeat_interleave(repeats, dim=0).to(positions.device)
        return positions.expand(3, -1, -1)


class DSRForConditionalGeneration(DSRParts, Qwen2_5_VLForConditionalGeneration):
    """[`DSRModel`] with a language-model head: answers about motion and space in video."""

    config: DSRConfig
    accepts_loss_kwargs = True  # the parent says no, and unequal answers would weigh wrongly under accumulation
    _no_split_modules = DSRModel._no_split_modules

    def __init__(self, config: DSRConfig):
        super(Qwen2_5_VLForConditionalGeneration, self).__init__(config)
        self.model = DSRModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()
        self.freeze()

    def get_video_features(self, pixel_values_videos, video_grid_thw=None, **kwargs) -> DSRVisionFeatures:
        """See [`DSRModel.get_video_features`]."""
        return self.model.get_video_features(pixel_values_videos, video_grid_thw, **kwargs)

    def get_image_features(self, pixel_values, image_grid_thw=None, **kwargs) -> DSRVisionFeatures:
        """See [`DSRModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, image_grid_thw, **kwargs)

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
        second_per_grid_ts: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, DSRVisionFeatures] | None = None,
        question_mask: torch.BoolTensor | None = None,
        output_geometry_attentions: bool = False,
        num_items_in_batch: int | torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> DSRCausalLMOutputWithPast:
        r"""
        Args:
            labels: `[B, S]`, -100 where no loss is taken. The loss is the mean next-token cross-entropy of the batch in
                float32; in packed rows no sample predicts the next one's first token.
            num_items_in_batch: divide the summed loss by this instead of the number of supervised tokens.

        The other arguments are those of [`DSRModel.forward`].
        """
        cache = past_key_values if cache is None else cache
        packed = packed_samples(position_ids, attention_mask, kwargs.get("cu_seq_lens_q"))
        if packed is not None and not is_started(cache):
            attention_mask, position_ids = packed, None
        if labels is not None and question_mask is None and input_ids is not None:
            question_mask = self.model.question_mask(input_ids, attention_mask, labels)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            second_per_grid_ts=second_per_grid_ts,
            mm_encoder_outputs=mm_encoder_outputs,
            question_mask=question_mask,
            output_geometry_attentions=output_geometry_attentions,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])

        loss = None
        if labels is not None:
            loss = next_token_loss(logits, separate_samples(labels, attention_mask), num_items_in_batch)
        return DSRCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            rope_deltas=outputs.rope_deltas,
            geometry_tokens=outputs.geometry_tokens,
            geometry_attentions=outputs.geometry_attentions,
            **{CACHE: outputs.get(CACHE)},
        )

    # ---- generation ----------------------------------------------------------------------

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """Positions `[4, B, S]`: the text index and the three rotary axes. See `DSRModel.get_rope_index`."""
        text_positions = super(Qwen2_5_VLForConditionalGeneration, self)._prepare_position_ids_for_generation(
            inputs_tensor, model_kwargs
        )
        cache = model_kwargs.get(CACHE)
        if is_started(cache) and self.model.rope_deltas is not None:
            return text_positions[None] + self.model.rope_deltas.to(text_positions.device)
        input_ids = model_kwargs.get("input_ids")
        input_ids = inputs_tensor if input_ids is None or not input_ids.shape[1] else input_ids
        if input_ids.ndim != 2 or input_ids.is_floating_point():
            self.model.rope_deltas = torch.zeros(len(inputs_tensor), 1, dtype=torch.long, device=inputs_tensor.device)
            return text_positions[None].expand(4, -1, -1)
        grids = {f"{kind}_grid_thw": _grid_of(kind, model_kwargs) for kind in ("image", "video")}
        positions, self.model.rope_deltas = self.model.get_rope_index(
            input_ids,
            second_per_grid_ts=model_kwargs.get("second_per_grid_ts"),
            attention_mask=model_kwargs.get("attention_mask"),
            **grids,
        )
        return torch.cat([text_positions[None], positions.to(text_positions.device)])

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Fix the question text for the whole generation, and repeat media sample by sample for beams and sequences."""
        has_media = bool(model_kwargs.get("mm_encoder_outputs")) or any(
            model_kwargs.get(name) is not None for name in ("pixel_values", "pixel_values_videos")
        )
        if has_media and model_kwargs.get("question_mask") is None:
            model_kwargs["question_mask"] = self.model.question_mask(input_ids, model_kwargs.get("attention_mask"))
        if expand_size == 1:
            return input_ids, model_kwargs
        features = dict(model_kwargs.pop("mm_encoder_outputs", None) or {})
        seconds = model_kwargs.pop("second_per_grid_ts", None)
        for kind, encode, name in (
            ("image", self.get_image_features, "pixel_values"),
            ("video", self.get_video_features, "pixel_values_videos"),
        ):
            pixels, grid = model_kwargs.pop(name, None), model_kwargs.pop(f"{kind}_grid_thw", None)
            if pixels is not None:
                features[kind] = encode(pixels, grid)
            if features.get(kind) is not None:
                counts = count_media(input_ids, getattr(self.config, f"{kind}_token_id"))
                order = _repeat_within_samples(counts, expand_size)
                features[kind] = features[kind].select(order)
                if kind == "video" and seconds is not None:
                    seconds = torch.as_tensor(seconds)[order]
        positions = model_kwargs.pop("position_ids", None)
        input_ids, model_kwargs = super(Qwen2_5_VLForConditionalGeneration, self)._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if positions is not None:
            model_kwargs["position_ids"] = positions.repeat_interleave(expand_size, dim=positions.ndim - 2)
        return input_ids, {**model_kwargs, "mm_encoder_outputs": features, "second_per_grid_ts": seconds}

    def prepare_inputs_for_generation(self, input_ids, *args, inputs_embeds=None, is_first_iteration=False, **kwargs):
        """Media and question text enter at prefill (at every step when nothing is cached), then are dropped."""
        question_mask = kwargs.pop("question_mask", None)
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            if question_mask is not None:  # generated tokens never join the question
                question_mask = nn.functional.pad(
                    question_mask, (0, prompt_length(model_inputs) - question_mask.shape[1])
                )
            model_inputs["question_mask"] = question_mask
        else:
            for name in ("mm_encoder_outputs", "pixel_values", "pixel_values_videos", "second_per_grid_ts"):
                model_inputs.pop(name, None)
        return model_inputs


def _place(inputs_embeds: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Write `rows` `[n, D]` at the flat token indices `index` `[n]` of `inputs_embeds` `[B, S, D]`."""
    rows = rows.to(inputs_embeds.device, inputs_embeds.dtype)
    return inputs_embeds.flatten(0, 1).index_copy(0, index.to(inputs_embeds.device), rows).view_as(inputs_embeds)


def _grid_of(kind: str, model_kwargs: dict):
    features = (model_kwargs.get("mm_encoder_outputs") or {}).get(kind)
    return features.grid_thw if features is not None else model_kwargs.get(f"{kind}_grid_thw")


def _repeat_within_samples(counts: torch.Tensor, times: int) -> torch.Tensor:
    """Order of media when every sample is repeated: media [a, b | c] twice → [a, b, a, b | c, c]."""
    repeated = counts.repeat_interleave(times)
    starts = (counts.cumsum(0) - counts).repeat_interleave(times)
    inside = torch.arange(int(repeated.sum())) - torch.repeat_interleave(repeated.cumsum(0) - repeated, repeated)
    return torch.repeat_interleave(starts, repeated) + inside


for _model_class, _auto_class in (
    (DSRModel, "AutoModel"),
    (DSRForConditionalGeneration, "AutoModelForImageTextToText"),
):
    _model_class.register_for_auto_class(_auto_class)
