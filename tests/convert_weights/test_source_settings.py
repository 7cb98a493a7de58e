"""What a source's own configuration says is read from it or refused, never assumed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from convert_weights import convert
from convert_weights.architectures.registry import architecture
from convert_weights.sources import open_source
from dsr_toolkit.tiny.cadrille import write_cad_recode, write_cadrille
from dsr_toolkit.tiny.pi3 import DSR_OVERRIDES, PI3_OVERRIDES, write_pi3
from dsr_toolkit.tiny.qwen2_5_vl import TEXT, write_qwen2_5_vl
from dsr_toolkit.tiny.sam import write_flmm, write_sam
from dsr_toolkit.tiny.scene_qformer import write_llama

STAGED = Path(__file__).parents[1] / "reference" / "page4d_mv" / "tiny" / "weight_loading"
SMALL_BACKBONE = {"backbone_config": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "embedding_size": 4}}
SMALL_SCENE = {"embed_dims": 16, "num_heads": 2, "ffn_dims": 16, "num_decoder_layers": 1, "num_queries": 12}


def config_of(arch: str, sources: dict, overrides: dict | None = None):
    """The configuration that a conversion would write."""
    opened = {name: open_source(name, path) for name, path in sources.items()}
    return architecture(arch).plan(opened, overrides or {}).config


def processor_of(arch: str, sources: dict, folder: Path, overrides: dict | None = None) -> dict:
    """`processor_config.json` of a conversion."""
    convert(arch, sources, folder, config_overrides=overrides, progress=False)
    return json.loads((folder / "processor_config.json").read_text())


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


# --------------------------------------------------------------------------------------
# Rotary positions
# --------------------------------------------------------------------------------------


@pytest.fixture
def pi3(tmp_path):
    return write_pi3(tmp_path / "Pi3" / "model.safetensors")


@pytest.mark.parametrize("kind, base", [("rope100", 100.0), ("rope50", 50.0), ("rope12.5", 12.5), (None, 100.0)])
def test_pi3_writes_its_rotary_base_into_its_config(pi3, kind, base):
    if kind is not None:
        edit(pi3.parent / "config.json", pos_type=kind, decoder_size="large")
    assert config_of("pi3", {"pi3": pi3}, PI3_OVERRIDES).rope_base == base


@pytest.mark.parametrize("kind", ["rope", "none", "rope0", "sine100", "rope100x", 100, None])
def test_positions_that_cannot_be_read_are_refused(pi3, kind):
    edit(pi3.parent / "config.json", pos_type=kind)
    with pytest.raises(ValueError, match="pos_type"):
        config_of("pi3", {"pi3": pi3}, PI3_OVERRIDES)


@pytest.fixture
def staged(tmp_path):
    """Sources for the three stages of the multi-view PAGE-4D, and what their weights do not tell."""
    (tmp_path / "staged").mkdir()
    for name in ("pi3_tiny.safetensors", "page4d_tiny.pt"):
        shutil.copy(STAGED / name, tmp_path / "staged" / name)
    sources = {"pi3": tmp_path / "staged" / "pi3_tiny.safetensors", "page4d": tmp_path / "staged" / "page4d_tiny.pt"}
    overrides = {"encoder_config": {"num_attention_heads": 1}, "mask_layer": 1, "masked_layers": [2, 3],
                 "dpt_layers": [0, 1, 2, 3], "camera_num_heads": 2, "dual_stream_layers": [1, 2],
                 "sparse_global_layers": [1, 3]}  # fmt: skip
    return sources, overrides


def test_blocks_of_another_rotary_base_are_not_joined(staged):
    sources, overrides = staged
    config_of("page4d", sources, overrides)
    edit(sources["pi3"].parent / "config.json", pos_type="rope50")
    with pytest.raises(ValueError, match="base 50, the model would have `rope_freq` 100"):
        config_of("page4d", sources, overrides)
    assert config_of("page4d", sources, overrides | {"rope_freq": 50.0}).rope_freq == 50.0


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 500.0},
        {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 2.0}},
    ],
)
def test_a_language_model_of_the_scene_keeps_its_rotary_settings(rope, tmp_path):
    """Earlier releases of transformers wrote them apart; what the class itself reads is what the model gets."""
    llm = write_llama(tmp_path / "llm")
    edit(llm / "config.json", **rope)
    wanted = AutoModelForCausalLM.from_pretrained(llm)
    found = config_of("scene_qformer", {"llm": llm}, {**SMALL_SCENE, **SMALL_BACKBONE}).text_config
    for name in ("rope_theta", "rope_type", "factor"):
        assert found.rope_parameters.get(name) == wanted.config.rope_parameters.get(name)


@pytest.mark.parametrize("write, arch, name", [(write_cadrille, "cadrille", "cadrille"),
                                               (write_cad_recode, "cad_recode", "cad_recode"),
                                               (write_qwen2_5_vl, "dsr", "qwen")])  # fmt: skip
def test_qwens_keep_base_epsilon_and_ties(write, arch, name, pi3, tmp_path):
    sources = {name: write(tmp_path / "source")} | ({"pi3": pi3} if arch == "dsr" else {})
    described = tmp_path / "source" / "config.json"
    scaling = json.loads(described.read_text()).get("rope_scaling")
    scaling = scaling and {name: scaling[name] for name in ("type", "mrope_section")}
    edit(described, rope_theta=500.0, rope_scaling=scaling, rms_norm_eps=1e-3, hidden_act="gelu")
    config = config_of(arch, sources, DSR_OVERRIDES if arch == "dsr" else {})
    text = config.get_text_config()
    assert (text.rope_parameters["rope_theta"], text.rms_norm_eps, text.hidden_act) == (500.0, 1e-3, "gelu")
    assert config.tie_word_embeddings is (arch != "dsr")


# --------------------------------------------------------------------------------------
# Pixels
# --------------------------------------------------------------------------------------

OTHER = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}


def test_dsr_normalises_and_undoes_as_qwens_files_say(pi3, tmp_path):
    qwen = write_qwen2_5_vl(tmp_path / "qwen")
    edit(qwen / "preprocessor_config.json", **OTHER)
    sources = {"qwen": qwen, "pi3": pi3}
    config = config_of("dsr", sources, DSR_OVERRIDES)
    assert (list(config.unnormalize_mean), list(config.unnormalize_std)) == tuple(OTHER.values())
    processor = processor_of("dsr", sources, tmp_path / "hub", DSR_OVERRIDES)
    for kind in ("image_processor", "video_processor"):
        assert {name: list(processor[kind][name]) for name in OTHER} == OTHER


def test_what_is_said_of_videos_comes_before_what_is_said_of_images(pi3, tmp_path):
    qwen = write_qwen2_5_vl(tmp_path / "qwen")
    edit(qwen / "video_preprocessor_config.json", **OTHER)
    config = config_of("dsr", {"qwen": qwen, "pi3": pi3}, DSR_OVERRIDES)
    assert list(config.unnormalize_mean) == OTHER["image_mean"]


def test_the_geometry_branch_normalises_as_pi3_carries_it(pi3, tmp_path):
    weights = load_file(pi3)
    weights["image_mean"] = torch.tensor([0.5, 0.25, 0.125]).view(1, 3, 1, 1)
    save_file(weights, pi3)
    qwen = write_qwen2_5_vl(tmp_path / "qwen")
    config = config_of("dsr", {"qwen": qwen, "pi3": pi3}, DSR_OVERRIDES)
    assert list(config.geometry_image_mean) == [0.5, 0.25, 0.125]
    assert list(config.geometry_image_std) == [0.229, 0.224, 0.225]


def test_the_encoder_of_the_staged_page4d_reads_pixels_as_pi3_does(staged):
    sources, overrides = staged
    weights = load_file(sources["pi3"]) | {"image_mean": torch.tensor([0.5, 0.25, 0.125]).view(1, 3, 1, 1)}
    save_file(weights, sources["pi3"])
    assert list(config_of("page4d", sources, overrides).image_mean) == [0.5, 0.25, 0.125]


def test_cadrille_normalises_as_its_files_say(tmp_path):
    source = write_cadrille(tmp_path / "cadrille")
    edit(source / "preprocessor_config.json", **OTHER)
    processor = processor_of("cadrille", {"cadrille": source}, tmp_path / "hub")
    assert {name: list(processor["image_processor"][name]) for name in OTHER} == OTHER


@pytest.mark.parametrize("arch", ["dsr", "cadrille", "frozen_qwen_sam"])
def test_other_patches_than_the_vision_tower_reads_are_refused(arch, pi3, tmp_path):
    write = write_cadrille if arch == "cadrille" else write_qwen2_5_vl
    source = write(tmp_path / "source")
    edit(source / "preprocessor_config.json", patch_size=16)
    sources = {
        "dsr": {"qwen": source, "pi3": pi3},
        "cadrille": {"cadrille": source},
        "frozen_qwen_sam": {"qwen": source, "sam": write_sam(tmp_path / "sam.pth")},
    }
    with pytest.raises(ValueError, match="patch_size = 16, the vision tower reads 14"):
        config_of(arch, sources[arch], DSR_OVERRIDES if arch == "dsr" else {})


def resnet(folder: Path, **config) -> Path:
    """A small ResNet as transformers saves it."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = dict(embedding_size=4, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 2], layer_type="bottleneck")
    model = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3, **config))
    model.save_pretrained(folder)
    return folder


