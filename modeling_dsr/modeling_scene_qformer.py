"""Scene Q-Former: surround-camera images to scene tokens, and a language model that reads them.

Data flow, for B scenes of N cameras, feature maps of h×w cells, M = N·h·w:

    pixel_values [B, N, 3, H, W] ─ backbone, neck ─ features [B, N, C, h, w] ─┐
    calibration or grid ─ position code [B, N, h, w, C] ──────────────────────┼─ memory [B, M, C]
    camera embedding [N, C] ──────────────────────────────────────────────────┘        │
    learned queries [1, Q, C] ──────────────────────────────── decoder, 6 layers ──────┴─ projector ─ tokens [B, Q, D]
    prompt, its placeholders ← scene tokens ─ language model ─ text
    prompt, output queries ─ language model ─ interaction with the scene tokens ─ map decoder ─ classes, polylines
"""

import contextlib
from functools import partial

import torch
from torch import nn
from transformers import AutoBackbone, AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache

from .chunked_loss import next_token_loss
from .configuration_scene_qformer import SceneQFormerConfig
from .float_modules import for_quantizers
from .freezing import FreezePresets
from .generation_settings import CACHE, OwnGenerationSettings, is_started
from .optional_libraries import needs
from .scene_decoder import SceneAttention, SceneDecoder, SceneDeformableAttention, start_with
from .scene_map_head import (
    SceneMapDecoder,
    SceneMapInteraction,
    SceneMapQueries,
    SceneMapRefinement,
    additive_mask,
    bounding_boxes,
    check_map_labels,
    map_detection_loss,
    output_query_mask,
    packed_prompts_and_query_mask,
    prompt_and_query_mask,
)
from .scene_outputs import SceneQFormerCausalLMOutputWithPast, SceneQFormerOutput
from .scene_position import (
    CalibrationCache,
    DepthPositionEncoding,
    RayPositionEncoding,
    check_calibration,
    sine_table,
)
from .scene_prompt import IGNORE_INDEX, expand_placeholders


def float32_island(tensor: torch.Tensor):
    """
    Autocast off: attention over thousands of cells and the geometry overflow or lose themselves in half precision.
    """
    device = tensor.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def dilate_last_stage(backbone: nn.Module) -> None:
    """
    Replace the stride of a ResNet's last stage by dilation: twice the resolution from the same weights.

    The first block keeps dilation 1, so that it sees what it saw with the stride; the blocks behind it get dilation 2.
    """
    first, *others = backbone.encoder.stages[-1].layers
    for convolution in (module for module in first.modules() if isinstance(module, nn.Conv2d)):
        convolution.stride = (1, 1)
    for convolution in (m for block in others for m in block.modules() if isinstance(m, nn.Conv2d)):
        if convolution.kernel_size == (3, 3):
            convolution.dilation = convolution.padding = (2, 2)


