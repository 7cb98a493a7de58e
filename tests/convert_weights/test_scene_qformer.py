"""Conversion of the scene Q-Former: published layouts, ResNet files, language models, LoRA, what is new."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, ResNetConfig, ResNetModel

from configuration_dsr import SceneQFormerConfig
from convert_weights import convert
from convert_weights.architectures.scene_qformer import PUBLISHED_LORA_SCALE
from dsr_toolkit.tiny.scene_qformer import CONSTRAINED, HEADS, QUERIES, qformer_shapes, write_llama, write_scene_qformer
from dsr_toolkit.tiny.weights import random_tensor
from modeling_dsr.modeling_scene_qformer import SceneQFormerForConditionalGeneration, SceneQFormerModel

KEYS = Path(__file__).resolve().parents[3] / "shared" / "reference" / "scene_qformer" / "keys.json"
TINY = {
    "embed_dims": 16,
    "num_heads": 2,
    "num_queries": 6,
    "num_decoder_layers": 1,
    "ffn_dims": 16,
    "llm_hidden_size": 8,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_scene_qformer(tmp_path_factory.mktemp("upstream") / "checkpoint_epoch_1.pth")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama") / "Vicuna-tiny")


def run(sources, output, **overrides):
    return convert("scene_qformer", sources, output, config_overrides=overrides, progress=False)


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint, weights_only=True)["model_state_dict"]
    return {name.removeprefix("qformer."): tensor for name, tensor in state.items()}


def test_trainers_checkpoint_keeps_every_tensor(checkpoint, tmp_path):
    report = run({"scene_qformer": checkpoint}, tmp_path / "out", num_heads=HEADS)
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys"))
    assert type(model).__name__ == "SceneQFormerModel" and report is not None
    config = model.config
    assert (config.num_queries, config.num_constrained_queries, config.position_encoding) == (
        QUERIES,
        CONSTRAINED,
        "depth_3d",
    )
    stored = state_of(checkpoint)
    ours = model.state_dict()
    assert torch.equal(ours["projector.2.weight"], stored["projector.2.weight"])
    assert torch.equal(ours["queries.place_embed.weight"], stored["spatial_query_embed.weight"])
    assert torch.equal(
        ours["backbone.encoder.stages.3.layers.1.layer.2.convolution.weight"], stored["img_backbone.7.1.conv3.weight"]
    )
    assert torch.equal(
        ours["backbone.encoder.stages.1.layers.0.shortcut.normalization.running_var"],
        stored["img_backbone.5.0.downsample.1.running_var"],
    )
    assert sum(tensor.numel() for tensor in stored.values()) == sum(
        tensor.numel() for name, tensor in ours.items() if not name.endswith("num_batches_tracked")
    )


@pytest.mark.parametrize("wrapper", ["bare", "qformer", "model"])
def test_stand_alone_layouts_are_the_same_model(checkpoint, tmp_path, wrapper):
    state = state_of(checkpoint)
    torch.save(state if wrapper == "bare" else {wrapper: state}, tmp_path / "qformer.pth")
    run({"scene_qformer": tmp_path / "qformer.pth"}, tmp_path / "out", num_heads=HEADS)
    run({"scene_qformer": checkpoint}, tmp_path / "expected", num_heads=HEADS)
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "expected"))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_unknown_number_of_heads_is_asked_for(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="does not tell its number of heads"):
        run({"scene_qformer": checkpoint}, tmp_path / "out")


def test_language_model_and_its_tokenizer_come_along(checkpoint, llama, tmp_path):
    run({"scene_qformer": checkpoint, "llm": llama}, tmp_path / "out", num_heads=HEADS)
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys"))
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id
    assert processor.num_scene_tokens == QUERIES and processor.needs_calibration
    stored = load_file(llama / "model.safetensors")
    assert torch.equal(
        model.state_dict()["language_model.layers.1.mlp.up_proj.weight"], stored["model.layers.1.mlp.up_proj.weight"]
    )


def resnet(folder: Path, kind: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A small ResNet in torchvision's (timm's) names or in transformers'; returns file and torchvision names."""
    names = {}
    for name, shape in qformer_shapes().items():
        if name.startswith("img_backbone."):
            index, rest = name.removeprefix("img_backbone.").split(".", 1)
            place = {"0": "conv1", "1": "bn1"}.get(index) or f"layer{int(index) - 3}"
            names[f"{place}.{rest}"] = random_tensor(name, shape).abs()
    names |= {"fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}
    if kind == "transformers":
        config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 2])
        ResNetModel(config).save_pretrained(folder)
        return folder, {}
    folder.mkdir()
    if kind == "pth":
        torch.save(names, folder / "resnet50.pth")
        return folder / "resnet50.pth", names
    save_file(names, folder / "model.safetensors")
    return folder / "model.safetensors", names


