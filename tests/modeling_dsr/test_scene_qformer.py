"""What holds of the scene Q-Former beyond the checks common to all models."""

import copy

import pytest
import torch
from torch import nn

from configuration_dsr import SceneMapConfig, SceneQFormerConfig
from modeling_dsr.modeling_scene_qformer import SceneQFormerForConditionalGeneration, SceneQFormerModel
from modeling_dsr.scene_map_head import (
    additive_mask,
    equivalent_orders,
    map_detection_loss,
    output_query_mask,
    prompt_and_query_mask,
)
from modeling_dsr.scene_prompt import expand_placeholders
from tests.modeling_dsr.scene_samples import (
    IMAGE_TOKEN_ID,
    TINY_MAP,
    extrinsics,
    intrinsics,
    map_labels,
    pixels,
    prompts,
    scenes,
    tiny_config,
    tiny_language_config,
)

CALIBRATED = ("depth_3d", "ray_3d")


def build(config, model_class=SceneQFormerModel):
    torch.manual_seed(0)
    return model_class(config).eval()


def run(model, inputs, **kwargs):
    with torch.no_grad():
        return model(**inputs, **kwargs)


@pytest.fixture(scope="module")
def language_model():
    return build(tiny_language_config(), SceneQFormerForConditionalGeneration)


# ---- sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "parameters"),
    [
        ({}, 35_871_040),
        ({"backbone_stage": 3}, 20_644_160),
        ({"position_encoding": "depth_3d", "num_queries": 768}, 38_731_520),
        ({"embed_dims": 128}, 28_878_528),
        ({"embed_dims": 512}, 54_771_264),
        ({"num_queries": 256}, 35_805_504),
        ({"num_queries": 1024}, 36_002_112),
        ({"num_decoder_layers": 3}, 31_134_784),
        ({"num_decoder_layers": 12}, 45_343_552),
        ({"llm_hidden_size": 2048}, 34_820_416),
    ],
)
def test_parameter_counts(overrides, parameters):
    with torch.device("meta"):
        model = SceneQFormerModel(SceneQFormerConfig(**overrides))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_seeds_configuration_is_accepted():
    seed = {
        "embed_dims": 256,
        "num_queries": 512,
        "num_decoder_layers": 6,
        "num_heads": 8,
        "ffn_dims": 2048,
        "dropout": 0.1,
        "llm_hidden_size": 4096,
    }
    config = SceneQFormerConfig(**seed)
    assert {name: getattr(config, name) for name in seed} == seed
    with torch.device("meta"):
        tokens = SceneQFormerModel(config).eval()(torch.empty(1, 6, 3, 336, 336)).scene_tokens
    assert tokens.shape == (1, 512, 4096)


@pytest.mark.parametrize(
    "overrides",
    [{"embed_dims": 128}, {"embed_dims": 512}, {"num_queries": 256}, {"num_queries": 1024}]
    + [{"num_decoder_layers": 3}, {"num_decoder_layers": 12}],
    ids=str,
)
@pytest.mark.parametrize("attention", ["full", "deformable"])
def test_the_seeds_ranges_run(overrides, attention):
    small = {"num_queries": 20, "num_decoder_layers": 3, "num_heads": 8, "attention": attention}
    model = build(tiny_config(**{**small, **overrides}))
    tokens = run(model, {"pixel_values": pixels(0)[None]}).scene_tokens
    assert tokens.shape == (1, overrides.get("num_queries", 20), 24)
    assert torch.isfinite(tokens).all()


