"""Configuration of the Scene Q-Former and its map head."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto import CONFIG_MAPPING

from .configuration_shared import default_auto_map

# nuScenes' order; the position in it is the index into the camera embedding.
SCENE_CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
SCENE_POSITION_ENCODINGS = ("sine_camera", "depth_3d", "ray_3d")
SCENE_ATTENTIONS = ("full", "deformable")
SCENE_POSITION_FRAMES = ("vehicle", "lidar")
MISSING_CALIBRATION = ("error", "sine")


@strict
class SceneMapConfig(PreTrainedConfig):
    r"""
    Configuration of the output queries of [`SceneQFormerForConditionalGeneration`] and of their map detection head.

    Args:
        num_instances, num_points (`int`, *optional*, defaults to 50 and 20):
            Map elements that can be detected, and points along each. One instance query and one query per point are
            appended to the prompt.
        num_classes (`int`, *optional*, defaults to 3):
            Classes; published order: divider, pedestrian crossing, boundary.
        closed_classes (`list[int]`, *optional*, defaults to `(1,)`):
            Classes whose points run around a polygon, so that any point may come first. Points of the others run along
            a line, in either direction.
        point_range (`list[float]`, *optional*, defaults to `(-15, -30, 15, 30)`):
            Metres (x min, y min, x max, y max) that the coordinates -1 … 1 stand for; LiDAR frame, x right, y forward.
        embed_dims, num_heads, num_layers, ffn_dims, residual_scale:
            The interaction block, in which output queries read the scene tokens again.
        instance_dims, point_dims (`list[int]`, *optional*):
            Widths between the language model and `embed_dims` of the two reducers.
        num_refinements, point_heads, coordinate_dims, num_frequencies, offset_scale, max_offset, anchor_extent, prior:
            The point head: steps; heads of the attention among an instance's points; width and sine frequencies of the
            coordinate code; initial scale of the steps; reach of the first guess around the anchors, which lie on
            x = 0, y = -anchor_extent … anchor_extent; initial class probability.
        dropout (`float`, *optional*, defaults to 0.1).
        class_weight, points_weight, direction_weight, auxiliary_weight, focal_alpha, focal_gamma:
            The loss: its three terms, the share of the intermediate refinements, the focal loss.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new output queries.
    """

    model_type = "scene_map"

    num_instances: int = 50
    num_points: int = 20
    num_classes: int = 3
    closed_classes: list[int] | tuple[int, ...] = (1,)
    point_range: list[float] | tuple[float, ...] = (-15.0, -30.0, 15.0, 30.0)
    embed_dims: int = 256
    num_heads: int = 8
    num_layers: int = 6
    ffn_dims: int = 1024
    residual_scale: float = 0.1
    instance_dims: list[int] | tuple[int, ...] = (2048, 1024, 512)
    point_dims: list[int] | tuple[int, ...] = (1024,)
    num_refinements: int = 6
    point_heads: int = 4
    coordinate_dims: int = 64
    num_frequencies: int = 10
    offset_scale: float = 0.1
    max_offset: float = 0.5
    anchor_extent: float = 0.8
    prior: float = 0.01
    dropout: float = 0.1
    class_weight: float = 2.0
    points_weight: float = 5.0
    direction_weight: float = 0.25
    auxiliary_weight: float = 0.2
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        for name in ("num_instances", "num_classes", "num_refinements"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_points < 2:
            raise ValueError(f"`num_points` must be at least 2, for a line has two ends, got {self.num_points}.")
        for heads in ("num_heads", "point_heads"):
            if self.embed_dims % getattr(self, heads):
                raise ValueError(
                    f"`embed_dims` ({self.embed_dims}) must be a multiple of `{heads}` ({getattr(self, heads)})."
                )
        if any(not 0 <= label < self.num_classes for label in self.closed_classes):
            raise ValueError(
                f"`closed_classes` must lie in 0 … {self.num_classes - 1}, got {list(self.closed_classes)}."
            )
        low, high = self.point_range[:2], self.point_range[2:]
        if len(self.point_range) != 4 or any(a >= b for a, b in zip(low, high)):
            raise ValueError(f"`point_range` must be (x min, y min, x max, y max), got {list(self.point_range)}.")
        super().__post_init__(**kwargs)


@strict
class SceneQFormerConfig(PreTrainedConfig):
    r"""
    Configuration of [`SceneQFormerModel`], which turns surround-camera images into scene tokens, and of
    [`SceneQFormerForConditionalGeneration`], in which a language model reads them.

    Args:
        embed_dims (`int`, *optional*, defaults to 256): width of queries, memory and decoder.
        num_queries (`int`, *optional*, defaults to 512): learned queries, hence scene tokens.
        num_decoder_layers (`int`, *optional*, defaults to 6).
        num_heads (`int`, *optional*, defaults to 8).
        ffn_dims (`int`, *optional*, defaults to 2048).
        dropout (`float`, *optional*, defaults to 0.1).
        llm_hidden_size (`int`, *optional*, defaults to 4096): width of the scene tokens.
        num_cams (`int`, *optional*, defaults to 6): cameras; the order of their images is part of the input.
        position_encoding (`str`, *optional*, defaults to `"sine_camera"`):
            What is added to the image features besides the camera's embedding. `"sine_camera"`: a 2-D sine table.
            `"depth_3d"`: a code of the points that a pixel may show at `depth_num` depths, from the calibration.
            `"ray_3d"`: a code of the direction in which a pixel looks, from the calibration.
        attention (`str`, *optional*, defaults to `"full"`):
            `"full"`: every query reads every cell of every camera. `"deformable"`: every query reads
            `num_deformable_points` cells per head and camera, around a learned reference point.
        num_deformable_points (`int`, *optional*, defaults to 4).
        num_constrained_queries (`int`, *optional*):
            Queries that belong to a camera (content + camera + place), the first ones. Default: 576, or all if there
            are fewer, with `"depth_3d"`; none otherwise.
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Any backbone that transformers' `AutoBackbone` builds, timm's included. Default: ResNet-50.
        backbone_stage (`int`, *optional*):
            Stage whose features are used; default the last. A ResNet is built up to it only.
        backbone_dilation (`bool`, *optional*):
            ResNets: replace the stride of stage 4 by dilation, so that features have stride 16. Default: True with
            `"sine_camera"` (336×336 gives 21×21 cells per camera), False otherwise, as published.
        sine_temperature (`float`, *optional*, defaults to 10000).
        sine_normalize_2pi (`bool`, *optional*, defaults to `False`):
            Spread the coordinates of the 2-D table over 0 … 2π. Published tables use 0 … 1, which leaves most channels
            nearly constant; weights trained with one do not fit the other.
        depth_num, depth_start, depth_max, use_lid:
            Depth hypotheses in metres along the optical axis: `start + (max - start)·(k / (n - 1))²`, or linear without
            `use_lid`.
        pc_range (`list[float]`, *optional*):
            Box (x, y, z min; x, y, z max) in metres that is mapped to -1 … 1; what lies beyond `point_clamp` is
            clamped.
        position_frame (`str`, *optional*, defaults to `"vehicle"`):
            Axes in which `pc_range` is meant. `"vehicle"`: x forward, y left, as published; the default box then clamps
            everything more than 30 m ahead. `"lidar"`: x right, y forward, for which the default box was made.
        point_clamp (`float`, *optional*, defaults to 2.0): bound of the coordinates after that mapping.
        num_point_features, per_depth_dims, aggregation_dims:
            Sine features per axis and widths of the MLPs of `"depth_3d"`.
        missing_calibration (`str`, *optional*, defaults to `"error"`):
            Calibrated encodings without intrinsics or extrinsics: `"error"`, or `"sine"`, the published behaviour,
            which silently takes the 2-D table that the weights were not trained with.
        output_clamp (`float`, *optional*, defaults to 10000):
            Bound of the scene tokens, kept from the published model; None for no bound.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            The language model, of any causal architecture that transformers has; `{}` is LLaMA-7B, hence Vicuna-7B.
            Needed by [`SceneQFormerForConditionalGeneration`]. Its width takes the place of `llm_hidden_size`.
        map_config (`dict` or [`SceneMapConfig`], *optional*): output queries and detection head; None for none.
        image_token_index (`int`, *optional*, defaults to -200):
            LLaVA's placeholder. One of them stands for all scene tokens of a scene.
        image_token_id (`int`, *optional*):
            Placeholder that the processor writes, once per scene token. Default: the `image_token_index`.
        max_sequence_length (`int`, *optional*):
            Prompts with [`image_token_index`] placeholders are cut to this many tokens after the scene tokens are in.
        init_scale_camera, init_std_content, init_std_place:
            Initial values of the `"depth_3d"` queries: orthogonal camera embeddings times a scale, normal content and
            places. With the other encodings, queries and camera embeddings start standard normal.
        freeze (`str`, *optional*):
            What trains, see `freeze` of the model: `"stage1"` (the backbone frozen), `"stage2"`, `"qformer"` (the
                language model frozen) or `"all"`. None: the model's default.
    """

    model_type = "scene_qformer"
    # The backbone is left out: a choice of attention for the model would reach it, and convolutions refuse all of them.
    sub_configs = {"text_config": AutoConfig, "map_config": SceneMapConfig}

    embed_dims: int = 256
    num_queries: int = 512
    num_decoder_layers: int = 6
    num_heads: int = 8
    ffn_dims: int = 2048
    dropout: float = 0.1
    llm_hidden_size: int = 4096
    num_cams: int = len(SCENE_CAMERAS)
    position_encoding: str = "sine_camera"
    attention: str = "full"
    num_deformable_points: int = 4
    num_constrained_queries: int | None = None
    backbone_config: dict | PreTrainedConfig | None = None
    backbone_stage: int | None = None
    backbone_dilation: bool | None = None
    sine_temperature: float = 10000.0
    sine_normalize_2pi: bool = False
    depth_num: int = 32
    depth_start: float = 1.0
    depth_max: float = 60.0
    use_lid: bool = True
    pc_range: list[float] | tuple[float, ...] = (-15.0, -30.0, -2.0, 15.0, 30.0, 2.0)
    position_frame: str = "vehicle"
    point_clamp: float = 2.0
    num_point_features: int = 64
    per_depth_dims: int = 64
    aggregation_dims: list[int] | tuple[int, ...] = (1024, 512)
    missing_calibration: str = "error"
    output_clamp: float | None = 1e4
    text_config: dict | PreTrainedConfig | None = None
    map_config: dict | PreTrainedConfig | None = None
    image_token_index: int = -200
    image_token_id: int | None = None
    max_sequence_length: int | None = None
    init_scale_camera: float = 0.5
    init_std_content: float = 0.1
    init_std_place: float = 0.048
    tie_word_embeddings: bool = False
    freeze: str | None = None

    def __post_init__(self, **kwargs):
        self._check()
        self._complete_backbone()
        if self.num_constrained_queries is None:
            self.num_constrained_queries = min(576, self.num_queries) if self.position_encoding == "depth_3d" else 0
        if not 0 <= self.num_constrained_queries <= self.num_queries:
            raise ValueError(
                f"`num_constrained_queries` must lie in 0 … `num_queries` = {self.num_queries}, got "
                f"{self.num_constrained_queries}."
            )
        if isinstance(self.text_config, dict):
            self.text_config = CONFIG_MAPPING[self.text_config.get("model_type", "llama")](**self.text_config)
        if self.text_config is not None:
            self.llm_hidden_size = self.text_config.hidden_size
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        if isinstance(self.map_config, dict):
            self.map_config = SceneMapConfig(**self.map_config)
        if self.image_token_id is None:
            self.image_token_id = self.image_token_index
        super().__post_init__(**kwargs)
        default_auto_map(
            self,
            {
                "AutoConfig": "configuration_scene_qformer.SceneQFormerConfig",
                "AutoModel": "modeling_scene_qformer.SceneQFormerModel",
                "AutoModelForImageTextToText": "modeling_scene_qformer.SceneQFormerForConditionalGeneration",
            },
        )

    def _check(self) -> None:
        for name, allowed in (
            ("position_encoding", SCENE_POSITION_ENCODINGS),
            ("attention", SCENE_ATTENTIONS),
            ("position_frame", SCENE_POSITION_FRAMES),
            ("missing_calibration", MISSING_CALIBRATION),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}.")
        for name in (
            "num_queries",
            "num_decoder_layers",
            "num_heads",
            "num_cams",
            "depth_num",
            "num_deformable_points",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_point_features % 2:
            raise ValueError(f"`num_point_features` must be even (sines and cosines), got {self.num_point_features}.")
        if self.embed_dims % 4 or self.embed_dims % self.num_heads:
            raise ValueError(
                f"`embed_dims` must be a multiple of 4 (sine table) and of `num_heads` = {self.num_heads}, got "
                f"{self.embed_dims}."
            )
        low, high = self.pc_range[:3], self.pc_range[3:]
        if len(self.pc_range) != 6 or any(a >= b for a, b in zip(low, high)):
            raise ValueError(f"`pc_range` must be (x, y, z min; x, y, z max), got {list(self.pc_range)}.")

    def _complete_backbone(self) -> None:
        if isinstance(self.backbone_config, PreTrainedConfig):
            values = self.backbone_config.to_dict()
        else:
            values = dict(self.backbone_config or {})
        kind = values.setdefault("model_type", "resnet")
        if kind not in CONFIG_MAPPING:
            raise ValueError(f"`backbone_config` names the unknown model type {kind!r}.")
        if kind == "resnet":
            depths = list(values.get("depths") or (3, 4, 6, 3))
            widths = list(values.get("hidden_sizes") or (256, 512, 1024, 2048))
            stage = self.backbone_stage or len(depths)
            if not 1 <= stage <= len(depths):
                raise ValueError(f"`backbone_stage` must lie in 1 … {len(depths)} for this ResNet, got {stage}.")
            for stale in ("stage_names", "out_indices"):
                values.pop(stale, None)
            values.update(depths=depths[:stage], hidden_sizes=widths[:stage], out_features=[f"stage{stage}"])
            if self.backbone_dilation is None:
                self.backbone_dilation = self.position_encoding == "sine_camera" and stage == 4
            if self.backbone_dilation and stage != 4:
                raise ValueError(
                    f"`backbone_dilation` replaces the stride of stage 4, but the ResNet ends at stage {stage}."
                )
        else:
            if self.backbone_dilation:
                raise ValueError(
                    f"`backbone_dilation` is for ResNets of transformers, got a backbone of type {kind!r}. timm's "
                    "backbones take `output_stride` in `backbone_config`."
                )
            self.backbone_dilation = False
            if self.backbone_stage is not None:
                values.pop("out_features", None)
                values["out_indices"] = [self.backbone_stage]
        self.backbone_config = CONFIG_MAPPING[kind](**values)


SceneMapConfig.register_for_auto_class()
SceneQFormerConfig.register_for_auto_class()
