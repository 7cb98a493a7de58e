"""PAGE-4D: the checks common to all models, and what the paper and the published code say of this one."""

import copy
import math
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from configuration_dsr import Page4DConfig
from modeling_dsr.modeling_page4d import Page4DModel
from modeling_dsr.page4d_heads import GlobalBlock, SpatialMaskHead
from processing_dsr import GeometryProcessor
from tests.model_checks import ModelChecks, assert_same, randomize, tensors_of

PATCH = 14


def tiny_config(**overrides):
    values = dict(
        encoder_config=dict(num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2),
        img_size=4 * PATCH,
        embed_dim=32,
        depth=4,
        num_heads=2,
        mlp_ratio=2.0,
        mask_alpha=0.5,
        mask_layer=1,
        masked_layers=[2],
        mask_hidden_channels=8,
        camera_depth=1,
        camera_num_heads=4,
        camera_mlp_ratio=2.0,
        dpt_layers=[0, 1, 2, 3],
        dpt_features=8,
        dpt_out_channels=[8, 8, 8, 8],
        dpt_hidden_channels=8,
        track_features=8,
        track_out_channels=[8, 8, 8, 8],
        track_hidden_size=16,
        track_depth=1,
        track_num_heads=2,
        track_num_virtual=4,
        track_correlation_levels=2,
        track_correlation_radius=1,
        track_iterations=2,
    )
    return Page4DConfig(**{**values, **overrides})


def frames(batch, count, rows=2, columns=3, seed=0):
    """Each sample from a generator of its own, so that sample i is the same in every batch."""
    samples = [
        torch.rand(count, 3, rows * PATCH, columns * PATCH, generator=torch.Generator().manual_seed(seed + i))
        for i in range(batch)
    ]
    return torch.stack(samples)


def targets(batch, count, rows=2, columns=3):
    """Cameras on a line looking along z at a wavy wall."""
    height, width = rows * PATCH, columns * PATCH
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    depths = torch.stack([torch.stack([3 + (5 * x + i + j).sin() + y for j in range(count)]) for i in range(batch)])
    extrinsics = torch.eye(4)[:3].expand(batch, count, 3, 4).clone()
    extrinsics[..., 0, 3] = 0.1 * torch.arange(count)
    intrinsics = (
        torch.tensor([[40.0, 0, width / 2], [0, 40.0, height / 2], [0, 0, 1]]).expand(batch, count, 3, 3).clone()
    )
    return dict(depths=depths, extrinsics=extrinsics, intrinsics=intrinsics)


def random_model(config=None) -> Page4DModel:
    """With weights that matter, and fields of view away from 0, where focal lengths are infinite."""
    torch.manual_seed(0)
    model = Page4DModel(config or tiny_config()).eval()
    randomize(model)
    with torch.no_grad():
        model.camera_head.pose_branch.fc2.weight[7:] *= 0.1
        model.camera_head.pose_branch.fc2.bias[7:] = 0.8
    return model


@pytest.fixture(scope="module")
def model():
    return random_model()


