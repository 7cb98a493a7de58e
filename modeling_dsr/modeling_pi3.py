"""π³ and Pi3X: points, confidence and cameras of unordered images (arXiv 2507.13347).

Data flow, for B scenes of N frames with P patches each, R register tokens, C the width of the decoder:

    pixel_values [B, N, 3, H, W] ─ encoder, per frame ─ patch tokens [B·N, P, C]
      Pi3X: + ray embedding + depth encoder, where given
    register tokens + patch tokens [B, N·(R+P), C] ─ blocks by turns inside each frame and over all frames
      Pi3X: + pose injection after five of them, where given
    concat(last frame block, last global block) [B·N, R+P, 2C], each frame on its own:
      ├─ point decoder ─ point head ────── local_points [B, N, H, W, 3]
      ├─ confidence decoder ─ its head ─── conf [B, N, H, W, 1]
      └─ camera decoder ─ camera head ──── camera_poses [B, N, 4, 4]
      Pi3X: metric decoder over all frames ─ metric [B], which multiplies points and translations
    points = camera_poses · local_points

No frame is special and no frame has a number: outputs permute with the images.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Dinov2WithRegistersConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_pi3 import Pi3Config
from .float_modules import for_quantizers
from .frame_sizes import pi3_image_size
from .freezing import FreezePresets
from .geometry_encoder import GeometryEncoder
from .pi3_conditioning import (
    Pi3Conditions,
    PoseInjectionBlock,
    RayEmbedding,
    check_conditions,
    pose_attention_mask,
    pose_rope_tables,
    prepare_conditions,
)
from .pi3_heads import CameraHead, ConvHead, FrameDecoder, MetricDecoder, PixelHead
from .pi3_losses import Pi3Targets, pi3_loss, pi3x_loss
from .pose import transform_points
from .scene_mean import mean_over_scenes
from .vision_blocks import VisionBlock, in_chunks, init_layer_scale
from .vision_rope import axial_rope_tables, patch_positions


@dataclass
class Pi3Output(ModelOutput):
    """
    Output of [`Pi3Model`], float32. Camera axes are OpenCV's: x right, y down, z forward.

    Args:
        loss (`torch.FloatTensor`, *optional*): weighted sum of the training losses, mean over scenes, when targets are
            given.
        losses (`dict[str, torch.FloatTensor]`, *optional*): its terms before their weights.
        points (`torch.FloatTensor` of shape `(B, N, H, W, 3)`): world points of each pixel. World frame and scale are
            arbitrary (Pi3X: metres); left-multiply points and poses by a pose's inverse to see from that camera.
        local_points (`torch.FloatTensor` of shape `(B, N, H, W, 3)`): the same in each camera's frame; z is depth.
        conf (`torch.FloatTensor` of shape `(B, N, H, W, 1)`): logits; `sigmoid` makes them probabilities.
        camera_poses (`torch.FloatTensor` of shape `(B, N, 4, 4)`): camera-to-world.
        rays (`torch.FloatTensor` of shape `(B, N, H, W, 3)`, *optional*): Pi3X: unit directions in the camera's frame.
        metric (`torch.FloatTensor` of shape `(B,)`, *optional*): Pi3X: scale contained in points and translations.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*): with `output_hidden_states=True` the tokens
            `(B, N, R+P, C)` before the first and after each decoder block.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    points: torch.FloatTensor | None = None
    local_points: torch.FloatTensor | None = None
    conf: torch.FloatTensor | None = None
    camera_poses: torch.FloatTensor | None = None
    rays: torch.FloatTensor | None = None
    metric: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class Pi3Model(FreezePresets, PreTrainedModel):
    """
    π³ (`config.variant` "pi3") or Pi3X ("pi3x").

    Presets of `freeze`: "all"; "without_encoder", the first two published stages; "confidence", the third: the
    confidence decoder and head alone.
    """

    freeze_presets = {"all": "", "without_encoder": r"(?!encoder\.)", "confidence": r"conf_(decoder|head)\."}
    freeze_field = "trainable"

    config: Pi3Config
    config_class = Pi3Config
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["VisionBlock", "PoseInjectionBlock", "CrossBlock", "Dinov2WithRegistersLayer", "ConvHead"]
    _keep_in_fp32_modules_strict = ["image_mean", "image_std", "point_head", "conf_head", "camera_head", "metric_head"]
    _keep_in_fp32_modules = for_quantizers(_keep_in_fp32_modules_strict)

    def __init__(self, config: Pi3Config):
        super().__init__(config)
        width, is_pi3x = config.hidden_size, config.variant == "pi3x"
        self.register_token = nn.Parameter(torch.empty(1, 1, config.num_register_tokens, width))
        self.register_buffer("image_mean", torch.tensor(config.image_mean).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(config.image_std).view(1, 3, 1, 1))
        self.encoder = GeometryEncoder._from_config(config.encoder_config)
        block = dict(
            dim=width,
            num_heads=config.num_attention_heads,
            norm_eps=config.layer_norm_eps,
            qk_norm_eps=config.qk_norm_eps,
            layer_scale=config.layer_scale_init,
            mlp_ratio=config.mlp_ratio,
        )
        self.decoder = nn.ModuleList(VisionBlock(config, **block) for _ in range(config.num_decoder_layers))
        self.point_decoder = FrameDecoder(config, config.point_dim)
        self.conf_decoder = FrameDecoder(config, config.point_dim)
        self.camera_decoder = FrameDecoder(config, config.camera_dim)
        self.camera_head = CameraHead(config.camera_dim)
        if is_pi3x:
            self.point_head = ConvHead(config, (2, 1))
            self.conf_head = ConvHead(config, (1,))
            self.metric_token = nn.Parameter(torch.empty(1, 1, 2 * width))
            self.metric_decoder = MetricDecoder(config)
            self.metric_head = nn.Linear(config.metric_dim, 1)
        else:
            self.point_head = PixelHead(config.point_dim, 3, config.patch_size)
            self.conf_head = PixelHead(config.point_dim, 1, config.patch_size)
        if is_pi3x and config.use_conditioning:
            depth_config = {**config.encoder_config.to_dict(), "num_channels": 2}
            self.depth_encoder = GeometryEncoder._from_config(Dinov2WithRegistersConfig(**depth_config))
            self.depth_emb = nn.Parameter(torch.empty(1, 1, width))
            self.ray_embed = RayEmbedding(width, config.patch_size)
            self.pose_inject_blk = nn.ModuleList(PoseInjectionBlock(config) for _ in config.pose_injection_layers)
        self.post_init()
        self.freeze()

    def _init_weights(self, module):
        """The published start: tiny register tokens, rays that change nothing, upsampling that repeats a pixel."""
        super()._init_weights(module)
        init_layer_scale(module)
        if module is self:
            init.normal_(self.register_token, std=1e-6)
            for name in ("metric_token", "depth_emb"):
                if hasattr(self, name):
                    init.normal_(getattr(self, name), std=0.02)
            init.copy_(self.image_mean, torch.tensor(self.config.image_mean).view(1, 3, 1, 1))
            init.copy_(self.image_std, torch.tensor(self.config.image_std).view(1, 3, 1, 1))
        elif isinstance(module, RayEmbedding):
            init.zeros_(module.proj.weight)
            init.zeros_(module.proj.bias)
        elif isinstance(module, nn.ConvTranspose2d):
            init.copy_(module.weight, module.weight[:, :, :1, :1].expand_as(module.weight).clone())

    def get_input_embeddings(self):
        """The patch projection: PEFT and quantisers ask every model for its first layer."""
        return self.encoder.embeddings.patch_embeddings.projection

    def idle_parameters(self) -> list[str]:
        """See [`FreezePresets`]. Without a weight in the loss, confidence is computed and taught by nothing."""
        idle = super().idle_parameters()
        return idle if self.config.confidence_loss_weight else [*idle, r"conf_(decoder|head)\..*"]

    def idle_reason(self) -> str:
        return "Give `config.confidence_loss_weight` a value, 0.05 in the published third stage."

    # ---- stages --------------------------------------------------------------------------

    def encode(self, pixel_values: torch.Tensor, conditions: Pi3Conditions | None = None) -> torch.Tensor:
        """Patch tokens `[B·N, P, C]` of images `[B, N, 3, H, W]`, with what rays and depth add to them."""
        images = pixel_values.flatten(0, 1)
        hidden_states = self._patch_tokens(self.encoder, images, self._normalize)
        if conditions is None:
            return hidden_states
        if conditions.rays is not None:
            rays = in_chunks(self.ray_embed, conditions.rays.flatten(0, 1), chunk_size=self.config.chunk_size)
            hidden_states = torch.where(conditions.ray_mask.view(-1, 1, 1), hidden_states + rays, hidden_states)
        if conditions.depths is not None:
            depths = conditions.depths.flatten(0, 1)
            maps = torch.stack([depths, (depths > 0).to(depths.dtype)], 1)
            known = self._patch_tokens(self.depth_encoder, maps) + self.depth_emb
            hidden_states = torch.where(conditions.depth_mask.view(-1, 1, 1), hidden_states + known, hidden_states)
        return hidden_states

    def _normalize(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.image_mean) / self.image_std

    def _patch_tokens(self, encoder, images: torch.Tensor, prepare=lambda images: images) -> torch.Tensor:
        skip = 1 + encoder.config.num_register_tokens
        frozen = not images.requires_grad and not any(p.requires_grad for p in encoder.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return in_chunks(
                lambda x: encoder(prepare(x)).last_hidden_state[:, skip:], images, chunk_size=self.config.chunk_size
            )

    def decode(
        self,
        patch_tokens: torch.Tensor,
        frames: int,
        grid: tuple[int, int],
        conditions: Pi3Conditions | None = None,
        recorded: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The decoder.

        Args:
            patch_tokens: `[B·N, P, C]`. frames: N. grid: (rows, columns) of the patches.
            recorded: a list that receives the tokens `[B, N, R+P, C]` before the first and after each block.

        Returns:
            Tokens after the last frame block and after the last global block, `[B·N, R+P, C]` each.
        """
        config = self.config
        registers = self.register_token[0].to(patch_tokens.dtype).expand(len(patch_tokens), -1, -1)
        tokens = torch.cat([registers, patch_tokens], 1)  # [B·N, T, C]
        del patch_tokens
        batch, length = len(tokens) // frames, tokens.shape[1]
        rope = self._rope(grid, config.hidden_size // config.num_attention_heads, tokens.device)
        poses = self._pose_inputs(conditions, grid, tokens)
        injections = dict(zip(config.pose_injection_layers, self.pose_inject_blk)) if poses else {}
        if recorded is not None:
            recorded.append(tokens.unflatten(0, (batch, frames)))
        inside = tokens
        for index, block in enumerate(self.decoder):
            if index % 2 == 0:
                tokens = in_chunks(lambda x, block=block: block(x, rope=rope), tokens, chunk_size=config.chunk_size)
            else:
                scene = tokens.view(batch, frames * length, -1)
                tokens = block(scene, rope=rope, chunk_size=config.chunk_size * length).view(tokens.shape)
            if index in injections:
                tokens = self._inject_poses(injections[index], tokens, frames, conditions.pose_mask, poses)
            if index == len(self.decoder) - 2:
                inside = tokens
            if recorded is not None:
                recorded.append(tokens.unflatten(0, (batch, frames)))
        return inside, tokens

    def _rope(self, grid: tuple[int, int], head_dim: int, device) -> tuple[torch.Tensor, torch.Tensor]:
        return axial_rope_tables(
            patch_positions(*grid, self.config.num_register_tokens, device), head_dim, self.config.rope_base
        )

    def _pose_inputs(
        self, conditions: Pi3Conditions | None, grid: tuple[int, int], tokens: torch.Tensor
    ) -> dict | None:
        """What every pose injection reads, or None without poses."""
        if conditions is None or "poses" not in conditions.given:
            return None
        config = self.config
        head_dim = config.hidden_size // config.num_attention_heads
        turn, turn_back = pose_rope_tables(*grid, head_dim, config.rope_base, tokens.device)
        mask = None
        if not conditions.all_posed:
            dtype = (
                torch.get_autocast_dtype(tokens.device.type)
                if torch.is_autocast_enabled(tokens.device.type)
                else tokens.dtype
            )
            mask = pose_attention_mask(conditions.pose_mask, grid[0] * grid[1], dtype)
        return {"poses": conditions.poses, "turn": turn, "turn_back": turn_back, "attention_mask": mask}

    def _inject_poses(self, block, tokens, frames: int, pose_mask: torch.Tensor, poses: dict) -> torch.Tensor:
        skip = self.config.num_register_tokens
        registers, patches = tokens[:, :skip], tokens[:, skip:]
        chunk = self.config.chunk_size * patches.shape[1]
        scene = patches.unflatten(0, (-1, frames)).flatten(1, 2)  # [B, N·P, C]
        added = block(scene, **poses, chunk_size=chunk).view(patches.shape)
        return torch.cat([registers, torch.where(pose_mask.view(-1, 1, 1), patches + added, patches)], 1)

    def predict(
        self, inside: torch.Tensor, across: torch.Tensor, metric: torch.Tensor | None, grid: tuple[int, int]
    ) -> tuple[torch.Tensor, ...]:
        """
        Heads on the decoder's two token streams `[n, R+P, C]` of n frames.

        Args:
            metric: Pi3X: scale of each frame's scene, `[n]`.

        Returns:
            points, local_points `[n, H, W, 3]`, conf `[n, H, W, 1]`, camera_poses `[n, 4, 4]`, and for Pi3X rays
            `[n, H, W, 3]`.
        """
        config, skip = self.config, self.config.num_register_tokens
        size = (grid[0] * config.patch_size, grid[1] * config.patch_size)
        features = torch.cat([inside, across], -1)
        rope = self._rope(grid, config.head_hidden_size // config.head_num_attention_heads, features.device)
        point_tokens = self.point_decoder(features, rope)[:, skip:]
        conf_tokens = self.conf_decoder(features, rope)[:, skip:]
        camera_tokens = self.camera_decoder(features, rope)[:, skip:]
        with torch.autocast(features.device.type, enabled=False):
            # Heads stay in float32 when weights are loaded in another dtype, not when the whole model is cast.
            dtype = self.camera_head.fc_t.weight.dtype
            point_tokens, conf_tokens = point_tokens.to(dtype), conf_tokens.to(dtype)
            poses = self.camera_head(camera_tokens.to(dtype))
            if metric is None:
                xy, log_z = self.point_head(point_tokens, grid).float().split([2, 1], -1)
                conf = self.conf_head(conf_tokens, grid).float()
                rays = ()
            else:
                xy, log_z = (x.float().permute(0, 2, 3, 1) for x in self.point_head(point_tokens, grid, size))
                conf = self.conf_head(conf_tokens, grid, size)[0].float().permute(0, 2, 3, 1)
                log_z = log_z.clamp_max(config.max_log_depth)
                rays = (nn.functional.normalize(torch.cat([xy, torch.ones_like(log_z)], -1), dim=-1),)
            z = log_z.exp()
            local = torch.cat([xy * z, z], -1)
            if metric is not None:
                local = local * metric.view(-1, 1, 1, 1)
                translation = poses[:, :3, 3:] * metric.view(-1, 1, 1)
                poses = torch.cat([torch.cat([poses[:, :3, :3], translation], -1), poses[:, 3:]], 1)
            return transform_points(poses, local), local, conf, poses, *rays

    def measure(self, inside: torch.Tensor, across: torch.Tensor, frames: int, grid: tuple[int, int]) -> torch.Tensor:
        """Pi3X: metric scale `[B]` of scenes from the decoder's two token streams `[B·N, R+P, C]`."""
        config, decoder = self.config, self.metric_decoder
        context = in_chunks(
            lambda *streams: decoder.projects_y(torch.cat(streams, -1)), inside, across, chunk_size=config.chunk_size
        )
        context = context.unflatten(0, (-1, frames)).flatten(1, 2)  # [B, N·T, dim]
        rope = self._rope(grid, config.metric_hidden_size // config.metric_num_attention_heads, inside.device)
        hidden_states = decoder(self.metric_token.expand(len(context), -1, -1), context, rope)
        with torch.autocast(inside.device.type, enabled=False):
            return self.metric_head(hidden_states.to(self.metric_head.weight.dtype)).float().exp().squeeze(-1)

    # ---- everything ----------------------------------------------------------------------

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        depths: torch.FloatTensor | None = None,
        intrinsics: torch.FloatTensor | None = None,
        rays: torch.FloatTensor | None = None,
        poses: torch.FloatTensor | None = None,
        depth_mask: torch.BoolTensor | None = None,
        ray_mask: torch.BoolTensor | None = None,
        pose_mask: torch.BoolTensor | None = None,
        target_points: torch.FloatTensor | None = None,
        target_camera_poses: torch.FloatTensor | None = None,
        target_valid: torch.BoolTensor | None = None,
        target_normals: torch.BoolTensor | None = None,
        target_sky: torch.BoolTensor | None = None,
        original_sizes: torch.LongTensor | None = None,
        image_boxes: torch.FloatTensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Pi3Output | tuple:
        """
        Args:
            pixel_values: `[B, N, 3, H, W]` RGB in [0, 1], not normalised; H and W multiples of the patch size (14).
            depths: Pi3X: `[B, N, H, W]`, 0 where unknown.
            intrinsics: Pi3X: `[B, N, 3, 3]` in pixels of `pixel_values`. rays: `[B, N, H, W, 3]` instead of them.
            poses: Pi3X: `[B, N, 4, 4]` camera-to-world, in the unit of `depths`; world frame and unit are free.
            depth_mask, ray_mask, pose_mask: bool `[B, N]`, the frames whose depths, intrinsics or rays, and poses are
                used; default all. A single pose in a scene is not used.
            target_points, target_camera_poses, target_valid, target_normals, target_sky: see [`Pi3Targets`]; with the
                first two the output has a loss.
            original_sizes, image_boxes: what the processor adds for its `post_process_geometry`; not read here.
            output_hidden_states: see [`Pi3Output`].
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        shape = self._check_images(pixel_values)
        conditions = self._conditions(
            shape,
            pixel_values.device,
            depths=depths,
            intrinsics=intrinsics,
            rays=rays,
            poses=poses,
            depth_mask=depth_mask,
            ray_mask=ray_mask,
            pose_mask=pose_mask,
        )
        targets = self._targets(
            shape,
            points=target_points,
            camera_poses=target_camera_poses,
            valid=target_valid,
            normals=target_normals,
            sky=target_sky,
        )
        batch, frames, height, width = shape
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        recorded: list[torch.Tensor] | None = [] if output_hidden_states else None

        inside, across = self.decode(self.encode(pixel_values, conditions), frames, grid, conditions, recorded)
        metric = None
        streams = [inside, across]
        if self.config.variant == "pi3x":
            metric = self.measure(inside, across, frames, grid)
            streams.append(metric.repeat_interleave(frames))
        found = in_chunks(
            lambda inside, across, metric=None: self.predict(inside, across, metric, grid),
            *streams,
            chunk_size=self.config.chunk_size,
        )
        points, local_points, conf, camera_poses, *directions = (x.unflatten(0, (batch, frames)) for x in found)
        output = Pi3Output(
            points=points,
            local_points=local_points,
            conf=conf,
            camera_poses=camera_poses,
            rays=directions[0] if directions else None,
            metric=metric,
            hidden_states=None if recorded is None else tuple(recorded),
        )
        if targets is not None:
            output.loss, output.losses = self._loss(output, targets, conditions)
        return output if return_dict else output.to_tuple()

    def _loss(self, output: Pi3Output, targets: Pi3Targets, conditions: Pi3Conditions | None):
        """The loss and its terms, means over scenes."""
        known_depth = known_pose = None
        if conditions is not None:
            known_pose = conditions.pose_mask
            if conditions.depths is not None:
                known_depth = (conditions.depths > 0) & conditions.depth_mask[..., None, None]

        def of_scene(scene: int) -> dict[str, torch.Tensor]:
            def one(tensor):
                return None if tensor is None else tensor[scene : scene + 1]

            true = Pi3Targets(**{name: one(getattr(targets, name)) for name in Pi3Targets.__dataclass_fields__})
            predictions = (one(output.local_points), one(output.camera_poses), one(output.conf))
            if self.config.variant == "pi3":
                total, losses = pi3_loss(*predictions, true, self.config)
            else:
                local_points, camera_poses, conf = predictions
                total, losses = pi3x_loss(
                    local_points,
                    one(output.rays),
                    camera_poses,
                    conf,
                    one(output.metric),
                    true,
                    self.config,
                    known_depth=one(known_depth),
                    known_pose=one(known_pose),
                )
            return {"loss": total, **losses}

        with torch.autocast(output.points.device.type, enabled=False):
            losses = mean_over_scenes(of_scene, len(output.points))
        return losses.pop("loss"), losses

    def _check_images(self, pixel_values) -> tuple[int, int, int, int]:
        """(B, N, H, W), or a ValueError that says what to do."""
        patch = self.config.patch_size
        if isinstance(pixel_values, (list, tuple)):
            sizes = sorted({tuple(frame.shape[-2:]) for frame in pixel_values})
            raise ValueError(
                f"`pixel_values` must be one tensor [B, N, 3, H, W], got a list of images of (height, width) {sizes}. "
                "GeometryProcessor brings the frames of a scene to one size."
            )
        if pixel_values.ndim != 5 or pixel_values.shape[2] != 3 or 0 in pixel_values.shape:
            raise ValueError(
                f"`pixel_values` must be [B, N, 3, H, W] with at least one scene and frame, got "
                f"{list(pixel_values.shape)}. Add a leading axis to a single scene."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"`pixel_values` must be floating point in [0, 1], got {pixel_values.dtype}. Divide bytes by 255."
            )
        batch, frames, _, height, width = pixel_values.shape
        if height % patch or width % patch:
            chosen = pi3_image_size(width, height, patch_size=patch)
            raise ValueError(
                f"`pixel_values` must have a height and width that are multiples of {patch}, got {height}×{width}. "
                f"GeometryProcessor would choose {chosen[1]}×{chosen[0]} for such images."
            )
        return batch, frames, height, width

    def _conditions(self, shape, device, **given) -> Pi3Conditions | None:
        named = [name for name, value in given.items() if value is not None]
        if not named:
            return None
        if self.config.variant != "pi3x" or not self.config.use_conditioning:
            kind = "π³" if self.config.variant == "pi3" else "this Pi3X (use_conditioning=False)"
            raise ValueError(f"{kind} reads images alone, got {named}. Use a Pi3X checkpoint with conditioning.")
        check_conditions(shape, given)
        return prepare_conditions(shape, device, **given)

    @staticmethod
    def _targets(shape, **given) -> Pi3Targets | None:
        batch, frames, height, width = shape
        named = {name: value for name, value in given.items() if value is not None}
        if not named:
            return None
        expected = {
            "points": (batch, frames, height, width, 3),
            "camera_poses": (batch, frames, 4, 4),
            "valid": (batch, frames, height, width),
            "normals": (batch,),
            "sky": (batch, frames, height, width),
        }
        missing = [f"`target_{name}`" for name in ("points", "camera_poses") if name not in named]
        if missing:
            raise ValueError(
                f"a loss needs `target_points` and `target_camera_poses`; {' and '.join(missing)} is missing."
            )
        for name, value in named.items():
            if tuple(value.shape) != expected[name]:
                raise ValueError(f"`target_{name}` must be {list(expected[name])}, got {list(value.shape)}.")
        return Pi3Targets(**named)

    def as_pipeline(self, processor, **options):
        """This model and its processor as a [`SceneReconstructionPipeline`]. (`save_pretrained` copies what a model's
        file imports: its pipeline.)"""
        from .geometry_pipeline import SceneReconstructionPipeline

        return SceneReconstructionPipeline(model=self, processor=processor, **options)


Pi3Model.register_for_auto_class("AutoModel")
