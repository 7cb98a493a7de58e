"""Rows, inputs and measures with which π³ and PAGE-4D learn the space world, as the recipes `tiny/pi3` … say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import set_seed

from modeling_dsr.configuration_page4d import Page4DConfig
from modeling_dsr.configuration_pi3 import Pi3Config
from modeling_dsr.modeling_page4d import Page4DModel
from modeling_dsr.modeling_pi3 import Pi3Model
from modeling_dsr.pose import invert_rigid, to_homogeneous, transform_points
from modeling_dsr.processing_geometry import GeometryProcessor

from ..evaluation.world_geometry import MOVING_SHARE, clip_errors, prediction_of
from ..pictures import heat_colours
from ..worlds.space import SpaceWorld
from ..worlds.space.render import render
from ..worlds.space.scene import DIFFICULTIES

MOMENTS = 8  # of a clip, of which a row takes some
PATCH = 14  # pixels


class GeometryClips:
    """
    Rows of the space world that cost no more than they must: some moments of each clip, at the model's size.

    Row i has `images` uint8 `[N, H, W, 3]` (several views: `[T, V, H, W, 3]`), `depths`, `poses`, `intrinsics` and
    `dynamic` of the shapes in [`SpaceSample`].

    Args:
        seed, difficulty, views: see [`SpaceWorld`].
        size: sides of the pictures in pixels.
        oversampling: pictures are made so many times as large and shrunk, as a processor would.
        scenes: fields of `SceneSettings` that differ from those of `difficulty`, as in {"orbit": [40, 160]}.
        moments: least and largest number of moments of a row, of eight over the clip.
        group: rows that have the same number; a multiple of the batch size.
    """

    def __init__(
        self,
        seed: int,
        size: int = 56,
        moments: tuple[int, int] = (2, 4),
        group: int = 8,
        views: int = 1,
        difficulty: str = "easy",
        oversampling: int = 1,
        scenes: dict | None = None,
    ):
        changed = {name: tuple(value) if isinstance(value, list) else value for name, value in (scenes or {}).items()}
        settings = replace(DIFFICULTIES[difficulty], **changed)
        self.world = SpaceWorld(seed, views=views, difficulty=settings, questions=0)
        self.size, self.moments, self.group, self.oversampling = size, tuple(moments), group, oversampling

    def __getitem__(self, index: int) -> dict:
        count = int(self.world.generator(index // self.group, "count").integers(self.moments[0], self.moments[1] + 1))
        choose = self.world.generator(index, "moments")
        tau = np.sort(choose.choice(np.linspace(-1, 1, MOMENTS), count, replace=False))
        scene, size = self.world.scene(index), self.size * self.oversampling
        seen = render(scene, tau, size, size)
        if self.world.views == 1:
            seen = {name: values[:, 0] for name, values in seen.items()}
        moves = np.array([False] + [thing.dynamic for thing in scene.things])
        row = {name: seen[name] for name in ("poses", "intrinsics")} | {"depths": seen["depth"]}
        row |= {"images": seen["images"], "dynamic": moves[seen["instances"]]}
        return row if self.oversampling == 1 else _shrunk(row, self.oversampling)


def _shrunk(row: dict, factor: int) -> dict:
    """Pictures and maps at a whole fraction of their size: averages of colours, of depth and masks one pixel."""
    images = row["images"]
    *many, height, width, _ = images.shape
    blocks = images.reshape(*many, height // factor, factor, width // factor, factor, 3)
    maps = {name: row[name][..., factor // 2 :: factor, factor // 2 :: factor] for name in ("depths", "dynamic")}
    cameras = row["intrinsics"] / np.array([[factor], [factor], [1]])
    # The pixel that was taken for depth, at (factor // 2, …), is now at (0, 0).
    cameras[..., :2, 2] -= factor // 2 / factor
    return {**row, **maps, "images": (blocks.mean((-4, -2)) + 0.5).astype(np.uint8), "intrinsics": cameras}


# --------------------------------------------------------------------------------------
# Models
# --------------------------------------------------------------------------------------


def build_pi3(
    width: int = 128,
    encoder_layers: int = 3,
    layers: int = 6,
    heads: int = 4,
    head_width: int = 96,
    size: int = 56,
    picture_size: int = 112,
    **settings,
):
    """
    A tiny π³ with random weights, and its processor.

    Args:
        size: sides of the pictures that the encoder's table of positions is made for. picture_size: of those that the
            processor makes.
    """
    config = Pi3Config(
        encoder_config={
            "hidden_size": width,
            "num_hidden_layers": encoder_layers,
            "num_attention_heads": heads,
            "image_size": size,
            "layerscale_value": 0.1,
        },
        num_decoder_layers=layers,
        num_attention_heads=heads,
        head_hidden_size=head_width,
        head_num_attention_heads=head_width // 32,
        head_num_layers=1,
        point_dim=head_width,
        camera_dim=head_width,
        layer_scale_init=0.1,
        **settings,
    )
    model = Pi3Model(config)
    start_narrow(model)
    # Cameras begin as equal, not as the rotation nearest to noise.
    nn.init.normal_(model.camera_head.fc_rot.weight, std=0.05)
    with torch.no_grad():
        model.camera_head.fc_rot.bias.copy_(torch.eye(3).flatten())
    nn.init.normal_(model.point_head.proj.weight, std=0.02)
    nn.init.normal_(model.register_token, std=0.02)
    return model, GeometryProcessor(pixel_limit=picture_size * picture_size)


def page4d_from_pi3(folders, output, pi3: str = "tiny/pi3", size: int = 56, seed: int = 0, **settings) -> None:
    """
    Write a tiny PAGE-4D whose encoder and trunk start as π³'s, into the folder `output`: the step `make` of a recipe.

    π³'s blocks, by turns inside frames and over all, are PAGE-4D's frame and global blocks. A layer is added at the
    end; it and the heads for cameras, depth and mask begin at random, with [`begin_to_compare_frames`].

    Args:
        folders: of models by name. pi3: the name of π³'s. settings: of `Page4DConfig`.
    """
    set_seed(seed)
    source = Pi3Model.from_pretrained(folders[pi3])
    width, layers = source.config.hidden_size, source.config.num_decoder_layers // 2
    config = Page4DConfig(
        encoder_config=source.config.encoder_config.to_dict(),
        img_size=size,
        embed_dim=width,
        depth=layers + 1,
        num_heads=source.config.num_attention_heads,
        num_register_tokens=source.config.num_register_tokens - 1,
        rope_freq=source.config.rope_base,
        layer_norm_eps=source.config.layer_norm_eps,
        dpt_layers=list(range(layers + 1))[-4:],
        **settings,
    )
    model = Page4DModel(config)
    model.encoder.load_state_dict(source.encoder.state_dict())
    trunk = model.aggregator
    for layer in range(layers):
        trunk.frame_blocks[layer].load_state_dict(source.decoder[2 * layer].state_dict())
        trunk.global_blocks[layer].load_state_dict(source.decoder[2 * layer + 1].state_dict())
    with torch.no_grad():
        trunk.camera_token.copy_(source.register_token[:, :, :1])
        trunk.register_token.copy_(source.register_token[:, :, 1:])
    begin_to_compare_frames(model)
    model.save_pretrained(output)
    GeometryProcessor(resize_rule="page4d", image_size=size).save_pretrained(output)


@torch.no_grad()
def begin_to_compare_frames(model: Page4DModel) -> None:
    """
    Let cameras begin to learn at once. π³'s trunk has no first frame, and its registers say next to nothing of theirs.

    So the first frame's tokens get a difference from the others'; the last layer and the camera head, which carry
    what the registers do not, add with full weight; and fields of view begin where they are positive, since the
    rectifier that they pass has no gradient below.
    """
    trunk, head = model.aggregator, model.camera_head
    for token in (trunk.camera_token, trunk.register_token):
        token[:, 0].add_(torch.randn_like(token[:, 0]), alpha=0.5)
    for block in (trunk.frame_blocks[-1], trunk.global_blocks[-1], *head.trunk):
        nn.init.ones_(block.ls1.gamma)
        nn.init.ones_(block.ls2.gamma)
    nn.init.constant_(head.pose_branch.fc2.bias[-2:], 1.0 / head.num_iterations)


def multiview_from_page4d(folders, output, page4d: str = "tiny/page4d", seed: int = 0, **settings) -> None:
    """
    Write a multi-view PAGE-4D that starts from one for videos, each stream's blocks as copies of the trunk's.

    Args:
        folders, page4d: as above. settings: of `Page4DConfig`, what is new.
    """
    set_seed(seed)
    source = Page4DModel.from_pretrained(folders[page4d])
    kept = {k: v for k, v in source.config.to_dict().items() if k not in ("enable_dynamic_mask", "dynamic_mask_layer")}
    config = Page4DConfig(**{**kept, "spatial_mask_variant": None, "mask_alpha": 0.0, **settings})
    model = Page4DModel(config)
    missing, _ = model.load_state_dict(source.state_dict(), strict=False)
    strange = [name for name in missing if not name.startswith("multiview.")]
    if strange:
        raise ValueError(f"{folders[page4d]} lacks {strange}, which is not new in the multi-view model.")
    model.copy_trunk_to_streams()
    model.save_pretrained(output)
    GeometryProcessor.from_pretrained(folders[page4d]).save_pretrained(output)


def start_narrow(model: nn.Module) -> None:
    """
    Initialise linear layers by their width (Glorot).

    The published deviation of 0.02 suits widths near a thousand; at a hundred a signal fades from layer to layer.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# --------------------------------------------------------------------------------------
