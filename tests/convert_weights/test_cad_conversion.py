"""Published Cadrille and CAD-Recode layouts, old and new, trained and with a new point encoder, tiny and full-size."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from convert_weights import convert
from dsr_toolkit.tiny.cadrille import write_cad_recode, write_cadrille

KEYS = Path(__file__).resolve().parents[3] / "shared" / "reference"
WRITE = {"cadrille": write_cadrille, "cad_recode": write_cad_recode}
AUTO = {"cadrille": AutoModelForImageTextToText, "cad_recode": AutoModelForCausalLM}
BASE = {"cadrille": "qwen2_vl", "cad_recode": "qwen2"}


def rewrite(folder: Path, change) -> Path:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    return folder


def new_layout(weights: dict) -> dict:
    """As transformers 5 has it in memory, with the tied head stored too."""
    renamed = {
        re.sub(r"^visual\.", "model.visual.", re.sub(r"^model\.", "model.language_model.", name)): tensor
        for name, tensor in weights.items()
    }
    return renamed | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}


def with_head(weights: dict) -> dict:
    return weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}


def load(arch: str, folder: Path):
    model, info = AUTO[arch].from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return model


@pytest.mark.parametrize("arch", ["cadrille", "cad_recode"])
def test_every_published_layout_gives_the_same_model(arch, tmp_path):
    old = WRITE[arch](tmp_path / "old")
    new = rewrite(WRITE[arch](tmp_path / "new"), new_layout if arch == "cadrille" else with_head)
    first, second = tmp_path / "first", tmp_path / "second"
    convert(arch, {arch: old}, first, progress=False)
    convert(arch, {arch: new}, second, progress=False)
    states = [load(arch, folder).state_dict() for folder in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    published = load_file(old / "model.safetensors")
    assert torch.equal(states[0]["model.point_encoder.projection.weight"], published["point_encoder.projection.weight"])


@pytest.mark.parametrize("arch", ["cadrille", "cad_recode"])
def test_a_converted_model_converts_again_unchanged(arch, tmp_path):
    convert(arch, {arch: WRITE[arch](tmp_path / "old")}, tmp_path / "first", progress=False)
    convert(arch, {arch: tmp_path / "first"}, tmp_path / "second", progress=False)
    states = [load_file(tmp_path / name / "model.safetensors") for name in ("first", "second")]
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize("arch", ["cadrille", "cad_recode"])
def test_a_new_point_encoder_on_the_base_model(arch, tmp_path):
    base = rewrite(WRITE[arch](tmp_path / "base"), lambda w: {n: t for n, t in w.items() if "point_encoder" not in n})
    report = convert(arch, {BASE[arch]: base}, tmp_path / "new", progress=False)
    made = {name for name, entry in report.tensors.items() if entry["action"] == "initialised"}
    assert made == {"model.point_encoder.projection.weight", "model.point_encoder.projection.bias"}
    encoder = load(arch, tmp_path / "new").model.point_encoder.projection
    for tensor in encoder.parameters():  # PyTorch's default of a linear layer
        assert tensor.abs().max() <= 51**-0.5 and tensor.std().item() == pytest.approx((51 * 3) ** -0.5, rel=0.25)


def test_the_trained_checkpoint_must_have_its_point_encoder(tmp_path):
    base = rewrite(
        write_cadrille(tmp_path / "base"), lambda w: {n: t for n, t in w.items() if "point_encoder" not in n}
    )
    with pytest.raises(ValueError, match="point_encoder"):
        convert("cadrille", {"cadrille": base}, tmp_path / "new", progress=False)


def test_the_first_version_of_cad_recode_reads_normals(tmp_path):
    def widen(weights):
        return weights | {"point_encoder.projection.weight": torch.randn(64, 54)}

    convert(
        "cad_recode",
        {"cad_recode": rewrite(write_cad_recode(tmp_path / "v1"), widen)},
        tmp_path / "out",
        progress=False,
    )
    model = load("cad_recode", tmp_path / "out")
    assert model.config.point_channels == 6
    processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert (processor["point_sampling"], processor["program_range"]) == ("random_sorted", 50.0)


@pytest.mark.parametrize("width, freqs, coordinates", [(39, 6, True), (36, 6, False), (51, 8, True)])
def test_the_width_of_the_encoder_tells_its_frequencies(width, freqs, coordinates, tmp_path):
    source = rewrite(
        write_cadrille(tmp_path / "odd"), lambda w: w | {"point_encoder.projection.weight": torch.randn(64, width)}
    )
    convert("cadrille", {"cadrille": source}, tmp_path / "hub", progress=False)
    embedder = load("cadrille", tmp_path / "hub").model.point_encoder.fourier_embedder
    assert (embedder.num_freqs, embedder.include_input) == (freqs, coordinates)


def test_an_encoder_of_no_such_width_names_the_fields(tmp_path):
    source = rewrite(
        write_cadrille(tmp_path / "odd"), lambda w: w | {"point_encoder.projection.weight": torch.randn(64, 40)}
    )
    with pytest.raises(ValueError, match="num_freqs"):
        convert("cadrille", {"cadrille": source}, tmp_path / "hub", progress=False)


def test_a_model_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a Qwen2-VL model"):
        convert("cadrille", {"cadrille": write_cad_recode(tmp_path / "text")}, tmp_path / "out", progress=False)


def test_bfloat16_leaves_the_point_encoder_in_float32(tmp_path):
    convert(
        "cadrille", {"cadrille": write_cadrille(tmp_path / "old")}, tmp_path / "out", dtype="bfloat16", progress=False
    )
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["model.point_encoder.projection.weight"].dtype == torch.float32
    assert stored["model.language_model.norm.weight"].dtype == torch.bfloat16
    model = AutoModel.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.point_encoder.projection.weight.dtype == torch.float32 and model.dtype == torch.bfloat16


@pytest.mark.parametrize("arch, count", [("cadrille", 2_209_065_472), ("cad_recode", 1_543_794_176)])
def test_full_size_layout_is_mapped_completely(arch, count, tmp_path):
    keys = KEYS / arch / "keys.json"
    if not keys.exists():
        pytest.skip("the full-size key list is not beside the checkout")
    report = convert(arch, {arch: keys}, tmp_path / "out", dry_run=True)
    assert {entry["action"] for entry in report.tensors.values()} == {"loaded"} and not report.dropped
    sizes = [torch.Size(entry["shape"]).numel() for entry in report.tensors.values()]
    assert sum(sizes) == count
