"""The DSR recipe: published layouts at full size without weights, and at a small size with them."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert_weights import convert, verify
from dsr_toolkit.tiny.tokenizer import write_tokenizer
from modeling_dsr.modeling_dsr import DSRForConditionalGeneration
from processing_dsr import DSRProcessor
from tests.convert_weights.upstream_layouts import (
    QWEN_7B,
    QWEN_TINY,
    TINY_ENCODER,
    TINY_OVERRIDES,
    dsr_layout,
    encoder_layout,
    qwen_layout,
    write_random,
)

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no ../shared/reference")

QWEN_3B = {
    **QWEN_7B,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
    "vision_config": {**QWEN_7B["vision_config"], "out_hidden_size": 2048},
}


def write_key_list(folder, layout, config=None):
    """Names and shapes in place of weights."""
    folder.mkdir()
    entries = {key: ["bfloat16", list(shape)] for key, shape in layout.items()}
    (folder / "keys.json").write_text(json.dumps({"keys": entries}))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / "keys.json"


def plan(tmp_path, sources, overrides=None):
    """A dry run on `(layout, config)` by source."""
    files = {name: write_key_list(tmp_path / name, *source) for name, source in sources.items()}
    return convert("dsr", files, tmp_path / "out", config_overrides=overrides, dry_run=True)


def write_source(folder, layout, config, seed=0):
    tensors = write_random(folder / "model.safetensors", layout, seed)
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


@pytest.fixture
def trained(tmp_path):
    """A small trained checkpoint in the published layout."""
    folder = tmp_path / "trained"
    return folder, write_source(folder, dsr_layout(QWEN_TINY, TINY_ENCODER, queries=5), QWEN_TINY)


def run(sources, output, overrides=TINY_OVERRIDES, **options):
    report = convert("dsr", sources, output, config_overrides=overrides, progress=False, **options)
    return report, load_file(output / "model.safetensors")


# ---- full size, on the meta device


@needs_reference
def test_the_generated_layouts_are_the_published_ones():
    published = json.loads((REFERENCE / "dsr" / "keys.json").read_text())["keys"]
    assert dsr_layout(QWEN_7B) == {key: tuple(shape) for key, (_, shape) in published.items()}
    pi3 = json.loads((REFERENCE / "pi3" / "keys.json").read_text())["Pi3"]
    encoder = {key: tuple(shape) for key, (_, shape) in pi3.items() if key.startswith("encoder.")}
    assert encoder_layout("encoder.") == encoder


def test_each_of_the_1109_published_tensors_has_a_home(tmp_path):
    report = plan(tmp_path, {"dsr": (dsr_layout(QWEN_7B), QWEN_7B)})
    used = {tensor["from"].split("[")[0] for tensor in report.tensors.values() if tensor["action"] != "initialised"}
    assert len(used) == 1109 and report.dropped == {}
    assert used == {f"dsr:{key}" for key in dsr_layout(QWEN_7B)}
    new = {name: tensor for name, tensor in report.tensors.items() if tensor["action"] == "initialised"}
    assert set(new) == {"model.geometry_encoder.embeddings.mask_token"}
    parameters = report.summary["total"]["parameters"] - math.prod(new.popitem()[1]["shape"])
    assert parameters == 9_159_344_128


@needs_reference
def test_the_published_key_list_itself(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))
    (tmp_path / "keys.json").write_bytes((REFERENCE / "dsr" / "keys.json").read_bytes())
    report = convert("dsr", {"dsr": tmp_path / "keys.json"}, tmp_path / "out", dry_run=True)
    assert report.summary["loaded"]["tensors"] + 2 * 24 == 1109 and not report.dropped  # 48 fused tensors are split
    assert report.summary["transformed"]["tensors"] == 3 * 2 * 24


def test_qwen_7b_and_pi3_make_a_new_model(tmp_path):
    encoder = encoder_layout("encoder.") | {"decoder.0.norm1.weight": (1024,), "camera_head.fc_t.bias": (3,)}
    report = plan(tmp_path, {"qwen": (qwen_layout(QWEN_7B), QWEN_7B), "pi3": (encoder, None)})
    assert len(qwen_layout(QWEN_7B)) == 729
    new = [name for name, tensor in report.tensors.items() if tensor["action"] == "initialised"]
    assert all(name.startswith("model.geometry_selection.") or name.endswith("mask_token") for name in new)
    assert len(new) == 1109 - 729 - len(encoder_layout("")) + 1
    assert set(report.dropped) == {"pi3:decoder.0.norm1.weight", "pi3:camera_head.fc_t.bias"}


@needs_reference
@pytest.mark.parametrize("variant", ["Pi3", "Pi3X"])
def test_every_published_pi3_tensor_is_used_or_dropped_for_a_reason(tmp_path, variant):
    shapes = json.loads((REFERENCE / "pi3" / "keys.json").read_text())[variant]
    layout = {key: shape for key, (_, shape) in shapes.items()}
    report = plan(tmp_path, {"qwen": (qwen_layout(QWEN_7B), QWEN_7B), "pi3": (layout, None)})
    encoder = sum(key.startswith("encoder.") for key in layout)
    assert encoder == len(encoder_layout("")) and len(report.dropped) == len(layout) - encoder


def test_tied_embeddings_of_qwen_3b(tmp_path):
    report = plan(tmp_path, {"qwen": (qwen_layout(QWEN_3B), QWEN_3B), "pi3": (encoder_layout("encoder."), None)})
    assert report.tied == {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    assert "lm_head.weight" not in report.tensors


# ---- numbers


def test_names_and_numbers_of_the_trained_checkpoint(trained, tmp_path):
    folder, upstream = trained
    _, ours = run({"dsr": folder}, tmp_path / "out")
    pairs = {
        "lm_head.weight": "lm_head.weight",
        "model.language_model.layers.1.mlp.up_proj.weight": "model.layers.1.mlp.up_proj.weight",
        "model.visual.blocks.0.attn.qkv.weight": "visual.blocks.0.attn.qkv.weight",
        "model.visual.merger.mlp.2.bias": "visual.merger.mlp.2.bias",
        "model.geometry_selection.q_former_queries": "visual.q_former_queries",
        "model.geometry_selection.q_former_norm.weight": "visual.q_former_norm.weight",
        "model.geometry_selection.q_former_2.attn.k_proj.bias": "visual.q_former_2.attn.k_proj.bias",
        "model.geometry_selection.spatial_merger.mlp.0.weight": "visual.spatial_merger.mlp.0.weight",
        "model.geometry_encoder.embeddings.position_embeddings": "visual.spatial_encoder.pos_embed",
        "model.geometry_encoder.encoder.layer.1.layer_scale2.lambda1": "visual.spatial_encoder.blocks.1.ls2.gamma",
        "model.geometry_encoder.encoder.layer.1.mlp.fc1.weight": "visual.spatial_encoder.blocks.1.mlp.fc1.weight",
        "model.geometry_encoder.layernorm.weight": "visual.spatial_encoder.norm.weight",
    }
    for name, key in pairs.items():
        assert torch.equal(ours[name], upstream[key]), name
    fused = upstream["visual.spatial_encoder.blocks.1.attn.qkv.weight"]
    for rows, projection in zip(fused.chunk(3), "qkv"):
        assert torch.equal(ours[f"model.geometry_encoder.encoder.layer.1.attention.{projection}_proj.weight"], rows)
    assert not ours["model.geometry_encoder.embeddings.mask_token"].any()


def test_the_folder_loads_completely(trained, tmp_path):
    run({"dsr": trained[0]}, tmp_path / "out")
    _, info = DSRForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert verify(tmp_path / "out", progress=False) == []


def test_the_configuration_follows_from_shapes(trained, tmp_path):
    run({"dsr": trained[0]}, tmp_path / "out")
    config = DSRForConditionalGeneration.config_class.from_pretrained(tmp_path / "out")
    encoder = config.geometry_config
    assert (encoder.hidden_size, encoder.num_hidden_layers, encoder.image_size) == (32, 2, 8 * 14)
    assert (encoder.mlp_ratio, encoder.num_register_tokens, encoder.num_attention_heads) == (4, 4, 2)
    assert (config.num_geometry_tokens, config.question_scope) == (5, "published")
    assert (config.text_config.num_hidden_layers, config.vision_config.out_hidden_size) == (2, 64)
    assert (config.im_start_token_id, config.im_end_token_id, config.vision_pad_token_id) == (284, 285, 294)
    assert (config.image_token_id, config.video_token_id) == (295, 296)


def test_the_stray_reference_in_the_vision_configuration_is_ignored(tmp_path):
    config = {**QWEN_TINY, "vision_config": {**QWEN_TINY["vision_config"], "config_all": {"model_type": "qwen2_5_vl"}}}
    write_source(tmp_path / "trained", dsr_layout(QWEN_TINY, TINY_ENCODER), config)
    run({"dsr": tmp_path / "trained"}, tmp_path / "out")
    assert "config_all" not in (tmp_path / "out" / "config.json").read_text()


def test_names_of_transformers_5_give_the_same(trained, tmp_path):
    folder, upstream = trained
    _, ours = run({"dsr": folder}, tmp_path / "out")

    def renamed(key):
        for old, new in (("visual.", "model.visual."), ("model.", "model.language_model.")):
            if key.startswith(old):
                return new + key.removeprefix(old)
        return key

    newer = tmp_path / "newer"
    newer.mkdir()
    save_file({renamed(key): tensor for key, tensor in upstream.items()}, newer / "model.safetensors")
    (newer / "config.json").write_text(json.dumps(QWEN_TINY))
    _, again = run({"dsr": newer}, tmp_path / "out2")
    assert again.keys() == ours.keys() and all(torch.equal(again[key], ours[key]) for key in ours)


def test_a_model_of_this_library_converts_to_itself(trained, tmp_path):
    _, ours = run({"dsr": trained[0]}, tmp_path / "out")
    _, again = run({"dsr": tmp_path / "out"}, tmp_path / "again", overrides=None)
    assert again.keys() == ours.keys() and all(torch.equal(again[key], ours[key]) for key in ours)
    assert (tmp_path / "out" / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()


def test_a_new_module_is_initialised_as_published(tmp_path):
    write_source(tmp_path / "qwen", qwen_layout(QWEN_TINY), QWEN_TINY)
    write_random(tmp_path / "pi3.safetensors", encoder_layout("encoder.", **TINY_ENCODER))
    report, ours = run({"qwen": tmp_path / "qwen", "pi3": tmp_path / "pi3.safetensors"}, tmp_path / "out")
    part = {
        name.removeprefix("model.geometry_selection."): t for name, t in ours.items() if "geometry_selection" in name
    }
    assert part["q_former_queries"].std() == pytest.approx(1, abs=0.1)
    for name, tensor in part.items():
        if "norm" in name or "ln_q" in name:
            assert (tensor == 1).all(), name
        elif name.endswith("bias"):
            assert not tensor.any(), name
        elif name != "q_former_queries":
            assert tensor.std() == pytest.approx(0.02, rel=0.1) and tensor.mean().abs() < 2e-3, name
    config = DSRForConditionalGeneration.config_class.from_pretrained(tmp_path / "out")
    assert (config.question_scope, config.num_geometry_tokens) == ("question", 32)


def test_dtypes_are_kept_unless_one_is_asked_for(tmp_path):
    tensors = write_source(tmp_path / "qwen", qwen_layout(QWEN_TINY), {**QWEN_TINY, "torch_dtype": "bfloat16"})
    save_file({key: tensor.bfloat16() for key, tensor in tensors.items()}, tmp_path / "qwen" / "model.safetensors")
    write_random(tmp_path / "pi3.safetensors", encoder_layout("encoder.", **TINY_ENCODER))
    sources = {"qwen": tmp_path / "qwen", "pi3": tmp_path / "pi3.safetensors"}
    _, ours = run(sources, tmp_path / "out")
    assert ours["lm_head.weight"].dtype == torch.bfloat16
    assert ours["model.geometry_encoder.layernorm.weight"].dtype == torch.float32
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    _, ours = run(sources, tmp_path / "half", dtype="float16")
    # What stays float32 in every half precision: the Geometry Selection Module, see `_keep_in_fp32_modules`.
    kept = {key for key, tensor in ours.items() if tensor.dtype == torch.float32}
    assert kept and kept == {key for key in ours if "geometry_selection" in key}
    assert {tensor.dtype for key, tensor in ours.items() if key not in kept} == {torch.float16}
    model = DSRForConditionalGeneration.from_pretrained(tmp_path / "half")
    assert {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32} == kept


# ---- tokenizer and processor


@pytest.fixture
def with_tokenizer(tmp_path):
    """A small Qwen checkpoint with the project's tokenizer, whose ids differ from those in its config.json."""
    folder = tmp_path / "qwen"
    folder.mkdir()
    ids = write_tokenizer(folder)
    config = {**QWEN_TINY, "vocab_size": max(ids.values()) + 1}
    write_source(folder, qwen_layout(config), config)
    write_random(tmp_path / "pi3.safetensors", encoder_layout("encoder.", **TINY_ENCODER))
    return {"qwen": folder, "pi3": tmp_path / "pi3.safetensors"}, ids