# Inputs
# --------------------------------------------------------------------------------------


def pi3_inputs(processor):
    """Collator of rows for π³; `processor` is not needed, since rows have the model's size."""
    return _pi3_batch


def page4d_inputs(processor):
    """Collator of rows for PAGE-4D, one or several views."""
    return _page4d_batch


def _pi3_batch(rows: list[dict]) -> dict[str, torch.Tensor]:
    batch = _stacked(rows)
    return {
        "pixel_values": _pixels(batch["images"]),
        "target_points": world_points(batch["depths"], batch["poses"], batch["intrinsics"]),
        "target_camera_poses": batch["poses"],
    }


def _page4d_batch(rows: list[dict]) -> dict[str, torch.Tensor]:
    batch = _stacked(rows)
    cells = batch["dynamic"].float().unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH))
    return {
        "pixel_values": _pixels(batch["images"]),
        "depths": batch["depths"],
        "extrinsics": invert_rigid(batch["poses"])[..., :3, :],
        "intrinsics": batch["intrinsics"],
        # A patch moves or not: as shares of pixels, a mask that is not sure of a thing would lose its edge.
        "mask_labels": (cells.mean((-3, -1)) >= MOVING_SHARE).float().flatten(-2),
    }


def _stacked(rows: list[dict]) -> dict[str, torch.Tensor]:
    names = ("images", "depths", "poses", "intrinsics", "dynamic")
    batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in names}
    return {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}