# ---- backbones ---------------------------------------------------------------------------

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BACKBONES = {
    "resnet, basic blocks": (
        {"model_type": "resnet", "layer_type": "basic", "depths": [1, 1, 2, 2], "hidden_sizes": [8] * 4},
        64,
    ),
    "convnextv2": ({"model_type": "convnextv2", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 16]}, 64),
    "swin": ({"model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}, 64),
    "dinov2": (
        {"model_type": "dinov2", "patch_size": 16, "image_size": 64, "reshape_hidden_states": True, **SMALL},
        64,
    ),
    "timm resnet": ({"model_type": "timm_backbone", "backbone": "resnet10t", "output_stride": 16}, 64),
    "timm eva": ({"model_type": "timm_backbone", "backbone": "eva02_tiny_patch14_224"}, 224),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_run_save_and_reload(name, tmp_path):
    backbone, side = BACKBONES[name]
    if name.startswith("timm"):
        pytest.importorskip("timm")
    model = build(tiny_config(backbone_config=dict(backbone)))
    inputs = {"pixel_values": torch.randn(1, 6, 3, side, side)}
    expected = run(model, inputs).scene_tokens
    model.save_pretrained(tmp_path)
    again, info = SceneQFormerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.isfinite(expected).all()
    assert torch.allclose(run(again.eval(), inputs).scene_tokens, expected, atol=1e-6)


def test_dilation_doubles_the_resolution_of_the_same_weights():
    """DC5: 336×336 gives 21×21 cells instead of 11×11, parameters alike."""
    grids = {}
    for dilation in (True, False):
        model = build(tiny_config(backbone_dilation=dilation))
        grids[dilation] = tuple(run_features(model, 336).shape[-2:])
        names = set(model.state_dict())
    assert grids == {True: (21, 21), False: (11, 11)}
    assert names == set(build(tiny_config(backbone_dilation=True)).state_dict())


def run_features(model, side):
    with torch.no_grad():
        return model.image_features(torch.zeros(1, 6, 3, side, side))


# ---- calibration -------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", CALIBRATED)
def test_position_code_is_kept_until_the_calibration_changes(encoding):
    model = build(tiny_config(position_encoding=encoding))
    calls = []
    model.position_encoding_3d.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    inputs = scenes(1)
    first = run(model, inputs).scene_tokens
    again = run(model, {**inputs, "pixel_values": inputs["pixel_values"].clone()}).scene_tokens
    assert calls == [1]
    assert torch.equal(first, again)
    moved = {name: tensor.clone() for name, tensor in inputs.items()}
    moved["cam_extrinsics"][0, 2, :3, :3] = extrinsics()[3, :3, :3]
    assert not torch.allclose(run(model, moved).scene_tokens, first, atol=1e-4)
    assert calls == [1, 1]
    assert torch.equal(run(model, inputs).scene_tokens, first)  # two rigs by turns stay known
    assert calls == [1, 1]


def test_position_code_follows_its_weights():
    model = build(tiny_config(position_encoding="depth_3d"))
    before = run(model, scenes(1)).scene_tokens
    with torch.no_grad():
        model.position_encoding_3d.aggregation_mlp[0].weight.mul_(-1)
    assert not torch.allclose(run(model, scenes(1)).scene_tokens, before, atol=1e-4)


def test_first_self_attention_follows_its_weights():
    model = build(tiny_config())
    inputs = {"pixel_values": pixels(0)[None]}
    before = run(model, inputs).scene_tokens
    with torch.no_grad():
        model.queries.content.weight.mul_(-1)
    after = run(model, inputs).scene_tokens
    assert not torch.allclose(after, before, atol=1e-4)
    assert torch.allclose(after, model(**inputs).scene_tokens, atol=1e-5)  # nothing is kept with gradients


def test_calibrations_in_a_batch_are_told_apart():
    model = build(tiny_config(position_encoding="depth_3d"))
    together = run(model, scenes(3)).scene_tokens
    model._codes.codes.clear()
    for number in range(3):
        alone = run(model, {name: tensor[number : number + 1] for name, tensor in scenes(3).items()}).scene_tokens
        assert torch.allclose(together[number : number + 1], alone, atol=1e-5)


def test_scaling_the_image_with_its_intrinsics_keeps_the_code():
    encoding = build(tiny_config(position_encoding="depth_3d")).position_encoding_3d
    with torch.no_grad():
        code = encoding(intrinsics((64, 96)), extrinsics(), (4, 6), (64, 96))
        twice = encoding(intrinsics((128, 192)), extrinsics(), (4, 6), (128, 192))
    assert torch.allclose(code, twice, atol=1e-4)


def test_lidar_frame_keeps_points_ahead_inside_the_box():
    """In the vehicle frame the published box ends 15 m ahead and clamps at 30 m; in the frame it was made for, at 60
    m."""
    from modeling_dsr.scene_position import normalize_points

    config = SceneQFormerConfig()
    ahead = torch.tensor([[25.0, 5.0, 0.0]])  # x forward, y left
    box = torch.tensor(config.pc_range)
    vehicle = normalize_points(ahead, box, "vehicle", config.point_clamp)
    lidar = normalize_points(ahead, box, "lidar", config.point_clamp)
    assert vehicle[0, 0] > 1 and lidar.abs().max() < 1
    assert torch.allclose(lidar[0, :2], torch.tensor([-5 / 15, 25 / 30]))


def test_missing_calibration_is_an_error_unless_asked_for():
    model = build(tiny_config(position_encoding="depth_3d"))
    inputs = scenes(1)
    with pytest.raises(ValueError, match="needs `cam_intrinsics` and `cam_extrinsics`"):
        model(inputs["pixel_values"])
    with pytest.raises(ValueError, match="needs `cam_extrinsics`"):
        model(inputs["pixel_values"], cam_intrinsics=inputs["cam_intrinsics"])
    lenient = build(tiny_config(position_encoding="depth_3d", missing_calibration="sine"))
    assert torch.isfinite(run(lenient, {"pixel_values": inputs["pixel_values"]}).scene_tokens).all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("cam_intrinsics", lambda x: x * 0, "singular"),
        ("cam_intrinsics", lambda x: x * float("nan"), "finite"),
        ("cam_intrinsics", lambda x: x[:, :5], r"must be \[1, 6, 3, 3\]"),
        ("cam_extrinsics", lambda x: x[..., :3, :], r"must be \[1, 6, 4, 4\]"),
    ],
)
def test_wrong_calibration_is_refused(name, change, message):
    model = build(tiny_config(position_encoding="depth_3d"))
    inputs = scenes(1)
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, name: change(inputs[name])})