class TestPage4D(ModelChecks):
    model_classes = (Page4DModel,)
    has_attentions = False
    parameters_without_gradient = (r"encoder\.embeddings\.mask_token",)  # used by DINO's own training alone
    lora_targets = r".*_blocks\.\d+\.attn\.qkv"
    fsdp_layers = ("VisionBlock", "GlobalBlock", "Dinov2WithRegistersLayer")

    def tiny_config(self):
        return tiny_config()

    def build(self, model_class):
        return random_model()

    @staticmethod
    def assert_fresh(name, found, fresh):
        if found.numel() == 1:  # one number, uniform in ±1/sqrt(fan in), has no spread to compare
            assert found.abs() <= 1
        else:
            ModelChecks.assert_fresh(name, found, fresh)

    def inputs(self, batch, padding_side="left"):
        return {"pixel_values": frames(batch, 3)}

    def training_inputs(self, batch):
        return {"pixel_values": frames(batch, 3), **targets(batch, 3)}

    def expected_hidden_states(self, config, inputs):
        batch, count, _, height, width = inputs["pixel_values"].shape
        tokens = 1 + config.num_register_tokens + (height // PATCH) * (width // PATCH)
        return config.depth, (batch, count, tokens, 2 * config.embed_dim)

    def compile_pieces(self, model, inputs):
        patches = torch.randn(1, 3, 6, model.config.embed_dim)

        def trunk(patches, mask_alpha):
            tokens = model.aggregator(patches, (2, 3), mask_alpha)
            return tokens.camera_tokens, tokens.patch_tokens

        return {"trunk": (trunk, (patches, 0.0), {}), "masked trunk": (trunk, (patches, 1.0), {})}

    def processor(self):
        return GeometryProcessor(resize_rule="page4d", image_size=4 * PATCH)


# --------------------------------------------------------------------------------------
# Inputs and outputs
# --------------------------------------------------------------------------------------


def run(model, pixel_values, **kwargs):
    with torch.no_grad():
        return model(pixel_values, **kwargs)


@pytest.mark.parametrize("count,rows,columns", [(1, 2, 2), (2, 1, 1), (3, 1, 4), (4, 5, 2)])
def test_any_number_of_frames_and_any_multiple_of_the_patch_size(model, count, rows, columns):
    """One frame, one patch (where the published mask is NaN), lying and standing frames."""
    outputs = run(model, frames(2, count, rows, columns), mask_alpha=1.0)
    height, width = rows * PATCH, columns * PATCH
    assert outputs.pose_enc.shape == (2, count, 9)
    assert outputs.depth.shape == (2, count, height, width, 1)
    assert outputs.world_points.shape == (2, count, height, width, 3)
    assert outputs.depth_conf.shape == outputs.world_points_conf.shape == (2, count, height, width)
    assert outputs.mask_bias.shape == outputs.dynamic_mask.shape == (2, count, rows, columns)
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(outputs).values())


def test_one_scene_needs_no_scene_axis(model):
    pixels = frames(1, 2)
    assert_same(tensors_of(run(model, pixels[0])), tensors_of(run(model, pixels)))


def test_values_outside_the_unit_interval_are_legal(model):
    assert torch.isfinite(run(model, 3 * frames(1, 2) - 1).depth).all()


def test_the_last_estimate_is_the_pose(model):
    outputs = run(model, frames(1, 2))
    assert len(outputs.pose_enc_list) == model.config.camera_iterations
    assert torch.equal(outputs.pose_enc_list[-1], outputs.pose_enc)


def test_heads_that_are_switched_off_give_nothing():
    model = random_model(tiny_config(enable_point=False, spatial_mask_variant=None, mask_alpha=0.0))
    outputs = run(model, frames(1, 2))
    assert outputs.world_points is None and outputs.mask_bias is None and outputs.depth is not None
    assert not any("spatial_mask_head" in name or "point_head" in name for name in model.state_dict())


def test_chunks_do_not_change_the_result(model):
    pixels, expected = frames(1, 5), None
    for size in (1, 2, 100):
        other = copy.deepcopy(model)
        other.config.encoder_chunk_size = other.config.head_chunk_size = other.config.trunk_chunk_size = size
        found = tensors_of(run(other, pixels))
        expected = expected or found
        assert_same(found, expected, 2e-5)


def test_with_and_without_gradients_the_result_is_the_same(model):
    pixels = frames(1, 3)
    assert_same(tensors_of(model(pixels)), tensors_of(run(model, pixels)), 2e-5)


def test_later_frames_have_no_order(model):
    """Only the first frame is special: permuting the others permutes the outputs."""
    pixels, order = frames(1, 4), [0, 3, 1, 2]
    straight, permuted = tensors_of(run(model, pixels)), tensors_of(run(model, pixels[:, order]))
    per_frame = [name for name, tensor in straight.items() if tensor.shape[:2] == (1, 4)]
    assert {"pose_enc", "depth", "world_points", "mask_bias"} <= set(per_frame)
    for name in per_frame:
        assert torch.allclose(permuted[name], straight[name][:, order], atol=2e-5, rtol=1e-5), name


