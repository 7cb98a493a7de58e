"""PAGE-4D and π³ trained with `Trainer` from random weights on real frames with known cameras and depth."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from modeling_dsr.modeling_page4d import Page4DModel
from modeling_dsr.modeling_pi3 import Pi3Model
from modeling_dsr.pose import invert_rigid, unproject_depth
from processing_dsr import GeometryProcessor
from tests.modeling_dsr import pi3_samples, test_modeling_page4d

PATCH = 14
ROOM = Path(__file__).resolve().parents[3] / "shared" / "samples" / "room"
FRAMES, WIDTH, HEIGHT = 4, 6, 5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ROOM.is_dir(), reason="the sample room is not beside the checkout"),
]


def room() -> dict[str, torch.Tensor]:
    """Four frames of the room, its cameras (stored camera-to-world) and depth, 84×70 pixels."""
    condition = np.load(ROOM / "condition.npz")
    processor = GeometryProcessor(resize_rule="pi3", pixel_limit=WIDTH * HEIGHT * PATCH**2)
    names = ("depths", "intrinsics", "poses")
    data = processor(
        [str(ROOM / f"{i}.png") for i in range(FRAMES)], **{name: condition[name][:FRAMES] for name in names}
    )
    return {name: data[name][0] for name in ("pixel_values", *names)}


def world_points(scene: dict[str, torch.Tensor]) -> torch.Tensor:
    """`[N, H, W, 3]`, the room's pixels where depth is known, NaN elsewhere."""
    depth, camera_to_world = scene["depths"].float(), scene["poses"].float()
    points = unproject_depth(depth, scene["intrinsics"].float(), invert_rigid(camera_to_world))
    return torch.where(depth.unsqueeze(-1) > 0, points, float("nan"))


def train(model, scene, folder, learning_rate: float, steps: int) -> list[float]:
    """The loss of each step."""
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=1, learning_rate=learning_rate,
        warmup_steps=10, lr_scheduler_type="cosine", max_grad_norm=1.0, logging_steps=1, save_strategy="no",
        report_to=[], use_cpu=True, remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=False, seed=0,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=[scene])
    trainer.train()
    curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    (folder / "curve.json").write_text(json.dumps(curve))
    assert len(curve) == steps
    return curve


def test_page4d_overfits_a_room_from_random_weights(tmp_path):
    torch.manual_seed(0)
    config = test_modeling_page4d.tiny_config(
        img_size=WIDTH * PATCH, embed_dim=64, num_heads=4, dpt_features=16, mask_alpha=1.0
    )
    scene = room()
    scene["extrinsics"] = torch.linalg.inv(scene.pop("poses"))[:, :3]
    curve = train(Page4DModel(config), scene, tmp_path, 2e-3, steps=240)
    # The terms of the confidences have no floor; a fifth of the start is far below what a constant answer reaches.
    assert np.mean(curve[-5:]) < 0.2 * curve[0]


def test_pi3_overfits_a_room_from_random_weights(tmp_path):
    torch.manual_seed(0)
    config = pi3_samples.tiny_config(
        encoder_config=dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=WIDTH * PATCH),
        num_attention_heads=4, head_hidden_size=64, head_num_attention_heads=4, point_dim=64, camera_dim=32,
    )  # fmt: skip
    scene = room()
    targets = {"target_points": world_points(scene), "target_camera_poses": scene["poses"].float()}
    curve = train(Pi3Model(config), {"pixel_values": scene["pixel_values"], **targets}, tmp_path, 3e-3, steps=150)
    assert np.mean(curve[-5:]) < 0.2 * curve[0]
