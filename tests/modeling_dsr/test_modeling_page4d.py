"""PAGE-4D: the checks common to all models, and what the paper and the published code say of this one."""

import copy
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from configuration_dsr import Page4DConfig
from modeling_dsr.modeling_page4d import Page4DModel
from modeling_dsr.page4d_heads import GlobalBlock, SpatialMaskHead
from processing_dsr import GeometryProcessor
from tests.model_checks import ModelChecks, assert_same, randomize, tensors_of

PATCH = 14


def tiny_config(**overrides):
    values = dict(
        encoder_config=dict(num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2),
        img_size=4 * PATCH,
        embed_dim=32,
        depth=5,
        num_heads=2,
        mlp_ratio=2.0,
        mask_alpha=0.5,
        mask_layer=1,
        masked_layers=[2, 3],
        mask_hidden_channels=8,
        enable_track=True,
        camera_depth=1,
        camera_num_heads=4,
        camera_mlp_ratio=2.0,
        dpt_layers=[0, 2, 3, 4],
        dpt_features=8,
        dpt_out_channels=[8, 8, 8, 8],
        dpt_hidden_channels=8,
        track_features=8,
        track_out_channels=[8, 8, 8, 8],
        track_hidden_size=16,
        track_depth=1,
        track_num_heads=2,
        track_num_virtual=4,
        track_correlation_levels=2,
        track_correlation_radius=1,
        track_iterations=2,
    )
    return Page4DConfig(**{**values, **overrides})


def frames(batch, count, rows=2, columns=3, seed=0):
    """Each sample from a generator of its own, so that sample i is the same in every batch."""
    samples = [
        torch.rand(count, 3, rows * PATCH, columns * PATCH, generator=torch.Generator().manual_seed(seed + i))
        for i in range(batch)
    ]
    return torch.stack(samples)


def targets(batch, count, rows=2, columns=3):
    """Cameras on a line looking along z at a wavy wall."""
    height, width = rows * PATCH, columns * PATCH
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    depths = torch.stack([torch.stack([3 + (5 * x + i + j).sin() + y for j in range(count)]) for i in range(batch)])
    extrinsics = torch.eye(4)[:3].expand(batch, count, 3, 4).clone()
    extrinsics[..., 0, 3] = 0.1 * torch.arange(count)
    intrinsics = torch.tensor([[40.0, 0, width / 2], [0, 40.0, height / 2], [0, 0, 1]]).expand(batch, count, 3, 3).clone()
    return dict(depths=depths, extrinsics=extrinsics, intrinsics=intrinsics)


def random_model(config=None) -> Page4DModel:
    """With weights that matter, and fields of view away from 0, where focal lengths are infinite."""
    torch.manual_seed(0)
    model = Page4DModel(config or tiny_config()).eval()
    randomize(model)
    with torch.no_grad():
        model.camera_head.pose_branch.fc2.weight[7:] *= 0.1
        model.camera_head.pose_branch.fc2.bias[7:] = 0.8
    return model


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(autouse=True)
def _no_gradients(request):
    if "gradient" in request.node.name or "train" in request.node.name or "freez" in request.node.name:
        yield
    else:
        with torch.no_grad():
            yield


class TestPage4D(ModelChecks):
    model_classes = (Page4DModel,)
    has_attentions = False
    # DINO's own training alone uses its mask token. The track head is trained by losses that PAGE-4D does not have.
    parameters_without_gradient = (r"encoder\.embeddings\.mask_token", r"track_head\..*")
    lora_targets = r".*_blocks\.\d+\.attn\.qkv"
    fsdp_layers = ("VisionBlock", "GlobalBlock", "Dinov2WithRegistersLayer")

    @pytest.fixture(autouse=True)
    def _with_gradients(self):
        with torch.enable_grad():
            yield

    def tiny_config(self):
        return tiny_config()

    def build(self, model_class):
        return random_model()

    @staticmethod
    def assert_fresh(name, found, fresh):
        if found.numel() == 1:  # one number, uniform in ±1/sqrt(fan in), has no spread to compare
            assert found.abs() <= 1
        else:
            ModelChecks.assert_fresh(name, found, fresh)

    def inputs(self, batch, padding_side="left"):
        return {"pixel_values": frames(batch, 3)}

    def training_inputs(self, batch):
        return {"pixel_values": frames(batch, 3), **targets(batch, 3)}

    def expected_hidden_states(self, config, inputs):
        batch, count, _, height, width = inputs["pixel_values"].shape
        tokens = 1 + config.num_register_tokens + (height // PATCH) * (width // PATCH)
        return config.depth, (batch, count, tokens, 2 * config.embed_dim)

    def compile_pieces(self, model, inputs):
        patches = torch.randn(1, 3, 6, model.config.embed_dim)
        return {
            "trunk": (torch.nn.Module.__call__.__get__(model.aggregator), (patches, (2, 3), 0.0), {}),
        }

    def processor(self):
        return GeometryProcessor(resize_rule="page4d", image_size=4 * PATCH)
