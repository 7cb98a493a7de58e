"""Multi-view PAGE-4D trained with `Trainer` on synchronised views: the loss falls, masks of a time never seen get
better."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

from modeling_dsr.modeling_page4d import Page4DModel
from processing_dsr import GeometryProcessor
from tests.modeling_dsr.test_modeling_page4d_multiview import tiny_config

SCENE = Path(__file__).resolve().parents[3] / "shared" / "samples" / "multiview"
WIDTH, STEPS = 112, 150

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SCENE.is_dir(), reason="the sample scene is not beside the checkout"),
]


def window(names: list[str]) -> dict[str, torch.Tensor]:
    """Times of the scene as one sample: images `[T, V, 3, H, W]`, masks, cameras and depth at their size."""
    processor = GeometryProcessor(resize_rule="page4d", image_size=WIDTH)
    parts = []
    for name in names:
        folder = SCENE / name
        views = sorted(folder.glob("view*.png"))
        masks = [Image.open(folder / path.name.replace("view", "mask")).convert("L") for path in views]
        data = processor([str(path) for path in views])
        pixels = data["pixel_values"][0]
        height, width = pixels.shape[-2:]
        geometry = np.load(folder / "geometry.npz")
        depth = torch.from_numpy(geometry["depth"].astype(np.float32))
        scale = torch.tensor([width / depth.shape[-1], height / depth.shape[-2], 1.0])
        labels = [torch.from_numpy((np.asarray(mask) > 0).astype(np.float32)) for mask in masks]
        parts.append(
            {
                "pixel_values": pixels,
                "mask_labels": torch.nn.functional.adaptive_avg_pool2d(torch.stack(labels), (height, width)),
                "depths": torch.nn.functional.interpolate(depth[None], (height, width), mode="nearest")[0],
                "intrinsics": torch.from_numpy(geometry["intrinsics"]) * scale[:, None],
                "extrinsics": torch.from_numpy(geometry["extrinsics"]),
            }
        )
    return {key: torch.stack([part[key] for part in parts]) for key in parts[0]}


@torch.no_grad()
def mask_iou(model: Page4DModel, sample: dict[str, torch.Tensor]) -> float:
    """Of the last time of the window, over patches that move by more than half."""
    model.eval()
    found = model(sample["pixel_values"][None]).dynamic_mask[0, -1].squeeze(-1) > 0.5  # [V, P]
    true = torch.nn.functional.avg_pool2d(sample["mask_labels"][-1:], 14)[0].flatten(1) > 0.5
    return ((found & true).sum() / (found | true).sum().clamp_min(1)).item()


def test_training_lowers_the_loss_and_finds_what_moves_at_another_time(tmp_path):
    torch.manual_seed(0)
    config = tiny_config(
        encoder_config=dict(num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2), img_size=WIDTH, embed_dim=64,
        num_heads=4,
        layer_scale_init=0.5, mask_loss_weight=5.0,
    )  # fmt: skip
    model = Page4DModel(config)
    held_out = window(["time_12", "time_18"])
    before = mask_iou(model, held_out)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=1, learning_rate=2e-3, warmup_steps=10,
        lr_scheduler_type="cosine", max_grad_norm=1.0, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=False, seed=0,
    )  # fmt: skip
    pairs = [window(["time_00", "time_06"]), window(["time_06", "time_12"])]
    trainer = Trainer(model=model, args=arguments, train_dataset=pairs)
    trainer.train()
    curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    after = mask_iou(model, held_out)
    (tmp_path / "curve.json").write_text(json.dumps({"loss": curve, "iou_before": before, "iou_after": after}))
    print(f"loss {curve[0]:.2f} → {np.mean(curve[-5:]):.2f}; IoU at time_18 {before:.3f} → {after:.3f}")
    assert np.mean(curve[-5:]) < 0.5 * curve[0]
    assert after > before + 0.1