HEADS = {"geometry_config": {"num_attention_heads": 2}}


def test_special_ids_come_from_the_tokenizer(with_tokenizer, tmp_path):
    sources, ids = with_tokenizer
    run(sources, tmp_path / "out", overrides=HEADS)
    config = DSRForConditionalGeneration.config_class.from_pretrained(tmp_path / "out")
    assert config.video_token_id == ids["<|video_pad|>"] != QWEN_TINY["video_token_id"]
    assert config.im_start_token_id == ids["<|im_start|>"] and config.im_end_token_id == ids["<|im_end|>"]
    assert config.vision_pad_token_id == ids["<|vision_pad|>"]


def test_the_processor_is_written_and_agrees_with_the_configuration(with_tokenizer, tmp_path):
    sources, ids = with_tokenizer
    report, _ = run(sources, tmp_path / "out", overrides={**HEADS, "num_geometry_tokens": 7})
    processor = DSRProcessor.from_pretrained(tmp_path / "out")
    assert report.notes == [] and processor.num_geometry_tokens == 7
    assert processor.chat_template and processor.video_token_id == ids["<|video_pad|>"]
    size = processor.video_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (128 * 784, 768 * 784)


@pytest.mark.parametrize(("question_scope", "seconds"), [("published", 1.0), ("question", None)])
def test_timing_of_the_published_evaluation_goes_with_its_question_rules(
    with_tokenizer, tmp_path, question_scope, seconds
):
    sources, _ = with_tokenizer
    run(sources, tmp_path / "out", overrides={**HEADS, "question_scope": question_scope})
    assert DSRProcessor.from_pretrained(tmp_path / "out").fixed_second_per_grid_ts == seconds