# --------------------------------------------------------------------------------------
# Mask
# --------------------------------------------------------------------------------------


def test_mask_outputs_are_absent_when_it_is_off_and_complementary_when_on(model):
    pixels = frames(1, 3)
    off, on = run(model, pixels, mask_alpha=0.0), run(model, pixels, mask_alpha=1.0)
    assert off.mask_bias is None and off.dynamic_mask is None
    assert on.mask_bias.abs().max() < 0.5
    assert torch.equal(on.dynamic_mask, 0.5 - on.mask_bias)
    assert not torch.allclose(on.pose_enc, off.pose_enc)


def test_both_published_variants_are_a_configuration(model):
    pixels = frames(1, 2)
    variants = {}
    for alpha in (0.0, 1.0):
        configured = copy.deepcopy(model)
        configured.config.mask_alpha = alpha
        variants[alpha] = run(configured, pixels)
        assert_same(tensors_of(variants[alpha]), tensors_of(run(model, pixels, mask_alpha=alpha)))
    assert variants[0.0].mask_bias is None and variants[1.0].mask_bias is not None


def test_the_mask_moves_special_tokens_alone_and_from_its_layer_on(model):
    pixels, special = frames(1, 3), model.aggregator.num_special
    off = run(model, pixels, mask_alpha=0.0, output_hidden_states=True).hidden_states
    on = run(model, pixels, mask_alpha=1.0, output_hidden_states=True).hidden_states
    first = model.config.masked_layers[0]
    for layer in range(first):
        assert torch.equal(on[layer], off[layer])
    assert torch.allclose(on[first][:, :, special:], off[first][:, :, special:], atol=1e-5)
    assert (on[first][:, :, :special] - off[first][:, :, :special]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_biased_attention_equals_a_bias_matrix(implementation):
    config = tiny_config()
    config._attn_implementation = implementation
    block = GlobalBlock(config, 32, 2, 3, qk_norm_eps=1e-5, norm_eps=1e-5, layer_scale=0.5)
    attention = block.attn.eval()
    query, key, value = torch.randn(3, 2, 2, 2 * 7, 16).unbind(0)
    bias = torch.cat([torch.zeros(2, 2, 3), 5 * torch.randn(2, 2, 4)], -1)
    rows = (torch.arange(14) % 7 < 3).float()
    logits = query @ key.mT / math.sqrt(16) + rows[:, None] * bias.flatten(1)[:, None, None]
    expected = (logits.softmax(-1) @ value).transpose(1, 2)
    assert torch.allclose(attention.attend_biased(query, key, value, bias), expected, atol=1e-5)


def test_the_mask_head_gives_no_gradient_to_its_input():
    head, tokens = SpatialMaskHead(8, 4), torch.randn(2, 6, 8, requires_grad=True)
    mask = head(tokens, (2, 3))
    mask.sum().backward()
    assert tokens.grad is None
    assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())


# --------------------------------------------------------------------------------------
# Precision, devices, speed
# --------------------------------------------------------------------------------------


class CountSynchronisations(TorchDispatchMode):
    """Calls that make the host wait for the device."""

    NAMES = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if str(function).startswith(self.NAMES):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def test_synchronisations_are_counted():
    with CountSynchronisations() as counter:
        torch.ones(2).nonzero()
        torch.ones(1).item()
    assert len(counter.found) == 2


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_forward_never_waits_for_the_device(model, alpha):
    pixels = frames(1, 3)
    with CountSynchronisations() as counter, torch.no_grad():
        model(pixels, mask_alpha=alpha)
    assert counter.found == []


def test_tracking_never_waits_for_the_device():
    model = random_model(tiny_config(enable_track=True))
    pixels, queries = frames(1, 3), torch.tensor([[5.0, 7.0]])
    with CountSynchronisations() as counter, torch.no_grad():
        model(pixels, query_points=queries)
    assert counter.found == []