@pytest.mark.parametrize("kind", ["pth", "safetensors", "transformers"])
def test_resnet_files_start_a_new_model(tmp_path, kind):
    path, names = resnet(tmp_path / "resnet", kind)
    report = run({"resnet": path}, tmp_path / "out", **TINY)
    model, info = SceneQFormerModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys"))
    if names:
        assert torch.equal(
            model.state_dict()["backbone.encoder.stages.2.layers.0.layer.1.normalization.weight"],
            names["layer3.0.bn2.weight"],
        )
        assert any(
            "fc.weight" in key
            for key in json.loads((tmp_path / "out" / "conversion_report.json").read_text())["dropped"]
        )
    with torch.no_grad():
        assert torch.isfinite(model.eval()(torch.randn(1, 6, 3, 64, 64)).scene_tokens).all()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_size == (336, 336) and processor.tokenizer is None and report is not None


def test_resnet_may_end_at_stage_3(tmp_path):
    path, _ = resnet(tmp_path / "resnet", "safetensors")
    run({"resnet": path}, tmp_path / "out", backbone_stage=3, **TINY)
    config = SceneQFormerConfig.from_pretrained(tmp_path / "out")
    assert config.backbone_config.depths == [1, 1, 1] and not config.backbone_dilation


@pytest.mark.parametrize(
    "overrides",
    [{"position_encoding": "depth_3d"}, {"position_encoding": "ray_3d"}, {"attention": "deformable"}],
    ids=str,
)
def test_new_parts_start_as_a_fresh_model_does(tmp_path, overrides):
    """The same spread for each tensor as `_init_weights` gives; constants equal."""
    path, _ = resnet(tmp_path / "resnet", "safetensors")
    run({"resnet": path}, tmp_path / "out", **TINY, **overrides)
    torch.manual_seed(0)
    compare_fresh(tmp_path / "out", SceneQFormerModel, skip=r"backbone\..+")