def test_bounds_below_those_of_the_published_evaluation_are_kept(with_tokenizer, tmp_path):
    sources, _ = with_tokenizer
    (sources["qwen"] / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 3136, "max_pixels": 62720}))
    run(sources, tmp_path / "out", overrides=HEADS)
    size = DSRProcessor.from_pretrained(tmp_path / "out").video_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (3136, 62720)


def test_without_a_tokenizer_the_report_says_so(trained, tmp_path):
    report, _ = run({"dsr": trained[0]}, tmp_path / "out")
    assert "no processor was written" in report.notes[0] and not (tmp_path / "out" / "processor_config.json").exists()


def test_unknown_ids_are_asked_for(trained, tmp_path):
    with pytest.raises(ValueError, match="im_start_token_id.*configuration overrides"):
        run({"dsr": trained[0]}, tmp_path / "out", overrides=HEADS)


def test_a_tokenizer_of_another_model_is_refused(trained, tmp_path):
    write_tokenizer(trained[0])
    with pytest.raises(ValueError, match="belongs to another model"):
        run({"dsr": trained[0]}, tmp_path / "out", overrides=HEADS)


def test_unknown_heads_are_asked_for(trained, tmp_path):
    with pytest.raises(ValueError, match="number of heads.*num_attention_heads"):
        run({"dsr": trained[0]}, tmp_path / "out", overrides={"im_start_token_id": 284, "im_end_token_id": 285})


@pytest.mark.parametrize(
    "config, words", [({}, "no config.json"), ({"model_type": "qwen2_vl"}, "model_type 'qwen2_vl'")]
)
def test_another_model_in_place_of_qwen(tmp_path, config, words):
    write_random(tmp_path / "qwen" / "model.safetensors", {"a": (1,)})
    if config:
        (tmp_path / "qwen" / "config.json").write_text(json.dumps(config))
    write_random(tmp_path / "pi3.safetensors", encoder_layout("encoder.", **TINY_ENCODER))
    with pytest.raises(ValueError, match=words):
        run({"qwen": tmp_path / "qwen", "pi3": tmp_path / "pi3.safetensors"}, tmp_path / "out")


@needs_reference
def test_the_reference_checkpoint(tmp_path):
    folder = REFERENCE / "dsr" / "tiny" / "checkpoint"
    report, _ = run({"dsr": folder}, tmp_path / "out")
    assert report.dropped == {} and report.summary["initialised"]["tensors"] == 1