def test_a_resnet_keeps_where_its_blocks_have_their_stride(tmp_path):
    source = resnet(
        tmp_path / "resnet", downsample_in_bottleneck=True, downsample_in_first_stage=True, hidden_act="gelu"
    )
    config = config_of("scene_qformer", {"resnet": source}, SMALL_SCENE).backbone_config
    assert config.downsample_in_bottleneck and config.downsample_in_first_stage and config.hidden_act == "gelu"


def test_images_are_normalised_as_the_backbone_was_trained(tmp_path):
    source = resnet(tmp_path / "resnet")
    edit(source / "preprocessor_config.json", **OTHER)
    processor = processor_of("scene_qformer", {"resnet": source}, tmp_path / "hub", SMALL_SCENE)
    assert {name: list(processor[name]) for name in OTHER} == OTHER


# --------------------------------------------------------------------------------------
# SAM and the U-Net
# --------------------------------------------------------------------------------------


@pytest.fixture
def flmm(tmp_path):
    sizes = TEXT["hidden_size"], TEXT["num_hidden_layers"], TEXT["num_attention_heads"]
    return {
        "qwen": write_qwen2_5_vl(tmp_path / "qwen"),
        "sam": write_sam(tmp_path / "sam.pth"),
        "flmm": write_flmm(tmp_path / "flmm" / "flmm.pth", *sizes),
    }


