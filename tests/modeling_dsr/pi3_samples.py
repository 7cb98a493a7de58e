"""Tiny π³ and Pi3X models, and scenes for them made of noise."""

import torch

from configuration_dsr import Pi3Config

HEIGHT, WIDTH, FRAMES = 28, 42, 3


def tiny_config(variant: str = "pi3", **overrides) -> Pi3Config:
    """Not square, chunks smaller than a scene, widths that differ from part to part."""
    values = dict(
        variant=variant,
        encoder_config=dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=70),
        num_decoder_layers=4,
        num_attention_heads=3,
        num_register_tokens=5,
        head_hidden_size=16,
        head_num_attention_heads=2,
        head_num_layers=1,
        point_dim=12,
        camera_dim=10,
        pose_injection_layers=[1, 2],
        metric_hidden_size=16,
        metric_num_attention_heads=2,
        metric_dim=6,
        conv_head_dims=[16, 8, 8],
        conv_head_hidden_size=4,
        conv_head_num_res_blocks=1,
        chunk_size=2,
    )
    return Pi3Config(**{**values, **overrides})


def images(batch: int, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """Scene i is the same in every batch."""
    return torch.stack([torch.rand(frames, 3, height, width, generator=_generator(i)) for i in range(batch)])


def poses(batch: int, frames: int = FRAMES, seed: int = 0) -> torch.Tensor:
    """Random rigid camera-to-world matrices `[B, N, 4, 4]`."""
    matrices = []
    for i in range(batch):
        generator = _generator(100 + 10 * seed + i)
        rotation = torch.linalg.qr(torch.randn(frames, 3, 3, generator=generator)).Q
        rotation = rotation * torch.linalg.det(rotation).view(-1, 1, 1)
        pose = torch.eye(4).repeat(frames, 1, 1)
        pose[:, :3, :3], pose[:, :3, 3] = rotation, torch.randn(frames, 3, generator=generator)
        matrices.append(pose)
    return torch.stack(matrices)


def depths(batch: int, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """Positive depths with holes."""
    maps = [1 + 4 * torch.rand(frames, height, width, generator=_generator(200 + i)) for i in range(batch)]
    return torch.stack([torch.where(depth > 1.4, depth, 0.0) for depth in maps])


def intrinsics(batch: int, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    matrix = torch.tensor([[40.0, 0.0, width / 2], [0.0, 42.0, height / 2], [0.0, 0.0, 1.0]])
    return matrix.expand(batch, frames, 3, 3).clone()


def conditions(batch: int) -> dict[str, torch.Tensor]:
    return {"depths": depths(batch), "intrinsics": intrinsics(batch), "poses": poses(batch)}


def targets(batch: int, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> dict[str, torch.Tensor]:
    """A smooth surface in front of every camera, seen from random poses."""
    y, x = torch.meshgrid(torch.linspace(-0.5, 0.5, height), torch.linspace(-0.7, 0.7, width), indexing="ij")
    made = []
    for i in range(batch):
        bend = torch.rand(frames, 1, 1, generator=_generator(300 + i))
        z = 2 + bend * (x + y**2)
        made.append(torch.stack([x * z, y * z, z], -1))
    local, camera_poses = torch.stack(made), poses(batch, frames)
    rotation, translation = camera_poses[..., None, None, :3, :3], camera_poses[..., None, None, :3, 3]
    return {
        "target_points": (rotation @ local.unsqueeze(-1)).squeeze(-1) + translation,
        "target_camera_poses": camera_poses,
        "target_valid": torch.stack(
            [torch.rand(frames, height, width, generator=_generator(400 + i)) > 0.1 for i in range(batch)]
        ),
    }


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
