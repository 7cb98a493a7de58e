"""π³ and Pi3X: the checks common to all models, and what is particular to them."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_dsr.modeling_pi3 import Pi3Model
from modeling_dsr.pi3_conditioning import pixel_rays
from modeling_dsr.pi3_heads import NearestRotation
from modeling_dsr.vision_rope import axial_rope_tables, patch_positions
from processing_dsr import GeometryProcessor
from tests.model_checks import ModelChecks, assert_same, randomize, tensors_of
from tests.modeling_dsr.pi3_samples import (
    FRAMES,
    HEIGHT,
    WIDTH,
    conditions,
    images,
    intrinsics,
    poses,
    targets,
    tiny_config,
)


def random_model(config) -> Pi3Model:
    """Weights that matter, and a point head small enough for depths near 1: a depth is an exponential."""
    model = Pi3Model(config).eval()
    randomize(model)
    with torch.no_grad():
        for parameter in model.point_head.parameters():
            parameter.mul_(0.3)
    return model


class Pi3Checks(ModelChecks):
    model_classes = (Pi3Model,)
    has_attentions = False
    attention_atol = 1e-4  # depths are exponentials and reach some hundreds
    variant = "pi3"
    lora_targets = r".*decoder\..*qkv"
    fsdp_layers = ("VisionBlock", "Dinov2WithRegistersLayer")

    def build(self, model_class):
        return random_model(self.tiny_config())

    def tiny_config(self):
        return tiny_config(self.variant, confidence_loss_weight=0.05)

    def inputs(self, batch, padding_side="left"):
        return {"pixel_values": images(batch)}

    def training_inputs(self, batch):
        return self.inputs(batch) | targets(batch)

    def expected_hidden_states(self, config, inputs):
        tokens = config.num_register_tokens + (HEIGHT // 14) * (WIDTH // 14)
        return config.num_decoder_layers + 1, (len(inputs["pixel_values"]), FRAMES, tokens, config.hidden_size)

    def compile_pieces(self, model, inputs):
        tokens = model.encode(inputs["pixel_values"]).detach()
        return {"trunk": (model.decode, (tokens, FRAMES, (HEIGHT // 14, WIDTH // 14)), {})}

    def processor(self):
        return GeometryProcessor(pixel_limit=5000)


class TestPi3(Pi3Checks):
    parameters_without_gradient = (r"encoder\.embeddings\.mask_token",)  # used by DINO's own training alone


class TestPi3X(Pi3Checks):
    variant = "pi3x"
    parameters_without_gradient = (r".*encoder\.embeddings\.mask_token",)

    @pytest.mark.slow
    def test_missing_keys_are_initialised(self, tmp_path):
        super().test_missing_keys_are_initialised(tmp_path)

    def inputs(self, batch, padding_side="left"):
        return {"pixel_values": images(batch), **conditions(batch)}

    def compile_pieces(self, model, inputs):
        shape = tuple(inputs["pixel_values"].shape[i] for i in (0, 1, 3, 4))
        given = model._conditions(
            shape, torch.device("cpu"), **{k: v for k, v in inputs.items() if k != "pixel_values"}
        )
        tokens = model.encode(inputs["pixel_values"], given).detach()
        return {"trunk": (model.decode, (tokens, FRAMES, (HEIGHT // 14, WIDTH // 14), given), {})}


# --------------------------------------------------------------------------------------
# Particulars
# --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    """{variant: model}, not to be changed."""
    return {variant: random_model(tiny_config(variant)) for variant in ("pi3", "pi3x")}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Same up to rounding, relative to numbers that reach hundreds: depths are exponentials."""
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=2e-4, atol=2e-4, msg=lambda text, name=name: name + text
        )


@torch.no_grad()
def run(model, *arguments, **inputs):
    return model(*arguments, **inputs)


@pytest.mark.parametrize("variant", ["pi3", "pi3x"])
def test_outputs_permute_with_the_frames(models, variant):
    order = torch.tensor([2, 0, 1])
    plain, permuted = run(models[variant], images(2)), run(models[variant], images(2)[:, order])
    for name in ("points", "local_points", "conf", "camera_poses"):
        torch.testing.assert_close(permuted[name], plain[name][:, order], atol=1e-4, rtol=1e-4)


