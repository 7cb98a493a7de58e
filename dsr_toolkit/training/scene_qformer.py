"""Training of the scene Q-Former: the two stages and the augmentations.

Stage 1 trains everything but the image backbone, which is frozen and stays in evaluation mode; stage 2 trains
everything, the backbone with a tenth of the learning rate:

    groups = begin_stage(model, 1)
    optimizer = torch.optim.AdamW(groups)
"""

import random

import torch
from PIL import Image, ImageEnhance
from torch import nn

LEARNING_RATES = {"backbone": 1e-5, "decoder": 1e-4, "projector": 1e-4}
WEIGHT_DECAY = 0.01
# Front, front left, front right, back, back right, back left: where each camera's mirror image belongs.
MIRRORED_ORDER = (0, 2, 1, 3, 5, 4)


def begin_stage(model: nn.Module, stage: int) -> list[dict]:
    """
    Freeze or unfreeze the backbone and tell the optimizer's parameter groups.

    A language model keeps its `requires_grad` as the caller (or PEFT) set it; what of it trains is in group "decoder".

    Args:
        model: a [`SceneQFormerModel`] or a model that holds one. stage: 1 or 2.

    Returns:
        Groups with `name`, `params`, `lr` and `weight_decay`, empty ones left out.
    """
    if stage not in (1, 2):
        raise ValueError(f"`stage` must be 1 (backbone frozen) or 2 (end to end), got {stage!r}.")
    # By names, not by classes: those of a model from the Hub are others than this library's.
    parts = {
        name.rpartition("scene_decoder.layers.0")[0]
        for name, _ in model.named_modules()
        if "scene_decoder.layers.0" in name
    }
    if len(parts) != 1:
        raise ValueError(f"`model` must hold one SceneQFormerModel, found {len(parts)} in {type(model).__name__}.")
    (prefix,) = parts
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in LEARNING_RATES}
    for name, parameter in model.named_parameters():
        inside = name.startswith(prefix)
        part = name.removeprefix(prefix).split(".")[0] if inside else ""
        if inside:
            parameter.requires_grad_(stage == 2 or part != "backbone")
        if parameter.requires_grad:
            groups[part if part in groups else "decoder"].append(parameter)
    model.train()
    return [
        {"name": name, "params": params, "lr": LEARNING_RATES[name], "weight_decay": WEIGHT_DECAY}
        for name, params in groups.items()
        if params
    ]


def mirror_scene(
    pixel_values: torch.Tensor,
    cam_intrinsics: torch.Tensor | None = None,
    cam_extrinsics: torch.Tensor | None = None,
    points: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """
    The scene as a mirror on the car's long axis would show it: left and right exchanged, ahead stays ahead.

    With S = diag(1, -1, 1) in the vehicle frame (y left) and M = diag(-1, 1, 1) in a camera's (x right), an extrinsic
    R, t becomes S·R·M, S·t, and a principal point cx becomes W - cx.

    Args:
        pixel_values: `[..., 6, 3, H, W]` in nuScenes' order. cam_intrinsics: `[..., 6, 3, 3]` in its pixels.
        cam_extrinsics: `[..., 6, 4, 4]` camera → vehicle. points: `[..., 2]` of the LiDAR frame (x right, y forward),
            in metres or -1 … 1 over a range that is symmetric in x.

    Returns:
        The same four, None where none was given.
    """
    if pixel_values.ndim < 4 or pixel_values.shape[-4] != len(MIRRORED_ORDER):
        raise ValueError(f"`pixel_values` must be [..., 6, 3, H, W], got {tuple(pixel_values.shape)}.")
    order = list(MIRRORED_ORDER)
    images = pixel_values[..., order, :, :, :].flip(-1)
    if cam_intrinsics is not None:
        cam_intrinsics = cam_intrinsics[..., order, :, :].clone()
        cam_intrinsics[..., 0, 2] = pixel_values.shape[-1] - cam_intrinsics[..., 0, 2]
        cam_intrinsics[..., 0, 1] *= -1  # skew
    if cam_extrinsics is not None:
        vehicle = cam_extrinsics.new_tensor([1, -1, 1, 1])
        camera = cam_extrinsics.new_tensor([-1, 1, 1, 1])
        cam_extrinsics = vehicle[:, None] * cam_extrinsics[..., order, :, :] * camera
    if points is not None:
        points = points * points.new_tensor([-1, 1])
    return images, cam_intrinsics, cam_extrinsics, points


def jitter(image: Image.Image, generator: random.Random) -> Image.Image:
    """
    The published photometric augmentation, each part in half of the images: brightness ±25 %, contrast and saturation
    ±50 %, hue ±18°.
    """
    image = image.convert("RGB")
    for enhance, spread in ((ImageEnhance.Brightness, 0.25), (ImageEnhance.Contrast, 0.5), (ImageEnhance.Color, 0.5)):
        if generator.random() < 0.5:
            image = enhance(image).enhance(generator.uniform(1 - spread, 1 + spread))
    if generator.random() < 0.5:
        hue, saturation, value = image.convert("HSV").split()
        shift = round(generator.uniform(-18, 18) / 360 * 255)
        hue = hue.point(lambda level: (level + shift) % 256)
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return image