def test_a_training_step_never_waits_for_the_device(model):
    """But for the check of the cameras, which copies four counts at once."""
    pixels, known = frames(1, 2), targets(1, 2)
    with CountSynchronisations() as counter:
        model(pixels, **known).loss.backward()
    assert counter.found == []


def test_bfloat16_autocast_keeps_stream_and_heads_in_float32(model):
    pixels = frames(1, 3)
    streams = []
    hook = model.aggregator.register_forward_hook(
        lambda module, inputs, output: streams.append(output.camera_tokens.dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(model, pixels)
    hook.remove()
    assert streams == [torch.float32]
    expected = run(model, pixels)
    for name, tensor in tensors_of(found).items():
        assert tensor.dtype == torch.float32 and torch.isfinite(tensor).all(), name
    assert (found.pose_enc - expected.pose_enc).abs().max() < 0.1 * expected.pose_enc.abs().max()


def test_bfloat16_weights_stay_close(model, tmp_path):
    model.save_pretrained(tmp_path)
    half = Page4DModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    found, expected = run(half, frames(1, 3)), run(model, frames(1, 3))
    assert found.depth.dtype == torch.float32
    assert (found.pose_enc - expected.pose_enc).abs().max() < 0.1 * expected.pose_enc.abs().max()


# --------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------


def test_losses_are_returned_with_targets_and_only_then(model):
    pixels, known = frames(1, 2), targets(1, 2)
    assert model(pixels).loss is None
    outputs = model(pixels, **known)
    config, terms = model.config, outputs.losses
    dense = {
        name: sum(terms[f"{name}_{part}"] for part in ("confidence", "regression", "gradient"))
        for name in ("depth", "point")
    }
    expected = (
        config.camera_loss_weight * terms["camera"]
        + config.depth_loss_weight * dense["depth"]
        + config.point_loss_weight * dense["point"]
    )
    assert torch.allclose(outputs.loss, expected)


def test_training_lowers_the_loss(model):
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pixels, known, losses = frames(1, 2), targets(1, 2), []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model(pixels, **known).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_papers_freeze_policy_trains_the_masked_layers_and_the_mask(tmp_path):
    model = random_model(tiny_config(freeze="page4d"))
    trains = re.compile(r"aggregator\.((frame|global)_blocks\.2|spatial_mask_head)\..*")
    model.save_pretrained(tmp_path)
    loaded = Page4DModel.from_pretrained(tmp_path)
    for one in (model, loaded):
        assert {n for n, p in one.named_parameters() if p.requires_grad} == {
            n for n, _ in one.named_parameters() if trains.fullmatch(n)
        }
    loaded(frames(1, 2), **targets(1, 2)).loss.backward()
    for name, parameter in loaded.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_track_head_that_the_weights_lack_is_initialised(model, tmp_path):
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    fresh = Page4DModel(tiny_config(enable_track=True))
    loaded = Page4DModel.from_pretrained(tmp_path, config=tiny_config(enable_track=True))
    for name, parameter in loaded.track_head.named_parameters():
        if parameter.numel() > 16:
            ModelChecks.assert_fresh(name, parameter.detach(), fresh.track_head.get_parameter(name).detach())


# --------------------------------------------------------------------------------------
# Bad input
# --------------------------------------------------------------------------------------

BAD_INPUTS = {
    "size": (lambda: dict(pixel_values=torch.rand(1, 2, 3, 30, 40)), "multiples of 14.*would choose 42×56"),
    "mixed sizes": (
        lambda: dict(pixel_values=[torch.rand(3, 28, 28), torch.rand(3, 28, 42)]),
        "Frames of different sizes",
    ),
    "shape": (lambda: dict(pixel_values=torch.rand(2, 28, 28)), r"\[B, S, 3, H, W\]"),
    "no frame": (lambda: dict(pixel_values=torch.rand(1, 0, 3, 28, 28)), "at least one frame"),
    "8 bits": (
        lambda: dict(pixel_values=torch.zeros(1, 2, 3, 28, 28, dtype=torch.uint8)),
        "Divide 8-bit images by 255",
    ),
    "queries": (lambda: dict(pixel_values=frames(1, 2), query_points=torch.zeros(1, 2)), "enable_track"),
    "alpha": (lambda: dict(pixel_values=frames(1, 2), mask_alpha=1.5), "`mask_alpha` must be a number in 0…1"),
    "part of the targets": (
        lambda: dict(pixel_values=frames(1, 2), depths=targets(1, 2)["depths"]),
        "`extrinsics` is missing",
    ),
    "target shape": (
        lambda: dict(pixel_values=frames(1, 2), **{**targets(1, 2), "depths": torch.ones(1, 2, 3, 3)}),
        r"`depths` must be \[1, 2, 28, 42\]",
    ),
    "not rigid": (
        lambda: dict(pixel_values=frames(1, 2), **{**targets(1, 2), "extrinsics": 2 * targets(1, 2)["extrinsics"]}),
        "not a rotation",
    ),
    "not finite": (
        lambda: dict(pixel_values=frames(1, 2), **{**targets(1, 2), "intrinsics": targets(1, 2)["intrinsics"] / 0}),
        "`intrinsics` holds values that are not finite",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_refused_with_the_cure(model, case):
    build, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        model(**build())


@pytest.mark.parametrize(
    "override,message",
    [
        (dict(dpt_layers=[0, 1, 2, 4]), "`dpt_layers` names layer 4, but `depth` is 4"),
        (dict(dpt_layers=[0, 2, 1, 3]), "increasing order"),
        (dict(masked_layers=[0, 2]), "begin before `mask_layer` 1"),
        (dict(mask_alpha=2.0), "`mask_alpha` must lie in 0…1"),
        (dict(spatial_mask_variant=None), "needs a mask head"),
        (dict(freeze="everything"), "`freeze` must be one of"),
        (dict(head_chunk_size=0), "`head_chunk_size` must be at least 1"),
        (dict(num_heads=3), "rotary positions"),
    ],
)
def test_a_wrong_configuration_is_refused(override, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**override)


def test_mask_learns_from_labels_alone():
    """True masks train the mask head, and the trunk below it only where the configuration lets them."""
    labels = torch.zeros(1, 2, 2 * PATCH, 3 * PATCH)
    labels[:, :, :PATCH, :PATCH] = 1
    for detach in (True, False):
        model = Page4DModel(tiny_config(detach_mask_input=detach)).train()
        outputs = model(frames(1, 2), mask_labels=labels)
        assert set(outputs.losses) == {"mask"}
        shares = torch.tensor([[1.0, 0, 0], [0, 0, 0]]).expand(1, 2, 2, 3)
        expected = torch.nn.functional.binary_cross_entropy(outputs.dynamic_mask, shares)
        assert torch.allclose(outputs.losses["mask"], expected)
        assert torch.allclose(outputs.loss, model.config.mask_loss_weight * expected)
        outputs.loss.backward()
        assert model.aggregator.spatial_mask_head.layers[0].weight.grad.abs().sum() > 0
        reached = model.encoder.embeddings.patch_embeddings.projection.weight.grad
        assert (reached is None or not reached.any()) == detach
        assert torch.equal(model(frames(1, 2), mask_labels=shares.flatten(2)).losses["mask"], outputs.losses["mask"])


def test_mask_labels_need_a_mask():
    with pytest.raises(ValueError, match="`mask_labels` train the dynamics-aware mask, which is off"):
        Page4DModel(tiny_config(mask_alpha=0.0))(frames(1, 2), mask_labels=torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match="`mask_labels` must be pixels"):
        Page4DModel(tiny_config())(frames(1, 2), mask_labels=torch.zeros(1, 2, 5))