@pytest.mark.parametrize("shape", [(1, 7, 3, 64, 96), (6, 3, 64, 96), (1, 6, 1, 64, 96)])
def test_wrong_images_are_refused(shape):
    with pytest.raises(ValueError, match="`pixel_values` must be"):
        build(tiny_config())(torch.zeros(shape))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"embed_dims": 30}, "`embed_dims`"),
        ({"position_encoding": "polar"}, "`position_encoding` must be one of"),
        ({"attention": "linear"}, "`attention` must be one of"),
        ({"pc_range": [1, 0, 0, 0, 1, 1]}, "`pc_range`"),
        ({"num_constrained_queries": 99}, "`num_constrained_queries`"),
        ({"backbone_stage": 5}, "`backbone_stage`"),
        ({"backbone_config": {"model_type": "convnext"}, "backbone_dilation": True}, "`backbone_dilation`"),
    ],
)
def test_wrong_configurations_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


# ---- attention ---------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["full", "deformable"])
def test_attentions_are_probabilities_over_the_cameras(attention):
    model = build(tiny_config(attention=attention))
    attentions = run(model, {"pixel_values": pixels(0)[None]}, output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(1, 4, 14, 6, 4, 6)] * 2
    total = attentions[0].sum((-3, -2, -1))
    assert (total < 1 + 1e-5).all() and (total > 0).all()
    if attention == "full":
        assert torch.allclose(total, torch.ones_like(total), atol=1e-5)