def _pixels(images: torch.Tensor) -> torch.Tensor:
    return images.movedim(-1, -3).float() / 255


def world_points(depths: torch.Tensor, poses: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """World points `[…, H, W, 3]` of depths `[…, H, W]`, cameras `[…, 4, 4]` and `[…, 3, 3]`."""
    height, width = depths.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).to(depths)
    to_world = poses[..., :3, :3] @ torch.linalg.inv(intrinsics)
    points = torch.einsum("...ij,hwj->...hwi", to_world, pixels) * depths.unsqueeze(-1)
    return points + poses[..., None, None, :3, 3]


# --------------------------------------------------------------------------------------
# Measures
# --------------------------------------------------------------------------------------


def truth_of(row: dict, inputs: dict, number: int) -> dict:
    """What is true of scene `number` of a batch, at its pixels, as [`clip_errors`] takes it."""
    if "target_points" in inputs:
        poses = inputs["target_camera_poses"][number].float()
        points = transform_points(invert_rigid(poses)[..., :3, :], inputs["target_points"][number].float())
        depths = points[..., 2]
        if "target_valid" in inputs:
            depths = depths.where(inputs["target_valid"][number], 0.0)
    else:
        poses = to_homogeneous(invert_rigid(inputs["extrinsics"][number].float()))
        depths = inputs["depths"][number].float()
    dynamic = row.get("dynamic")
    masks = inputs.get("mask_labels")
    if dynamic is None and masks is not None and masks.shape[-2:] == depths.shape[-2:]:
        dynamic = masks[number].cpu().numpy() > 0.5
    return {"depths": depths.cpu().numpy(), "poses": poses.cpu().numpy(), "dynamic": dynamic}