def test_pi3x_permutes_with_depth_too(models):
    order, given = torch.tensor([0, 2, 1]), conditions(1)
    plain = run(models["pi3x"], images(1), **given)
    permuted = run(models["pi3x"], images(1)[:, order], **{name: value[:, order] for name, value in given.items()})
    torch.testing.assert_close(permuted.points, plain.points[:, order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", ["pi3", "pi3x"])
@pytest.mark.parametrize("frames, height, width", [(1, 14, 14), (1, 70, 70), (2, 14, 56), (3, 84, 28)])
def test_any_number_of_frames_and_any_multiple_of_14(models, variant, frames, height, width):
    output = run(models[variant], images(1, frames, height, width))
    assert output.points.shape == (1, frames, height, width, 3)
    assert output.conf.shape == (1, frames, height, width, 1)
    assert all(torch.isfinite(value).all() for value in tensors_of(output).values())


def test_values_outside_0_and_1_are_legal(models):
    assert torch.isfinite(run(models["pi3"], 3 * images(1) - 1).points).all()


@pytest.mark.parametrize("variant", ["pi3", "pi3x"])
@pytest.mark.parametrize("chunk_size", [0, 1, 5])
def test_chunks_do_not_change_the_result(models, variant, chunk_size):
    model = copy.deepcopy(models[variant])
    model.config.chunk_size = chunk_size
    inputs = {"pixel_values": images(2)} | (conditions(2) if variant == "pi3x" else {})
    assert_close(tensors_of(run(model, **inputs)), tensors_of(run(models[variant], **inputs)))


@pytest.mark.parametrize("variant", ["pi3", "pi3x"])
def test_points_are_the_local_points_seen_from_the_poses(models, variant):
    output = run(models[variant], images(1))
    rotation, translation = output.camera_poses[..., :3, :3], output.camera_poses[..., :3, 3]
    world = torch.einsum("bnij,bnhwj->bnhwi", rotation, output.local_points) + translation[..., None, None, :]
    torch.testing.assert_close(output.points, world, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(1, FRAMES), atol=1e-5, rtol=0)


class Count(TorchDispatchMode):
    """Counts the operators that make a program wait for its device."""

    WAITING = ("_local_scalar_dense", "nonzero", "item")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.name().split("::")[-1].split(".")[0]
        if name in self.WAITING:
            self.found.append(name)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("variant", ["pi3", "pi3x"])
@pytest.mark.parametrize("with_targets", [False, True])
def test_forward_never_waits_for_the_device(models, variant, with_targets):
    inputs = {"pixel_values": images(2)} | (conditions(2) if variant == "pi3x" else {})
    inputs |= {"pose_mask": torch.ones(2, FRAMES, dtype=torch.bool)} if variant == "pi3x" else {}
    inputs |= targets(2) if with_targets else {}
    with Count() as count:
        run(models[variant], **inputs)
    assert count.found == []


def test_the_counter_counts():
    with Count() as count:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
    assert sorted(set(count.found)) == ["_local_scalar_dense", "nonzero"]


@pytest.mark.parametrize("variant", ["pi3", "pi3x"])
def test_bfloat16_weights_and_autocast_stay_close(models, variant):
    inputs = {"pixel_values": images(1)} | (conditions(1) if variant == "pi3x" else {})
    expected = run(models[variant], **inputs)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(models[variant], **inputs)
    whole = run(copy.deepcopy(models[variant]).to(torch.bfloat16), **inputs)
    for found in (mixed, whole):
        for name in ("points", "local_points", "conf", "camera_poses"):
            assert found[name].dtype == torch.float32
            assert (found[name] - expected[name]).abs().mean() < 0.1 * expected[name].abs().mean(), name


def test_rotation_angles_are_not_rounded_under_autocast():
    positions = patch_positions(40, 60, 5)
    with torch.autocast("cpu", torch.bfloat16):
        cos, sin = axial_rope_tables(positions, 64, 100.0)
    assert cos.dtype == torch.float32
    exact = axial_rope_tables(positions, 64, 100.0)
    assert torch.equal(cos, exact[0]) and torch.equal(sin, exact[1])


@pytest.mark.long  # minutes of a compiler's work
def test_flex_attention_equals_sdpa(models):
    model = copy.deepcopy(models["pi3"])
    expected = run(model, images(1)).points
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(run(model, images(1)).points, expected, atol=1e-4, rtol=1e-4)


# ---- rotations -------------------------------------------------------------------------


def test_nearest_rotation_is_a_rotation_even_of_a_reflection():
    matrix = torch.randn(64, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = NearestRotation.apply(matrix)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(64, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(64, dtype=torch.float64))
    other = torch.linalg.qr(torch.randn(64, 3, 3, dtype=torch.float64)).Q
    other = other * torch.linalg.det(other).view(-1, 1, 1)
    closest, some = ((matrix - candidate).flatten(1).norm(dim=1) for candidate in (rotation, other))
    assert (closest <= some + 1e-9).all()


def test_nearest_rotation_has_the_right_gradient():
    matrix = torch.randn(5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(NearestRotation.apply, (matrix,))


def test_gradient_exists_where_the_prediction_is_a_rotation():
    """There all singular values are equal, and the gradient of the decomposition itself is not defined."""
    matrix = torch.eye(3).expand(2, 3, 3).clone().requires_grad_()
    (NearestRotation.apply(matrix) * torch.arange(9.0).view(3, 3)).sum().backward()
    assert torch.isfinite(matrix.grad).all() and matrix.grad.abs().max() > 0


# ---- Pi3X's conditions -----------------------------------------------------------------


def test_no_conditions_equal_a_model_without_them(models):
    plain = Pi3Model(tiny_config("pi3x", use_conditioning=False)).eval()
    missing, unexpected = plain.load_state_dict(models["pi3x"].state_dict(), strict=False)
    assert not missing and all(n.startswith(("depth_", "ray_embed", "pose_inject_blk")) for n in unexpected)
    assert_same(tensors_of(run(plain, images(2))), tensors_of(run(models["pi3x"], images(2))))


def test_masks_that_are_false_equal_no_conditions(models):
    off = torch.zeros(1, FRAMES, dtype=torch.bool)
    masked = run(models["pi3x"], images(1), **conditions(1), depth_mask=off, ray_mask=off, pose_mask=off)
    assert_close(tensors_of(masked), tensors_of(run(models["pi3x"], images(1))))


@pytest.mark.parametrize("name", ["depths", "intrinsics", "poses"])
def test_every_condition_matters(models, name):
    plain = run(models["pi3x"], images(1))
    told = run(models["pi3x"], images(1), **{name: conditions(1)[name]})
    assert (told.points - plain.points).abs().max() > 1e-3


def test_masks_that_are_true_equal_no_masks(models):
    on = torch.ones(1, FRAMES, dtype=torch.bool)
    given = run(models["pi3x"], images(1), **conditions(1), depth_mask=on, ray_mask=on, pose_mask=on)
    assert_close(tensors_of(given), tensors_of(run(models["pi3x"], images(1), **conditions(1))))


def test_rays_equal_the_intrinsics_they_come_from(models):
    xy = pixel_rays(intrinsics(1), HEIGHT, WIDTH)
    rays = torch.nn.functional.normalize(torch.cat([xy, torch.ones_like(xy[..., :1])], -1), dim=-1)
    told = run(models["pi3x"], images(1), rays=rays)
    assert_close(tensors_of(told), tensors_of(run(models["pi3x"], images(1), intrinsics=intrinsics(1))))


def test_a_single_pose_is_dropped_and_the_mask_of_the_caller_stays(models):
    lone = torch.tensor([[False, True, False]])
    before = lone.clone()
    given = {name: value.clone() for name, value in conditions(1).items()}
    told = run(models["pi3x"], images(1), poses=given["poses"], pose_mask=lone)
    assert_close(tensors_of(told), tensors_of(run(models["pi3x"], images(1))))
    assert torch.equal(lone, before)
    run(models["pi3x"], images(1), **given)
    assert_same(given, conditions(1))


def test_unit_and_world_frame_of_the_conditions_do_not_matter(models):
    given = conditions(1)
    plain = run(models["pi3x"], images(1), **given)
    moved = {**given, "depths": 3 * given["depths"], "poses": poses(1, seed=7)[:, :1] @ given["poses"]}
    moved["poses"][..., :3, 3] *= 3
    assert_close(tensors_of(run(models["pi3x"], images(1), **moved)), tensors_of(plain))


def test_gradients_reach_the_conditions(models):
    given = {name: value.requires_grad_() for name, value in conditions(1).items()}
    output = models["pi3x"](images(1), **given)
    (output.points.square().mean() + output.camera_poses.square().mean()).backward()
    assert all(torch.isfinite(value.grad).all() and value.grad.abs().max() > 0 for value in given.values())
    models["pi3x"].zero_grad(set_to_none=True)


def test_conditions_do_not_touch_the_random_generator(models):
    state = torch.random.get_rng_state()
    run(models["pi3x"], images(1), **conditions(1))
    assert torch.equal(torch.random.get_rng_state(), state)


# ---- training --------------------------------------------------------------------------


def test_freeze_follows_the_published_stages():
    model = Pi3Model(tiny_config(trainable="without_encoder", confidence_loss_weight=0.05))
    assert {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad} == {"encoder"}
    model.freeze("confidence")
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"conf_decoder", "conf_head"}
    model.freeze("all")
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"encoder.embeddings.mask_token"}


@pytest.mark.parametrize("variant", ["pi3", "pi3x"])
def test_training_lowers_the_loss(variant):
    model = random_model(tiny_config(variant)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = model(images(1), **targets(1)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses


# ---- bad input -------------------------------------------------------------------------


def bad(**overrides) -> dict:
    return {"pixel_values": images(1), **overrides}


def not_rigid() -> torch.Tensor:
    matrices = poses(1)
    matrices[0, 1, :3, :3] *= 1.5
    return matrices


def not_finite() -> torch.Tensor:
    matrices = intrinsics(1)
    matrices[0, 2, 0, 0] = float("nan")
    return matrices


@pytest.mark.parametrize(
    "variant, inputs, message",
    [
        ("pi3", bad(pixel_values=torch.rand(1, 2, 3, 480, 640)), r"480×640.*would choose 434×574"),
        ("pi3", bad(pixel_values=torch.rand(2, 3, 28, 28)), r"must be \[B, N, 3, H, W\].*\[2, 3, 28, 28\]"),
        ("pi3", bad(pixel_values=torch.rand(1, 0, 3, 28, 28)), r"at least one scene and frame"),
        ("pi3", bad(pixel_values=[torch.rand(3, 28, 28), torch.rand(3, 28, 42)]), r"\(28, 28\), \(28, 42\).*one size"),
        ("pi3", bad(pixel_values=torch.zeros(1, 1, 3, 28, 28, dtype=torch.uint8)), r"uint8.*255"),
        ("pi3", bad(poses=poses(1)), r"reads images alone, got \['poses'\]"),
        ("pi3x", bad(poses=not_rigid()), r"`poses`.*not rigid: number 1"),
        ("pi3x", bad(intrinsics=not_finite()), r"`intrinsics` hold numbers that are not finite in matrix 2"),
        ("pi3x", bad(depths=torch.ones(1, FRAMES, 7, 7)), r"`depths` must be \[1, 3, 28, 42\].*\[1, 3, 7, 7\]"),
        ("pi3x", bad(pose_mask=torch.ones(1, FRAMES, dtype=torch.bool)), r"`pose_mask`.*`poses`, which was not given"),
        ("pi3", bad(target_points=torch.rand(1, FRAMES, HEIGHT, WIDTH, 3)), r"`target_camera_poses` is missing"),
    ],
)
def test_bad_input_is_refused_with_a_cure(models, variant, inputs, message):
    with pytest.raises(ValueError, match=message):
        run(models[variant], **inputs)


def test_a_diverged_model_answers_nan_and_no_error():
    """Without an error of the decomposition: Trainer then says which step it was."""
    model = random_model(tiny_config("pi3", confidence_loss_weight=0.05))
    with torch.no_grad():
        model.camera_head.fc_rot.weight.fill_(torch.nan)
    output = model(images(1), **targets(1))
    assert output.camera_poses[..., :3, :3].isnan().all() and output.loss.isnan()
