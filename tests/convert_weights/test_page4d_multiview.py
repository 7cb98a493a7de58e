"""Conversion of the multi-view PAGE-4D: its own checkpoint, and the three stages from π³ and PAGE-4D."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from convert_weights import convert

SHARED = Path(__file__).resolve().parents[3] / "shared" / "reference"
STAGES = Path(__file__).resolve().parents[1] / "reference" / "page4d_mv" / "tiny" / "weight_loading"
OVERRIDES = {
    "encoder_config": {"num_attention_heads": 1},
    "dual_stream_layers": [1, 2],
    "mask_layer": 1,
    "masked_layers": [2, 3],
    "dpt_layers": [0, 1, 2, 3],
    "camera_num_heads": 2,
}
full_size = pytest.mark.skipif(not SHARED.is_dir(), reason="the key lists are not beside the checkout")


def staged(output, page4d=STAGES / "page4d_tiny.pt", **options):
    overrides = OVERRIDES | options.pop("config_overrides", {})
    sources = {"pi3": STAGES / "pi3_tiny.safetensors", "page4d": page4d}
    return convert("page4d", sources, output, config_overrides=overrides, progress=False, **options)


def listed(name: str, section: str = "keys") -> dict:
    return json.loads((SHARED / name / "keys.json").read_text())[section]


def key_file(path: Path, keys: dict) -> Path:
    known = {name: ["float32", entry[1]] if entry[0] == "unknown" else entry for name, entry in keys.items()}
    path.write_text(json.dumps({"keys": known}))
    return path


def test_three_stages_are_reported_and_load(tmp_path):
    report = staged(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "conversion_report.json").read_text())["stages"]
    assert list(saved) == ["pi3", "page4d", "copied", "initialised"] and saved == report.stages
    assert sum(stage["percent"] for stage in saved.values()) == pytest.approx(100, abs=1e-3)
    assert all(stage["tensors"] > 0 for stage in saved.values())
    origin = {name: tensor["from"] for name, tensor in report.tensors.items()}
    assert origin["aggregator.frame_blocks.2.norm1.weight"] == "pi3:decoder.4.norm1.weight"
    assert origin["aggregator.global_blocks.2.norm1.weight"] == "pi3:decoder.5.norm1.weight"
    assert origin["aggregator.frame_blocks.3.norm1.weight"] == "page4d:aggregator.frame_blocks.3.norm1.weight"
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    assert model.config.time_pos == "none" and model.multiview.lambda_pose_logit == 0
    state = model.state_dict()
    for name in ("pose", "geo"):
        copied = state[f"multiview.{name}_time_blocks.1.mlp.fc1.weight"]
        assert torch.equal(copied, state["aggregator.frame_blocks.2.mlp.fc1.weight"])
    with torch.no_grad():
        streams = model(torch.rand(1, 2, 2, 3, 28, 28), output_hidden_states=True).dual_stream_outputs
    assert torch.equal(streams["pose"][-1], streams["geo"][-1])  # copies without strength


def test_a_mask_head_of_the_other_layout_is_left_out_and_told(tmp_path):
    report = staged(tmp_path / "model", config_overrides={"spatial_mask_variant": "page4d", "mask_hidden_channels": 8})
    head = {name: tensor for name, tensor in report.tensors.items() if "spatial_mask_head" in name}
    assert len(head) == 6 and {tensor["action"] for tensor in head.values()} == {"initialised"}
    assert any("layout 'mv' is not the model's 'page4d'" in note for note in report.notes)
    assert sum("layout is 'mv'" in reason for reason in report.dropped.values()) == 8


def test_sources_of_different_widths_are_refused(tmp_path):
    weights = torch.load(STAGES / "page4d_tiny.pt", weights_only=True)["model"]
    weights = {name: torch.cat([w, w], -1) if name == "aggregator.camera_token" else w for name, w in weights.items()}
    torch.save({"model": weights}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match="16 wide"):
        staged(tmp_path / "out", page4d=tmp_path / "wide.pt")


@full_size
def test_the_full_size_multiview_layout_is_mapped_whole(tmp_path):
    keys = listed("page4d_mv")
    source = key_file(tmp_path / "keys.json", keys)
    report = convert("page4d", {"page4d": source}, tmp_path / "none", dry_run=True)
    assert report.dropped == {}
    origins = {entry["from"].split(":")[1].split("[")[0] for entry in report.tensors.values()}
    assert origins == set(keys)
    assert report.summary["total"]["parameters"] == 1_513_268_668


@full_size
def test_full_size_options_are_mapped(tmp_path):
    content = json.loads((SHARED / "page4d_mv" / "keys.json").read_text())
    keys = content["keys"] | content["optional_keys_sparse_memory_bank"]
    source = key_file(tmp_path / "keys.json", keys)
    overrides = {"sparse_global_layers": [22, 23]}
    report = convert("page4d", {"page4d": source}, tmp_path / "none", dry_run=True, config_overrides=overrides)
    assert report.dropped == {} and report.tensors["multiview.memory_tokens"]["shape"] == [1, 32, 1024]
    assert [name for name, entry in report.tensors.items() if entry["action"] == "initialised"] == [
        "multiview.lambda_kpt"
    ]
    gated = {name: entry for name, entry in keys.items() if not name.endswith(("mask_head.alpha", "mask_head.beta"))}
    source = key_file(tmp_path / "gated.json", gated | content["optional_keys_gated_mask"])
    overrides["use_gating"] = True
    report = convert("page4d", {"page4d": source}, tmp_path / "none", dry_run=True, config_overrides=overrides)
    assert report.dropped == {} and "multiview.dynamic_mask_head.gate_alpha.0.weight" in report.tensors


@full_size
def test_full_size_stages(tmp_path):
    """π³ gives encoder and 18 layers, PAGE-4D the last six, heads and camera tokens."""
    page4d = {name: entry for name, entry in listed("page4d").items() if not name.startswith("track_head.")}
    sources = {
        "pi3": key_file(tmp_path / "pi3.json", listed("pi3", "Pi3")),
        "page4d": key_file(tmp_path / "page4d.json", page4d),
    }
    report = convert("page4d", sources, tmp_path / "none", dry_run=True)
    stages = {name: stage["percent"] for name, stage in report.stages.items()}
    assert stages == pytest.approx({"pi3": 52.3586, "page4d": 29.9082, "copied": 17.4065, "initialised": 0.3267})
    layers = {
        int(name.split(".")[2]): entry["from"].partition(":")[0]
        for name, entry in report.tensors.items()
        if name.startswith("aggregator.frame_blocks.")
    }
    assert [layer for layer, source in layers.items() if source == "page4d"] == [18, 19, 20, 21, 22, 23]
