"""Conversion of π³ and Pi3X."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert_weights import convert, verify
from dsr_toolkit.tiny.pi3 import PI3_OVERRIDES, write_pi3
from modeling_dsr.modeling_pi3 import Pi3Model

KEYS = Path(__file__).resolve().parents[3] / "shared" / "reference" / "pi3" / "keys.json"


@pytest.mark.parametrize("variant, layout, count", [("pi3", "Pi3", 1210), ("pi3x", "Pi3X", 1873)])
def test_every_published_key_has_a_home(variant, layout, count):
    """Full-size layouts, on the meta device: shapes are checked by the recipe."""
    if not KEYS.exists():
        pytest.skip("the full key lists are not beside the checkout")
    published = json.loads(KEYS.read_text())
    report = convert("pi3", {variant: f"{KEYS}#{layout}"}, Path(), dry_run=True)
    actions = Counter(tensor["action"] for tensor in report.tensors.values())
    assert len(published[layout]) == count and report.dropped == {}
    # Each fused projection of an encoder becomes three.
    assert actions["loaded"] + actions["transformed"] // 3 == count
    made = {name for name, tensor in report.tensors.items() if tensor["action"] == "initialised"}
    assert all(name.endswith("embeddings.mask_token") for name in made)
    numbers = sum(math.prod(t["shape"]) for n, t in report.tensors.items() if n not in made and n[:6] != "image_")
    assert numbers == published["parameter_counts"][layout]


def test_converted_folder_holds_the_weights_and_verifies(tmp_path):
    source = write_pi3(tmp_path / "pi3.safetensors")
    convert("pi3", {"pi3": source}, tmp_path / "hub", config_overrides=PI3_OVERRIDES, progress=False)
    assert verify(tmp_path / "hub") == []
    model, info = Pi3Model.from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not any(info.values())
    stored = load_file(source)
    for name in ("register_token", "decoder.3.attn.qkv.weight", "camera_head.fc_rot.bias", "image_mean"):
        assert torch.equal(model.state_dict()[name], stored[name])
    key = stored["encoder.blocks.1.attn.qkv.weight"].chunk(3)[1]
    assert torch.equal(model.encoder.encoder.layer[1].attention.k_proj.weight, key)


@pytest.mark.parametrize(
    "change, source, overrides, message",
    [
        (lambda state: state, "pi3x", PI3_OVERRIDES, "no Pi3X checkpoint: name it `--source pi3="),
        (lambda state: state, "pi3", {}, "does not tell"),
        (lambda state: state | {"extra.weight": torch.ones(2)}, "pi3", PI3_OVERRIDES, "extra.weight"),
        (
            lambda state: {k: v for k, v in state.items() if k != "camera_head.fc_t.bias"},
            "pi3",
            PI3_OVERRIDES,
            "fc_t.bias",
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(tmp_path, change, source, overrides, message):
    path = write_pi3(tmp_path / "pi3.safetensors")
    save_file(change(load_file(path)), path, {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        convert("pi3", {source: path}, tmp_path / "hub", config_overrides=overrides, progress=False)
    assert not (tmp_path / "hub").exists()
