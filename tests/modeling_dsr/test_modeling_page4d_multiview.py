"""PAGE-4D over time and view: the common checks, what each option does, and what must never change."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from configuration_dsr import Page4DConfig
from modeling_dsr.modeling_page4d import Page4DModel
from modeling_dsr.page4d_multiview_attention import (
    dilated_neighbours,
    epipolar_distance,
    fundamental_matrices,
    key_biased_attention,
    time_biased_attention,
    widened_attention,
)
from modeling_dsr.vision_rope import axial_rope_tables, patch_positions
from processing_dsr import GeometryProcessor
from tests.model_checks import ModelChecks, randomize
from tests.modeling_dsr.test_modeling_page4d import CountSynchronisations

PATCH = 14
GEOMETRY = ("pose_enc", "depth", "depth_conf", "world_points", "world_points_conf")


def tiny_config(**overrides):
    values = dict(
        encoder_config=dict(num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2),
        img_size=4 * PATCH,
        embed_dim=32,
        depth=4,
        num_heads=2,
        mlp_ratio=2.0,
        spatial_mask_variant=None,
        enable_dual_stream=True,
        dual_stream_layers=[1, 2],
        sparse_global_layers=[1, 3],
        landmark_k=3,
        memory_tokens_num=4,
        camera_depth=1,
        camera_num_heads=4,
        camera_mlp_ratio=2.0,
        dpt_layers=[0, 1, 2, 3],
        dpt_features=8,
        dpt_out_channels=[8, 8, 8, 8],
        dpt_hidden_channels=8,
    )
    return Page4DConfig(**{**values, **overrides})


def random_model(seed=0, **overrides) -> Page4DModel:
    torch.manual_seed(seed)
    model = Page4DModel(tiny_config(**overrides)).eval()
    randomize(model, seed)
    with torch.no_grad():
        if model.config.pose_encoding_type == "absT_quaR_FoV":
            model.camera_head.pose_branch.fc2.weight[7:] *= 0.1
            model.camera_head.pose_branch.fc2.bias[7:] = 0.8
    return model


def images(batch=1, times=2, views=2, rows=2, columns=3, seed=0):
    samples = [
        torch.rand(times, views, 3, rows * PATCH, columns * PATCH, generator=torch.Generator().manual_seed(seed + i))
        for i in range(batch)
    ]
    return torch.stack(samples)


def patches(batch=1, times=2, views=2, count=6, seed=9):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(times, views, count, generator=generator).expand(batch, -1, -1, -1).clone()


def cameras(batch=1, times=2, views=2, rows=2, columns=3):
    """Views side by side, turned towards each other."""
    extrinsics = torch.eye(4).repeat(batch, times, views, 1, 1)
    for view in range(views):
        angle = torch.tensor(0.3 * view)
        extrinsics[:, :, view, :3, :3] = torch.tensor(
            [[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]]
        )
        extrinsics[:, :, view, :3, 3] = torch.tensor([0.4 * view, 0.1 * view, 0.05])
    intrinsics = torch.tensor([[40.0, 0, columns * PATCH / 2], [0, 40.0, rows * PATCH / 2], [0, 0, 1]])
    return extrinsics, intrinsics.repeat(batch, times, views, 1, 1)


def targets(batch=1, times=2, views=2, rows=2, columns=3):
    extrinsics, intrinsics = cameras(batch, times, views, rows, columns)
    y, x = torch.meshgrid(torch.arange(rows * PATCH) / 30, torch.arange(columns * PATCH) / 30, indexing="ij")
    depths = (3 + (5 * x).sin() + y).repeat(batch, times, views, 1, 1)
    return {"extrinsics": extrinsics, "intrinsics": intrinsics, "depths": depths}


def run(model, pixels, **kwargs):
    with torch.no_grad():
        return model(pixels, **kwargs)


def differ(one, other, names=GEOMETRY) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in names)


def assert_close(one, other, names=GEOMETRY, atol=2e-5):
    for name in names:
        torch.testing.assert_close(
            one[name], other[name], atol=atol, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def same_weights(model: Page4DModel, **overrides) -> Page4DModel:
    """The model under another configuration that has the same parameters, or fewer."""
    other = Page4DModel(tiny_config(**overrides)).eval()
    known = model.state_dict()
    other.load_state_dict({name: known[name] for name in other.state_dict()})
    return other


class TestMultiview(ModelChecks):
    model_classes = (Page4DModel,)
    has_attentions = False
    parameters_without_gradient = (
        r"encoder\.embeddings\.mask_token",
        r"aggregator\.(frame|global)_blocks\.[12]\..+",  # in those layers each stream has its own
    )
    lora_targets = r".*_blocks\.\d+\.attn\.qkv"
    fsdp_layers = ("VisionBlock", "GlobalBlock", "Dinov2WithRegistersLayer")
    options = dict(enable_sparse_global=True, sparse_strategy="memory_bank", time_pos="rope")

    def tiny_config(self):
        return tiny_config(**self.options)

    def build(self, model_class):
        return random_model(**self.options)

    @staticmethod
    def assert_fresh(name, found, fresh):
        if found.numel() == 1:  # learned numbers start from constants, or in ±1/sqrt(fan in)
            assert found.abs() <= 1
        else:
            ModelChecks.assert_fresh(name, found, fresh)

    def inputs(self, batch, padding_side="left"):
        return {"pixel_values": images(batch), "ext_mask": patches(batch), "keypoint_map": patches(batch, seed=3)}

    def training_inputs(self, batch):
        return {**self.inputs(batch), **targets(batch), "mask_labels": patches(batch, seed=5)}

    def expected_hidden_states(self, config, inputs):
        batch, times, views = inputs["pixel_values"].shape[:3]
        return config.depth, (batch, times, views, 1 + config.num_register_tokens + 6, 2 * config.embed_dim)

    def processor(self):
        return GeometryProcessor(resize_rule="page4d", image_size=4 * PATCH)


# --------------------------------------------------------------------------------------
# Shapes, and the usage example of the design document
# --------------------------------------------------------------------------------------


def test_outputs_have_the_axes_of_times_and_views():
    out = run(random_model(), images(2, 3, 2), output_hidden_states=True)
    assert out.pose_enc.shape == (2, 3, 2, 9) and out.extrinsics.shape == (2, 3, 2, 3, 4)
    assert out.depth.shape == (2, 3, 2, 28, 42, 1) and out.world_points.shape == (2, 3, 2, 28, 42, 3)
    assert out.depth_conf.shape == out.world_points_conf.shape == (2, 3, 2, 28, 42)
    assert out.dynamic_mask.shape == out.dynamic_mask_logit.shape == (2, 3, 2, 6, 1)
    assert 0 < out.dynamic_mask.min() and out.dynamic_mask.max() < 1
    assert {name: len(entries) for name, entries in out.dual_stream_outputs.items()} == {"pose": 4, "geo": 4}


def test_the_usage_example_runs():
    with pytest.warns(UserWarning, match=r"counted from 1, that is \[22, 23\]"):
        config = Page4DConfig(
            img_size=518,
            patch_size=14,
            embed_dim=16,  # of 1024
            num_heads=2,
            mlp_ratio=1,
            encoder_config=dict(num_hidden_layers=1, num_attention_heads=1, mlp_ratio=1),
            camera_num_heads=2,
            camera_depth=1,
            dpt_features=8,
            dpt_out_channels=[8, 8, 8, 8],
            dpt_hidden_channels=8,
            enable_camera=True,
            enable_point=True,
            enable_depth=True,
            enable_dual_stream=True,
            enable_sparse_global=True,
            sparse_global_layers=[23, 24],
            sparse_strategy="landmark",
        )
    torch.manual_seed(0)
    model = Page4DModel(config).eval()
    assert len(model.multiview.global_sparse_blocks) == 2 and config.sparse_global_layers == [22, 23]
    predictions = run(model, torch.randn(1, 24, 4, 3, 28, 28))
    assert predictions.depth.shape == (1, 24, 4, 28, 28, 1) and predictions.depth.isfinite().all()


def test_twelve_pose_numbers_become_rigid_extrinsics():
    out = run(random_model(pose_encoding_type="R9D_t"), images())
    rotation = out.extrinsics[..., :3, :3]
    assert out.pose_enc.shape == (1, 2, 2, 12) and out.intrinsics is None
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0)
    assert (torch.linalg.det(rotation) > 0).all()


# --------------------------------------------------------------------------------------
# Every option reaches the output
# --------------------------------------------------------------------------------------

SPARSE = dict(enable_sparse_global=True)
OPTIONS = {
    "aa_order": ({}, dict(aa_order=["time", "view"])),
    "special_token_pos": ({}, dict(special_token_pos=1)),
    "time_pos rope": (dict(time_pos="none"), dict(time_pos="rope")),
    "time_pos alibi": (dict(time_pos="none"), dict(time_pos="alibi")),
    "time_rope_base": (dict(time_pos="rope"), dict(time_pos="rope", time_rope_base=10.0)),
    "enable_dual_stream": ({}, dict(enable_dual_stream=False, enable_dynamic_mask=True)),
    "mask_standardize": ({}, dict(mask_standardize=True)),
    "dynamic_mask_layer": ({}, dict(dynamic_mask_layer=0)),
    "lambda_clamp_value": ({}, dict(lambda_clamp_value=0.1)),
    "camera_trunk_scope": ({}, dict(camera_trunk_scope="frame")),
    "enable_sparse_global": (SPARSE, dict(enable_sparse_global=False)),
    "sparse_strategy": (SPARSE, SPARSE | dict(sparse_strategy="dilated")),
    "landmark_k": (SPARSE, SPARSE | dict(landmark_k=2)),
    "landmark_mutual": (SPARSE, SPARSE | dict(landmark_mutual=False)),
    "dilated_levels": (
        SPARSE | dict(sparse_strategy="dilated"),
        SPARSE | dict(sparse_strategy="dilated", dilated_levels=[2]),
    ),
    "lambda_kpt_pose": (SPARSE, SPARSE | dict(lambda_kpt_pose=2.0)),
    "enable_epipolar": (dict(enable_epipolar=False), dict(enable_epipolar=True, epipolar_band=3)),
    "epipolar_band": (dict(enable_epipolar=True, epipolar_band=3), dict(enable_epipolar=True, epipolar_band=12)),
    "epipolar_penalty": (
        dict(enable_epipolar=True, epipolar_band=3),
        dict(enable_epipolar=True, epipolar_band=3, epipolar_penalty=1),
    ),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_changes_the_output(option):
    before, after = OPTIONS[option]
    model = random_model(**before)
    extrinsics, intrinsics = cameras(times=3)
    given = dict(
        ext_mask=patches(times=3), extrinsics=extrinsics, intrinsics=intrinsics, keypoint_map=patches(times=3, seed=2)
    )
    given = {name: value for name, value in given.items() if name != "keypoint_map" or "enable_sparse_global" in before}
    one = run(model, images(times=3), **given)
    if not after.get("enable_sparse_global", "enable_sparse_global" not in before):
        given.pop("keypoint_map")
    other = run(same_weights(model, **after), images(times=3), **given)
    assert differ(one, other)


def test_gating_changes_the_mask():
    model, gated = random_model(), random_model(use_gating=True)
    known = model.state_dict()
    gated.load_state_dict({n: known.get(n, value) for n, value in gated.state_dict().items()})
    masks = [run(one, images(), ext_mask=patches()).dynamic_mask for one in (model, gated)]
    assert not torch.equal(*masks)


@pytest.mark.parametrize(
    ("name", "stream"),
    [
        ("lambda_pose_logit", "pose"),
        ("lambda_geo_logit", "geo"),
        ("lambda_pose_t_logit", "pose"),
        ("lambda_geo_t_logit", "geo"),
    ],
)
def test_a_strength_moves_its_own_stream_alone(name, stream):
    model = random_model()
    before = run(model, images(), output_hidden_states=True)
    getattr(model.multiview, name).data.fill_(-2.0)
    after = run(model, images(), output_hidden_states=True)
    changed = {
        key: not torch.equal(before.dual_stream_outputs[key][-1], after.dual_stream_outputs[key][-1])
        for key in ("pose", "geo")
    }
    assert changed == {"pose": stream == "pose", "geo": stream == "geo"}


def test_cameras_come_from_the_pose_stream_and_depth_from_the_geometry_stream():
    model = random_model()
    before = run(model, images())
    model.multiview.lambda_geo_logit.data.fill_(-2.0)
    after = run(model, images())
    assert torch.equal(before.pose_enc, after.pose_enc) and not torch.equal(before.depth, after.depth)


@pytest.mark.parametrize(
    "given", [dict(ext_mask=patches(times=3)), dict(keypoint_map=patches(times=3)), dict(confidence=patches(times=3))]
)
def test_what_is_given_changes_the_output(given):
    model = random_model(enable_sparse_global=True)
    assert differ(run(model, images(times=3)), run(model, images(times=3), **given))


def test_a_mask_may_be_pixels_or_patches():
    model = random_model()
    pixels = torch.rand(1, 2, 2, 28, 42)
    pooled = torch.nn.functional.adaptive_avg_pool2d(pixels.flatten(0, 2), (2, 3)).view(1, 2, 2, 6)
    for form in (pixels.unsqueeze(3), pooled, pooled.unsqueeze(-1)):
        assert_close(run(model, images(), ext_mask=pixels), run(model, images(), ext_mask=form), atol=1e-5)


def test_the_memory_carries_over_to_the_next_window():
    model = random_model(enable_sparse_global=True, sparse_strategy="memory_bank")
    first = run(model, images())
    assert [tuple(memory.shape) for memory in first.memory_state] == [(1, 4, 32)] * 2
    assert not torch.equal(*first.memory_state)
    assert differ(run(model, images(seed=1)), run(model, images(seed=1), memory_state=first.memory_state))
    single = random_model(enable_dual_stream=False, enable_sparse_global=True, sparse_strategy="memory_bank")
    assert run(single, images()).memory_state.shape == (1, 4, 32)


# --------------------------------------------------------------------------------------
# What must hold
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [["view", "time"], ["time", "view"]])
def test_two_streams_of_copies_without_strength_are_the_single_stream(order):
    dual = random_model(aa_order=order)
    dual.copy_trunk_to_streams()
    for name, parameter in dual.multiview.named_parameters():
        if name.startswith("lambda_"):
            parameter.data.zero_()
    single = same_weights(dual, enable_dual_stream=False, aa_order=order)
    pixels = images(2, 3, 2)
    assert_close(run(dual, pixels, ext_mask=patches(2, 3)), run(single, pixels))


def test_one_time_is_a_video_of_the_views():
    model = random_model(enable_dual_stream=False, aa_order=["time", "view"])
    pixels = images(2, 1, 3)
    several, video = run(model, pixels), run(model, pixels[:, 0])
    for name in GEOMETRY:
        torch.testing.assert_close(several[name][:, 0], video[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, SPARSE, SPARSE | dict(sparse_strategy="memory_bank"), dict(time_pos="alibi")])
def test_views_may_change_places(options):
    """All but the first, which is the reference of all coordinates."""
    model, pixels = random_model(**options), images(1, 2, 4)
    places = [0, 3, 1, 2]
    one, other = run(model, pixels), run(model, pixels[:, :, places])
    for name in GEOMETRY:
        torch.testing.assert_close(one[name][:, :, places], other[name], atol=5e-5, rtol=1e-3)


def test_only_differences_of_rotary_times_count():
    model = random_model(enable_dual_stream=False, time_pos="rope")
    block, rows = (
        model.aggregator.frame_blocks[0],
        torch.randn(1, 4, 1, 11, 32, generator=torch.Generator().manual_seed(1)),
    )

    def attend(moments):
        places = patch_positions(2, 3, 5).repeat(4, 1)
        rope = axial_rope_tables(places, 16, 100.0, torch.tensor(moments).repeat_interleave(11))
        return model.multiview._time(block, rows, rope)

    with torch.no_grad():
        torch.testing.assert_close(attend([0, 1, 2, 3]), attend([7, 8, 9, 10]), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(attend([0, 1, 2, 3]), attend([0, 2, 4, 6]), atol=1e-4)


@pytest.mark.parametrize("biased", [False, True])
def test_alibi_subtracts_distances_of_times_by_slopes_of_heads(biased):
    attn = random_model().aggregator.frame_blocks[0].attn
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 2, 12, 16, generator=generator) for _ in range(3))  # three times of four tokens
    bias = torch.randn(2, 12, generator=generator) if biased else None
    times = torch.arange(3).repeat_interleave(4)
    slopes = torch.tensor([2.0**-4, 2.0**-8]).view(2, 1, 1)  # of two heads
    logits = query @ key.mT * attn.scaling - slopes * (times[:, None] - times).abs()
    logits = logits if bias is None else logits + bias[:, None, None]
    expected = (logits.softmax(-1) @ value).transpose(1, 2)
    found = time_biased_attention(attn, query, key, value, 3, bias)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def dense_sparse(model) -> Page4DModel:
    """The same model whose sparse blocks attend everything."""
    other = copy.deepcopy(model)

    def dense(block, tokens, rope, given, memory, batch):
        return block(tokens.flatten(1, 3), rope=rope).view_as(tokens), memory

    other.multiview._sparse = dense
    return other


@pytest.mark.parametrize("options", [dict(sparse_strategy="landmark", landmark_k=99), dict(sparse_strategy="dilated")])
def test_sparse_attention_with_everything_in_reach_is_dense(options):
    model = random_model(enable_sparse_global=True, **options)
    assert_close(run(model, images(2)), run(dense_sparse(model), images(2)))


def test_dilated_neighbours_are_the_images_some_steps_away():
    near = dilated_neighbours(5, 2, (1, 2))
    assert near[0] == [0, 1, 2, 3, 4]  # itself, view 1, times 1 and 2 (views 0 and, one step away, 1)
    assert near[9] == [5, 6, 7, 8, 9]
    assert all(image in row for image, row in enumerate(near))
    assert all((a in near[b]) == (b in near[a]) for a in range(10) for b in range(10))


def test_the_mask_of_an_image_never_touches_logits_of_special_tokens():
    """With patches masked out by a huge strength, attention is that over special tokens and other images."""
    model = random_model()
    block, spread = model.multiview.geo_view_blocks[0], torch.zeros(1, 1, 2, 11)
    spread[..., 1, 5:] = 1  # one image moves
    logits = {}

    def record(attn, query, key, value, bias):
        logits[len(logits)] = (query @ key.mT * attn.scaling + bias[:, None, None]).detach()
        return key_biased_attention(attn, query, key, value, bias)

    import modeling_dsr.page4d_multiview as module

    saved, module.key_biased_attention = module.key_biased_attention, record
    try:
        tokens = torch.randn(1, 1, 2, 11, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for mask in (torch.zeros_like(spread), spread):
                model.multiview._view(block, tokens, None, None, (2, 3), model.multiview._bias("geo", "view", mask))
    finally:
        module.key_biased_attention = saved
    changed = (logits[0] != logits[1]).any(1).any(1)[0]
    assert changed.tolist() == [False] * 11 + [False] * 5 + [True] * 6


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_a_key_bias_is_the_same_by_every_implementation(implementation):
    attn = random_model().aggregator.frame_blocks[0].attn
    attn.config = copy.deepcopy(attn.config)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 2, 7, 16, generator=generator) for _ in range(3))
    bias = torch.randn(2, 7, generator=generator)
    expected = ((query @ key.mT * attn.scaling + bias[:, None, None]).softmax(-1) @ value).transpose(1, 2)
    if implementation == "flex_attention":  # any implementation without masks goes the way of more channels
        found = widened_attention(attn, query, key, value, torch.ones(1, 1, 1, 1), bias[:, None, :, None])
    else:
        attn.config._attn_implementation = implementation
        found = key_biased_attention(attn, query, key, value, bias)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_points_seen_by_two_views_lie_on_each_others_lines():
    extrinsics, intrinsics = cameras(views=3)
    matrices, known = fundamental_matrices(intrinsics[0, 0], extrinsics[0, 0])
    assert known.tolist() == [[i != j for j in range(3)] for i in range(3)]
    point = torch.tensor([0.3, -0.2, 4.0, 1.0])
    pixels = [k @ (e @ point)[:3] for k, e in zip(intrinsics[0, 0], extrinsics[0, 0])]
    pixels = [pixel / pixel[2] for pixel in pixels]
    for i in range(3):
        for j in range(3):
            if i != j:
                line = matrices[i, j] @ pixels[i]
                assert abs(line @ pixels[j]) / line[:2].norm() < 1e-3
    assert epipolar_distance(matrices[0], (2, 3), PATCH).shape == (6, 3, 6)


class Largest(TorchDispatchMode):
    """The largest product of the last two axes of any tensor that an operation makes."""

    size = 0

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        result = function(*arguments, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 1 and tensor.shape[-1] == tensor.shape[-2]:
                self.size = max(self.size, tensor.shape[-1])
        return result


@pytest.mark.parametrize("options", [{}, SPARSE, SPARSE | dict(sparse_strategy="memory_bank"), dict(time_pos="alibi")])
def test_no_bias_of_all_pairs_is_ever_built(options):
    model = random_model(**options)
    with Largest() as largest, torch.no_grad():
        model(images(1, 3, 3, 4, 5), ext_mask=patches(1, 3, 3, 20))
    assert largest.size < 3 * 25  # tokens of the shortest sequence


@pytest.mark.parametrize(
    "options",
    [
        {},
        SPARSE,
        SPARSE | dict(sparse_strategy="memory_bank"),
        SPARSE | dict(sparse_strategy="dilated"),
        dict(time_pos="alibi", use_gating=True),
    ],
)
def test_the_host_never_waits_for_the_device(options):
    model = random_model(**options)
    with CountSynchronisations() as counter, torch.no_grad():
        model(images(1, 3, 2), ext_mask=patches(1, 3))
    assert counter.found == []


# --------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gating", [False, True])
def test_mask_head_and_strengths_receive_gradients(gating):
    model = random_model(enable_sparse_global=True, use_gating=gating).train()
    out = model(images(), ext_mask=patches(), keypoint_map=patches(seed=2), mask_labels=patches(seed=3), **targets())
    out.loss.backward()
    assert {"mask", "consistency", "separation", "camera", "depth_regression"} <= set(out.losses)
    for name, parameter in model.multiview.named_parameters():
        if name.startswith(("dynamic_mask_head", "lambda_")):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("detach", [True, False])
def test_the_mask_trains_the_trunk_only_if_wished(detach):
    model = random_model(detach_mask_input=detach).train()
    model(images(), mask_labels=patches()).losses["mask"].backward()
    reached = any(p.grad is not None and p.grad.abs().max() > 0 for p in model.aggregator.parameters())
    assert reached == (not detach)


def test_learned_numbers_start_where_the_configuration_says():
    wished = dict(
        lambda_pose=0.5, lambda_geo=1.0, lambda_pose_t=1.5, lambda_geo_t=2.0, lambda_kpt=2.5, alpha=3.0, beta=3.5
    )
    new = Page4DModel(tiny_config(enable_sparse_global=True, **wished)).multiview
    names = ("lambda_pose_logit", "lambda_geo_logit", "lambda_pose_t_logit", "lambda_geo_t_logit", "lambda_kpt")
    found = [getattr(new, name).item() for name in names]
    assert [*found, new.dynamic_mask_head.alpha.item(), new.dynamic_mask_head.beta.item()] == list(wished.values())


def test_masks_alone_train_too():
    out = random_model().train()(images(), mask_labels=patches())
    assert set(out.losses) == {"mask", "consistency", "separation"}
    torch.testing.assert_close(
        out.losses["mask"],
        torch.nn.functional.binary_cross_entropy(out.dynamic_mask.squeeze(-1), patches()),
    )


def test_the_separation_is_the_cosine_of_the_last_tokens():
    out = random_model()(images(), mask_labels=patches(), output_hidden_states=True)
    pose, geometry = (out.dual_stream_outputs[name][-1] for name in ("pose", "geo"))
    expected = ((pose * geometry).sum(-1) / (pose.norm(dim=-1) * geometry.norm(dim=-1))).mean()
    torch.testing.assert_close(out.losses["separation"], expected)


def test_the_consistency_compares_depth_with_the_depth_of_points():
    out = random_model()(images(), mask_labels=patches())
    rotation, shift = out.extrinsics[..., :3], out.extrinsics[..., 3]
    deep = (torch.einsum("btvij,btvhwj->btvhwi", rotation, out.world_points) + shift[..., None, None, :])[..., 2]
    torch.testing.assert_close(out.losses["consistency"], (out.depth.squeeze(-1) - deep).abs().clamp_max(100).mean())


def test_the_freeze_policy_trains_geometry_and_what_is_new():
    model = random_model(freeze="multiview", enable_sparse_global=True, sparse_strategy="memory_bank")
    free = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(name.startswith("multiview.") for name, p in model.named_parameters() if p.requires_grad)
    assert free == {
        "dynamic_mask_head", "geo_time_blocks", "geo_view_blocks", "global_sparse_blocks", "memory_tokens",
        "lambda_kpt",
        "lambda_pose_logit", "lambda_geo_logit", "lambda_pose_t_logit", "lambda_geo_t_logit",
    }  # fmt: skip


# --------------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(aa_order=["view", "view"]), "`aa_order` must name view and time once each"),
        (dict(sparse_strategy="random"), "`sparse_strategy` must be one of"),
        (dict(time_pos="sine"), "`time_pos` must be one of"),
        (dict(dual_stream_layers=[3, 4]), "`dual_stream_layers` names layer 4"),
        (dict(dual_stream_layers=[2, 1]), "must be increasing"),
        (dict(enable_sparse_global=True, sparse_global_layers=[2, 9]), "`sparse_global_layers` names layer 9"),
        (dict(dynamic_mask_layer=2), "comes after the first of `dual_stream_layers`"),
        (dict(landmark_k=0), "`landmark_k` must be positive"),
        (dict(dilated_levels=[0, 1]), "steps of at least 1"),
        (dict(freeze="multiview", enable_dual_stream=False), "needs `enable_dual_stream`"),
    ],
)
def test_a_wrong_configuration_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


@pytest.mark.parametrize("name", ["frame", "global"])
def test_published_names_of_the_axes_are_understood(name):
    order = ["frame", "global"] if name == "frame" else ["global", "frame"]
    assert tiny_config(aa_order=order).aa_order == (["time", "view"] if name == "frame" else ["view", "time"])
    assert tiny_config(sparse_strategy="block_dilated").sparse_strategy == "dilated"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(ext_mask=torch.zeros(1, 2, 3, 6)), "`ext_mask` must be pixels"),
        (dict(ext_mask=torch.zeros(1, 2, 2, 28, 28)), "`ext_mask` must be pixels"),
        (dict(mask_labels=torch.zeros(1, 3, 2, 6)), "`mask_labels` must be pixels"),
        (dict(keypoint_map=torch.zeros(1, 2, 2, 5)), "`keypoint_map` must hold one value per patch"),
        (dict(confidence=torch.zeros(1, 1, 2, 6)), "`confidence` must hold one value per patch"),
        (dict(memory_state=torch.zeros(1, 4, 32)), "`memory_state` belongs to"),
        (dict(query_points=torch.zeros(1, 2)), "tracked through one video"),
        (dict(depths=torch.ones(1, 2, 2, 28, 42)), "`extrinsics` is missing"),
        (targets(views=3), "must be .* to match `pixel_values`"),
    ],
)
def test_wrong_input_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        run(random_model(), images(), **given)


def test_a_video_takes_no_masks_of_views():
    with pytest.raises(ValueError, match=r"`ext_mask` goes with images \[B, T, V"):
        run(random_model(), images()[:, 0], ext_mask=patches()[:, 0])


def test_memory_of_another_model_is_refused():
    model = random_model(enable_sparse_global=True, sparse_strategy="memory_bank")
    with pytest.raises(ValueError, match="must be a pair"):
        run(model, images(), memory_state=torch.zeros(1, 4, 32))


@pytest.mark.parametrize(
    "options", [{}, dict(spatial_mask_variant="mv", mask_layer=1, masked_layers=[2, 3], mask_scale=1.0)]
)
def test_a_video_still_goes_through_the_trunk_alone(options):
    out = run(random_model(mask_alpha=1.0 if options else 0.0, **options), images()[:, :, 0])
    assert out.depth.shape == (1, 2, 28, 42, 1)
    assert (out.dynamic_mask is None) == (not options)
    if options:
        assert 0 <= out.dynamic_mask.min() and out.dynamic_mask.max() <= 1