def test_deformable_weights_tell_what_is_read():
    """The output projection of the weighted values is what transformers' attention returns."""
    model = build(tiny_config(attention="deformable"))
    layer = model.scene_decoder.layers[0].multihead_attn
    nn.init.normal_(layer.sampling_offsets.weight, std=0.2)
    nn.init.normal_(layer.attention_weights.weight)
    queries, memory = torch.randn(2, 14, 32), torch.randn(2, 6 * 20, 32)
    with torch.no_grad():
        output, weights = layer(queries, memory, output_attentions=True, num_cameras=6, grid=(4, 5))
        values = layer.value_proj(memory).unflatten(-1, (4, 8)).transpose(1, 2)
        expected = layer.output_proj((weights @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(output, expected, atol=1e-5)


def test_moving_a_reference_point_moves_the_attention():
    model = build(tiny_config(attention="deformable"))
    inputs = {"pixel_values": pixels(0)[None]}
    points = model.scene_decoder.layers[0].multihead_attn.reference_points

    def centre(x_logit):
        with torch.no_grad():
            points[3, 1] = torch.tensor([x_logit, 0.0])
        weights = run(model, inputs, output_attentions=True).attentions[0][0, :, 3, 1].sum(0)  # [h, w]
        column = torch.arange(weights.shape[1]) * weights.sum(0)
        return (column.sum() / weights.sum()).item(), run(model, inputs).scene_tokens

    left, tokens_left = centre(-2.0)
    right, tokens_right = centre(2.0)
    assert right > left + 1
    assert not torch.allclose(tokens_left[:, 3], tokens_right[:, 3], atol=1e-4)


# ---- precision ---------------------------------------------------------------------------


def test_autocast_leaves_the_island_in_float32():
    """Unclamped tokens stay finite and near those in float32, though activations would overflow half precision."""
    model = build(tiny_config(position_encoding="depth_3d", output_clamp=None))
    inputs = scenes(1)
    dtypes = set()
    for module in (
        model.scene_decoder.layers[0].linear1,
        model.projector[0],
        model.position_encoding_3d.per_depth_mlp[0],
    ):
        module.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    with torch.no_grad():
        expected = model(**inputs).scene_tokens
        model._codes.codes.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(**inputs).scene_tokens
    assert dtypes == {torch.float32} and found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_training_step_under_autocast_is_finite():
    model = build(tiny_config(position_encoding="depth_3d", output_clamp=None)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**scenes(2)).scene_tokens.square().mean()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


def test_decoder_equals_torchs():
    """The same weights in `nn.TransformerDecoder`."""
    decoder = build(tiny_config()).scene_decoder
    reference = nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 48, batch_first=True), 2).eval()
    reference.load_state_dict(decoder.state_dict())
    queries, memory = torch.randn(1, 14, 32), torch.randn(3, 50, 32)
    with torch.no_grad():
        expected = reference(queries.expand(3, -1, -1), memory)
        assert torch.allclose(decoder(queries, memory)[0], expected, atol=1e-5)


# ---- prompts -----------------------------------------------------------------------------


def test_llava_placeholder_equals_the_processors(language_model):
    """One -200 makes room for the scene tokens; the same prompt with room made gives the same logits."""
    inputs = prompts(1, 14, "right") | {"pixel_values": pixels(0)[None]}
    ids = inputs["input_ids"][0].tolist()
    short = torch.tensor([[1, -200, *ids[15:]]])
    expected = run(language_model, inputs).logits
    found = run(language_model, {"input_ids": short, "pixel_values": inputs["pixel_values"]}).logits
    assert torch.equal(found, expected)
    generated = language_model.generate(
        input_ids=short, pixel_values=inputs["pixel_values"], max_new_tokens=3, do_sample=False
    )
    assert generated.shape == (1, len(ids) + 3)
    assert torch.equal(generated[:, :-3], inputs["input_ids"])


def test_llava_placeholders_of_a_padded_batch_equal_single_prompts(language_model):
    first, second = torch.tensor([1, -200, 5, 6, 7]), torch.tensor([1, 9, -200, 8])
    ids = torch.stack([first, torch.cat([torch.tensor([0]), second])])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    images = scenes(2)["pixel_values"]
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    both = language_model.generate(input_ids=ids, attention_mask=mask, pixel_values=images, **settings)
    for number, prompt in enumerate((first, second)):
        alone = language_model.generate(input_ids=prompt[None], pixel_values=images[number : number + 1], **settings)
        assert torch.equal(both[number, -4:], alone[0, -4:])