def test_new_map_head_starts_as_a_fresh_one_does(llama, tmp_path):
    small = {
        "instance_dims": [24],
        "point_dims": [24],
        "embed_dims": 16,
        "num_heads": 2,
        "num_layers": 1,
        "num_instances": 4,
    }
    backbone = {"embedding_size": 4, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    sizes = {name: value for name, value in TINY.items() if name != "llm_hidden_size"}
    run({"llm": llama}, tmp_path / "out", map_config=small, backbone_config=backbone, **sizes)
    torch.manual_seed(0)
    compare_fresh(
        tmp_path / "out", SceneQFormerForConditionalGeneration, skip=r"language_model\..+|lm_head\..+|.*backbone\..+"
    )


def compare_fresh(folder, model_class, skip):
    fresh = model_class(SceneQFormerConfig.from_pretrained(folder)).state_dict()
    for name, found in load_file(folder / "model.safetensors").items():
        expected = fresh[name].float()
        found = found.float()
        if re.fullmatch(skip, name):
            continue
        if name.endswith(("assignment", "pc_range", "depth_bins", "sampling_offsets.bias", "order_embedding.weight")):
            assert torch.allclose(found, expected), name
        elif (expected == expected.flatten()[0]).all():
            assert torch.allclose(found, expected), name
        elif expected.numel() >= 64:
            ratio = (found.std() / expected.std()).item()
            assert 0.6 < ratio < 1.6, f"{name}: {ratio:.2f}"


# ---- the whole detector ------------------------------------------------------------------


def detector_state(checkpoint: Path, llama: Path) -> dict[str, torch.Tensor]:
    """Every prefix of the trainer's detector: Q-Former, LLaMA under PEFT with output queries, interaction, decoder."""
    hidden, dims, instances, points, small = 64, 16, 3, 4, 8
    state = {f"qformer.{name}": tensor for name, tensor in state_of(checkpoint).items()}
    prefix = "llm.base_model.model."
    for name, tensor in load_file(llama / "model.safetensors").items():
        if name.endswith("q_proj.weight"):
            layer = prefix + name.removesuffix("weight")
            state[f"{layer}base_layer.weight"] = tensor
            state[f"{layer}lora_A.default.weight"] = random_tensor(f"{layer}a", (2, hidden))
            state[f"{layer}lora_B.default.weight"] = random_tensor(f"{layer}b", (hidden, 2))
        else:
            state[prefix + name] = tensor
    shapes = {
        "map_queries.instance_content": (instances, hidden),
        "map_queries.instance_position.weight": (instances, hidden),
        "map_queries.point_content": (instances, points, hidden),
        "map_queries.point_position.weight": (points, hidden),
    }
    shapes = {prefix + name: shape for name, shape in shapes.items()}

    def linear(name, narrow, wide):
        shapes.update({f"{name}.weight": (narrow, wide), f"{name}.bias": (narrow,)})

    def norm(name, width):
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def attention(name):
        shapes.update({f"{name}.in_proj_weight": (3 * dims, dims), f"{name}.in_proj_bias": (3 * dims,)})
        linear(f"{name}.out_proj", dims, dims)

    block = "map_scene_interaction."
    for name in ("map_input_proj", "scene_input_proj"):
        norm(f"{block}{name}.0", hidden)
        linear(f"{block}{name}.1", dims, hidden)
    norm(block + "output_proj.0", dims)
    linear(block + "output_proj.1", hidden, dims)
    shapes[block + "residual_scale"] = (1,)
    for name in ("self_attn", "cross_attn"):
        attention(f"{block}layers.0.{name}")
        norm(f"{block}layers.0.{name}_norm", dims)
    linear(block + "layers.0.ffn.0", 24, dims)
    linear(block + "layers.0.ffn.3", dims, 24)
    norm(block + "layers.0.ffn_norm", dims)
    for reducer, widths in (("inst_reducer", (hidden, 32, dims)), ("point_reducer", (hidden, 24, dims))):
        for number, (wide, narrow) in enumerate(zip(widths, widths[1:])):
            norm(f"decoder.{reducer}.reducer.{number}.norm", wide)
            linear(f"decoder.{reducer}.reducer.{number}.linear", narrow, wide)
    norm("decoder.cls_head.head.0", dims)
    linear("decoder.cls_head.head.1", 3, dims)
    head = "decoder.point_head."
    for name in ("point_proj", "inst_proj"):
        norm(f"{head}init_points_head.{name}.0", dims)
        linear(f"{head}init_points_head.{name}.1", small, dims)
    norm(head + "init_points_head.coord_head.0", 2 * small)
    linear(head + "init_points_head.coord_head.1", small, 2 * small)
    linear(head + "init_points_head.coord_head.4", 2, small)
    shapes[head + "init_points_head.anchors"] = (points, 2)
    shapes[head + "coord_encoder.freqs"] = (3,)
    linear(head + "coord_encoder.proj", small, 12)
    shapes[head + "order_embedding.embed.weight"] = (points, small)
    for number in range(2):
        layer = f"{head}refine_layers.{number}."
        attention(layer + "point_self_attn.self_attn")
        norm(layer + "point_self_attn.norm", dims)
        norm(layer + "offset_mlp.0", 2 * dims + 2 * small)
        linear(layer + "offset_mlp.1", dims, 2 * dims + 2 * small)
        linear(layer + "offset_mlp.4", dims // 2, dims)
        linear(layer + "offset_mlp.6", 2, dims // 2)
        shapes[layer + "offset_scale"] = ()
    return state | {
        name: torch.tensor(0.1) if not shape else random_tensor(name, shape) for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    "adapter, scale",
    [
        (None, PUBLISHED_LORA_SCALE),
        ({"r": 2, "lora_alpha": 6}, 3.0),
        ({"r": 2, "lora_alpha": 6, "use_rslora": True}, 6 / 2**0.5),
    ],
)
def test_whole_detector_is_converted_with_its_lora_merged(adapter, scale, checkpoint, llama, tmp_path):
    state = detector_state(checkpoint, llama)
    if adapter:
        (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    torch.save({"epoch": 3, "model_state_dict": state, "args": {}}, tmp_path / "best_model.pth")
    overrides = {
        "num_heads": HEADS,
        "map_config": {"num_heads": 2, "point_heads": 2},
        "text_config": {"num_attention_heads": 4},
    }
    run({"scene_qformer": tmp_path / "best_model.pth"}, tmp_path / "out", **overrides)
    model, info = SceneQFormerForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys"))
    ours = model.state_dict()
    layer = "llm.base_model.model.model.layers.1.self_attn.q_proj."
    lora = state[f"{layer}lora_B.default.weight"] @ state[f"{layer}lora_A.default.weight"]
    merged = state[f"{layer}base_layer.weight"] + scale * lora
    assert torch.allclose(ours["language_model.layers.1.self_attn.q_proj.weight"], merged, atol=1e-5)
    assert torch.equal(
        ours["map_decoder.refinements.1.offset_mlp.4.weight"],
        state["decoder.point_head.refine_layers.1.offset_mlp.4.weight"],
    )
    dropped = json.loads((tmp_path / "out" / "conversion_report.json").read_text())["dropped"]
    assert sum("anchors" in key or "freqs" in key for key in dropped) == 2
    tokens = torch.randn(1, QUERIES, 64)
    with torch.no_grad():
        found = model.eval()(input_ids=torch.tensor([[1, -200, 5]]), scene_tokens=tokens, output_map=True)
    assert found.points.shape == (1, 3, 4, 2) and torch.isfinite(found.points).all()


# ---- full size ---------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "count"), [("depth_3d", 460), ("sine_camera", 439)])
def test_every_published_key_has_a_home(variant, count, tmp_path):
    if not KEYS.is_file():
        pytest.skip("the full-size key lists are not beside the checkout")
    entry = next(name for name in json.loads(KEYS.read_text()) if name.startswith(variant))
    report = convert(
        "scene_qformer", {"scene_qformer": f"{KEYS}#{entry}"}, tmp_path / "out", dry_run=True, progress=False
    )
    row = re.search(r"loaded\s+(\d+)\s", report.table())
    assert int(row[1]) == count and re.search(r"initialised\s+0\s", report.table())


def test_dual_stream_is_refused_by_name(tmp_path):
    save_file({"summary_queries": torch.zeros(2, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="dual-stream"):
        run({"scene_qformer": tmp_path / "model.safetensors"}, tmp_path / "out")
