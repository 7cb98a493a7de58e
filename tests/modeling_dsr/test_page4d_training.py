"""PAGE-4D trained with `Trainer` from random weights on real frames with known cameras and depth."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from modeling_dsr.modeling_page4d import Page4DModel
from processing_dsr import GeometryProcessor
from tests.modeling_dsr.test_modeling_page4d import PATCH, tiny_config

ROOM = Path(__file__).resolve().parents[3] / "shared" / "samples" / "room"
FRAMES, WIDTH, HEIGHT, STEPS = 4, 6, 5, 150


def room() -> dict[str, torch.Tensor]:
    """Four frames of the room, its cameras (stored camera-to-world) and depth, 84×70 pixels."""
    condition = np.load(ROOM / "condition.npz")
    processor = GeometryProcessor(resize_rule="pi3", pixel_limit=WIDTH * HEIGHT * PATCH**2)
    names = ("depths", "intrinsics", "poses")
    data = processor(
        [str(ROOM / f"{i}.png") for i in range(FRAMES)], **{name: condition[name][:FRAMES] for name in names}
    )
    return {
        "pixel_values": data["pixel_values"][0],
        "depths": data["depths"][0],
        "intrinsics": data["intrinsics"][0],
        "extrinsics": torch.linalg.inv(data["poses"][0])[:, :3],
    }


@pytest.mark.slow
@pytest.mark.skipif(not ROOM.is_dir(), reason="the sample room is not beside the checkout")
def test_trainer_overfits_a_room_from_random_weights(tmp_path):
    torch.manual_seed(0)
    model = Page4DModel(tiny_config(img_size=WIDTH * PATCH, embed_dim=64, num_heads=4, dpt_features=16, mask_alpha=1.0))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=1, learning_rate=2e-3, warmup_steps=10,
        lr_scheduler_type="cosine", max_grad_norm=1.0, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=False, seed=0,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=[room()])
    trainer.train()
    curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    (tmp_path / "curve.json").write_text(json.dumps(curve))
    assert len(curve) == STEPS
    # The terms of the confidences have no floor; a fifth of the start is far below what a constant answer reaches.
    assert np.mean(curve[-5:]) < 0.2 * curve[0]