@pytest.mark.parametrize(
    "name, value",
    [
        ("normalize_input", False),
        ("strides", [1, 2, 1, 1]),
        ("enc_num_convs", [2, 2, 2, 3]),
        ("dec_dilations", [1, 1, 2]),
        ("norm_cfg", {"type": "GroupNorm", "num_groups": 4}),
        ("upsample_cfg", {"type": "DeconvModule"}),
        ("type", "FCNHead"),
    ],
)
def test_a_u_net_built_otherwise_is_refused(flmm, name, value):
    edit(flmm["flmm"].parent / "config.json", mask_head={name: value})
    with pytest.raises(ValueError, match=f"mask_head.{name}"):
        config_of("frozen_qwen_sam", flmm)


def test_the_published_u_net_is_taken(flmm):
    published = {"normalize_input": True, "upsample_input": 48, "enc_num_convs": [2] * 4, "downsamples": [True] * 3,
                 "norm_cfg": {"type": "GroupNorm", "num_groups": 1, "requires_grad": True}}  # fmt: skip
    edit(flmm["flmm"].parent / "config.json", mask_head=published, merge="max", sam={"use_box": False})
    config = config_of("frozen_qwen_sam", flmm)
    assert (config.mask_head_size, config.merge, config.use_box) == (48, "max", False)