def test_several_scenes_in_a_prompt_are_read_in_order(language_model):
    tokens = torch.randn(3, 14, 32)
    ids = torch.tensor([[1, -200, 5, -200, 6], [1, 7, 8, -200, 9]])
    with torch.no_grad():
        _, _, _, embeds, _ = language_model._embed(ids, torch.ones_like(ids), None, tokens, None)
    assert torch.equal(embeds[0, 1:15], tokens[0]) and torch.equal(embeds[0, 16:30], tokens[1])
    assert torch.equal(embeds[1, 3:17], tokens[2])
    beams = language_model.generate(input_ids=ids, scene_tokens=tokens, num_beams=2, max_new_tokens=2)
    assert torch.isfinite(beams.float()).all()


def test_a_prompt_need_not_show_its_scene(language_model):
    ids = torch.tensor([[1, -200, 5, 6], [1, 7, 8, 9]])
    tokens = torch.randn(2, 14, 32)
    found = run(language_model, {"input_ids": ids, "scene_tokens": tokens})
    alone = run(language_model, {"input_ids": ids[:1], "scene_tokens": tokens[:1]})
    assert torch.allclose(found.logits[:1], alone.logits, atol=1e-5)


def test_expanded_prompts_have_no_labels_on_scenes():
    ids = torch.tensor([[1, -200, 5], [0, 1, 6]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    ids, mask, labels = expand_placeholders(ids, mask, ids, -200, 95, 3)
    assert ids.tolist() == [[1, 95, 95, 95, 5], [1, 6, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert labels.tolist() == [[1, -100, -100, -100, 5], [1, 6, -100, -100, -100]]


def test_expanded_prompts_are_cut_and_padded_on_a_side():
    ids = torch.tensor([[1, -200, 5, 6], [1, 7, 8, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    found, mask, _ = expand_placeholders(ids, mask, None, -200, 95, 3, padding_side="left", max_length=4)
    assert found.tolist() == [[1, 95, 95, 95], [0, 1, 7, 8]]
    assert mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize("ids", [[1, 5, 6], [1, -200, -200, 5], [1, IMAGE_TOKEN_ID, IMAGE_TOKEN_ID, 5]])
def test_placeholders_must_match_the_scenes(language_model, ids):
    with pytest.raises(ValueError, match="scene placeholders for 1 scenes"):
        language_model(input_ids=torch.tensor([ids]), scene_tokens=torch.randn(1, 14, 32))


def test_scene_tokens_are_computed_once_for_many_prompts(language_model):
    images = pixels(0)[None]
    tokens = run(language_model.scene_qformer, {"pixel_values": images}).scene_tokens
    inputs = prompts(1, 14, "right")
    expected = run(language_model, inputs | {"pixel_values": images}).logits
    assert torch.equal(run(language_model, inputs | {"scene_tokens": tokens}).logits, expected)


# ---- output queries ----------------------------------------------------------------------


def test_query_mask_follows_the_published_rules():
    mask = output_query_mask(2, 2)
    wanted = [  # instance, point, point, instance, point, point
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1, 1],
    ]
    assert mask.int().tolist() == wanted


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bool_and_float_masks_give_the_same(implementation):
    model = SceneQFormerForConditionalGeneration._from_config(
        tiny_language_config(), attn_implementation=implementation
    )
    model.eval()
    inputs = prompts(2, 14, "right") | {"scene_tokens": torch.randn(2, 14, 32)}
    length = inputs["input_ids"].shape[1]
    expected = run(model, inputs, output_map=True)
    mask = prompt_and_query_mask(inputs["attention_mask"].bool(), output_query_mask(4, 5))
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    minus = torch.zeros(mask.shape).masked_fill(~mask, float("-inf")).clamp_min(torch.finfo(torch.float32).min)
    for form in (mask, mask.float(), minus):
        four = {**inputs, "attention_mask": form, "position_ids": positions}
        found = run(model, four, output_map=True)
        assert torch.allclose(found.query_outputs, expected.query_outputs, atol=1e-5)
        assert torch.allclose(found.points, expected.points, atol=1e-5)
        assert found.logits.shape[1] == length


def test_additive_masks_of_all_forms_are_equal():
    mask = torch.tensor([[True, False], [True, True]])
    expected = additive_mask(mask, torch.float32)
    assert torch.equal(additive_mask(mask.float(), torch.float32), expected)
    assert torch.equal(additive_mask(expected, torch.float32), expected)
    assert torch.equal(additive_mask(torch.where(mask, 0.0, float("-inf")), torch.float32), expected)
    assert torch.equal(additive_mask(torch.zeros(2, 2), torch.float32), torch.zeros(2, 2))


@pytest.mark.parametrize("side", ["left", "right"])
def test_detections_do_not_depend_on_the_batch(language_model, side):
    tokens = torch.randn(3, 14, 32)
    together = run(language_model, prompts(3, 14, side) | {"scene_tokens": tokens}, output_map=True)
    alone = run(language_model, prompts(1, 14, side) | {"scene_tokens": tokens[:1]}, output_map=True)
    assert torch.allclose(together.points[:1], alone.points, atol=1e-4)
    assert torch.allclose(together.class_logits[:1], alone.class_logits, atol=1e-4)
    assert together.points.shape == (3, 4, 5, 2) and together.points.abs().max() <= 1


def test_output_queries_do_not_change_the_text(language_model):
    inputs = prompts(2, 14, "left") | {"scene_tokens": torch.randn(2, 14, 32)}
    mask = inputs["attention_mask"].bool()
    plain, with_map = run(language_model, inputs).logits, run(language_model, inputs, output_map=True).logits
    assert torch.allclose(plain[mask], with_map[mask], atol=1e-5)


def test_map_head_has_the_published_sizes():
    from modeling_dsr.scene_map_head import SceneMapDecoder, SceneMapInteraction, SceneMapQueries

    config = SceneMapConfig()
    with torch.device("meta"):
        parts = [kind(config, 4096) for kind in (SceneMapInteraction, SceneMapDecoder, SceneMapQueries)]
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    assert counts[:2] == [9_487_873, 18_449_303]
    assert counts[2] == 4096 * (50 + 50 + 50 * 20 + 20)


def perfect(labels, config, steps=2):
    """Logits and points that say exactly what `labels` hold."""
    batch = len(labels)
    logits = torch.full((batch, config.num_instances, config.num_classes), -20.0)
    points = torch.zeros(steps, batch, config.num_instances, config.num_points, 2)
    for scene, target in enumerate(labels):
        for number, (label, line) in enumerate(zip(target["class_labels"], target["points"])):
            logits[scene, number, label] = 20.0
            points[:, scene, number] = line
    return logits, points


def test_loss_of_a_perfect_prediction_is_zero():
    config = SceneMapConfig(**TINY_MAP)
    labels = map_labels(3)
    loss = map_detection_loss(*perfect(labels, config), labels, config)
    assert loss.loss < 1e-5


@pytest.mark.parametrize(
    ("label", "change", "is_same"),
    [
        (0, lambda x: x.flip(1), True),  # a line backwards is the line
        (0, lambda x: x.roll(2, 1), False),
        (1, lambda x: x.roll(2, 1), True),  # a polygon may begin anywhere
        (1, lambda x: x.flip(1), False),  # the published loss keeps its sense of rotation
    ],
)
def test_equivalent_orders_cost_nothing(label, change, is_same):
    config = SceneMapConfig(**TINY_MAP)
    points = torch.rand(1, 5, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = [{"class_labels": torch.tensor([label]), "points": change(points)}]
    logits, found = perfect([{"class_labels": torch.tensor([label]), "points": points}], config)
    assert (map_detection_loss(logits, found, labels, config).points_loss < 1e-6) == is_same


def test_loss_follows_its_formula():
    """One prediction, one target, by hand."""
    config = SceneMapConfig(**{**TINY_MAP, "num_instances": 1, "num_points": 2, "num_classes": 1, "closed_classes": []})
    logit = torch.tensor([[[0.3]]], requires_grad=True)
    steps = torch.tensor([[0.0, 0.0], [0.5, 0.1]]).expand(2, 1, 1, 2, 2)
    target = torch.tensor([[[0.1, 0.0], [0.4, 0.3]]])
    loss = map_detection_loss(logit, steps, [{"class_labels": torch.tensor([0]), "points": target}], config)
    p = torch.sigmoid(torch.tensor(0.3))
    focal = 0.25 * (1 - p) ** 2 * -p.log()
    distance = (0.1 + 0.1 + 0.2) / 2
    a, b = torch.tensor([0.5 * 15, 0.1 * 30]), torch.tensor([0.3 * 15, 0.3 * 30])
    direction = 1 - (a @ b) / ((a @ a + 1e-6) * (b @ b + 1e-6)).sqrt()
    one = 2 * focal + 5 * distance + 0.25 * direction
    assert torch.allclose(loss.loss, 1.2 * one, atol=1e-5)
    loss.loss.backward()
    assert torch.allclose(logit.grad.flatten(), torch.autograd.grad(
        2 * (0.25 * (1 - torch.sigmoid(logit)) ** 2 * -torch.sigmoid(logit).log()).sum(),
        logit)[0].flatten())  # fmt: skip


def test_scenes_without_elements_train_the_classes_alone():
    config = SceneMapConfig(**TINY_MAP)
    logits = torch.zeros(1, 4, 3, requires_grad=True)
    steps = torch.zeros(2, 1, 4, 5, 2, requires_grad=True)
    empty = [{"class_labels": torch.zeros(0, dtype=torch.long), "points": torch.zeros(0, 5, 2)}]
    loss = map_detection_loss(logits, steps, empty, config)
    loss.loss.backward()
    assert loss.points_loss == 0 and logits.grad.abs().max() > 0 and steps.grad.abs().max() == 0


def test_predictions_that_are_not_finite_are_an_error():
    config = SceneMapConfig(**TINY_MAP)
    logits, steps = perfect(map_labels(1), config)
    with pytest.raises(ValueError, match="not finite"):
        map_detection_loss(logits, steps * float("nan"), map_labels(1), config)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "one dictionary per scene"),
        ([{"points": torch.zeros(1, 5, 2)}], "class_labels"),
        ([{"class_labels": torch.tensor([0]), "points": torch.zeros(1, 4, 2)}], r"must be \[1, 5, 2\]"),
        ([{"class_labels": torch.tensor([7]), "points": torch.zeros(1, 5, 2)}], "must lie in 0 … 2"),
        ([{"class_labels": torch.zeros(9, dtype=torch.long), "points": torch.zeros(9, 5, 2)}], "more than the 4"),
    ],
)
def test_wrong_map_labels_are_refused(language_model, labels, message):
    inputs = prompts(1, 14, "right") | {"scene_tokens": torch.randn(1, 14, 32)}
    with pytest.raises(ValueError, match=message):
        language_model(**inputs, map_labels=labels)


def test_a_model_without_output_queries_says_so():
    model = build(tiny_language_config(map_config=None), SceneQFormerForConditionalGeneration)
    with pytest.raises(ValueError, match="`map_config` is None"):
        model(**prompts(1, 14, "right"), scene_tokens=torch.randn(1, 14, 32), output_map=True)


def test_orders_of_lines_are_two():
    orders = equivalent_orders(torch.rand(2, 5, 2), torch.tensor([0, 1]), SceneMapConfig(**TINY_MAP))
    assert [len(torch.unique(element, dim=0)) for element in orders] == [2, 5]


def test_models_can_be_copied_after_use():
    model = build(tiny_config(position_encoding="depth_3d"))
    expected = run(model, scenes(1)).scene_tokens
    assert torch.equal(run(copy.deepcopy(model), scenes(1)).scene_tokens, expected)


def test_a_saved_backbone_takes_the_dtype_of_a_load(tmp_path):
    """What is saved names a dtype for each part, which the one that is asked for stands above."""
    SceneQFormerModel(tiny_config()).save_pretrained(tmp_path)
    model = SceneQFormerModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in model.backbone.parameters()} == {torch.bfloat16}
    assert model(**scenes(1)).scene_tokens.isfinite().all()
