"""Conversion of PAGE-4D: the published layout, VGGT-1B's, wrappers and what the weights do not tell."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from convert_weights import convert
from dsr_toolkit.tiny.page4d import OVERRIDES, page4d_shapes, write_page4d
from modeling_dsr.modeling_page4d import Page4DModel

KEYS = Path(__file__).resolve().parents[3] / "shared" / "reference" / "page4d" / "keys.json"


@pytest.fixture
def checkpoint(tmp_path):
    return write_page4d(tmp_path / "checkpoint.pt")


def load(folder):
    model, info = Page4DModel.from_pretrained(folder, output_loading_info=True)
    assert {kind: names for kind, names in info.items() if names} == {}
    return model.eval()


def test_every_tensor_is_loaded_and_used(checkpoint, tmp_path):
    report = convert("page4d", {"page4d": checkpoint}, tmp_path / "out", config_overrides=OVERRIDES, progress=False)
    assert report.dropped == {}
    origins = {entry["from"].split(":")[1].split("[")[0] for entry in report.tensors.values()}
    assert origins == set(page4d_shapes())
    model = load(tmp_path / "out")
    with torch.no_grad():
        outputs = model(torch.rand(1, 2, 3, 28, 42))
    assert outputs.mask_bias is not None and torch.isfinite(outputs.depth).all()
    processor = AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert (processor.resize_rule, processor.image_size) == ("page4d", model.config.img_size)


def test_vggt_layout_is_the_same_model_without_the_mask(tmp_path):
    overrides = {**OVERRIDES, "mask_alpha": 0.0}
    full, plain = write_page4d(tmp_path / "page4d.pt"), write_page4d(tmp_path / "vggt.pt", mask_head=False)
    convert("page4d", {"page4d": full}, tmp_path / "full", config_overrides=overrides, progress=False)
    report = convert("page4d", {"page4d": plain}, tmp_path / "plain", config_overrides=overrides, progress=False)
    assert any("no mask head" in note for note in report.notes)
    models = [load(tmp_path / name) for name in ("full", "plain")]
    for model in models:  # mapped from files, tensors of equal numbers lie at other offsets, which shows in last digits
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    assert models[1].config.spatial_mask_variant is None
    pixels = torch.rand(1, 2, 3, 28, 28)
    with torch.no_grad():
        found, expected = (model(pixels) for model in models)
    assert torch.equal(found.pose_enc, expected.pose_enc) and torch.equal(found.depth, expected.depth)


def test_a_data_parallel_prefix_is_understood(checkpoint, tmp_path):
    weights = torch.load(checkpoint, weights_only=True)["model"]
    wrapped = tmp_path / "wrapped.pt"
    torch.save({"model": {f"module.{name}": tensor for name, tensor in weights.items()}, "prev_epoch": 3}, wrapped)
    for name, path in (("plain", checkpoint), ("wrapped", wrapped)):
        convert("page4d", {"page4d": path}, tmp_path / name, config_overrides=OVERRIDES, progress=False)
    states = [load(tmp_path / name).state_dict() for name in ("plain", "wrapped")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_layer_roles_of_an_unpublished_depth_must_be_given(checkpoint, tmp_path):
    overrides = {name: value for name, value in OVERRIDES.items() if name != "masked_layers"}
    with pytest.raises(ValueError, match=r"has 4 layers.*\['masked_layers'\]"):
        convert("page4d", {"page4d": checkpoint}, tmp_path / "out", config_overrides=overrides, progress=False)


def test_a_foreign_key_is_an_error(checkpoint, tmp_path):
    weights = torch.load(checkpoint, weights_only=True)["model"]
    torch.save({"model": weights | {"aggregator.unknown.weight": torch.ones(2)}}, tmp_path / "more.pt")
    with pytest.raises(ValueError, match=r"(?s)without a rule.*aggregator\.unknown\.weight"):
        convert(
            "page4d", {"page4d": tmp_path / "more.pt"}, tmp_path / "out", config_overrides=OVERRIDES, progress=False
        )


@pytest.mark.skipif(not KEYS.exists(), reason="the key list is not beside the checkout")
@pytest.mark.parametrize("layout", ["PAGE-4D", "VGGT-1B"])
def test_full_size_layout_is_mapped_whole(layout, tmp_path):
    listed = json.loads(KEYS.read_text())
    keys = listed["keys"]
    if layout == "VGGT-1B":
        keys = {name: entry for name, entry in keys.items() if name not in listed["page4d_only_keys"]}
        assert len(keys) == len(listed["keys"]) - 6
    (tmp_path / "keys.json").write_text(json.dumps({"keys": keys}))
    report = convert("page4d", {"page4d": tmp_path / "keys.json"}, tmp_path / "none", dry_run=True)
    assert report.dropped == {}
    assert {entry["action"] for entry in report.tensors.values()} == {"loaded", "transformed"}
    origins = {entry["from"].split(":")[1].split("[")[0] for entry in report.tensors.values()}
    assert origins == set(keys)
    sizes = [torch.Size(entry["shape"]).numel() for entry in report.tensors.values()]
    assert sum(sizes) == {"PAGE-4D": 1_256_810_413, "VGGT-1B": 1_256_537_516}[layout]
