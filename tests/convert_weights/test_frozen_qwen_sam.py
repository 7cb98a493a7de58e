"""FrozenQwenSAM's recipe: full-size layouts, both forms of the trained checkpoint, both layouts of SAM."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, SamConfig, SamModel

from convert_weights import convert
from convert_weights.architectures import frozen_qwen_sam
from convert_weights.recipe import resolve
from convert_weights.sources import open_source
from dsr_toolkit.tiny.qwen2_5_vl import TEXT, write_qwen2_5_vl
from dsr_toolkit.tiny.sam import write_flmm, write_sam
from modeling_dsr.modeling_frozen_qwen_sam import FrozenQwenSAMModel

KEYS = Path(__file__).resolve().parents[3] / "shared" / "reference" / "frozen_qwen_sam" / "keys.json"
QWEN = {
    "3B": dict(hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
               num_key_value_heads=2, tie_word_embeddings=True, vocab_size=151936),
    "7B": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
               num_key_value_heads=4, tie_word_embeddings=False, vocab_size=152064),
}  # fmt: skip


@pytest.mark.skipif(not KEYS.exists(), reason="the list of published keys is not beside the package")
@pytest.mark.parametrize("size", QWEN)
def test_every_published_key_has_a_home_of_its_shape(size):
    trained = f"frozen_qwen2_5_vl_{size.lower()}_instruct_unet_sam_l_refcoco_png (trainable part)"
    names = {"qwen": f"Qwen/Qwen2.5-VL-{size}-Instruct (safetensors)", "sam": "sam_vit_l_0b3195.pth", "flmm": trained}
    sources = {name: open_source(name, f"{KEYS}#{entry}") for name, entry in names.items()}
    vision = dict(
        hidden_size=1280, out_hidden_size=QWEN[size]["hidden_size"], depth=32, intermediate_size=3420, num_heads=16
    )
    sources["qwen"].config = {"model_type": "qwen2_5_vl", **QWEN[size], "vision_config": vision}
    sources["flmm"].config = {}
    resolution = resolve(frozen_qwen_sam.plan(sources, {}), sources)
    published = set(json.loads(KEYS.read_text())[trained])
    loaded = {
        str(read).split(":", 1)[1]
        for entry in resolution.entries.values()
        for read in entry.reads
        if read.source == "flmm"
    }
    assert published <= loaded | {key.removeprefix("flmm:") for key in resolution.dropped}
    assert {entry.action for entry in resolution.entries.values()} == {"loaded"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return {
        "qwen": write_qwen2_5_vl(folder / "qwen"),
        "sam": write_sam(folder / "sam.pth"),
        "flmm": write_flmm(
            folder / "flmm" / "flmm.pth", TEXT["hidden_size"], TEXT["num_hidden_layers"], TEXT["num_attention_heads"]
        ),
    }


@pytest.fixture(scope="module")
def converted(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "hub"
    convert("frozen_qwen_sam", sources, folder, progress=False)
    return folder


def test_the_folder_loads_cleanly_and_trained_weights_win(sources, converted):
    model, info = FrozenQwenSAMModel.from_pretrained(converted, output_loading_info=True)
    assert not any(info.values())
    trained = torch.load(sources["flmm"], weights_only=True)
    released = torch.load(sources["sam"], weights_only=True)
    name = "mask_decoder.iou_token.weight"
    assert torch.equal(model.sam.state_dict()[name], trained[f"sam.model.{name}"])
    assert not torch.equal(model.sam.state_dict()[name], released[name])
    assert torch.equal(model.sam.vision_encoder.pos_embed, released["image_encoder.pos_embed"])
    assert model.config.sam_config.mask_decoder_config.layer_norm_eps == 1e-5


def test_both_published_forms_give_the_same_model(sources, converted, tmp_path):
    """Bare trained parts, and a trainer's checkpoint of the whole model in the layout of its time."""
    whole = dict(torch.load(sources["flmm"], weights_only=True))
    for path in sorted(sources["qwen"].glob("*.safetensors")):
        whole |= {f"qwen_model.{name}": tensor for name, tensor in load_file(path).items()}
    released = torch.load(sources["sam"], weights_only=True)
    whole |= {f"sam.model.{name}": tensor for name, tensor in released.items() if name.startswith("image_encoder.")}
    torch.save({"state_dict": whole, "meta": {"epoch": 8}}, tmp_path / "whole.pth")
    convert("frozen_qwen_sam", {**sources, "flmm": tmp_path / "whole.pth"}, tmp_path / "hub", progress=False)
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "hub", converted))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_sam_in_transformers_layout_gives_the_same_model(sources, converted, tmp_path):
    config = AutoConfig.from_pretrained(converted).sam_config
    sam = SamModel(SamConfig.from_dict(config.to_dict()))
    ours = FrozenQwenSAMModel.from_pretrained(converted)
    sam.load_state_dict(ours.sam.state_dict())
    sam.save_pretrained(tmp_path / "sam")
    convert("frozen_qwen_sam", {**sources, "sam": tmp_path / "sam"}, tmp_path / "hub", progress=False)
    again = FrozenQwenSAMModel.from_pretrained(tmp_path / "hub")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values()))


def test_new_parts_begin_as_a_new_model_does(sources, tmp_path):
    convert("frozen_qwen_sam", {name: sources[name] for name in ("qwen", "sam")}, tmp_path / "hub", progress=False)
    converted = FrozenQwenSAMModel.from_pretrained(tmp_path / "hub")
    torch.manual_seed(0)
    fresh = FrozenQwenSAMModel(converted.config)
    assert torch.equal(converted.text_layer_weights, fresh.text_layer_weights)
    for name, tensor in converted.state_dict().items():
        if name.startswith(("mask_head", "text_proj")) and tensor.numel() > 200:
            assert tensor.std().item() == pytest.approx(fresh.state_dict()[name].std().item(), rel=0.3), name


def test_a_folder_of_another_kind_is_refused(sources, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="must be a model of one of the types"):
        convert("frozen_qwen_sam", {**sources, "qwen": tmp_path}, tmp_path / "hub", progress=False)