def measure(model, processor, rows, inputs, outputs) -> dict:
    """Figures of a batch, see [`clip_errors`]: depths after alignment, rotations between each two cameras."""
    found: dict = {"abs_rel": [], "rotation_error_median": [], "still_camera_median": []}
    ratio, overlap = [0.0, 0.0], [0, 0]
    for number, row in enumerate(rows):
        truth = truth_of(row, inputs, number)
        if not (truth["depths"] > 0).any():
            continue  # nothing to hold depths against
        errors = clip_errors(prediction_of(outputs, number), truth)
        found["abs_rel"].append(errors["abs_rel"])
        found["rotation_error_median"] += errors["rotation_errors"]
        found["still_camera_median"] += errors["true_rotations"]
        ratio[0] += errors["abs_rel_constant"]
        ratio[1] += errors["abs_rel"]
        if "intersection" in errors:
            overlap[0] += errors["intersection"]
            overlap[1] += errors["union"]
            found["mask_iou"] = tuple(overlap)
    found["abs_rel_ratio"] = tuple(ratio)
    return found


def show(model, processor, rows, inputs) -> list[dict]:
    """Per row one picture: frames, true depth (unknown: black), the model's depth, and what moves if it tells."""
    shown = []
    outputs = model(pixel_values=inputs["pixel_values"])
    for number, row in enumerate(rows):
        truth, prediction = truth_of(row, inputs, number), prediction_of(outputs, number)
        if not (truth["depths"] > 0).any():
            continue
        errors = clip_errors(prediction, truth)
        images = (255 * inputs["pixel_values"][number].float().movedim(-3, -1)).round().byte().cpu().numpy()
        merged = lambda values, tail: values.reshape(-1, *values.shape[-tail:])  # noqa: E731  several views: in one row
        strips = [merged(images, 3)]
        true, found = merged(truth["depths"], 2), merged(prediction["depths"], 2) * errors["scale"]
        low, high = np.log(np.percentile(true[true > 0], [1, 99]))
        for depths, seen in ((true, true > 0), (found, np.ones_like(true, bool))):
            level = 1 - np.clip((np.log(np.maximum(depths, 1e-6)) - low) / max(high - low, 1e-6), 0, 1)
            strips.append((heat_colours(level) * seen[..., None]).astype(np.uint8))
        if "patches" in errors:
            side = images.shape[-2] // errors["patches"].shape[-1]
            mask = np.kron(merged(errors["patches"], 2), np.ones((side, side)))
            strips.append((strips[0] * (0.3 + 0.7 * mask[..., None])).astype(np.uint8))
        picture = np.concatenate([np.concatenate(list(strip), 1) for strip in strips])
        text = {key: round(float(errors[key]), 4) for key in ("abs_rel", "abs_rel_constant") if key in errors}
        shown.append(
            {
                "image": Image.fromarray(picture),
                **text,
                "rotation_errors": np.round(errors["rotation_errors"], 2).tolist(),
            }
        )
    return shown