@pytest.mark.parametrize("name", ["sam", "flmm"])
def test_pixels_that_sam_was_not_trained_with_are_refused(flmm, name):
    state, prefix = torch.load(flmm[name]), "" if name == "sam" else "sam.model."
    good = {f"{prefix}pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)}
    if name == "flmm":  # the trained file may carry them, the released one does not
        torch.save(state | good, flmm[name])
        config_of("frozen_qwen_sam", flmm)
    torch.save(state | {name: 1.1 * value for name, value in good.items()}, flmm[name])
    with pytest.raises(ValueError, match="pixel_mean"):
        config_of("frozen_qwen_sam", flmm)


# --------------------------------------------------------------------------------------
# Tokens
# --------------------------------------------------------------------------------------


def without_tokenizer(source: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"):
        (source / name).unlink(missing_ok=True)
    return source


def test_the_token_of_points_is_not_guessed(tmp_path):
    source = without_tokenizer(write_cad_recode(tmp_path / "source"))
    with pytest.raises(ValueError, match="vocabulary of its own"):
        config_of("cad_recode", {"cad_recode": source})
    assert config_of("cad_recode", {"cad_recode": source}, {"point_token_id": 7}).point_token_id == 7
    edit(source / "config.json", bos_token_id=151643)
    assert config_of("cad_recode", {"cad_recode": source}).point_token_id == 151645


def test_cadrilles_points_stand_where_padding_does(tmp_path):
    source = without_tokenizer(write_cadrille(tmp_path / "source"))
    edit(source / "config.json", pad_token_id=11)
    assert config_of("cadrille", {"cadrille": source}).point_token_id == 11


def test_a_width_tells_normals_from_frequencies(tmp_path):
    for width, channels, freqs in ((51, 3, 8), (54, 6, 8), (27, 3, 4), (30, 6, 4)):
        source = write_cad_recode(tmp_path / str(width))
        state = load_file(source / "model.safetensors")
        state["point_encoder.projection.weight"] = torch.randn(state["model.norm.weight"].shape[0], width)
        save_file(state, source / "model.safetensors", {"format": "pt"})
        config = config_of("cad_recode", {"cad_recode": source})
        assert (config.point_channels, config.num_freqs) == (channels, freqs)


# --------------------------------------------------------------------------------------
# Whole models
# --------------------------------------------------------------------------------------


def test_a_converted_llama_answers_as_before(tmp_path):
    """Rotary base, scaling, epsilon and tied words other than the defaults: the same logits to the last digit."""
    llm = write_llama(tmp_path / "llm")
    state = load_file(llm / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, llm / "model.safetensors", {"format": "pt"})
    changes = {"rope_theta": 300.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "rms_norm_eps": 1e-3}
    edit(llm / "config.json", **changes, tie_word_embeddings=True)
    overrides = {**SMALL_SCENE, **SMALL_BACKBONE}
    convert("scene_qformer", {"llm": llm}, tmp_path / "hub", config_overrides=overrides, progress=False)
    before = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32).eval()
    after = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "hub", trust_remote_code=True, dtype=torch.float32
    ).eval()
    ids = torch.arange(10, 40).view(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(after(input_ids=ids).logits, before(ids).logits, rtol=0, atol=0)


def test_a_stale_quantisation_is_left_behind_and_said(tmp_path):
    """Weights that were unpacked keep the note of how they had been packed; with it, nothing would load them."""
    source = write_cad_recode(tmp_path / "source")
    edit(source / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    report = convert("cad_recode", {"cad_recode": source}, tmp_path / "hub", progress=False)
    assert any("quantization_config" in note for note in report.notes)
    assert "quantization_config" not in json.loads((tmp_path / "hub" / "config.json").read_text())
    AutoModelForCausalLM.from_pretrained(tmp_path / "hub", trust_remote_code=True)


@pytest.mark.parametrize("value, problem", [(True, "lack"), (False, "have")])
def test_pi3x_and_its_config_agree_on_conditioning(value, problem, pi3, tmp_path):
    """A file of another model's config beside the weights is found out."""
    folder = tmp_path / "pi3x"
    folder.mkdir()
    if problem == "lack":
        shutil.copy(pi3, folder / "model.safetensors")
        sources, overrides = {"pi3": folder}, PI3_OVERRIDES
    else:
        state = load_file(pi3) | {"depth_emb": torch.zeros(1, 1, 8), "metric_token": torch.zeros(1, 1, 8)}
        save_file(state, folder / "model.safetensors")
        sources, overrides = {"pi3x": folder}, PI3_OVERRIDES
    edit(folder / "config.json", use_multimodal=value)
    with pytest.raises(ValueError, match=f"use_multimodal = {value}, its weights {problem}"):
        config_of("pi3", sources, overrides)


@pytest.mark.parametrize(
    "adapter, words",
    [
        ({"r": 8, "lora_alpha": 16}, "r = 8, the weights have rank"),
        ({"r": 4, "lora_alpha": None}, "lora_alpha = None"),
        ({"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ],
)
def test_an_adapter_that_is_not_one_scale_for_all_is_refused(adapter, words, tmp_path):
    from convert_weights.architectures.scene_qformer import _lora_scale

    save_file({"llm.model.q_proj.lora_A.default.weight": torch.ones(4, 8)}, tmp_path / "model.safetensors")
    edit(tmp_path / "adapter_config.json", **adapter)
    with pytest.raises(ValueError, match=words):
        _lora_scale(open_source("scene_qformer", tmp_path))