class SceneQueries(nn.Module):
    """
    Learned queries. The first `num_constrained_queries` belong to cameras, in equal blocks (the first cameras get what
    is left over): content + embedding of the camera + embedding of the place in the block. The others are content
    alone.
    """

    def __init__(self, config: SceneQFormerConfig):
        super().__init__()
        self.config = config
        std = config.init_std_content if config.position_encoding == "depth_3d" else 1.0
        content = nn.Embedding(config.num_queries, config.embed_dims)
        self.content = start_with(content, weight=partial(init.normal_, std=std))
        if config.num_constrained_queries:
            camera, place = self._assignment()
            self.register_buffer("camera_assignment", camera)
            self.register_buffer("place_assignment", place)
            most = -(-config.num_constrained_queries // config.num_cams)
            places = nn.Embedding(most, config.embed_dims)
            self.place_embed = start_with(places, weight=partial(init.normal_, std=config.init_std_place))

    def _assignment(self) -> tuple[torch.Tensor, torch.Tensor]:
        total, cameras = self.config.num_constrained_queries, self.config.num_cams
        sizes = torch.tensor([total // cameras + (camera < total % cameras) for camera in range(cameras)])
        camera = torch.repeat_interleave(torch.arange(cameras), sizes, output_size=total)
        return camera, torch.arange(total) - (sizes.cumsum(0) - sizes)[camera]

    def reset_parameters(self):
        if self.config.num_constrained_queries:
            camera, place = self._assignment()
            init.copy_(self.camera_assignment, camera)
            init.copy_(self.place_assignment, place)

    def forward(self, camera_embed: torch.Tensor) -> torch.Tensor:
        """`[1, Q, C]` from the camera embedding `[N, C]`."""
        queries = self.content.weight
        if self.config.num_constrained_queries:
            belonging = camera_embed[self.camera_assignment] + self.place_embed.weight[self.place_assignment]
            queries = queries + nn.functional.pad(belonging, (0, 0, 0, len(queries) - len(belonging)))
        return queries.unsqueeze(0)


class SceneQFormerPreTrainedModel(FreezePresets, PreTrainedModel):
    """
    Presets of `freeze`: "stage1", the first published stage, all but the image backbone; "stage2" and "all" everything;
    "qformer" all but the language model.
    """

    config: SceneQFormerConfig
    freeze_presets = {
        "all": "",
        "stage1": r"(?!(scene_qformer\.)?backbone\.)",
        "stage2": "",
        "qformer": r"(?!language_model\.|lm_head\.)",
    }
    base_model_prefix = "scene_qformer"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True  # by the language model; the Q-Former is float32 and keeps torch's attention
    _supports_attention_backend = True
    _no_split_modules = ["SceneDecoder", "SceneMapInteractionLayer", "ResNetConvLayer", "ResNetShortCut"]
    _keep_in_fp32_modules_strict = [
        "camera_embed",
        "queries.content",
        "queries.place_embed",
        "position_encoding_3d",
        "scene_decoder",
        "projector",
        "map_queries",
        "map_scene_interaction",
        "map_decoder",
    ]
    _keep_in_fp32_modules = for_quantizers(_keep_in_fp32_modules_strict)

    def _init_weights(self, module):
        """
        torch's own initial values, which the published model was trained from, except where a module says otherwise.
        """
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (SceneAttention, SceneDeformableAttention, SceneQueries, DepthPositionEncoding)):
            module.reset_parameters()
        elif isinstance(module, (SceneMapQueries, SceneMapInteraction, SceneMapRefinement)):
            module.reset_parameters()
        else:
            super()._init_weights(module)
        for name, fill in getattr(module, "initial_values", {}).items():
            fill(getattr(module, name))


class SceneQFormerModel(SceneQFormerPreTrainedModel):
    """Images of surround cameras, and their calibration where the position encoding needs it, to scene tokens."""

    main_input_name = "pixel_values"
    # A folder of the generation model holds these, too.
    _keys_to_ignore_on_load_unexpected = [
        r"^language_model\.",
        r"^lm_head\.",
        r"^map_(queries|scene_interaction|decoder)\.",
    ]

    def __init__(self, config: SceneQFormerConfig):
        super().__init__(config)
        if config.backbone_config.model_type == "timm_backbone":
            needs("scene", "The backbone of this configuration", "timm")
        # As transformers does for `sub_configs`, of which it is none: those take every attention that is asked for.
        config.backbone_config.dtype = config.dtype
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        if config.backbone_dilation:
            dilate_last_stage(self.backbone)
        self.neck = nn.Sequential(
            nn.Conv2d(self.backbone.channels[-1], config.embed_dims, kernel_size=1),
            nn.BatchNorm2d(config.embed_dims),
            nn.ReLU(),
        )
        camera_embed = nn.Embedding(config.num_cams, config.embed_dims)
        if config.position_encoding == "depth_3d":
            self.camera_embed = start_with(
                camera_embed, weight=partial(init.orthogonal_, gain=config.init_scale_camera)
            )
        else:
            self.camera_embed = start_with(camera_embed, weight=init.normal_)
        if config.position_encoding == "depth_3d":
            self.position_encoding_3d = DepthPositionEncoding(config)
        elif config.position_encoding == "ray_3d":
            self.position_encoding_3d = RayPositionEncoding(config)
        self.queries = SceneQueries(config)
        self.scene_decoder = SceneDecoder(config)
        self.projector = nn.Sequential(
            nn.Linear(config.embed_dims, 2 * config.embed_dims),
            nn.GELU(),
            nn.Linear(2 * config.embed_dims, config.llm_hidden_size),
        )
        self._codes = CalibrationCache()
        self.gradient_checkpointing = False
        self.post_init()
        self.freeze()

    def train(self, mode: bool = True):
        """Frozen batch norms stay in evaluation mode, the backbone's and the neck's: they would move without their
        weights."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.requires_grad:
                module.eval()
        return self

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        cam_intrinsics: torch.FloatTensor | None = None,
        cam_extrinsics: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> SceneQFormerOutput | tuple:
        """
        Args:
            pixel_values: `[B, N, 3, H, W]`, normalised, cameras in the order the model was trained with
                (`SCENE_CAMERAS` of its configuration file).
            cam_intrinsics: `[B, N, 3, 3]` in pixels of `pixel_values`.
            cam_extrinsics: `[B, N, 4, 4]`, camera → vehicle, metres.
        """
        features = self.image_features(pixel_values)
        return self.read_features(
            features,
            tuple(pixel_values.shape[-2:]),
            cam_intrinsics,
            cam_extrinsics,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )

    def image_features(self, pixel_values: torch.FloatTensor) -> torch.FloatTensor:
        """Backbone and neck: `[B, N, C, h, w]`. A frozen backbone runs without gradients."""
        cameras = self.config.num_cams
        if pixel_values.ndim != 5 or pixel_values.shape[2] != 3 or not 1 <= pixel_values.shape[1] <= cameras:
            raise ValueError(
                f"`pixel_values` must be [batch, {cameras} cameras, 3, height, width], got "
                f"{tuple(pixel_values.shape)}. SceneQFormerProcessor puts six named images in order."
            )
        images = pixel_values.flatten(0, 1).to(next(self.neck.parameters()).dtype)
        frozen = not any(parameter.requires_grad for parameter in self.backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not (frozen and not images.requires_grad)):
            features = self.backbone(images).feature_maps[-1]
        return self.neck(features).unflatten(0, pixel_values.shape[:2])

    def read_features(
        self,
        features: torch.FloatTensor,
        image_size: tuple[int, int],
        cam_intrinsics: torch.FloatTensor | None = None,
        cam_extrinsics: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SceneQFormerOutput | tuple:
        """
        Scene tokens from features `[B, N, C, h, w]` of images of `image_size` (H, W).
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        batch, cameras, _, *grid = features.shape
        if config.attention == "deformable" and cameras != config.num_cams:
            raise ValueError(
                f"Deformable attention has reference points in {config.num_cams} cameras, got images of {cameras}."
            )
        with float32_island(features):
            memory = self.memory(features, image_size, cam_intrinsics, cam_extrinsics)
            queries = self.queries(self.camera_embed.weight)
            geometry = {"num_cameras": cameras, "grid": tuple(grid)} if config.attention == "deformable" else {}
            states, attentions, hidden_states = self.scene_decoder(
                queries,
                memory,
                query_weights=(*self.queries.parameters(), self.camera_embed.weight),
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                **geometry,
            )
            tokens = self.projector(states)
            if config.output_clamp is not None:
                tokens = tokens.clamp(-config.output_clamp, config.output_clamp)
        if attentions is not None:
            attentions = tuple(weights.unflatten(-1, (cameras, *grid)) for weights in attentions)
        output = SceneQFormerOutput(
            scene_tokens=tokens, last_hidden_state=states, hidden_states=hidden_states, attentions=attentions
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def memory(self, features, image_size, cam_intrinsics, cam_extrinsics) -> torch.Tensor:
        """
        `[B, N·h·w, C]`: features + position code + camera embedding, camera after camera, row after row. Keys and
        values are both made of it.
        """
        batch, cameras, _, *grid = features.shape
        weight = self.camera_embed.weight
        code = self.position_code(batch, cameras, tuple(grid), image_size, cam_intrinsics, cam_extrinsics)
        code = code.to(weight.dtype) + weight[:cameras, None, None]  # [B or 1, N, h, w, C]
        return (features.permute(0, 1, 3, 4, 2).to(weight.dtype) + code).flatten(1, 3)

    def position_code(self, batch, cameras, grid, image_size, cam_intrinsics, cam_extrinsics) -> torch.Tensor:
        """`[1 or B, 1 or N, h, w, C]`."""
        config = self.config
        if config.position_encoding != "sine_camera":
            if cam_intrinsics is not None and cam_extrinsics is not None:
                calibration = check_calibration(cam_intrinsics, cam_extrinsics, batch, cameras)
                return self._codes(
                    self.position_encoding_3d, cam_intrinsics, cam_extrinsics, calibration, grid, image_size
                )
            if config.missing_calibration == "error":
                missing = [
                    name
                    for name, value in (("cam_intrinsics", cam_intrinsics), ("cam_extrinsics", cam_extrinsics))
                    if value is None
                ]
                raise ValueError(
                    f'`position_encoding="{config.position_encoding}"` needs '
                    f"{' and '.join(f'`{name}`' for name in missing)}. Pass the calibration, or set "
                    '`missing_calibration="sine"` in the config to fall back on the 2-D table, '
                    "with which these weights were not trained."
                )
        return sine_table(
            *grid,
            config.embed_dims,
            config.sine_temperature,
            config.sine_normalize_2pi,
            self.camera_embed.weight.device,
        )[None, None]


class SceneQFormerForConditionalGeneration(OwnGenerationSettings, SceneQFormerPreTrainedModel, GenerationMixin):
    """
    A language model that reads scene tokens in the place of its prompt's placeholders; with `config.map_config` also a
    map detector.

    A prompt marks a scene either with one LLaVA placeholder (`config.image_token_index`, -200), which makes room for
    the scene tokens, or with `config.num_queries` placeholders that the processor writes (`config.image_token_id`).
    """

    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "language_model.embed_tokens.weight"}

    def __init__(self, config: SceneQFormerConfig):
        super().__init__(config)
        if config.text_config is None:
            raise ValueError(
                "`text_config` is None, so there is no language model. Pass one, for example `text_config={}`."
            )
        self.scene_qformer = SceneQFormerModel(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if config.map_config is not None:
            hidden = config.text_config.hidden_size
            self.map_queries = SceneMapQueries(config.map_config, hidden)
            self.map_scene_interaction = SceneMapInteraction(config.map_config, hidden)
            self.map_decoder = SceneMapDecoder(config.map_config, hidden)
        self.post_init()
        self.freeze()

    def _init_weights(self, module):
        if module is getattr(self, "lm_head", None):
            init.normal_(module.weight, std=self.config.text_config.initializer_range)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        cam_intrinsics: torch.FloatTensor | None = None,
        cam_extrinsics: torch.FloatTensor | None = None,
        scene_tokens: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        map_labels: list[dict[str, torch.Tensor]] | None = None,
        output_map: bool | None = None,
        output_scene_attentions: bool = False,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        return_dict: bool | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> SceneQFormerCausalLMOutputWithPast | tuple:
        """
        Args:
            pixel_values, cam_intrinsics, cam_extrinsics: of the scenes, in the order of their placeholders; see
                [`SceneQFormerModel`].
            scene_tokens: instead of them, scene tokens `[scenes, num_queries, hidden]` computed before.
            attention_mask: `[B, L]`; or `[B, 1, L, L]`, bool (True = attend) or additive, for the whole sequence,
                output queries included. A bool mask of the prompt alone is continued: output queries read what the last
                token reads.
            labels: `[B, L]`, -100 where the language model is not supervised.
            map_labels: per prompt `{"class_labels": [n], "points": [n, P, 2]}`, points in -1 … 1 over `point_range`.
            output_map: append the output queries and detect map elements. Default: when `map_labels` are given.
            num_items_in_batch: supervised tokens of all batches that make one step: the summed loss of the text is
                divided by it, and the loss of the map weighs as much as this batch's share of them. Default: those of
                this batch.
        """
        cache = past_key_values if cache is None else cache
        output_map = map_labels is not None if output_map is None else output_map
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        if output_map:
            self._check_map(map_labels, cache, len(input_ids if inputs_embeds is None else inputs_embeds))

        scene_attentions = None
        if pixel_values is not None:
            if scene_tokens is not None:
                raise ValueError("Pass either `pixel_values` or the `scene_tokens` computed of them.")
            scenes = self.scene_qformer(
                pixel_values,
                cam_intrinsics,
                cam_extrinsics,
                output_attentions=output_scene_attentions,
                return_dict=True,
            )
            scene_tokens, scene_attentions = scenes.scene_tokens, scenes.attentions
        if inputs_embeds is None:
            input_ids, attention_mask, labels, inputs_embeds, scene_tokens = self._embed(
                input_ids, attention_mask, labels, scene_tokens, cache
            )

        length = inputs_embeds.shape[1]
        if output_map:
            inputs_embeds, attention_mask, position_ids = self._append_output_queries(
                inputs_embeds, attention_mask, position_ids
            )
            use_cache = False
        elif attention_mask is not None and attention_mask.ndim == 4:
            attention_mask = additive_mask(attention_mask, inputs_embeds.dtype)
        elif position_ids is None and attention_mask is not None and attention_mask.shape[1] == length:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp_min(0)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **{CACHE: cache, **kwargs},
        )
        states = outputs.last_hidden_state[:, :length]
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(states[:, kept])

        loss = None
        if labels is not None:
            loss = next_token_loss(logits, labels, num_items_in_batch)
        detected = {}
        if output_map:
            detected, map_loss = self._detect(outputs.last_hidden_state[:, length:], scene_tokens, map_labels)
            if map_loss is not None and labels is not None and num_items_in_batch is not None:
                map_loss = map_loss * (labels[:, 1:] != IGNORE_INDEX).sum() / num_items_in_batch
            if map_loss is not None:
                loss = map_loss if loss is None else loss + map_loss
        output = SceneQFormerCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            scene_tokens=scene_tokens,
            scene_attentions=scene_attentions,
            **{CACHE: outputs.get(CACHE), **detected},
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    # ---- scene tokens in the prompt ------------------------------------------------------

    def _embed(self, input_ids, attention_mask, labels, scene_tokens, cache):
        """Embeddings `[B, L', D]` of a prompt with its scene tokens, and everything else in that length."""
        if scene_tokens is None and is_started(cache):
            return input_ids, attention_mask, labels, self.get_input_embeddings()(input_ids), None
        num_scenes = 0 if scene_tokens is None else len(scene_tokens)
        input_ids, attention_mask, labels, counts = self._make_room(
            input_ids, attention_mask, labels, num_scenes, "right"
        )
        is_scene = self._is_scene(input_ids)
        if labels is not None:
            labels = labels.masked_fill(is_scene, IGNORE_INDEX)
        inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(is_scene, 0))
        if scene_tokens is not None:
            if int(counts.sum()) != num_scenes:  # one scene per prompt, and prompts that do not show theirs
                scene_tokens = scene_tokens[counts.to(scene_tokens.device) > 0]
            tokens = scene_tokens.flatten(0, 1)
            if self.config.max_sequence_length is not None and int(is_scene.sum()) != len(tokens):
                tokens = tokens[: int(is_scene.sum())]
            inputs_embeds = inputs_embeds.masked_scatter(is_scene.unsqueeze(-1), tokens.to(inputs_embeds.dtype))
        return input_ids, attention_mask, labels, inputs_embeds, scene_tokens

    def _is_scene(self, input_ids: torch.Tensor) -> torch.Tensor:
        return (input_ids == self.config.image_token_index) | (input_ids == self.config.image_token_id)

    def _make_room(self, input_ids, attention_mask, labels, num_scenes: int, padding_side: str):
        """
        Expand LLaVA placeholders; check that placeholders and scenes match. Returns also scenes per row, on the CPU.
        """
        config = self.config
        counts = self._is_scene(input_ids).sum(1).cpu()  # [B]
        total, queries = int(counts.sum()), config.num_queries
        one_each = num_scenes == len(input_ids) and int(counts.max()) <= 1
        if total == num_scenes or (one_each and total):
            if total and not (queries == 1 and config.image_token_id == config.image_token_index):
                input_ids, attention_mask, labels = expand_placeholders(
                    input_ids,
                    attention_mask,
                    labels,
                    placeholder=config.image_token_index,
                    replacement=config.image_token_id,
                    num_tokens=queries,
                    padding_side=padding_side,
                    max_length=config.max_sequence_length,
                )
        elif total == num_scenes * queries and not (counts % queries).any():
            counts = counts // queries
        else:
            raise ValueError(
                f"`input_ids` hold {total} scene placeholders for {num_scenes} scenes. Expected one "
                f"{config.image_token_index} per scene, or {queries} times {config.image_token_id} as "
                "SceneQFormerProcessor writes them."
            )
        return input_ids, attention_mask, labels, counts

    def generate(self, inputs: torch.Tensor | None = None, **kwargs):
        """
        As transformers' `generate`. LLaVA placeholders are expanded first, so the returned ids hold one placeholder per
        scene token.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if input_ids is not None:
            scenes = kwargs["scene_tokens"] if kwargs.get("scene_tokens") is not None else kwargs.get("pixel_values")
            num_scenes = 0 if scenes is None else len(scenes)
            mask = kwargs.get("attention_mask")
            input_ids, mask, _, counts = self._make_room(input_ids, mask, None, num_scenes, "left")
            if mask is not None:
                kwargs["attention_mask"] = mask
            if scenes is not None and int(counts.sum()) != num_scenes:  # prompts that do not show their scene
                for name in ("scene_tokens", "pixel_values", "cam_intrinsics", "cam_extrinsics"):
                    if kwargs.get(name) is not None:
                        kwargs[name] = kwargs[name][counts.to(kwargs[name].device) > 0]
            kwargs["input_ids"] = input_ids
        return super().generate(**kwargs)

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, **kwargs):
        """Scenes are read once: with a cache, later steps see text alone."""
        model_inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("pixel_values", "cam_intrinsics", "cam_extrinsics", "scene_tokens"):
                model_inputs.pop(name, None)
        return model_inputs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Repeat prompts for beams and samples, each together with its scenes, of which it may have any number."""
        names = ("pixel_values", "cam_intrinsics", "cam_extrinsics", "scene_tokens")
        scenes = {name: model_kwargs.pop(name) for name in names if model_kwargs.get(name) is not None}
        if scenes and expand_size > 1:
            counts = self._is_scene(input_ids).sum(1).cpu() // self.config.num_queries
            groups = torch.arange(int(counts.sum())).split(counts.tolist())
            order = torch.cat([group for group in groups for _ in range(expand_size)])
            scenes = {name: value[order.to(value.device)] for name, value in scenes.items()}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **scenes}

    # ---- output queries ------------------------------------------------------------------

    def _check_map(self, map_labels, cache: Cache | None, batch: int) -> None:
        if self.config.map_config is None:
            raise ValueError(
                "The model has no output queries: `map_config` is None. Pass one, for example `map_config={}`."
            )
        if is_started(cache):
            raise ValueError("`output_map=True` reads the whole prompt at once; call it without `past_key_values`.")
        if "flash" in (self.config.text_config._attn_implementation or ""):
            raise ValueError(
                "Output queries read each other under a mask that flash attention does not take. Load the model with "
                '`attn_implementation="sdpa"`.'
            )
        if map_labels is not None:
            check_map_labels(map_labels, batch, self.config.map_config)

    def _append_output_queries(self, inputs_embeds, attention_mask, position_ids):
        """The prompt with output queries behind it, `[B, L + T, D]`, their additive mask and their positions."""
        config, (batch, length, _) = self.config.map_config, inputs_embeds.shape
        queries = self.map_queries().to(inputs_embeds.dtype).expand(batch, -1, -1)
        count = queries.shape[1]
        within = output_query_mask(config.num_instances, config.num_points, inputs_embeds.device)
        prompt = inputs_embeds.new_ones((batch, length), dtype=torch.long)
        last = torch.full((batch,), length - 1, device=inputs_embeds.device)
        if attention_mask is None:
            mask = prompt_and_query_mask(prompt.bool(), within)
        elif attention_mask.ndim == 2:
            prompt = attention_mask
            mask = prompt_and_query_mask(prompt.bool(), within)
            last = (prompt.bool() * torch.arange(length, device=last.device)).argmax(1)
        elif tuple(attention_mask.shape[-2:]) == (length, length) and attention_mask.dtype == torch.bool:
            mask, last = packed_prompts_and_query_mask(attention_mask, within)
        elif tuple(attention_mask.shape[-2:]) == (length + count, length + count):
            mask = attention_mask
        else:
            raise ValueError(
                f"A four-dimensional `attention_mask` must cover prompt and output queries, [{batch}, 1, "
                f"{length + count}, {length + count}], or be a bool mask of the prompt, [{batch}, 1, {length}, "
                f"{length}]; got {attention_mask.dtype} {tuple(attention_mask.shape)}."
            )
        if position_ids is None:
            position_ids = (prompt.long().cumsum(1) - 1).clamp_min(0)
        behind = position_ids.expand(batch, -1).gather(1, last[:, None])
        position_ids = torch.cat(
            [position_ids.expand(batch, -1), behind + 1 + torch.arange(count, device=behind.device)], dim=1
        )
        return torch.cat([inputs_embeds, queries], dim=1), additive_mask(mask, inputs_embeds.dtype), position_ids

    def _detect(self, query_outputs, scene_tokens, map_labels) -> tuple[dict, torch.Tensor | None]:
        if scene_tokens is None or len(scene_tokens) != len(query_outputs):
            raise ValueError(
                f"`output_map=True` needs one scene per prompt: {len(query_outputs)} prompts, "
                f"{0 if scene_tokens is None else len(scene_tokens)} scenes."
            )
        with float32_island(query_outputs):
            dtype = self.map_decoder.class_head[-1].weight.dtype
            states = self.map_scene_interaction(query_outputs.to(dtype), scene_tokens.to(dtype))
            class_logits, steps = self.map_decoder(states)
            points = steps[-1].clamp(-1, 1)
            found = {
                "query_outputs": query_outputs,
                "class_logits": class_logits,
                "points": points,
                "boxes": bounding_boxes(points),
            }
            if map_labels is None:
                return found, None
            losses = map_detection_loss(class_logits, steps, map_labels, self.config.map_config)
        terms = {name: losses[name] for name in ("class_loss", "points_loss", "direction_loss")}
        return {**found, **terms}, losses.loss


for _model_class, _auto_class in (
    (SceneQFormerModel, "AutoModel"),
    (SceneQFormerForConditionalGeneration, "AutoModelForImageTextToText"),
):
    _model_class.register_for_auto_class(_auto_class)
