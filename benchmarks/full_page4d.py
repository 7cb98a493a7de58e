"""PAGE-4D at its published size (1.19 billion parameters, random weights) on two frames: time and memory of a call.

Baseline: `benchmarks/page4d_plain.py` with the plain encoder of `pi3_plain`, mask on. With `--original CLONE_OF_PAGE4D`
the published class, mask off, whose file goes through our converter first. Never slower than it by more than 2 %, in
half of its memory above the weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks import full_geometry, page4d_plain
from benchmarks.full_models import fill, import_original, make_model
from benchmarks.harness import device
from benchmarks.pi3_plain import plain_encoder
from convert_weights import convert
from modeling_dsr.configuration_page4d import Page4DConfig
from modeling_dsr.modeling_page4d import Page4DModel

NAME = "full.page4d"
TARGETS = {"time": 0.98, "memory": 2.0}
MASK = 1.0
SMALL = dict(
    embed_dim=64,
    num_heads=4,
    encoder_config=dict(num_hidden_layers=2, num_attention_heads=4, image_size=84),
    img_size=84,
    camera_num_heads=4,
    camera_depth=1,
    dpt_features=16,
    dpt_out_channels=[16, 16, 32, 32],
    dpt_hidden_channels=8,
    mask_hidden_channels=16,
)
SIZES = {
    "small": dict(config=SMALL, frames=6, height=84, width=84),
    "cpu": dict(config={}, frames=2, height=224, width=224),
    "gpu": dict(config={}, frames=32, height=294, width=518),
}
AGREEMENT = {"small": 1e-4, "cpu": 2e-3, "gpu": 5e-2}  # of the largest value; bfloat16 on a GPU
OUTPUTS = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")


def build(size: str, original: str | None = None):
    """Our model, the baseline's call on the same weights, and images."""
    images = full_geometry.images(SIZES[size])
    if original:
        ours, baseline = with_original(original)
        return ours, baseline, images
    model = make_model(Page4DModel, Page4DConfig(**SIZES[size]["config"]))
    encoder = plain_encoder(model.encoder)

    def baseline(images: torch.Tensor) -> dict[str, torch.Tensor]:
        grid = tuple(side // model.config.patch_size for side in images.shape[-2:])
        pixels = ((images - model.image_mean) / model.image_std).flatten(0, 1)
        patches = encoder(pixels).unflatten(0, images.shape[:2])
        layers = page4d_plain.trunk(model, patches, grid, MASK)
        with torch.autocast(images.device.type, enabled=False):
            return page4d_plain.heads(model, [layer.float() for layer in layers], images.shape)

    return (lambda images: model(images, mask_alpha=MASK)), baseline, images


def with_original(folder: str):
    """The published class with random weights, and ours from its converted file."""
    published = import_original(Path(folder) / "model", "page.models.vggt", "VGGT")(enable_track=False).eval()
    fill(published)
    with tempfile.TemporaryDirectory(prefix="page4d-") as work:
        file = Path(work) / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in published.state_dict().items()}, file)
        convert("page4d", {"page4d": file}, Path(work) / "converted", progress=False)
        model = Page4DModel.from_pretrained(Path(work) / "converted").to(device()).eval()
        file.unlink()
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    published = published.to(device())
    return (lambda images: model(images, mask_alpha=0.0)), (lambda images: published(images=images))


def run(size: str = "cpu", original: str | None = None) -> list[dict]:
    return full_geometry.run(__name__, NAME, TARGETS, AGREEMENT[size], OUTPUTS, size, original)
